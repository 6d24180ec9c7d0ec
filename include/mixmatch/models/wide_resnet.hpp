#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/models/detail/checks.hpp>
#include <mixmatch/models/detail/layers.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>
#include <mixmatch/nn/convolve.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace mixmatch::models {

using torch::Tensor;

struct WideResNetOptions {
  /* implicit */ WideResNetOptions(int64_t num_classes) : num_classes_(num_classes) {}

  TORCH_ARG(int64_t, num_classes);
  /// 6 n + 4 with n residual blocks in each scale: 10, 16, 22, 28, … The count is that of three scales,
  /// whatever `scales` is.
  TORCH_ARG(int64_t, depth) = 28;
  /// The first scale has 16 * widen_factor filters; each further one doubles them.
  TORCH_ARG(int64_t, widen_factor) = 2;
  /// Filters of the first scale where they are no multiple of 16 (the papers' 135); 0 = 16 * widen_factor.
  TORCH_ARG(int64_t, filters) = 0;
  /// 3 for 32x32 images, 4 for STL-10's 96x96.
  TORCH_ARG(int64_t, scales) = 3;
  TORCH_ARG(int64_t, in_channels) = 3;
  TORCH_ARG(double, leaky_slope) = 0.1;
  /// In LibTorch's sense: the share of the new batch. TensorFlow's .999.
  TORCH_ARG(double, batch_norm_momentum) = 0.001;
  TORCH_ARG(double, batch_norm_eps) = 1e-3;
  /// Batch norm, leaky ReLU and the residual addition in one (BatchNormLeakyReLU) where that can be; false:
  /// in ATen's calls, the same to rounding.
  TORCH_ARG(bool, fused) = true;
};

/// A block's result before it is added up, which the next batch norm does in passing; `shortcut` may be
/// undefined.
struct ResidualSum {
  Tensor residual, shortcut;
};

/// BN, leaky ReLU, conv3x3(stride), BN, leaky ReLU, conv3x3, plus the shortcut; a 1x1 convolution on the
/// shortcut only where the number of channels changes. Only the network's first block takes the shortcut
/// after its activation.
class WideResNetBlockImpl : public torch::nn::Cloneable<WideResNetBlockImpl> {
 public:
  WideResNetBlockImpl(int64_t in, int64_t out, int64_t stride, bool activate_before_residual,
                      const WideResNetOptions& options)
      : in_(in),
        out_(out),
        stride_(stride),
        activate_before_residual_(activate_before_residual),
        options_(options) {
    reset();
  }

  void reset() override {
    bn1 = register_module("bn1", detail::norm_and_activation(in_, options_.leaky_slope(), options_));
    conv1 = register_module("conv1", detail::convolution(in_, out_, 3, stride_));
    bn2 = register_module("bn2", detail::norm_and_activation(out_, options_.leaky_slope(), options_));
    conv2 = register_module("conv2", detail::convolution(out_, out_, 3, 1));
    if (in_ != out_) {
      shortcut = register_module("convShortcut", detail::convolution(in_, out_, 1, stride_));
    }
  }

  Tensor forward(const Tensor& input) {
    const auto [residual, kept] = forward_parts({input, Tensor()});
    return residual + kept;
  }

  /// The block with both additions, that before it and its own, left to whoever normalises the sum.
  ResidualSum forward_parts(const ResidualSum& input) {
    const auto [sum, activated] = bn1->forward_sum(input.residual, input.shortcut);
    const Tensor residual = convolve(conv2, bn2(convolve(conv1, activated)));
    const Tensor& kept = activate_before_residual_ ? activated : sum;
    return {residual, shortcut.is_empty() ? kept : convolve(shortcut, kept)};
  }

  /// Normalisation with its activation.
  BatchNormLeakyReLU bn1{nullptr}, bn2{nullptr};
  torch::nn::Conv2d conv1{nullptr}, conv2{nullptr}, shortcut{nullptr};

 private:
  int64_t in_, out_, stride_;
  bool activate_before_residual_;
  WideResNetOptions options_;
};
TORCH_MODULE(WideResNetBlock);

/// The residual blocks of one scale, as the module `layer`.
class WideResNetGroupImpl : public torch::nn::Cloneable<WideResNetGroupImpl> {
 public:
  WideResNetGroupImpl(int64_t in, int64_t out, int64_t stride, bool first, const WideResNetOptions& options)
      : in_(in), out_(out), stride_(stride), first_(first), options_(options) {
    reset();
  }

