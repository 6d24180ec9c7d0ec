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

// Moves the place of a pixel of a cut to that in the padded and perhaps mirrored image that it was cut from.
__device__ inline void move_into_image(i64& row, i64& column, i64 down, i64 right, bool mirrored, i64 height,
                                       i64 width) {
  row = reflect(row + down, height);
  column = reflect(column + right, width);
  column = mirrored ? width - 1 - column : column;
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
    move_into_image(row, column, row_offset[image] - padding, column_offset[image] - padding, flip[image] != 0,
                    height, width);
  }
  return images + image * strides.image + row * strides.row + column * strides.column;
}

// Bytes that keep their value, by a shift of 0 and a scale of 1.
__device__ inline void narrow(u8& to, float value) { to = static_cast<u8>(value); }

template <class Scalar>
__device__ inline void convert_pixel(Scalar* out, const u8* pixel, i64 channels, i64 stride,
                                     const PixelScale& pixels) {
  typedef typename ComputeOf<Scalar>::type Compute;
  for (i64 c = 0; c < channels; ++c) {
    const Compute value = static_cast<Compute>(pixel[c * stride]);
    narrow(out[c], (value - static_cast<Compute>(pixels.shift[c])) / static_cast<Compute>(pixels.scale[c]));
  }
}

// uint8 images of any strides to channels-last ones, (pixel - shift) / scale, each cut from its padded and
// perhaps mirrored image; without `flip` as they are. A thread makes a pixel's channels.
template <class Scalar>
__global__ void crop_flip(Scalar* out, const u8* images, const i64* flip, const i64* row_offset,
                          const i64* column_offset, i64 padding, i64 count, i64 channels, i64 height,
                          i64 width, Strides strides, PixelScale pixels) {
  const i64 step = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count * height * width;
       i += step) {
    const u8* pixel =
        source_pixel(images, flip, row_offset, column_offset, padding, height, width, strides, i);
    convert_pixel(out + i * channels, pixel, channels, strides.channel, pixels);
  }
}

// Rows `first` to `first + count` of the views of a step: its labeled images, then all unlabeled ones for each
// view. They are a rank's part of the `total` ones of all ranks, by whose order words are drawn.
struct ViewRows { i64 labeled, unlabeled, first, count, total, rank, world_size; };

// crop_flip() of them, by CounterRng's words: of all mirrors, then of all row and of all column offsets.
template <class Scalar>
__global__ void crop_views(Scalar* out, const u8* images, const i64* step, u64 seed_bits, ViewRows rows,
                           i64 padding, int mirror, i64 channels, i64 height, i64 width, Strides strides,
                           PixelScale pixels) {
  const u64 state = counter_state(seed_bits, *step);
  const i64 offsets = 2 * padding + 1;
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows.count * height * width;
       i += stride) {
    i64 column = i % width;
    i64 row = i / width % height;
    i64 image = rows.first + i / width / height;
    i64 place = rows.rank * rows.labeled + image;
    if (image >= rows.labeled) {
      const i64 view = (image - rows.labeled) / rows.unlabeled;
      const i64 own = (image - rows.labeled) % rows.unlabeled;
      image = rows.labeled + own;
      place = rows.world_size * (rows.labeled + view * rows.unlabeled) + rows.rank * rows.unlabeled + own;
    }
    const bool mirrored = mirror != 0 && counter_word(state, place) >> 31 != 0;
    const i64 down = (counter_word(state, rows.total + place) * offsets >> 32) - padding;
    const i64 right = (counter_word(state, 2 * rows.total + place) * offsets >> 32) - padding;
    move_into_image(row, column, down, right, mirrored, height, width);
    convert_pixel(out + i * channels,
                  images + image * strides.image + row * strides.row + column * strides.column, channels,
                  strides.channel, pixels);
  }
}
)cuda"};

