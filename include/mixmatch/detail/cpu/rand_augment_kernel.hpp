#pragma once

// RandAugment on the CPU: an image stays in its place of the channels-last result while the operations pass
// over it. Arithmetic is Pillow's, to the bit.

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/cpu/simd.hpp>
#include <mixmatch/detail/cuda/cuda_rand_augment.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// 0 … n - 1, equally likely; never outside, whatever the draw.
inline int32_t choose_uniformly(float uniform, int32_t n) {
  const float place = uniform * static_cast<float>(n);
  return place < static_cast<float>(n) ? (place > 0 ? static_cast<int32_t>(place) : 0) : n - 1;
}

/// Each channel's result for each value, one channel after the other.
using ByteTables = std::array<uint8_t, 768>;

inline uint8_t luma(const uint8_t* pixel) {
  return static_cast<uint8_t>((pixel[0] * 19595U + pixel[1] * 38470U + pixel[2] * 7471U + 0x8000U) >> 16);
}

// Loops for run_widest(), plain enough that compilers find the vectors themselves.

/// value = base + factor (value - base), cut off and within [0, 255]: Image.blend(). The products go through
/// memory, and the sums are made after all of them: a compiler that fused one with the other would round
/// elsewhere.
template <size_t size>
struct BlendKernel {
  template <int Bytes>
  static MIXMATCH_INLINE void run(uint8_t* value, const uint8_t* base, float factor) {
    alignas(64) float products[size];
    for (size_t i = 0; i < size; ++i) {
      products[i] = factor * static_cast<float>(int{value[i]} - int{base[i]});
    }
#if defined(__GNUC__)
    __asm__ __volatile__("" : : "r"(products) : "memory");
#endif
    for (size_t i = 0; i < size; ++i) {
      const float sum = static_cast<float>(base[i]) + products[i];
      value[i] = static_cast<uint8_t>(static_cast<int>(std::min(255.0F, std::max(0.0F, sum))));
    }
  }
};

/// ImageFilter.SMOOTH of pixels of three channels: a 3 x 3 mean, the middle weighing 5, to the nearest.
template <size_t size>
struct SmoothKernel {
  template <int Bytes>
  static MIXMATCH_INLINE void run(uint8_t* to, const uint8_t* above, const uint8_t* at,
                                  const uint8_t* under) {
    alignas(64) uint16_t sums[size];
    for (size_t i = 0; i < size; ++i) {
      sums[i] = static_cast<uint16_t>(above[i] + above[i + 3] + above[i + 6] + at[i] + 5 * at[i + 3] +
                                      at[i + 6] + under[i] + under[i + 3] + under[i + 6]);
    }
    for (size_t i = 0; i < size; ++i) {
      to[i] = static_cast<uint8_t>(static_cast<uint16_t>(2U * sums[i] + 13U) / 26U);
    }
  }
};

/// Three planes to pixels of three channels.
struct InterleaveKernel {
  template <int Bytes>
  static MIXMATCH_INLINE void run(uint8_t* __restrict to, const uint8_t* __restrict red,
                                  const uint8_t* __restrict green, const uint8_t* __restrict blue,
                                  int64_t pixels) {
    for (int64_t i = 0; i < pixels; ++i) {
      to[3 * i] = red[i];
      to[3 * i + 1] = green[i];
      to[3 * i + 2] = blue[i];
    }
  }
};

/// So many bytes that are blended at a time, all of them, used or not: loops of one length.
struct Blend {
  static constexpr int64_t size = 192;  ///< whole pixels
  alignas(64) std::array<uint8_t, size> base{}, value{};
  float factor;

  explicit Blend(float with) : factor(with) {}
  void run() { run_widest<BlendKernel<size>>(value.data(), base.data(), factor); }
};

/// One image, [height, width, 3] without gaps, and as much memory beside it.
class ImageUnderAugmentation {
 public:
  ImageUnderAugmentation(uint8_t* image, uint8_t* beside, const RandAugmentPlan& plan)
      : image_(image), beside_(beside), plan_(plan), height_(plan.height), width_(plan.width) {}

