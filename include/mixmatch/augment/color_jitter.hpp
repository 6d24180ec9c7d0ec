#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/color_jitter_kernel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/random.hpp>
#include <mixmatch/detail/version.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace mixmatch::augment {

using torch::Tensor;

/// As torchvision's ColorJitter; 0 leaves a property as it is.
struct ColorJitterOptions {
  /// Factors are uniform in [max(0, 1 - x), 1 + x].
  TORCH_ARG(double, brightness) = 0;
  TORCH_ARG(double, contrast) = 0;
  TORCH_ARG(double, saturation) = 0;
  /// The turn is uniform in [-hue, hue] of the whole circle; in [0, .5].
  TORCH_ARG(double, hue) = 0;

 public:
  /// One number for all: brightness, contrast and saturation by `strength`, the hue by a quarter of it, as
  /// SimCLR (arXiv 2002.05709) has them. In [0, 2].
  static ColorJitterOptions of_strength(double strength) {
    return ColorJitterOptions().brightness(strength).contrast(strength).saturation(strength).hue(strength /
                                                                                                 4);
  }
  /// Whether it changes anything.
  bool any() const { return brightness() > 0 || contrast() > 0 || saturation() > 0 || hue() > 0; }
};

namespace detail {

inline void check_color_jitter(const char* function, const Tensor& images) {
  TORCH_CHECK(images.defined() && images.dim() == 4 && images.size(1) == 3 &&
                  images.scalar_type() == at::kByte && images.layout() == at::kStrided,
              function, ": images must be uint8 [N, 3, H, W], got ",
              mixmatch::detail::type_and_sizes(images));
  // Sums of grey values in 32 bits.
  TORCH_CHECK(images.size(2) <= 4096 && images.size(3) <= 4096, function,
              ": images may have 4096 rows and columns at most, got ", images.sizes());
}

inline void check_color_jitter_options(const char* function, const ColorJitterOptions& options) {
  const auto within = [&](const char* name, double value, double high) {
    TORCH_CHECK(value >= 0 && value <= high, function, ": ", name, " must be in [0, ", high, "], got ",
                value);
  };
  within("brightness", options.brightness(), 100);
  within("contrast", options.contrast(), 100);
  within("saturation", options.saturation(), 100);
  within("hue", options.hue(), 0.5);
}

/// What such draws do to each image, by ATen's calls on their device.
inline mixmatch::detail::ColorJitterPlan color_jitter_plan(const Tensor& uniform,
                                                           const ColorJitterOptions& options) {
  const Tensor drawn = uniform.detach().to(at::kDouble).clamp(0, 1 - 0x1p-24);
  const auto factor = [&](int64_t draw, double strength) {
    const double low = std::max(0.0, 1 - strength);
    return (drawn.select(1, draw) * (1 + strength - low) + low).to(at::kFloat);
  };
  const Tensor turn = (drawn.select(1, 7) * 2 - 1) * (options.hue() * 6 * mixmatch::detail::kHueSector);
  return {std::get<1>(drawn.narrow(1, 0, 4).sort(/*stable=*/true, /*dim=*/1, /*descending=*/false)),
          at::stack({factor(4, options.brightness()), factor(5, options.contrast()),
                     factor(6, options.saturation())},
                    1),
          turn.round().to(at::kLong),
          {options.brightness() > 0, options.contrast() > 0, options.saturation() > 0, options.hue() > 0}};
}

}  // namespace detail

/// How many uniform numbers an image takes: four for the order, and one for each property.
inline int64_t color_jitter_draws() { return 8; }

/// color_jitter() by draws of your own: a pure function of `images` and `uniform`.
///
/// `uniform`: float32 [N, color_jitter_draws()] in [0, 1), on the images' device. The first four are those of
/// brightness, contrast, saturation and hue: the least comes first. Then come their factors in that order.
/// Values outside of [0, 1) count as the nearest inside.
inline Tensor color_jitter_with(const Tensor& images, const Tensor& uniform,
                                const ColorJitterOptions& options = {}) {
  constexpr const char* function = "color_jitter_with";
  detail::check_color_jitter(function, images);
  detail::check_color_jitter_options(function, options);
  mixmatch::detail::check_uniform_draws(function, uniform, images, color_jitter_draws());
  const torch::NoGradGuard no_grad;
  const auto plan = detail::color_jitter_plan(uniform, options);
  return images.is_cpu() ? mixmatch::detail::color_jitter_on_cpu(images, plan)
                         : mixmatch::detail::color_jitter_composite(images, plan);
}

/// torchvision's ColorJitter: brightness, contrast, saturation and hue by random factors, in a random order
/// an image.
///
/// Brightness blends with black, contrast with the mean of the grey image, saturation with the grey image, as
/// Pillow's ImageEnhance does, to the bit. The hue is turned in hexagonal HSV, in steps of a 24,576th of the
/// circle and without the rounding to 255 hues that Pillow's HSV images bring: within one grey level of the
/// exact result.
///
/// `images`: uint8 [N, 3, H, W] up to 4096 x 4096, any strides and device; the result is uint8,
/// channels-last, and the same on every device. No gradient. Draws N x color_jitter_draws() uniform float32
/// from `generator` (default: that of the images' device) at once, on the generator's device; the result does
/// not depend on the number of threads, and on a GPU nothing waits for the device. Throws on other dtypes and
/// shapes, and on options out of their ranges.
inline Tensor color_jitter(const Tensor& images, const ColorJitterOptions& options = {},
                           std::optional<at::Generator> generator = std::nullopt) {
  detail::check_color_jitter("color_jitter", images);
  detail::check_color_jitter_options("color_jitter", options);
  const Tensor uniform =
      mixmatch::detail::uniform_draws(images.size(0), color_jitter_draws(), images.device(), generator);
  return color_jitter_with(images, uniform, options);
}

/// color_jitter() with its options and generator: a callable Tensor(const Tensor&). The generator is a shared
/// handle: saving its state saves this augmentation's.
class ColorJitter {
 public:
  explicit ColorJitter(const ColorJitterOptions& options,
                       std::optional<at::Generator> generator = std::nullopt)
      : options_(options), generator_(std::move(generator)) {
    detail::check_color_jitter_options("ColorJitter", options_);
  }

  Tensor operator()(const Tensor& images) const { return color_jitter(images, options_, generator_); }

  const ColorJitterOptions& options() const { return options_; }
  const std::optional<at::Generator>& generator() const { return generator_; }

 private:
  ColorJitterOptions options_;
  std::optional<at::Generator> generator_;
};

}  // namespace mixmatch::augment
