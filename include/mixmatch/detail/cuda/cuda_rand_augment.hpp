#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>

#include <cstdint>

namespace mixmatch::detail {

/// An affine map from result to source in 16.16 fixed point, as Pillow's: pixel (x, y) comes from
/// (a x + b y + c, d x + e y + f) >> 16.
struct FixedAffine {
  int32_t a, b, c, d, e, f;
};

/// What RandAugmentOptions say of images of one size, every number worked out: arrays by magnitude, 0 to 10,
/// maps by 2 * magnitude + (1 for the negative sign). One layout for the CPU and the CUDA kernel.
struct RandAugmentPlan {
  int32_t height, width;
  int32_t num_ops, operation_count, operations[32];
  float probability;
  int32_t min_magnitude, magnitude_count;
  float enhance[11];
  int32_t posterize_mask[11], solarize_threshold[11], translate_x[11], translate_y[11], cutout_side[11];
  FixedAffine rotate[22], shear_x[22], shear_y[22];
  int32_t cutout;  ///< side of the square at the end, 0 for none
  uint8_t fill[4], cutout_fill[4];
};

inline constexpr CudaSource cuda_rand_augment_source{"mixmatch_rand_augment.cu", R"cuda(
struct FixedAffine { int a, b, c, d, e, f; };
struct RandAugmentPlan {
  int height, width;
  int num_ops, operation_count, operations[32];
  float probability;
  int min_magnitude, magnitude_count;
  float enhance[11];
  int posterize_mask[11], solarize_threshold[11], translate_x[11], translate_y[11], cutout_side[11];
  FixedAffine rotate[22], shear_x[22], shear_y[22];
  int cutout;
  u8 fill[4], cutout_fill[4];
};

// The numbers of augment::RandAugmentOp.
enum {
  op_auto_contrast, op_brightness, op_color, op_contrast, op_equalize, op_identity, op_posterize, op_rotate,
  op_sharpness, op_shear_x, op_shear_y, op_solarize, op_translate_x, op_translate_y, op_invert, op_cutout
};

// 0 ... n - 1, equally likely; never outside, whatever the draw.
__device__ inline int choose(float uniform, int n) {
  const float place = uniform * static_cast<float>(n);
  return place < static_cast<float>(n) ? (place > 0 ? static_cast<int>(place) : 0) : n - 1;
}

__device__ inline int clip_byte(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

// Image.blend(base, value, factor); no fused multiply-add, which rounds elsewhere.
__device__ inline int blend(int base, int value, float factor) {
  const float sum =
      __fadd_rn(static_cast<float>(base), __fmul_rn(factor, static_cast<float>(value - base)));
  return sum <= 0 ? 0 : sum >= 255 ? 255 : static_cast<int>(sum);
}

__device__ inline int luma(const u8* pixel) {
  return static_cast<int>((pixel[0] * 19595u + pixel[1] * 38470u + pixel[2] * 7471u + 0x8000u) >> 16);
}

// What is shared by the threads of an image.
struct RandAugmentShared {
  u32 histogram[768], parts[48];
  int lowest[3], highest[3];
  u32 luma_sum;
  u8 table[768];
};

// Counts of each channel's values, and the lowest and highest that there are.
__device__ inline void count_values(const u8* image, int pixels, RandAugmentShared& shared) {
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  for (int i = first; i < 768; i += step) {
    shared.histogram[i] = 0;
    if (i < 3) {
      shared.lowest[i] = 255;
      shared.highest[i] = 0;
    }
  }
  __syncthreads();
  for (int i = first; i < pixels; i += step) {
    for (int c = 0; c < 3; ++c) {
      atomicAdd(&shared.histogram[c * 256 + image[3 * i + c]], 1u);
    }
  }
  __syncthreads();
  for (int i = first; i < 768; i += step) {
    if (shared.histogram[i] != 0) {
      atomicMin(&shared.lowest[i / 256], i % 256);
      atomicMax(&shared.highest[i / 256], i % 256);
    }
  }
  __syncthreads();
}

// ImageOps.autocontrast without cutoff, in its double arithmetic.
__device__ inline int stretched(int value, int lowest, int highest) {
  if (highest <= lowest) {
    return value;
  }
  const double scale = 255.0 / (highest - lowest);
  return clip_byte(static_cast<int>(__dadd_rn(__dmul_rn(value, scale), __dmul_rn(-lowest, scale))));
}

// The tables of the operations that look at one channel's value alone.
__device__ inline void make_table(int operation, int magnitude, const u8* image, const RandAugmentPlan& plan,
                                  RandAugmentShared& shared) {
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  const int pixels = plan.height * plan.width;
  if (operation == op_auto_contrast || operation == op_equalize) {
    count_values(image, pixels, shared);
  }
  if (operation == op_equalize) {  // sums of 16 counts each, of which every value's sum is made
    for (int part = first; part < 48; part += step) {
      u32 sum = 0;
      for (int i = 0; i < 16; ++i) {
        sum += shared.histogram[16 * part + i];
      }
      shared.parts[part] = sum;
    }
  }
  if (operation == op_contrast) {
    if (first == 0) {
      shared.luma_sum = 0;
    }
    __syncthreads();
    u32 sum = 0;
    for (int i = first; i < pixels; i += step) {
      sum += static_cast<u32>(luma(image + 3 * i));
    }
    atomicAdd(&shared.luma_sum, sum);
  }
  __syncthreads();
  for (int i = first; i < 768; i += step) {
    const int channel = i / 256, value = i % 256;
    int result = value;
    switch (operation) {
      case op_auto_contrast:
        result = stretched(value, shared.lowest[channel], shared.highest[channel]);
        break;
      case op_equalize: {
        const u32 last = shared.histogram[channel * 256 + shared.highest[channel]];
        const u32 share = (static_cast<u32>(pixels) - last) / 255;
        if (shared.highest[channel] > shared.lowest[channel] && share > 0) {
          u32 below = share / 2;
          for (int part = 16 * channel; part < i / 16; ++part) {
            below += shared.parts[part];
          }
          for (int other = i / 16 * 16; other < i; ++other) {
            below += shared.histogram[other];
          }
          result = below / share > 255 ? 255 : static_cast<int>(below / share);
        }
        break;
      }
      case op_brightness:
        result = blend(0, value, plan.enhance[magnitude]);
        break;
      case op_contrast: {
        const i64 count = pixels;
        const int mean = static_cast<int>((2 * static_cast<i64>(shared.luma_sum) + count) / (2 * count));
        result = blend(mean, value, plan.enhance[magnitude]);
        break;
      }
      case op_posterize:
        result = value & plan.posterize_mask[magnitude];
        break;
      case op_solarize:
        result = value < plan.solarize_threshold[magnitude] ? value : 255 - value;
        break;
      case op_invert:
        result = 255 - value;
        break;
    }
    shared.table[i] = static_cast<u8>(result);
  }
  __syncthreads();
}

__device__ inline bool in_square(int row, int column, int centre_row, int centre_column, int side) {
  const int top = centre_row - side / 2, left = centre_column - side / 2;
  return row >= top && row < top + side && column >= left && column < left + side;
}

// A block makes an image; `out` and `scratch`, both [count, height, width, 3], take turns in holding it.
template <class Pixel>
__global__ void rand_augment(Pixel* out, Pixel* scratch, const Pixel* images, const float* uniform,
                             i64 count, i64 draws, Strides strides, RandAugmentPlan plan) {
  __shared__ RandAugmentShared shared;
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  const int height = plan.height, width = plan.width, pixels = height * width;
  for (i64 n = blockIdx.x; n < count; n += gridDim.x) {
    Pixel* const result = out + n * pixels * 3;
    Pixel* image = result;
    Pixel* other = scratch + n * pixels * 3;
    for (int i = first; i < pixels; i += step) {
      const Pixel* from =
          images + n * strides.image + i / width * strides.row + i % width * strides.column;
      for (int c = 0; c < 3; ++c) {
        image[3 * i + c] = from[c * strides.channel];
      }
    }
    __syncthreads();
    const float* drawn = uniform + n * draws;
    for (int k = 0; k < plan.num_ops; ++k, drawn += 5) {
      const int operation = plan.operations[choose(drawn[0], plan.operation_count)];
      const int magnitude = plan.min_magnitude + choose(drawn[2], plan.magnitude_count);
      const int negative = drawn[3] < 0.5f ? 1 : 0;
      if (!(drawn[1] < plan.probability) || operation == op_identity) {
        continue;
      }
      const bool moves = operation == op_rotate || operation == op_shear_x || operation == op_shear_y ||
                         operation == op_translate_x || operation == op_translate_y;
      if (moves) {
        FixedAffine map = {65536, 0, 32768, 0, 65536, 32768};
        if (operation == op_rotate) {
          map = plan.rotate[2 * magnitude + negative];
        } else if (operation == op_shear_x) {
          map = plan.shear_x[2 * magnitude + negative];
        } else if (operation == op_shear_y) {
          map = plan.shear_y[2 * magnitude + negative];
        } else if (operation == op_translate_x) {
          map.c += (negative != 0 ? -plan.translate_x[magnitude] : plan.translate_x[magnitude]) * 65536;
        } else {
          map.f += (negative != 0 ? -plan.translate_y[magnitude] : plan.translate_y[magnitude]) * 65536;
        }
        for (int i = first; i < pixels; i += step) {
          const int x = i % width, y = i / width;
          const int column = (map.a * x + map.b * y + map.c) >> 16;
          const int row = (map.d * x + map.e * y + map.f) >> 16;
          const bool inside = column >= 0 && column < width && row >= 0 && row < height;
          for (int c = 0; c < 3; ++c) {
            other[3 * i + c] = inside ? image[3 * (row * width + column) + c] : plan.fill[c];
          }
        }
      } else if (operation == op_sharpness) {
        const float factor = plan.enhance[magnitude];
        for (int i = first; i < pixels; i += step) {
          const int x = i % width, y = i / width;
          const bool border = x == 0 || y == 0 || x == width - 1 || y == height - 1;
          for (int c = 0; c < 3; ++c) {
            const Pixel* at = image + 3 * i + c;
            int value = at[0];
            if (!border) {
              int sum = 4 * value;
              for (int dy = -1; dy <= 1; ++dy) {
                for (int dx = -1; dx <= 1; ++dx) {
                  sum += at[3 * (dy * width + dx)];
                }
              }
              value = blend((2 * sum + 13) / 26, value, factor);
            }
            other[3 * i + c] = static_cast<Pixel>(value);
          }
        }
      } else if (operation == op_color) {
        for (int i = first; i < pixels; i += step) {
          const int gray = luma(image + 3 * i);
          for (int c = 0; c < 3; ++c) {
            image[3 * i + c] = static_cast<Pixel>(blend(gray, image[3 * i + c], plan.enhance[magnitude]));
          }
        }
      } else if (operation == op_cutout) {
        const int row = choose(drawn[3], height), column = choose(drawn[4], width);
        for (int i = first; i < pixels; i += step) {
          if (in_square(i / width, i % width, row, column, plan.cutout_side[magnitude])) {
            for (int c = 0; c < 3; ++c) {
              image[3 * i + c] = plan.cutout_fill[c];
            }
          }
        }
      } else {
        make_table(operation, magnitude, image, plan, shared);
        for (int i = first; i < 3 * pixels; i += step) {
          image[i] = shared.table[i % 3 * 256 + image[i]];
        }
      }
      if (operation == op_sharpness || moves) {
        Pixel* const held = image;
        image = other;
        other = held;
      }
      __syncthreads();
    }
    if (plan.cutout > 0 || image != result) {
      const int row = plan.cutout > 0 ? choose(drawn[0], height) : 0;
      const int column = plan.cutout > 0 ? choose(drawn[1], width) : 0;
      for (int i = first; i < pixels; i += step) {
        const bool cut = in_square(i / width, i % width, row, column, plan.cutout);
        for (int c = 0; c < 3; ++c) {
          result[3 * i + c] = cut ? plan.cutout_fill[c] : image[3 * i + c];
        }
      }
    }
    __syncthreads();
  }
}
)cuda"};

/// RandAugment of uint8 CUDA images [N, 3, H, W] into channels-last ones, in one kernel that neither waits
/// nor draws; `uniform` is contiguous float32 [N, draws]. An undefined tensor where it does not apply.
inline at::Tensor rand_augment_on_cuda(const at::Tensor& images, const at::Tensor& uniform,
                                       const RandAugmentPlan& plan) {
  if (!has_cuda_memory(images) || images.scalar_type() != at::kByte || !has_cuda_memory(uniform) ||
      uniform.device() != images.device() || uniform.scalar_type() != at::kFloat ||
      !uniform.is_contiguous() || !cuda_kernels_available(images.device())) {
    return {};
  }
  at::Tensor out = at::empty(images.sizes(), images.options().memory_format(at::MemoryFormat::ChannelsLast));
  if (out.numel() == 0) {
    return out;
  }
  const at::Tensor scratch = at::empty({out.numel()}, images.options());
  launch_cuda_kernel(cuda_rand_augment_source, "rand_augment<u8>", images.device(),
                     {.blocks_x = cuda_blocks(images.size(0), 1, 65535), .threads = 256}, out.data_ptr(),
                     scratch.data_ptr(), images.data_ptr(), uniform.data_ptr(), images.size(0),
                     uniform.size(1), strides_for_cuda(images), plan);
  return out;
}

}  // namespace mixmatch::detail