  void auto_contrast() {
    count_values();
    look_up([&](int channel, int value) {
      const int low = lowest_[static_cast<size_t>(channel)], high = highest_[static_cast<size_t>(channel)];
      if (high <= low) {
        return value;
      }
      const double scale = 255.0 / (high - low);
      const volatile double product = value * scale, offset = -low * scale;  // as Python: never fused
      return std::clamp(static_cast<int>(product + offset), 0, 255);
    });
  }
  void equalize() {
    count_values();
    std::array<uint32_t, 3> share{}, below{};
    for (size_t c = 0; c < 3; ++c) {
      const uint32_t last = histogram_[c * 256 + static_cast<size_t>(highest_[c])];
      share[c] = highest_[c] > lowest_[c] ? (static_cast<uint32_t>(height_ * width_) - last) / 255 : 0;
      below[c] = share[c] / 2;
    }
    look_up([&](int channel, int value) {
      const auto c = static_cast<size_t>(channel);
      if (share[c] == 0) {
        return value;
      }
      const uint32_t level = below[c] / share[c];
      below[c] += histogram_[c * 256 + static_cast<size_t>(value)];
      return static_cast<int>(std::min<uint32_t>(level, 255));
    });
  }
  void posterize(int32_t mask) {
    look_up([&](int, int value) { return value & mask; });
  }
  void solarize(int32_t threshold) {
    look_up([&](int, int value) { return value < threshold ? value : 255 - value; });
  }
  void invert() { solarize(0); }
  void brightness(float factor) { blend_with(0, factor); }
  void contrast(float factor) {
    uint32_t sum = 0;
    const int64_t pixels = int64_t{height_} * width_;
    for (int64_t i = 0; i < pixels; ++i) {
      sum += luma(image_ + 3 * i);
    }
    blend_with(static_cast<uint8_t>((2 * int64_t{sum} + pixels) / (2 * pixels)), factor);
  }
  void color(float factor) {
    Blend blend(factor);
    for (int64_t begin = 0; begin < bytes(); begin += Blend::size) {
      const auto count = static_cast<size_t>(std::min(Blend::size, bytes() - begin));
      std::memcpy(blend.value.data(), image_ + begin, count);
      for (size_t i = 0; i < Blend::size; i += 3) {
        const uint8_t gray = luma(&blend.value[i]);
        blend.base[i] = gray;
        blend.base[i + 1] = gray;
        blend.base[i + 2] = gray;
      }
      blend.run();
      std::memcpy(image_ + begin, blend.value.data(), count);
    }
  }
  /// Away from ImageFilter.SMOOTH, which leaves the border as it is.
  void sharpness(float factor) {
    copy_beside();
    Blend blend(factor);
    // A piece of three lines, with a pixel to each side.
    std::array<std::array<uint8_t, Blend::size + 6>, 3> lines{};
    const int64_t line = 3 * int64_t{width_};
    for (int64_t y = 1; y + 1 < height_; ++y) {
      for (int64_t begin = 3; begin < line - 3; begin += Blend::size) {
        const auto count = static_cast<size_t>(std::min(Blend::size, line - 3 - begin));
        for (int64_t i = 0; i < 3; ++i) {
          std::memcpy(lines[static_cast<size_t>(i)].data(), beside_ + (y - 1 + i) * line + begin - 3,
                      count + 6);
        }
        run_widest<SmoothKernel<Blend::size>>(blend.base.data(), lines[0].data(), lines[1].data(),
                                              lines[2].data());
        std::memcpy(blend.value.data(), lines[1].data() + 3, count);
        blend.run();
        std::memcpy(image_ + y * line + begin, blend.value.data(), count);
      }
    }
  }
  void transform(const FixedAffine& map) {
    copy_beside();
    uint8_t* to = image_;
    for (int32_t y = 0; y < height_; ++y) {
      int32_t column = map.b * y + map.c, row = map.e * y + map.f;
      for (int32_t x = 0; x < width_; ++x, to += 3, column += map.a, row += map.d) {
        const auto from_x = static_cast<uint32_t>(column >> 16), from_y = static_cast<uint32_t>(row >> 16);
        const bool inside = from_x < static_cast<uint32_t>(width_) && from_y < static_cast<uint32_t>(height_);
        const uint8_t* from = inside ? beside_ + 3 * (int64_t{from_y} * width_ + from_x) : plan_.fill;
        to[0] = from[0];
        to[1] = from[1];
        to[2] = from[2];
      }
    }
  }
  void translate(int32_t dx, int32_t dy) {
    transform({65536, 0, 32768 + dx * 65536, 0, 65536, 32768 + dy * 65536});
  }
  /// A square about a pixel, as much of it as is inside.
  void cut(int32_t row, int32_t column, int32_t side) {
    const int32_t top = row - side / 2, left = column - side / 2;
    for (int32_t y = std::max(top, 0); y < std::min(top + side, height_); ++y) {
      for (int32_t x = std::max(left, 0); x < std::min(left + side, width_); ++x) {
        std::memcpy(image_ + 3 * (int64_t{y} * width_ + x), plan_.cutout_fill, 3);
      }
    }
  }

