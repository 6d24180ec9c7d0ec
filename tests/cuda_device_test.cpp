// On a machine with a GPU: each kernel on the device against the composite in float64.

#include <torch/cuda.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/mixup.hpp>
#include <mixmatch/sharpen.hpp>

#include "catch.hpp"
#include "cuda_device.hpp"

using torch::Tensor;

namespace {

const std::vector<at::ScalarType> all_types{at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

double rounding_of(at::ScalarType type) {
  return type == at::kDouble ? 1e-12 : type == at::kFloat ? 4e-6 : type == at::kHalf ? 1.0 / 1024 : 1.0 / 128;
}

bool close(const Tensor& result, const Tensor& exact, double factor = 1) {
  const double tolerance = factor * rounding_of(result.scalar_type());
  return at::allclose(result.to(at::kDouble), exact, tolerance, tolerance, /*equal_nan=*/true);
}

/// The composite's result for the same arguments.
template <class F>
Tensor without_kernels(const F& f) {
  mixmatch::detail::cuda_kernels_enabled() = false;
  Tensor result = f();
  mixmatch::detail::cuda_kernels_enabled() = true;
  return result;
}

}  // namespace

TEST_CASE("this machine's GPU runs kernels that are compiled at run time") {
  if (skip_without_cuda()) {
    return;
  }
  CHECK(mixmatch::detail::cuda_kernels_available(torch::kCUDA));
}

TEST_CASE("guessed labels on the GPU are the composite's") {
  if (skip_without_cuda()) {
    return;
  }
  for (const auto type : all_types) {
    for (const int64_t classes : {2, 10, 1000}) {
      std::vector<Tensor> views, exact_views;
      for (int k = 0; k < 3; ++k) {
        views.push_back((at::randn({65, classes}, torch::kCUDA) * 3).to(type));
        exact_views.push_back(views.back().to(at::kDouble));
      }
      INFO(type << ", " << classes << " classes");
      const Tensor exact = without_kernels([&] { return mixmatch::guess_labels_from_logits(exact_views); });
      CHECK(close(mixmatch::guess_labels_from_logits(views), exact, 4));
      const Tensor rows = views[0].abs();
      for (const double temperature : {0.5, 0.3, 1.0, 0.0}) {
        CHECK(close(mixmatch::sharpen(rows, temperature),
                    mixmatch::detail::sharpen_composite(rows.to(at::kDouble), temperature, -1), 8));
      }
    }
  }
}

TEST_CASE("MixUp on the GPU is the composite's") {
  if (skip_without_cuda()) {
    return;
  }
  for (const auto type : all_types) {
    for (const auto& shape : {std::vector<int64_t>{192, 3, 32, 32}, {7, 3, 5, 5}, {64, 10}}) {
      Tensor x = at::randn(shape, torch::kCUDA).to(type);
      if (x.dim() == 4) {
        x = x.contiguous(at::MemoryFormat::ChannelsLast);
      }
      const Tensor permutation = mixmatch::detail::random_permutation(x.size(0), x.device(), std::nullopt);
      for (const Tensor& lambda : {at::rand({x.size(0)}, x.options().dtype(at::kFloat)),
                                   at::rand({}, x.options().dtype(at::kFloat))}) {
        INFO(type << " " << x.sizes());
        const Tensor exact =
            mixmatch::detail::mix_rows_composite(x.to(at::kDouble), x.to(at::kDouble), permutation, lambda);
        CHECK(close(mixmatch::mixup_pairs(x, permutation, lambda), exact));
      }
    }
  }
}

TEST_CASE("augmentation on the GPU gives the CPU's bits") {
  if (skip_without_cuda()) {
    return;
  }
  const Tensor images = at::randint(256, {65, 3, 32, 32}, at::kByte);
  for (const auto type : all_types) {
    mixmatch::detail::CropFlip crops{4, at::randint(2, {65}, at::kLong), at::randint(9, {65}, at::kLong),
                                     at::randint(9, {65}, at::kLong)};
    const auto options = mixmatch::augment::NormalizeOptions().dtype(type);
    const auto scale = mixmatch::augment::detail::pixel_scale("test", options, 3);
    const Tensor on_cpu = mixmatch::detail::crop_flip(images, crops, scale, type);
    for (Tensor* offsets : {&crops.flip, &crops.row, &crops.column}) {
      *offsets = offsets->cuda();
    }
    CHECK(mixmatch::detail::crop_flip(images.cuda(), crops, scale, type).cpu().equal(on_cpu));
    CHECK(mixmatch::augment::normalize(images.cuda(), options)
              .cpu()
              .equal(mixmatch::augment::normalize(images, options)));
  }
}
