#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/rand_augment_kernel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/random.hpp>
#include <mixmatch/detail/version.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::augment {

using torch::Tensor;

/// The operations, each as Pillow does it. All but auto_contrast, equalize, identity and invert have a
/// magnitude; rotate, shear and translate go either way equally often.
using mixmatch::detail::RandAugmentOp;

/// A policy; the default is FixMatch's. "At magnitude 10" below is an end of a range from its value at
/// magnitude 0: an operation at magnitude v takes v / 10 of the way.
struct RandAugmentOptions {
  /// Drawn from uniformly, with replacement; 1 to 32 of them.
  TORCH_ARG(std::vector<RandAugmentOp>, operations) = {
      RandAugmentOp::auto_contrast, RandAugmentOp::brightness,  RandAugmentOp::color,
      RandAugmentOp::contrast,      RandAugmentOp::equalize,    RandAugmentOp::identity,
      RandAugmentOp::posterize,     RandAugmentOp::rotate,      RandAugmentOp::sharpness,
      RandAugmentOp::shear_x,       RandAugmentOp::shear_y,     RandAugmentOp::solarize,
      RandAugmentOp::translate_x,   RandAugmentOp::translate_y,
  };
  /// Operations for each image, one after the other, and with what probability each is applied.
  TORCH_ARG(int64_t, num_ops) = 2;
  TORCH_ARG(double, probability) = 0.5;
  /// Integer magnitudes, both ends included, within [0, 10], drawn uniformly for each operation.
  TORCH_ARG(int64_t, min_magnitude) = 1;
  TORCH_ARG(int64_t, max_magnitude) = 9;
  /// Brightness, color, contrast and sharpness blend with the factor bias + v / 10 * max; 1 changes nothing.
  TORCH_ARG(double, enhance_max) = 0.9;
  TORCH_ARG(double, enhance_bias) = 0.05;
  /// Bits that posterize keeps at magnitude 0, and how many more (or, if negative, fewer) at magnitude 10.
  TORCH_ARG(int64_t, posterize_bits) = 4;
  TORCH_ARG(int64_t, posterize_range) = 4;
  /// Whole degrees at magnitude 10.
  TORCH_ARG(int64_t, rotate_max) = 30;
  /// Pixels a pixel at magnitude 10.
  TORCH_ARG(double, shear_max) = 0.3;
  /// Share of the width or height at magnitude 10.
  TORCH_ARG(double, translate_max) = 0.3;
  /// Side of the operation cutout's square at magnitude 10, as a share of the image's shorter side.
  TORCH_ARG(double, cutout_max) = 0.625;
  /// Side of the square that is cut from every image at the end, as a share of its shorter side: 16 pixels of
  /// 32. 0 for none.
  TORCH_ARG(double, cutout) = 0.5;
  /// Colours, one value for all channels or three: what rotate, shear and translate uncover, and that of the
  /// squares.
  TORCH_ARG(std::vector<int64_t>, fill) = {0};
  TORCH_ARG(std::vector<int64_t>, cutout_fill) = {127};

 public:
  /// FixMatch (arXiv 2001.07685, the appendix's table of transformations): 14 operations, 2 of them with
  /// probability .5, magnitudes 1 to 9 of 10, then a grey square. The paper's released code has other ranges
  /// than its table, close to UDA's.
  static RandAugmentOptions fixmatch() { return {}; }

  /// UDA (arXiv 1904.12848, randaug_policies in its released code): the same without identity, with invert
  /// and cutout, and stronger: factors .28 to 1.72, 4 to 1 bits, 1 to 9 of 32 pixels. Its fill is the mean
  /// colour of CIFAR-10, where it marks pixels as transparent and makes them the mean at the end; here they
  /// are an ordinary colour for the operations that follow.
  static RandAugmentOptions uda() {
    return RandAugmentOptions()
        .operations({RandAugmentOp::invert, RandAugmentOp::cutout, RandAugmentOp::sharpness,
                     RandAugmentOp::auto_contrast, RandAugmentOp::posterize, RandAugmentOp::shear_x,
                     RandAugmentOp::translate_x, RandAugmentOp::translate_y, RandAugmentOp::shear_y,
                     RandAugmentOp::rotate, RandAugmentOp::equalize, RandAugmentOp::contrast,
                     RandAugmentOp::color, RandAugmentOp::solarize, RandAugmentOp::brightness})
        .enhance_max(1.8)
        .enhance_bias(0.1)
        .posterize_range(-4)
        .translate_max(0.3125)
        .fill({125, 122, 113})
        .cutout_fill({125, 122, 113});
  }
};