  void reset() override {
    layer = register_module("layer", torch::nn::Sequential());
    const int64_t blocks = (options_.depth() - 4) / 6;
    for (int64_t i = 0; i < blocks; ++i) {
      layer->push_back(
          WideResNetBlock(i == 0 ? in_ : out_, out_, i == 0 ? stride_ : 1, first_ && i == 0, options_));
    }
  }

  Tensor forward(const Tensor& input) { return layer->forward(input); }
  ResidualSum forward_parts(ResidualSum x) {
    for (auto& module : *layer) {
      if (auto* block = module.ptr()->as<WideResNetBlock>()) {
        x = block->forward_parts(x);
      } else {  // one that a user put there
        x = {module.forward(x.shortcut.defined() ? x.residual + x.shortcut : x.residual), Tensor()};
      }
    }
    return x;
  }

  torch::nn::Sequential layer{nullptr};

 private:
  int64_t in_, out_, stride_;
  bool first_;
  WideResNetOptions options_;
};
TORCH_MODULE(WideResNetGroup);

/// The papers' Wide ResNet, WRN-28-2 by default with 1,467,610 parameters for ten classes: conv3x3(16),
/// `scales` groups of residual blocks, BN, leaky ReLU, global mean, dense. Images [N, in_channels, H, W] to
/// logits [N, num_classes]; channels-last input stays channels-last. Initial weights come from LibTorch's
/// default generator (torch::manual_seed): convolutions as above, dense Glorot normal, biases 0. Modules
/// carry the names of the common PyTorch ports (conv1, block1.layer.0.bn1, …, bn1, fc). Throws on a depth
/// that is not 6 n + 4.
class WideResNetImpl : public torch::nn::Cloneable<WideResNetImpl> {
 public:
  /// The name of the last layer, for load_pretrained().
  static constexpr const char* head_name = "fc";

  explicit WideResNetImpl(const WideResNetOptions& options) : options_(options) {
    TORCH_CHECK(options.depth() >= 10 && (options.depth() - 4) % 6 == 0,
                "WideResNet: depth must be 6 n + 4 (10, 16, 22, 28, …), got ", options.depth());
    detail::check_positive("WideResNet", "widen_factor", options.widen_factor());
    TORCH_CHECK(options.filters() >= 0, "WideResNet: filters must be >= 0, got ", options.filters());
    detail::check_positive("WideResNet", "scales", options.scales());
    detail::check_positive("WideResNet", "num_classes", options.num_classes());
    detail::check_positive("WideResNet", "in_channels", options.in_channels());
    reset();
  }

  void reset() override {
    const int64_t first = options_.filters() > 0 ? options_.filters() : 16 * options_.widen_factor();
    int64_t channels = 16;
    conv1 = register_module("conv1", detail::convolution(options_.in_channels(), channels, 3, 1));
    groups.clear();
    for (int64_t scale = 0; scale < options_.scales(); ++scale) {
      const int64_t filters = first << scale;
      groups.push_back(
          register_module("block" + std::to_string(scale + 1),
                          WideResNetGroup(channels, filters, scale > 0 ? 2 : 1, scale == 0, options_)));
      channels = filters;
    }
    bn1 = register_module("bn1", detail::norm_and_activation(channels, options_.leaky_slope(), options_));
    fc = register_module("fc", torch::nn::Linear(channels, options_.num_classes()));
    torch::NoGradGuard no_grad;
    fc->weight.normal_(0, std::sqrt(2.0 / static_cast<double>(channels + options_.num_classes())));
    fc->bias.zero_();
  }

  Tensor forward(const Tensor& images) { return fc(features(images)); }

  /// What the last layer sees, [N, filters of the last scale].
  Tensor features(const Tensor& images) {
    detail::check_images("WideResNet", images, options_.in_channels());
    ResidualSum x{convolve(conv1, images), Tensor()};
    for (auto& group : groups) {
      x = group->forward_parts(x);
    }
    return bn1->forward_sum(x.residual, x.shortcut).activation.mean({2, 3});
  }

  /// Takes a batch as so many equal parts, each normalised by itself (see forward_each()).
  void set_batch_norm_groups(int64_t groups_of_batch) { detail::set_groups(*this, groups_of_batch); }

  const WideResNetOptions& options() const { return options_; }

  torch::nn::Conv2d conv1{nullptr};
  std::vector<WideResNetGroup> groups;
  BatchNormLeakyReLU bn1{nullptr};
  torch::nn::Linear fc{nullptr};

 private:
  WideResNetOptions options_;
};
TORCH_MODULE(WideResNet);

}  // namespace mixmatch::models
