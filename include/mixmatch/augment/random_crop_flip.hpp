#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/detail/counter_words.hpp>
#include <mixmatch/detail/cpu/augment_kernel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/preallocated.hpp>
#include <mixmatch/detail/random.hpp>
#include <mixmatch/detail/version.hpp>

#include <optional>
#include <utility>

namespace mixmatch::augment {

struct RandomCropFlipOptions {
  /// Pixels that each side is padded by, by reflection without repeating the edge, before an image of the old
  /// size is cut out; all 2 * padding + 1 offsets in each direction are equally likely. In [0, min(H, W)).
  TORCH_ARG(int64_t, padding) = 4;
  /// Mirror left and right with probability 1/2.
  TORCH_ARG(bool, mirror) = true;
  /// How images of whole numbers become floating-point ones.
  TORCH_ARG(NormalizeOptions, normalization) = {};
};

namespace detail {

/// What becomes of pixels: uint8 ones are scaled.
struct PixelConversion {
  std::optional<mixmatch::detail::PixelScale> scale;
  at::ScalarType dtype;
};

inline PixelConversion check_crop_flip(const char* function, const Tensor& images,
                                       const RandomCropFlipOptions& options) {
  TORCH_CHECK(images.defined() && images.dim() == 4 &&
                  (images.scalar_type() == at::kByte || at::isFloatingType(images.scalar_type())),
              function, ": images must be uint8 or floating-point [N, C, H, W], got ",
              mixmatch::detail::type_and_sizes(images));
  const int64_t padding = options.padding();
  TORCH_CHECK(padding >= 0, function, ": padding must be >= 0, got ", padding);
  TORCH_CHECK(padding == 0 || (padding < images.size(2) && padding < images.size(3)), function,
              ": padding must be less than height and width to reflect, got ", padding, " for ",
              images.sizes());
  if (images.scalar_type() != at::kByte) {
    return {std::nullopt, images.scalar_type()};
  }
  return {pixel_scale(function, options.normalization(), images.size(1)), options.normalization().dtype()};
}

inline mixmatch::detail::CropFlip draw_crops(const Tensor& images, const RandomCropFlipOptions& options,
                                             const std::optional<at::Generator>& generator) {
  const auto draw = [&](int64_t choices) {
    const auto device = mixmatch::detail::draw_device(images.device(), generator);
    return at::randint(choices, {images.size(0)}, mixmatch::detail::to_aten(generator),
                       at::TensorOptions().dtype(at::kLong).device(device))
        .to(images.device());
  };
  mixmatch::detail::CropFlip crops;
  crops.padding = options.padding();
  crops.flip = options.mirror() ? draw(2) : at::zeros({images.size(0)}, images.options().dtype(at::kLong));
  crops.row = draw(2 * options.padding() + 1);
  crops.column = draw(2 * options.padding() + 1);
  return crops;
}

/// The same of words (see counter_words()), int64 [3, N].
inline mixmatch::detail::CropFlip crops_of_words(const Tensor& words, const RandomCropFlipOptions& options) {
  using mixmatch::detail::words_below;
  const int64_t offsets = 2 * options.padding() + 1;
  return {options.padding(), options.mirror() ? words_below(words[0], 2) : at::zeros_like(words[0]),
          words_below(words[1], offsets), words_below(words[2], offsets)};
}

}  // namespace detail

/// The weak augmentation of MixMatch and its followers: mirror, pad by reflection and crop at random, and
/// uint8 to normalised floating point, in one pass over memory.
///
/// `images`: uint8 [N, C, H, W] or other whole numbers (see normalize()), normalised by
/// options.normalization() (uint8 to [-1, 1] by default), or floating-point, which keep their values and
/// dtype; any strides and device; differentiable for floating-point images. Returns channels-last. Draws N
/// times each from `generator` (default: that of the images' device) mirror, row offset and column offset, on
/// the device of the generator; the result does not depend on the number of threads. On a GPU nothing waits
/// for the device. Throws on other dtypes and shapes and on a padding that is negative or not below H and W.
inline Tensor random_crop_flip(const Tensor& images, const RandomCropFlipOptions& options = {},
                               std::optional<at::Generator> generator = std::nullopt) {
  if (images.defined() && images.scalar_type() != at::kByte && !images.is_floating_point()) {
    return random_crop_flip(normalize(images, options.normalization()), options, std::move(generator));
  }
  const auto pixels = detail::check_crop_flip("random_crop_flip", images, options);
  return mixmatch::detail::crop_flip(images, detail::draw_crops(images, options, generator), pixels.scale,
                                     pixels.dtype);
}

/// random_crop_flip() into a preallocated channels-last `out` of the result's shape, dtype and device that
/// shares no memory with the images: for instance the rows of one batch that holds several views. An empty
/// `out` is resized. No gradient.
inline Tensor& random_crop_flip_out(Tensor& out, const Tensor& images,
                                    const RandomCropFlipOptions& options = {},
                                    std::optional<at::Generator> generator = std::nullopt) {
  const auto pixels = detail::check_crop_flip("random_crop_flip_out", images, options);
  mixmatch::detail::check_type_and_device("random_crop_flip_out", out, pixels.dtype, images.device());
  TORCH_CHECK(!(at::GradMode::is_enabled() && (images.requires_grad() || out.requires_grad())),
              "random_crop_flip_out: no gradient is recorded into out; use random_crop_flip() or "
              "torch::NoGradGuard");
  if (out.numel() == 0 && images.numel() != 0) {
    out.resize_(images.sizes(), at::MemoryFormat::ChannelsLast);
  }
  TORCH_CHECK(out.sizes() == images.sizes() && out.is_contiguous(at::MemoryFormat::ChannelsLast),
              "random_crop_flip_out: out must be channels-last ", images.sizes(), ", got ", out.sizes(),
              " with strides ", out.strides());
  mixmatch::detail::check_separate("random_crop_flip_out", out, images, "images");
  mixmatch::detail::crop_flip_out(out, images, detail::draw_crops(images, options, generator), pixels.scale);
  return out;
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