namespace detail {

inline void check_colour(const char* function, const char* name, const std::vector<int64_t>& colour) {
  const bool bytes =
      std::all_of(colour.begin(), colour.end(), [](int64_t value) { return value >= 0 && value <= 255; });
  TORCH_CHECK((colour.size() == 1 || colour.size() == 3) && bytes, function, ": ", name,
              " must be one or three values in [0, 255], got ", colour);
}

inline void check_rand_augment_options(const char* function, const RandAugmentOptions& options) {
  const auto within = [&](const char* name, double value, double low, double high) {
    TORCH_CHECK(value >= low && value <= high, function, ": ", name, " must be in [", low, ", ", high,
                "], got ", value);
  };
  const auto& operations = options.operations();
  TORCH_CHECK(!operations.empty() && operations.size() <= 32, function, ": operations must be 1 to 32, got ",
              operations.size());
  for (const auto operation : operations) {
    const auto code = static_cast<int32_t>(operation);
    TORCH_CHECK(code >= 0 && code <= static_cast<int32_t>(RandAugmentOp::cutout), function,
                ": operations has an unknown one, ", code);
  }
  within("num_ops", static_cast<double>(options.num_ops()), 0, 64);
  within("probability", options.probability(), 0, 1);
  within("min_magnitude", static_cast<double>(options.min_magnitude()), 0, 10);
  within("max_magnitude", static_cast<double>(options.max_magnitude()),
         static_cast<double>(options.min_magnitude()), 10);
  within("enhance_max", options.enhance_max(), -100, 100);
  within("enhance_bias", options.enhance_bias(), -100, 100);
  within("posterize_bits", static_cast<double>(options.posterize_bits()), 0, 8);
  within("posterize_bits + posterize_range",
         static_cast<double>(options.posterize_bits() + options.posterize_range()), 0, 8);
  within("rotate_max", static_cast<double>(options.rotate_max()), 0, 180);
  within("shear_max", options.shear_max(), 0, 4);
  within("translate_max", options.translate_max(), 0, 1);
  within("cutout_max", options.cutout_max(), 0, 2);
  within("cutout", options.cutout(), 0, 2);
  check_colour(function, "fill", options.fill());
  check_colour(function, "cutout_fill", options.cutout_fill());
}

inline void check_rand_augment_images(const char* function, const Tensor& images) {
  TORCH_CHECK(images.defined() && images.dim() == 4 && images.size(1) == 3 &&
                  images.scalar_type() == at::kByte && images.layout() == at::kStrided,
              function, ": images must be uint8 [N, 3, H, W], got ",
              mixmatch::detail::type_and_sizes(images));
  // Coordinates in 16.16 fixed point, and sums of grey values in 32 bits.
  TORCH_CHECK(images.size(2) <= 4096 && images.size(3) <= 4096, function,
              ": images may have 4096 rows and columns at most, got ", images.sizes());
}

/// The map that Pillow makes of an affine matrix: it samples at the centres of pixels.
inline mixmatch::detail::FixedAffine fixed_affine(const std::array<double, 6>& m) {
  const auto fixed = [](double value) { return static_cast<int32_t>(std::floor(value * 65536.0 + 0.5)); };
  return {fixed(m[0]), fixed(m[1]), fixed(m[2] + m[0] * 0.5 + m[1] * 0.5),
          fixed(m[3]), fixed(m[4]), fixed(m[5] + m[3] * 0.5 + m[4] * 0.5)};
}

/// Image.rotate(degrees): its matrix is rounded to 15 decimals, and turns about the centre.
inline mixmatch::detail::FixedAffine rotation(int64_t degrees, int64_t height, int64_t width) {
  const double pi = 3.14159265358979323846;
  const double angle = -static_cast<double>((degrees + 360) % 360) * (pi / 180);
  const auto rounded = [](double value) { return std::round(value * 1e15) / 1e15; };
  const double cosine = rounded(std::cos(angle)), sine = rounded(std::sin(angle));
  const double x = static_cast<double>(width) / 2, y = static_cast<double>(height) / 2;
  return fixed_affine(
      {cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y});
}

inline mixmatch::detail::RandAugmentPlan rand_augment_plan(const RandAugmentOptions& options, int64_t height,
                                                           int64_t width) {
  mixmatch::detail::RandAugmentPlan plan{};
  plan.height = static_cast<int32_t>(height);
  plan.width = static_cast<int32_t>(width);
  plan.num_ops = static_cast<int32_t>(options.num_ops());
  plan.operation_count = static_cast<int32_t>(options.operations().size());
  std::transform(options.operations().begin(), options.operations().end(), plan.operations,
                 [](RandAugmentOp operation) { return static_cast<int32_t>(operation); });
  plan.probability = static_cast<float>(options.probability());
  plan.min_magnitude = static_cast<int32_t>(options.min_magnitude());
  plan.magnitude_count = static_cast<int32_t>(options.max_magnitude() - options.min_magnitude() + 1);
  const auto shorter = static_cast<double>(std::min(height, width));
  for (int32_t v = 0; v <= 10; ++v) {
    // v * max / 10, in this order, as in the papers' Python: int() of another may be one less.
    const auto part = [v](double max) { return v * max / 10; };
    const auto whole = [](double value) { return static_cast<int32_t>(value); };
    plan.enhance[v] = static_cast<float>(part(options.enhance_max()) + options.enhance_bias());
    const int32_t bits = static_cast<int32_t>(options.posterize_bits()) +
                         whole(part(static_cast<double>(options.posterize_range())));
    plan.posterize_mask[v] = 256 - (1 << (8 - bits));
    plan.solarize_threshold[v] = 256 - whole(part(256));
    plan.translate_x[v] = whole(part(options.translate_max()) * static_cast<double>(width));
    plan.translate_y[v] = whole(part(options.translate_max()) * static_cast<double>(height));
    plan.cutout_side[v] = whole(part(options.cutout_max()) * shorter);
    for (const int32_t sign : {1, -1}) {
      const int32_t place = 2 * v + (sign < 0 ? 1 : 0);
      const int64_t degrees = sign * static_cast<int64_t>(part(static_cast<double>(options.rotate_max())));
      plan.rotate[place] = rotation(degrees, height, width);
      const double shear = sign * part(options.shear_max());
      plan.shear_x[place] = fixed_affine({1, shear, 0, 0, 1, 0});
      plan.shear_y[place] = fixed_affine({1, 0, 0, shear, 1, 0});
    }
  }
  plan.cutout = static_cast<int32_t>(options.cutout() * shorter);
  for (size_t c = 0; c < 3; ++c) {
    plan.fill[c] = static_cast<uint8_t>(options.fill()[options.fill().size() == 1 ? 0 : c]);
    plan.cutout_fill[c] =
        static_cast<uint8_t>(options.cutout_fill()[options.cutout_fill().size() == 1 ? 0 : c]);
  }
  return plan;
}

}  // namespace detail

