#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_augment_source{"mixmatch_augment.cu", R"cuda(
struct PixelScale { double shift[8], scale[8]; };
struct Strides { i64 image, channel, row, column; };

// Reflection without repeating the edge, for positions less than `size` outside.
__device__ inline i64 reflect(i64 position, i64 size) {
  const i64 last = size - 1;
  const i64 inside = last - (position < 0 ? -position : position);
  return last - (inside < 0 ? -inside : inside);
}

// The pixel that an output pixel shows, row by row through all images: cut from its padded and perhaps
// mirrored image; without `flip` itself.
__device__ inline const u8* source_pixel(const u8* images, const i64* flip, const i64* row_offset,
                                         const i64* column_offset, i64 padding, i64 height, i64 width,
                                         Strides strides, i64 i) {
  i64 column = i % width;
  i64 row = i / width % height;
  const i64 image = i / width / height;
  if (flip != nullptr) {
    row = reflect(row + row_offset[image] - padding, height);
    column = reflect(column + column_offset[image] - padding, width);
    column = flip[image] != 0 ? width - 1 - column : column;
  }
  return images + image * strides.image + row * strides.row + column * strides.column;
}

// uint8 images of any strides to channels-last ones, (pixel - shift) / scale, each cut from its padded and
// perhaps mirrored image; without `flip` as they are. A thread makes a pixel's channels.
template <class Scalar>
__global__ void crop_flip(Scalar* out, const u8* images, const i64* flip, const i64* row_offset,
                          const i64* column_offset, i64 padding, i64 count, i64 channels, i64 height,
                          i64 width, Strides strides, PixelScale pixels) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count * height * width;
       i += step) {
    const u8* pixel =
        source_pixel(images, flip, row_offset, column_offset, padding, height, width, strides, i);
    for (i64 c = 0; c < channels; ++c) {
      const Compute value = static_cast<Compute>(pixel[c * strides.channel]);
      narrow(out[i * channels + c],
             (value - static_cast<Compute>(pixels.shift[c])) / static_cast<Compute>(pixels.scale[c]));
    }
  }
}

// The same without scaling. `Pixel` is u8: kernels are templates.
template <class Pixel>
__global__ void crop_flip_bytes(Pixel* out, const Pixel* images, const i64* flip, const i64* row_offset,
                                const i64* column_offset, i64 padding, i64 count, i64 channels, i64 height,
                                i64 width, Strides strides) {
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count * height * width;
       i += step) {
    const Pixel* pixel =
        source_pixel(images, flip, row_offset, column_offset, padding, height, width, strides, i);
    for (i64 c = 0; c < channels; ++c) {
      out[i * channels + c] = pixel[c * strides.channel];
    }
  }
}
)cuda"};

/// The kernel's parameters of these names.
struct CudaPixelScale {
  double shift[8], scale[8];
};
struct CudaStrides {
  int64_t image, channel, row, column;
};

/// Whether the kernels take these: uint8 images and int64 [N] offsets, or none.
inline bool crop_flip_fits_cuda(const at::Tensor& images, const at::Tensor& flip, const at::Tensor& row,
                                const at::Tensor& column) {
  const auto on_device = [&](const at::Tensor& offsets) {
    return !offsets.defined() || (has_cuda_memory(offsets) && offsets.device() == images.device() &&
                                  offsets.is_contiguous() && offsets.scalar_type() == at::kLong);
  };
  return has_cuda_memory(images) && images.scalar_type() == at::kByte && images.size(1) <= 8 &&
         on_device(flip) && on_device(row) && on_device(column) && cuda_kernels_available(images.device());
}

/// uint8 CUDA images to normalised floating-point ones, channels-last, cropped and mirrored where `flip`,
/// `row` and `column` (int64 [N]) are given, in one kernel. An undefined tensor where it does not apply.
inline at::Tensor crop_flip_on_cuda(const at::Tensor& images, const at::Tensor& flip, const at::Tensor& row,
                                    const at::Tensor& column, int64_t padding,
                                    const std::vector<double>& shift, const std::vector<double>& scale,
                                    at::ScalarType dtype) {
  if (!crop_flip_fits_cuda(images, flip, row, column) || cuda_type_name(dtype) == nullptr) {
    return {};
  }
  at::Tensor out =
      at::empty(images.sizes(), images.options().dtype(dtype).memory_format(at::MemoryFormat::ChannelsLast));
  if (out.numel() == 0) {
    return out;
  }
  CudaPixelScale pixels{};
  std::copy(shift.begin(), shift.end(), pixels.shift);
  std::copy(scale.begin(), scale.end(), pixels.scale);
  const CudaStrides strides{images.stride(0), images.stride(1), images.stride(2), images.stride(3)};
  constexpr int64_t threads = 256;
  const int64_t work = images.size(0) * images.size(2) * images.size(3);
  launch_cuda_kernel(cuda_augment_source, std::string("crop_flip<") + cuda_type_name(dtype) + ">",
                     images.device(), {.blocks_x = cuda_blocks(work, threads), .threads = threads},
                     out.data_ptr(), images.data_ptr(), data_or_null(flip), data_or_null(row),
                     data_or_null(column), padding, images.size(0), images.size(1), images.size(2),
                     images.size(3), strides, pixels);
  return out;
}

/// The same without scaling: uint8 to uint8.
inline at::Tensor crop_flip_bytes_on_cuda(const at::Tensor& images, const at::Tensor& flip,
                                          const at::Tensor& row, const at::Tensor& column, int64_t padding) {
  if (!crop_flip_fits_cuda(images, flip, row, column)) {
    return {};
  }
  at::Tensor out = at::empty(images.sizes(), images.options().memory_format(at::MemoryFormat::ChannelsLast));
  if (out.numel() == 0) {
    return out;
  }
  const CudaStrides strides{images.stride(0), images.stride(1), images.stride(2), images.stride(3)};
  constexpr int64_t threads = 256;
  const int64_t work = images.size(0) * images.size(2) * images.size(3);
  launch_cuda_kernel(cuda_augment_source, "crop_flip_bytes<u8>", images.device(),
                     {.blocks_x = cuda_blocks(work, threads), .threads = threads}, out.data_ptr(),
                     images.data_ptr(), data_or_null(flip), data_or_null(row), data_or_null(column), padding,
                     images.size(0), images.size(1), images.size(2), images.size(3), strides);
  return out;
}

}  // namespace mixmatch::detail
