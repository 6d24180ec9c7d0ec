#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/models/detail/checks.hpp>
#include <mixmatch/models/detail/layers.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>
#include <mixmatch/nn/convolve.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace mixmatch::models {

using torch::Tensor;

struct ResNetOptions {
  /* implicit */ ResNetOptions(int64_t num_classes) : num_classes_(num_classes) {}

  TORCH_ARG(int64_t, num_classes);
  /// 18 or 34 (two 3x3 convolutions a block), or 50 (bottlenecks of 1x1, 3x3 and 1x1).
  TORCH_ARG(int64_t, depth) = 50;
  TORCH_ARG(int64_t, in_channels) = 3;
  /// In LibTorch's sense: the share of the new batch.
  TORCH_ARG(double, batch_norm_momentum) = 0.1;
  TORCH_ARG(double, batch_norm_eps) = 1e-5;
  /// As WideResNetOptions::fused.
  TORCH_ARG(bool, fused) = true;
};

/// ReLU(residual + shortcut), where the residual is conv3x3(stride), BN, ReLU, conv3x3, BN, or as a
/// bottleneck conv1x1, BN, ReLU, conv3x3(stride), BN, ReLU, conv1x1 to four times the channels, BN; a strided
/// 1x1 convolution with BN on the shortcut where the shape changes.
class ResNetBlockImpl : public torch::nn::Cloneable<ResNetBlockImpl> {
 public:
  ResNetBlockImpl(int64_t in, int64_t width, int64_t stride, bool bottleneck, const ResNetOptions& options)
      : in_(in), width_(width), stride_(stride), bottleneck_(bottleneck), options_(options) {
    reset();
  }

  void reset() override {
    const auto convolution = [this](const char* name, int64_t in, int64_t out, int64_t kernel,
                                    int64_t stride) {
      return register_module(name, detail::convolution(in, out, kernel, stride));
    };
    const auto norm = [this](const char* name, int64_t channels, double slope) {
      return register_module(name, detail::norm_and_activation(channels, slope, options_));
    };
    const int64_t out = bottleneck_ ? 4 * width_ : width_;
    conv1 = convolution("conv1", in_, width_, bottleneck_ ? 1 : 3, bottleneck_ ? 1 : stride_);
    bn1 = norm("bn1", width_, 0.0);
    conv2 = convolution("conv2", width_, width_, 3, bottleneck_ ? stride_ : 1);
    bn2 = norm("bn2", width_, bottleneck_ ? 0.0 : 1.0);
    if (bottleneck_) {
      conv3 = convolution("conv3", width_, out, 1, 1);
      bn3 = norm("bn3", out, 1.0);
    }
    if (stride_ != 1 || in_ != out) {
      downsample = register_module("downsample",
                                   torch::nn::Sequential(detail::convolution(in_, out, 1, stride_),
                                                         detail::norm_and_activation(out, 1.0, options_)));
    }
  }

  Tensor forward(const Tensor& input) {
    Tensor residual = bn2(convolve(conv2, bn1(convolve(conv1, input))));
    if (bottleneck_) {
      residual = bn3(convolve(conv3, residual));
    }
    return at::relu(residual + (downsample.is_empty() ? input : downsample->forward(input)));
  }

  torch::nn::Conv2d conv1{nullptr}, conv2{nullptr}, conv3{nullptr};
  /// Normalisation with its activation, where it has one.
  BatchNormLeakyReLU bn1{nullptr}, bn2{nullptr}, bn3{nullptr};
  torch::nn::Sequential downsample{nullptr};

 private:
  int64_t in_, width_, stride_;
  bool bottleneck_;
  ResNetOptions options_;
};
TORCH_MODULE(ResNetBlock);

/// ResNet-18, -34 and -50 (arXiv 1512.03385) as torchvision has them, with the stride of a bottleneck in its
/// 3x3 convolution: conv7x7(stride 2), BN, ReLU, max-pool 3x3(stride 2), four groups of blocks, global mean,
/// dense. 11,689,512, 21,797,672 and 25,557,032 parameters for 1,000 classes.
///
/// Images [N, in_channels, H, W] to logits [N, num_classes]; channels-last input stays channels-last.
/// Parameters, buffers and their names are torchvision's, so that its weights load unchanged
/// (load_pretrained); those expect images normalised by ImageNet's mean and deviation. Initial weights come
/// from LibTorch's default generator: convolutions N(0, 2 / (k k out_channels)), dense as LibTorch's default.
/// Throws on another depth.
class ResNetImpl : public torch::nn::Cloneable<ResNetImpl> {
 public:
  /// The name of the last layer, for load_pretrained().
  static constexpr const char* head_name = "fc";

  explicit ResNetImpl(const ResNetOptions& options) : options_(options) {
    TORCH_CHECK(options.depth() == 18 || options.depth() == 34 || options.depth() == 50,
                "ResNet: depth must be 18, 34 or 50, got ", options.depth());
    detail::check_positive("ResNet", "num_classes", options.num_classes());
    detail::check_positive("ResNet", "in_channels", options.in_channels());
    reset();
  }

  void reset() override {
    const std::array<int64_t, 4> blocks =
        options_.depth() == 18 ? std::array<int64_t, 4>{2, 2, 2, 2} : std::array<int64_t, 4>{3, 4, 6, 3};
    const bool bottleneck = options_.depth() == 50;
    conv1 = register_module("conv1", detail::convolution(options_.in_channels(), 64, 7, 2));
    bn1 = register_module("bn1", detail::norm_and_activation(64, 0.0, options_));
    int64_t channels = 64;
    layers.clear();
    for (size_t i = 0; i < blocks.size(); ++i) {
      const int64_t width = int64_t{64} << i;
      torch::nn::Sequential layer;
      for (int64_t block = 0; block < blocks[i]; ++block) {
        layer->push_back(ResNetBlock(channels, width, i > 0 && block == 0 ? 2 : 1, bottleneck, options_));
        channels = bottleneck ? 4 * width : width;
      }
      layers.push_back(register_module("layer" + std::to_string(i + 1), layer));
    }
    fc = register_module("fc", torch::nn::Linear(channels, options_.num_classes()));
  }

  Tensor forward(const Tensor& images) { return fc(features(images)); }

  /// What the last layer sees, [N, 512 or 2048].
  Tensor features(const Tensor& images) {
    detail::check_images("ResNet", images, options_.in_channels());
    Tensor x = at::max_pool2d(bn1(convolve(conv1, images)), 3, 2, 1);
    for (auto& layer : layers) {
      x = layer->forward(x);
    }
    return x.mean({2, 3});
  }

  /// As WideResNetImpl's.
  void set_batch_norm_groups(int64_t groups) { detail::set_groups(*this, groups); }

  const ResNetOptions& options() const { return options_; }

  torch::nn::Conv2d conv1{nullptr};
  BatchNormLeakyReLU bn1{nullptr};
  std::vector<torch::nn::Sequential> layers;
  torch::nn::Linear fc{nullptr};

 private:
  ResNetOptions options_;
};
TORCH_MODULE(ResNet);

}  // namespace mixmatch::models
