#pragma once

// What the convolutional networks are made of.

#include <torch/nn/module.h>
#include <torch/nn/modules/conv.h>
#include <torch/types.h>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>

#include <cmath>
#include <cstdint>

namespace mixmatch::models::detail {

/// Batch norm with its activation, by a network's options: slope 0 is ReLU, slope 1 no activation.
template <class Options>
BatchNormLeakyReLU norm_and_activation(int64_t channels, double slope, const Options& options) {
  BatchNormLeakyReLU norm(torch::nn::BatchNorm2dOptions(channels)
                              .eps(options.batch_norm_eps())
                              .momentum(options.batch_norm_momentum()),
                          slope);
  norm->set_fused(options.fused());
  return norm;
}

/// Convolution without bias, padded by kernel / 2, weights ~ N(0, 2 groups / (k k out_channels)).
inline torch::nn::Conv2d convolution(int64_t in, int64_t out, int64_t kernel, int64_t stride = 1,
                                     int64_t groups = 1) {
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(in, out, kernel)
                             .stride(stride)
                             .padding(kernel / 2)
                             .groups(groups)
                             .bias(false));
  torch::NoGradGuard no_grad;
  conv->weight.normal_(0, std::sqrt(2.0 / static_cast<double>(kernel * kernel * (out / groups))));
  return conv;
}

/// Sets the groups of every norm in a network.
inline void set_groups(torch::nn::Module& network, int64_t groups) {
  network.apply([groups](torch::nn::Module& module) {
    if (auto* norm = module.as<BatchNormLeakyReLU>()) {
      norm->set_groups(groups);
    }
  });
}

}  // namespace mixmatch::models::detail