/// The kernel's parameter of that name.
struct CudaPixelScale {
  double shift[8], scale[8];
};
inline CudaPixelScale pixel_scale_for_cuda(const std::vector<double>& shift,
                                           const std::vector<double>& scale) {
  CudaPixelScale pixels{};
  std::fill(std::begin(pixels.scale), std::end(pixels.scale), 1.0);
  std::copy(shift.begin(), shift.end(), pixels.shift);
  std::copy(scale.begin(), scale.end(), pixels.scale);
  return pixels;
}

/// Whether a kernel makes such images of these: uint8 ones of at most eight channels.
inline bool can_augment_on_cuda(const at::Tensor& images, at::ScalarType dtype) {
  return has_cuda_memory(images) && images.scalar_type() == at::kByte && images.size(1) <= 8 &&
         (dtype == at::kByte || cuda_type_name(dtype) != nullptr) && cuda_kernels_available(images.device());
}

/// Of `rows` images as these, channels-last, uint8 for an empty `scale`.
inline at::Tensor augmented_on_cuda(const at::Tensor& images, int64_t rows, const std::vector<double>& scale,
                                    at::ScalarType dtype) {
  auto sizes = images.sizes().vec();
  sizes[0] = rows;
  return at::empty(sizes, images.options()
                              .dtype(scale.empty() ? at::kByte : dtype)
                              .memory_format(at::MemoryFormat::ChannelsLast));
}

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
  if (!on_device(flip) || !on_device(row) || !on_device(column) ||
      !can_augment_on_cuda(images, scale.empty() ? at::kByte : dtype)) {
    return {};
  }
  at::Tensor out = augmented_on_cuda(images, images.size(0), scale, dtype);
  if (out.numel() == 0) {
    return out;
  }
  const char* type = scale.empty() ? "u8" : cuda_type_name(dtype);
  constexpr int64_t threads = 256;
  const int64_t work = images.size(0) * images.size(2) * images.size(3);
  launch_cuda_kernel(cuda_augment_source, std::string("crop_flip<") + type + ">", images.device(),
                     {.blocks_x = cuda_blocks(work, threads), .threads = threads}, out.data_ptr(),
                     images.data_ptr(), data_or_null(flip), data_or_null(row), data_or_null(column), padding,
                     images.size(0), images.size(1), images.size(2), images.size(3), strides_for_cuda(images),
                     pixel_scale_for_cuda(shift, scale));
  return out;
}

/// The kernel's ViewRows.
struct CudaViewRows {
  int64_t labeled, unlabeled, first, count, total, rank, world_size;
};

/// Crops of uint8 CUDA images [labeled + unlabeled, C, H, W] that are drawn in the same kernel: rows
/// `rows.first` and on of the views that Feed has of them, cut by its words of (seed, *step). `seed_bits` is
/// mix_bits(seed + kGolden); the rest as in crop_flip_on_cuda(). An undefined tensor where it does not apply.
inline at::Tensor crop_views_on_cuda(const at::Tensor& images, const at::Tensor& step, uint64_t seed_bits,
                                     const CudaViewRows& rows, int64_t padding, bool mirror,
                                     const std::vector<double>& shift, const std::vector<double>& scale,
                                     at::ScalarType dtype) {
  if (!has_cuda_memory(step) || step.device() != images.device() || step.scalar_type() != at::kLong ||
      step.dim() != 0 || !can_augment_on_cuda(images, scale.empty() ? at::kByte : dtype)) {
    return {};
  }
  at::Tensor out = augmented_on_cuda(images, rows.count, scale, dtype);
  if (out.numel() == 0) {
    return out;
  }
  const char* type = scale.empty() ? "u8" : cuda_type_name(dtype);
  constexpr int64_t threads = 256;
  const int64_t work = rows.count * images.size(2) * images.size(3);
  launch_cuda_kernel(cuda_augment_source, std::string("crop_views<") + type + ">", images.device(),
                     {.blocks_x = cuda_blocks(work, threads), .threads = threads}, out.data_ptr(),
                     images.data_ptr(), step.data_ptr(), seed_bits, rows, padding, static_cast<int>(mirror),
                     images.size(1), images.size(2), images.size(3), strides_for_cuda(images),
                     pixel_scale_for_cuda(shift, scale));
  return out;
}

}  // namespace mixmatch::detail
