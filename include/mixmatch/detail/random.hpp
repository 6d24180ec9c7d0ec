#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_mixup.hpp>
#include <mixmatch/detail/cuda/cuda_shuffle.hpp>
#include <mixmatch/detail/version.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace mixmatch::detail {

using torch::Tensor;

/// Draws happen where the generator lives; without one, on the device that the result is for.
inline at::Device draw_device(at::Device device, const std::optional<at::Generator>& generator) {
  return generator.has_value() ? generator->device() : device;
}

/// `draws` uniform float32 in [0, 1) for each of `rows` images, [rows, draws], on `device`.
inline Tensor uniform_draws(int64_t rows, int64_t draws, at::Device device,
                            const std::optional<at::Generator>& generator) {
  return at::rand({rows, draws}, to_aten(generator),
                  at::TensorOptions().dtype(at::kFloat).device(draw_device(device, generator)))
      .to(device);
}

/// Throws unless `uniform` is such draws for `images`.
inline void check_uniform_draws(const char* function, const Tensor& uniform, const Tensor& images,
                                int64_t draws) {
  TORCH_CHECK(
      uniform.defined() && uniform.scalar_type() == at::kFloat &&
          uniform.sizes() == at::IntArrayRef({images.size(0), draws}) && uniform.device() == images.device(),
      function, ": uniform must be float32 [", images.size(0), ", ", draws, "] on ", images.device(),
      ", got ",
      uniform.defined() ? c10::str(uniform.scalar_type(), " ", uniform.sizes(), " on ", uniform.device())
                        : std::string("undefined"));
}

/// n draws of Beta(alpha, alpha), exact for any alpha > 0. In log space, since for a small alpha both Gamma
/// variates underflow: log Gamma(a) ~ log Gamma(a + 1) + log(U) / a, and lambda = g1 / (g1 + g2) =
/// sigmoid(log g1 - log g2). With `dominant` max(lambda, 1 - lambda).
inline Tensor sample_symmetric_beta(int64_t n, double alpha, at::Device device, at::ScalarType dtype,
                                    const std::optional<at::Generator>& generator, bool dominant = false) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(draw_device(device, generator));
  const Tensor gamma = at::_standard_gamma(at::full({2, n}, alpha + 1.0, options), to_aten(generator));
  const Tensor uniform = at::rand({2, n}, to_aten(generator), options);
  if (const Tensor lambda = beta_of_draws_on_cuda(gamma, uniform, alpha, dtype, dominant); lambda.defined()) {
    return lambda.to(device);
  }
  // The difference first: for a tiny alpha both quotients overflow.
  const Tensor log_gamma = gamma.log(), log_uniform = (1.0 - uniform).log();  // of (0, 1]
  const Tensor log_odds = (log_gamma[0] - log_gamma[1]) + (log_uniform[0] - log_uniform[1]).div_(alpha);
  const Tensor lambda = at::sigmoid(log_odds).to(device, dtype);
  return dominant ? at::maximum(lambda, 1 - lambda) : lambda;
}

/// A random order of 0 … n - 1. On a GPU by sorting uniforms, which needs no host and can be captured in a
/// graph.
inline Tensor random_permutation(int64_t n, at::Device device,
                                 const std::optional<at::Generator>& generator) {
  const at::Device drawn_on = draw_device(device, generator);
  if (drawn_on.is_cpu()) {
    return at::randperm(n, to_aten(generator), at::TensorOptions().dtype(at::kLong)).to(device);
  }
  const Tensor numbers =
      at::rand({n}, to_aten(generator), at::TensorOptions().dtype(at::kDouble).device(drawn_on));
  Tensor places = at::empty({n}, numbers.options().dtype(at::kLong));
  return (sorted_places_on_cuda(places, numbers) ? places : numbers.argsort()).to(device);
}

}  // namespace mixmatch::detail