/// How many uniform numbers an image takes: five for each operation, two for the square.
inline int64_t rand_augment_draws(const RandAugmentOptions& options) { return 5 * options.num_ops() + 2; }

/// rand_augment() by draws of your own: a pure function of `images` and `uniform`.
///
/// `uniform`: float32 [N, rand_augment_draws(options)] in [0, 1), on the images' device. A row has for each
/// operation which one, whether (less than the probability), the magnitude, the sign (negative below .5) or
/// the row of cutout's centre, and its column; then row and column of the last square's centre. Values
/// outside of [0, 1) count as the nearest inside.
inline Tensor rand_augment_with(const Tensor& images, const Tensor& uniform,
                                const RandAugmentOptions& options = {}) {
  detail::check_rand_augment_images("rand_augment_with", images);
  detail::check_rand_augment_options("rand_augment_with", options);
  mixmatch::detail::check_uniform_draws("rand_augment_with", uniform, images, rand_augment_draws(options));
  const auto plan = detail::rand_augment_plan(options, images.size(2), images.size(3));
  const Tensor drawn = uniform.detach().contiguous();
  if (images.device().is_cpu()) {
    return mixmatch::detail::rand_augment_on_cpu(images, drawn, plan);
  }
  const Tensor made = mixmatch::detail::rand_augment_on_cuda(images, drawn, plan);
  return made.defined()
             ? made
             : mixmatch::detail::rand_augment_on_cpu(images.cpu(), drawn.cpu(), plan).to(images.device());
}

/// RandAugment (arXiv 1909.13719) with random magnitudes, the strong augmentation of UDA, FixMatch and their
/// followers: `num_ops` operations drawn for each image, then cutout (arXiv 1708.04552), in one pass an
/// image.
///
/// `images`: uint8 [N, 3, H, W] up to 4096 x 4096, any strides; the result is uint8, too, channels-last, and
/// equal to the bit to what Pillow makes of an image of that mode, on CPU and GPU alike. normalize() or
/// random_crop_flip() makes floating point of it. No gradient. Draws N x rand_augment_draws(options) uniform
/// float32 from `generator` (default: that of the images' device) at once, on the generator's device; the
/// result does not depend on the number of threads. On a GPU it is one kernel, and nothing waits for the
/// device; where kernels cannot be compiled at run time, and on other devices, the images go to the CPU and
/// back. The square is [c - side / 2, c + side / 2) about a uniformly drawn pixel c, as far as it is inside.
/// Throws on other dtypes and shapes, and on options out of their ranges.
inline Tensor rand_augment(const Tensor& images, const RandAugmentOptions& options = {},
                           std::optional<at::Generator> generator = std::nullopt) {
  detail::check_rand_augment_images("rand_augment", images);
  detail::check_rand_augment_options("rand_augment", options);
  const Tensor uniform = mixmatch::detail::uniform_draws(images.size(0), rand_augment_draws(options),
                                                         images.device(), generator);
  return rand_augment_with(images, uniform, options);
}

/// rand_augment() with its options and generator: a callable Tensor(const Tensor&). The generator is a shared
/// handle: saving its state saves this augmentation's.
class RandAugment {
 public:
  explicit RandAugment(RandAugmentOptions options = {}, std::optional<at::Generator> generator = std::nullopt)
      : options_(std::move(options)), generator_(std::move(generator)) {
    detail::check_rand_augment_options("RandAugment", options_);
  }

  Tensor operator()(const Tensor& images) const { return rand_augment(images, options_, generator_); }

  const RandAugmentOptions& options() const { return options_; }
  const std::optional<at::Generator>& generator() const { return generator_; }

 private:
  RandAugmentOptions options_;
  std::optional<at::Generator> generator_;
};

}  // namespace mixmatch::augment