 private:
  int64_t bytes() const { return 3 * int64_t{height_} * width_; }
  void copy_beside() { std::memcpy(beside_, image_, static_cast<size_t>(bytes())); }

  void count_values() {
    histogram_.fill(0);
    for (const uint8_t *pixel = image_, *end = image_ + bytes(); pixel != end; pixel += 3) {
      ++histogram_[pixel[0]];
      ++histogram_[256U + pixel[1]];
      ++histogram_[512U + pixel[2]];
    }
    for (size_t c = 0; c < 3; ++c) {
      lowest_[c] = 0;
      highest_[c] = 255;
      while (lowest_[c] < 255 && histogram_[c * 256 + static_cast<size_t>(lowest_[c])] == 0) {
        ++lowest_[c];
      }
      while (highest_[c] > 0 && histogram_[c * 256 + static_cast<size_t>(highest_[c])] == 0) {
        --highest_[c];
      }
    }
  }

  /// make(channel, value), asked once for each, values in order.
  template <class Make>
  void look_up(const Make& make) {
    ByteTables tables;
    for (int c = 0; c < 3; ++c) {
      for (int value = 0; value < 256; ++value) {
        tables[static_cast<size_t>(c * 256 + value)] = static_cast<uint8_t>(make(c, value));
      }
    }
    for (uint8_t *pixel = image_, *end = image_ + bytes(); pixel != end; pixel += 3) {
      pixel[0] = tables[pixel[0]];
      pixel[1] = tables[256U + pixel[1]];
      pixel[2] = tables[512U + pixel[2]];
    }
  }

  /// Blends every value with one level.
  void blend_with(uint8_t level, float factor) {
    Blend blend(factor);
    blend.base.fill(level);
    std::array<uint8_t, 2 * Blend::size> results{};
    for (size_t begin = 0; begin < results.size(); begin += Blend::size) {
      for (size_t i = 0; i < Blend::size; ++i) {
        blend.value[i] = static_cast<uint8_t>(begin + i);
      }
      blend.run();
      std::copy(blend.value.begin(), blend.value.end(), results.begin() + static_cast<int64_t>(begin));
    }
    look_up([&](int, int value) { return results[static_cast<size_t>(value)]; });
  }

  uint8_t* image_;
  uint8_t* beside_;
  const RandAugmentPlan& plan_;
  int32_t height_, width_;
  std::array<uint32_t, 768> histogram_;
  std::array<int, 3> lowest_{}, highest_{};
};

/// augment::RandAugmentOp. The CUDA kernel has the same numbers.
enum class RandAugmentOp : int32_t {
  auto_contrast,  ///< stretch each channel to [0, 255]
  brightness,     ///< blend with black
  color,          ///< blend with the grey image
  contrast,       ///< blend with the grey image's mean
  equalize,       ///< flatten each channel's histogram
  identity,       ///< nothing
  posterize,      ///< keep each value's highest bits
  rotate,         ///< about the centre
  sharpness,      ///< blend with a smoothed image
  shear_x,        ///< move rows along
  shear_y,        ///< move columns along
  solarize,       ///< invert values from a threshold on
  translate_x,    ///< move along the width
  translate_y,    ///< move along the height
  invert,         ///< 255 - value
  cutout,         ///< a square of one colour
};

