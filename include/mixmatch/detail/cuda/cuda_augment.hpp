#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_augment_source{"mixmatch_augment.cu", R"cuda(
struct PixelScale { double shift[8], scale[8]; };

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

// Bytes that keep their value, by a shift of 0 and a scale of 1.
__device__ inline void narrow(u8& to, float value) { to = static_cast<u8>(value); }

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
)cuda"};

/// The kernel's parameter of that name.
struct CudaPixelScale {
  double shift[8], scale[8];
};
/// uint8 CUDA images to normalised floating-point ones, or for an empty `scale` to uint8 ones of the same
/// values, channels-last, cropped and mirrored where `flip`, `row` and `column` (int64 [N]) are given, in one
/// kernel. An undefined tensor where it does not apply.
inline at::Tensor crop_flip_on_cuda(const at::Tensor& images, const at::Tensor& flip, const at::Tensor& row,
                                    const at::Tensor& column, int64_t padding,
                                    const std::vector<double>& shift, const std::vector<double>& scale,
                                    at::ScalarType dtype) {
  const auto on_device = [&](const at::Tensor& offsets) {
    return !offsets.defined() || (has_cuda_memory(offsets) && offsets.device() == images.device() &&
                                  offsets.is_contiguous() && offsets.scalar_type() == at::kLong);
  };
  const char* type = scale.empty() ? "u8" : cuda_type_name(dtype);
  if (!has_cuda_memory(images) || images.scalar_type() != at::kByte || images.size(1) > 8 ||
      !on_device(flip) || !on_device(row) || !on_device(column) || type == nullptr ||
      !cuda_kernels_available(images.device())) {
    return {};
  }
  at::Tensor out = at::empty(images.sizes(), images.options()
                                                 .dtype(scale.empty() ? at::kByte : dtype)
                                                 .memory_format(at::MemoryFormat::ChannelsLast));
  if (out.numel() == 0) {
    return out;
  }
  CudaPixelScale pixels{};
  std::fill(std::begin(pixels.scale), std::end(pixels.scale), 1.0);
  std::copy(shift.begin(), shift.end(), pixels.shift);
  std::copy(scale.begin(), scale.end(), pixels.scale);
  constexpr int64_t threads = 256;
  const int64_t work = images.size(0) * images.size(2) * images.size(3);
  launch_cuda_kernel(cuda_augment_source, std::string("crop_flip<") + type + ">", images.device(),
                     {.blocks_x = cuda_blocks(work, threads), .threads = threads}, out.data_ptr(),
                     images.data_ptr(), data_or_null(flip), data_or_null(row), data_or_null(column), padding,
                     images.size(0), images.size(1), images.size(2), images.size(3), strides_for_cuda(images),
                     pixels);
  return out;
}

}  // namespace mixmatch::detail
