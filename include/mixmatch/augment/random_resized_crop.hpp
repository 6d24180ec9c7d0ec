#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/resized_crop_kernel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/random.hpp>
#include <mixmatch/detail/version.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

namespace mixmatch::augment {

using torch::Tensor;

/// The defaults are torchvision's.
struct RandomResizedCropOptions {
  /// Share of the image's area that is cut out, in (0, 1], uniform between these.
  TORCH_ARG(double, min_scale) = 0.08;
  TORCH_ARG(double, max_scale) = 1;
  /// Width by height of what is cut out, its logarithm uniform between these.
  TORCH_ARG(double, min_ratio) = 3.0 / 4;
  TORCH_ARG(double, max_ratio) = 4.0 / 3;
  /// Mirror left and right with probability 1/2.
  TORCH_ARG(bool, mirror) = true;
};

namespace detail {

inline constexpr int64_t kCropTries = 10;

inline void check_resized_crop(const char* function, const Tensor& images) {
  TORCH_CHECK(images.defined() && images.dim() == 4 && images.scalar_type() == at::kByte &&
                  images.layout() == at::kStrided,
              function, ": images must be uint8 [N, C, H, W], got ",
              mixmatch::detail::type_and_sizes(images));
  // Places between pixels are whole numbers of 64 bits.
  TORCH_CHECK(images.size(2) <= 65536 && images.size(3) <= 65536, function,
              ": images may have 65536 rows and columns at most, got ", images.sizes());
}

inline void check_resized_crop_options(const char* function, const RandomResizedCropOptions& options) {
  TORCH_CHECK(
      options.min_scale() > 0 && options.min_scale() <= options.max_scale() && options.max_scale() <= 1,
      function, ": scale must be 0 < min_scale <= max_scale <= 1, got ", options.min_scale(), " and ",
      options.max_scale());
  TORCH_CHECK(options.min_ratio() > 0 && options.min_ratio() <= options.max_ratio() &&
                  std::isfinite(options.max_ratio()),
              function, ": ratio must be 0 < min_ratio <= max_ratio, got ", options.min_ratio(), " and ",
              options.max_ratio());
}

/// The boxes of such draws, by ATen's calls on their device.
inline mixmatch::detail::CropBoxes crop_boxes(const Tensor& uniform, int64_t height, int64_t width,
                                              const RandomResizedCropOptions& options) {
  const auto size_h = static_cast<double>(height), size_w = static_cast<double>(width);
  const Tensor drawn = uniform.detach().to(at::kDouble).clamp(0, 1 - 0x1p-24);
  const auto between = [](const Tensor& share, double low, double high) {
    return share * (high - low) + low;
  };
  const Tensor tries = drawn.narrow(1, 0, 2 * kCropTries).reshape({-1, kCropTries, 2});
  const Tensor area =
      between(tries.select(2, 0), options.min_scale(), options.max_scale()) * (size_h * size_w);
  const Tensor ratio =
      between(tries.select(2, 1), std::log(options.min_ratio()), std::log(options.max_ratio())).exp();
  const Tensor widths = (area * ratio).sqrt().round(), heights = (area / ratio).sqrt().round();
  const Tensor fits =
      widths.gt(0).logical_and(widths.le(size_w)).logical_and(heights.gt(0)).logical_and(heights.le(size_h));
  // The first that fits.
  const Tensor rank = at::arange(kCropTries, 0, -1, fits.options().dtype(at::kLong)) * fits.to(at::kLong);
  const auto best = rank.max(1, /*keepdim=*/true);
  const Tensor index = std::get<1>(best);  // a structured binding no lambda captures in clang before 16
  const Tensor found = std::get<0>(best).squeeze(1).gt(0);
  // Else the whole, as far as the ratio lets it, from the middle.
  double whole_w = size_w, whole_h = size_h;
  if (height > 0 && size_w / size_h < options.min_ratio()) {
    whole_h = std::clamp(std::nearbyint(size_w / options.min_ratio()), 1.0, size_h);
  } else if (height > 0 && size_w / size_h > options.max_ratio()) {
    whole_w = std::clamp(std::nearbyint(size_h * options.max_ratio()), 1.0, size_w);
  }
  const auto chosen = [&](const Tensor& lengths, double whole) {
    return at::where(found, lengths.gather(1, index).squeeze(1), at::full_like(drawn.select(1, 0), whole))
        .to(at::kLong);
  };
  const auto begin = [&](int64_t draw, const Tensor& length, int64_t size) {
    const Tensor room = size - length;
    const Tensor at_random = ((room + 1) * drawn.select(1, draw)).floor().to(at::kLong);
    return at::where(found, at::minimum(at_random, room), room.div(2, "floor"));
  };
  mixmatch::detail::CropBoxes boxes;
  boxes.width = chosen(widths, whole_w);
  boxes.height = chosen(heights, whole_h);
  boxes.top = begin(2 * kCropTries, boxes.height, height);
  boxes.left = begin(2 * kCropTries + 1, boxes.width, width);
  const Tensor mirrored = drawn.select(1, 2 * kCropTries + 2).lt(0.5).to(at::kLong);
  boxes.flip = options.mirror() ? mirrored : at::zeros_like(mirrored);
  return boxes;
}

}  // namespace detail

/// How many uniform numbers an image takes: two for each of ten tries (area, ratio), then those of row,
/// column and mirroring.
inline int64_t random_resized_crop_draws() { return 2 * detail::kCropTries + 3; }

/// random_resized_crop() by draws of your own: a pure function of `images` and `uniform`.
///
/// `uniform`: float32 [N, random_resized_crop_draws()] in [0, 1), on the images' device. The first try whose
/// box is not larger than the image counts; below .5 the last number mirrors. Values outside of [0, 1) count
/// as the nearest inside.
inline Tensor random_resized_crop_with(const Tensor& images, const Tensor& uniform,
                                       const RandomResizedCropOptions& options = {}) {
  constexpr const char* function = "random_resized_crop_with";
  detail::check_resized_crop(function, images);
  detail::check_resized_crop_options(function, options);
  mixmatch::detail::check_uniform_draws(function, uniform, images, random_resized_crop_draws());
  const torch::NoGradGuard no_grad;
  const auto boxes = detail::crop_boxes(uniform, images.size(2), images.size(3), options);
  return images.is_cpu() ? mixmatch::detail::resized_crop_on_cpu(images, boxes)
                         : mixmatch::detail::resized_crop_composite(images, boxes);
}

/// The augmentation of photographs: a rectangle of random area and ratio is cut out at a random place,
/// enlarged to the whole image's size, and mirrored half the time; torchvision's RandomResizedCrop to the
/// images' own size, and RandomHorizontalFlip.
///
/// Area and logarithm of the ratio are uniform; after ten tries whose box does not fit, the largest box of an
/// allowed ratio is cut from the middle. Enlarged bilinearly between pixels' centres (align_corners = false);
/// since nothing shrinks, antialiasing would change nothing. Weights are rounded to 2048ths, which moves a
/// value by less than .13 before it is rounded.
///
/// `images`: uint8 [N, C, H, W] up to 65536 x 65536, any strides and device; the result is uint8,
/// channels-last. normalize() makes floating point of it. No gradient. Draws
/// N x random_resized_crop_draws() uniform float32 from `generator` (default: that of the images' device) at
/// once, on the generator's device; the result does not depend on the number of threads, and on a GPU nothing
/// waits for the device. Equal boxes give equal results on every device; the boxes are computed in float64,
/// whose exp() may differ in the last digit. Throws on other dtypes and shapes, and on options out of their
/// ranges. For small images see random_crop_flip().
inline Tensor random_resized_crop(const Tensor& images, const RandomResizedCropOptions& options = {},
                                  std::optional<at::Generator> generator = std::nullopt) {
  detail::check_resized_crop("random_resized_crop", images);
  detail::check_resized_crop_options("random_resized_crop", options);
  const Tensor uniform = mixmatch::detail::uniform_draws(images.size(0), random_resized_crop_draws(),
                                                         images.device(), generator);
  return random_resized_crop_with(images, uniform, options);
}

/// random_resized_crop() with its options and generator: a callable Tensor(const Tensor&). The generator is a
/// shared handle: saving its state saves this augmentation's.
class RandomResizedCrop {
 public:
  explicit RandomResizedCrop(const RandomResizedCropOptions& options = {},
                             std::optional<at::Generator> generator = std::nullopt)
      : options_(options), generator_(std::move(generator)) {
    detail::check_resized_crop_options("RandomResizedCrop", options_);
  }

  Tensor operator()(const Tensor& images) const { return random_resized_crop(images, options_, generator_); }

  const RandomResizedCropOptions& options() const { return options_; }
  const std::optional<at::Generator>& generator() const { return generator_; }

 private:
  RandomResizedCropOptions options_;
  std::optional<at::Generator> generator_;
};

}  // namespace mixmatch::augment