/// One image by its draws: five for each operation (which, whether, magnitude, sign or row, column), then the
/// centre of the square.
inline void rand_augment_image(ImageUnderAugmentation& image, const float* drawn,
                               const RandAugmentPlan& plan) {
  for (int32_t k = 0; k < plan.num_ops; ++k, drawn += 5) {
    if (!(drawn[1] < plan.probability)) {
      continue;
    }
    const int32_t magnitude = plan.min_magnitude + choose_uniformly(drawn[2], plan.magnitude_count);
    const bool negative = drawn[3] < 0.5F;
    const int32_t map = 2 * magnitude + (negative ? 1 : 0);
    const int32_t sign = negative ? -1 : 1;
    switch (static_cast<RandAugmentOp>(plan.operations[choose_uniformly(drawn[0], plan.operation_count)])) {
      case RandAugmentOp::auto_contrast:
        image.auto_contrast();
        break;
      case RandAugmentOp::brightness:
        image.brightness(plan.enhance[magnitude]);
        break;
      case RandAugmentOp::color:
        image.color(plan.enhance[magnitude]);
        break;
      case RandAugmentOp::contrast:
        image.contrast(plan.enhance[magnitude]);
        break;
      case RandAugmentOp::equalize:
        image.equalize();
        break;
      case RandAugmentOp::posterize:
        image.posterize(plan.posterize_mask[magnitude]);
        break;
      case RandAugmentOp::rotate:
        image.transform(plan.rotate[map]);
        break;
      case RandAugmentOp::sharpness:
        image.sharpness(plan.enhance[magnitude]);
        break;
      case RandAugmentOp::shear_x:
        image.transform(plan.shear_x[map]);
        break;
      case RandAugmentOp::shear_y:
        image.transform(plan.shear_y[map]);
        break;
      case RandAugmentOp::solarize:
        image.solarize(plan.solarize_threshold[magnitude]);
        break;
      case RandAugmentOp::translate_x:
        image.translate(sign * plan.translate_x[magnitude], 0);
        break;
      case RandAugmentOp::translate_y:
        image.translate(0, sign * plan.translate_y[magnitude]);
        break;
      case RandAugmentOp::invert:
        image.invert();
        break;
      case RandAugmentOp::cutout:
        image.cut(choose_uniformly(drawn[3], plan.height), choose_uniformly(drawn[4], plan.width),
                  plan.cutout_side[magnitude]);
        break;
      case RandAugmentOp::identity:
        break;
    }
  }
  if (plan.cutout > 0) {
    image.cut(choose_uniformly(drawn[0], plan.height), choose_uniformly(drawn[1], plan.width), plan.cutout);
  }
}

/// An image of any strides to one of [height, width, 3] without gaps.
inline void gather_image(uint8_t* to, const uint8_t* from, const Tensor& images) {
  const int64_t height = images.size(2), width = images.size(3);
  const int64_t row = images.stride(2), column = images.stride(3), channel = images.stride(1);
  if (channel == 1 && column == 3 && row == 3 * width) {
    std::memcpy(to, from, static_cast<size_t>(3 * height * width));
    return;
  }
  if (column == 1 && row == width) {
    run_widest<InterleaveKernel>(to, from, from + channel, from + 2 * channel, height * width);
    return;
  }
  for (int64_t y = 0; y < height; ++y, to += 3 * width) {
    const uint8_t* line = from + y * row;
    for (int64_t x = 0; x < width; ++x) {
      to[3 * x] = line[x * column];
      to[3 * x + 1] = line[x * column + channel];
      to[3 * x + 2] = line[x * column + 2 * channel];
    }
  }
}

/// `images` uint8 [N, 3, H, W] on the CPU, `uniform` float32 [N, draws] there without gaps.
inline Tensor rand_augment_on_cpu(const Tensor& images, const Tensor& uniform, const RandAugmentPlan& plan) {
  Tensor out = at::empty(images.sizes(), images.options().memory_format(at::MemoryFormat::ChannelsLast));
  const int64_t bytes = 3 * int64_t{plan.height} * plan.width;
  if (out.numel() == 0) {
    return out;
  }
  auto* target = out.data_ptr<uint8_t>();
  const auto* source = images.data_ptr<uint8_t>();
  const auto* draws = uniform.data_ptr<float>();
  const int64_t draws_each = uniform.size(1);
  parallel_for(0, images.size(0), std::max<int64_t>(1, 32768 / bytes), [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> beside(static_cast<size_t>(bytes));
    for (int64_t n = begin; n < end; ++n) {
      uint8_t* image = target + n * bytes;
      gather_image(image, source + n * images.stride(0), images);
      ImageUnderAugmentation under(image, beside.data(), plan);
      rand_augment_image(under, draws + n * draws_each, plan);
    }
  });
  return out;
}

}  // namespace mixmatch::detail
