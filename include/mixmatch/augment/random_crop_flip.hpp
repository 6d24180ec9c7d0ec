#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/detail/augment_kernel.hpp>
#include <mixmatch/detail/random.hpp>
#include <mixmatch/detail/version.hpp>

#include <optional>
#include <string>
#include <utility>

namespace mixmatch::augment {

struct RandomCropFlipOptions {
  /// Pixels that each side is padded by, by reflection without repeating the edge, before an image of the old
  /// size is cut out; all 2 * padding + 1 offsets in each direction are equally likely. In [0, min(H, W)).
  TORCH_ARG(int64_t, padding) = 4;
  /// Mirror left and right with probability 1/2.
  TORCH_ARG(bool, mirror) = true;
  /// How uint8 images become floating-point ones.
  TORCH_ARG(NormalizeOptions, normalization) = {};
};

/// The weak augmentation of MixMatch and its followers: mirror, pad by reflection and crop at random, and
/// uint8 to normalised floating point, in one pass over memory.
///
/// `images`: uint8 [N, C, H, W], normalised by options.normalization() (to [-1, 1] by default), or
/// floating-point, which keep their values and dtype; any strides and device; differentiable for
/// floating-point images. Returns channels-last. Draws N times each from `generator` (default: that of the
/// images' device) mirror, row offset and column offset, on the device of the generator; the result does not
/// depend on the number of threads. On a GPU nothing waits for the device. Throws on other dtypes and shapes
/// and on a padding that is negative or not below H and W.
inline Tensor random_crop_flip(const Tensor& images, const RandomCropFlipOptions& options = {},
                               std::optional<at::Generator> generator = std::nullopt) {
  TORCH_CHECK(
      images.defined() && images.dim() == 4 &&
          (images.scalar_type() == at::kByte || at::isFloatingType(images.scalar_type())),
      "random_crop_flip: images must be uint8 or floating-point [N, C, H, W], got ",
      images.defined() ? c10::str(images.scalar_type(), " ", images.sizes()) : std::string("undefined"));
  const int64_t padding = options.padding();
  TORCH_CHECK(padding >= 0, "random_crop_flip: padding must be >= 0, got ", padding);
  TORCH_CHECK(padding == 0 || (padding < images.size(2) && padding < images.size(3)),
              "random_crop_flip: padding must be less than height and width to reflect, got ", padding,
              " for ", images.sizes());
  const auto scale =
      images.scalar_type() == at::kByte
          ? std::optional(detail::pixel_scale("random_crop_flip", options.normalization(), images.size(1)))
          : std::nullopt;
  const auto draw = [&](int64_t choices) {
    const auto device = mixmatch::detail::draw_device(images.device(), generator);
    return at::randint(choices, {images.size(0)}, mixmatch::detail::to_aten(generator),
                       at::TensorOptions().dtype(at::kLong).device(device))
        .to(images.device());
  };
  mixmatch::detail::CropFlip crops;
  crops.padding = padding;
  crops.flip = options.mirror() ? draw(2) : at::zeros({images.size(0)}, images.options().dtype(at::kLong));
  crops.row = draw(2 * padding + 1);
  crops.column = draw(2 * padding + 1);
  return mixmatch::detail::crop_flip(images, crops, scale, options.normalization().dtype());
}

/// random_crop_flip() with its options and generator: an Augment callable for mixmatch_batch().
///
/// The generator is a shared handle: saving its state saves this augmentation's.
class RandomCropFlip {
 public:
  explicit RandomCropFlip(RandomCropFlipOptions options = {},
                          std::optional<at::Generator> generator = std::nullopt)
      : options_(std::move(options)), generator_(std::move(generator)) {}

  Tensor operator()(const Tensor& images) const { return random_crop_flip(images, options_, generator_); }

  const RandomCropFlipOptions& options() const { return options_; }
  const std::optional<at::Generator>& generator() const { return generator_; }

 private:
  RandomCropFlipOptions options_;
  std::optional<at::Generator> generator_;
};

}  // namespace mixmatch::augment
