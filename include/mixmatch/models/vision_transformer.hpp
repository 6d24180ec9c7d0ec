#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/detail/version.hpp>
#include <mixmatch/models/detail/checks.hpp>

#include <cstdint>
#include <vector>

namespace mixmatch::models {

using torch::Tensor;

struct VisionTransformerOptions {
  /* implicit */ VisionTransformerOptions(int64_t num_classes) : num_classes_(num_classes) {}

  /// S/16, 22,050,664 parameters for 1,000 classes: timm's vit_small_patch16_224.
  static VisionTransformerOptions small(int64_t num_classes) { return {num_classes}; }
  /// B/16, 86,567,656 parameters for 1,000 classes: timm's vit_base_patch16_224.
  static VisionTransformerOptions base(int64_t num_classes) {
    return VisionTransformerOptions(num_classes).width(768).heads(12);
  }
  /// S/14 with the names of DINOv2 (arXiv 2304.07193), and B/14; with four registers (arXiv 2309.16588) where
  /// the weights' name says "reg4".
  static VisionTransformerOptions dinov2_small(int64_t num_classes) {
    return small(num_classes).patch_size(14).image_size(518).layer_scale(1e-5).mask_token(true);
  }
  static VisionTransformerOptions dinov2_base(int64_t num_classes) {
    return dinov2_small(num_classes).width(768).heads(12);
  }

  TORCH_ARG(int64_t, num_classes);
  /// Height and width of the square images whose patches the position embedding has a row for each; those of
  /// other images are interpolated. That of the weights that are to be loaded.
  TORCH_ARG(int64_t, image_size) = 224;
  TORCH_ARG(int64_t, patch_size) = 16;
  /// Channels of a token; a multiple of heads.
  TORCH_ARG(int64_t, width) = 384;
  TORCH_ARG(int64_t, depth) = 12;
  TORCH_ARG(int64_t, heads) = 6;
  TORCH_ARG(int64_t, in_channels) = 3;
  /// Initial factor of each residual (ls1.gamma, ls2.gamma); 0: none.
  TORCH_ARG(double, layer_scale) = 0.0;
  /// Learned tokens beside those of the image (register_tokens).
  TORCH_ARG(int64_t, registers) = 0;
  /// DINOv2's files hold the token that hid patches in their pretraining: a buffer here, of no effect.
  TORCH_ARG(bool, mask_token) = false;
};

class VisionTransformerAttentionImpl : public torch::nn::Cloneable<VisionTransformerAttentionImpl> {
 public:
  VisionTransformerAttentionImpl(int64_t width, int64_t heads) : width_(width), heads_(heads) { reset(); }

  void reset() override {
    qkv = register_module("qkv", torch::nn::Linear(width_, 3 * width_));
    proj = register_module("proj", torch::nn::Linear(width_, width_));
  }

  /// Self-attention over the tokens [N, T, width].
  Tensor forward(const Tensor& x) {
    const auto parts = qkv(x).unflatten(-1, {3, heads_, width_ / heads_}).permute({2, 0, 3, 1, 4});
    const Tensor mixed = mixmatch::detail::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
    return proj(mixed.transpose(1, 2).flatten(2));
  }

  torch::nn::Linear qkv{nullptr}, proj{nullptr};

 private:
  int64_t width_, heads_;
};
TORCH_MODULE(VisionTransformerAttention);

/// x gamma, a factor a channel.
class LayerScaleImpl : public torch::nn::Cloneable<LayerScaleImpl> {
 public:
  LayerScaleImpl(int64_t width, double initial) : width_(width), initial_(initial) { reset(); }
  void reset() override { gamma = register_parameter("gamma", torch::full({width_}, initial_)); }
  Tensor forward(const Tensor& x) { return x * gamma; }

  Tensor gamma;

 private:
  int64_t width_;
  double initial_;
};
TORCH_MODULE(LayerScale);

/// x + scale1 attention(norm x), then x + scale2 MLP(norm x).
class VisionTransformerBlockImpl : public torch::nn::Cloneable<VisionTransformerBlockImpl> {
 public:
  explicit VisionTransformerBlockImpl(const VisionTransformerOptions& options) : options_(options) {
    reset();
  }

  void reset() override {
    const int64_t width = options_.width();
    const auto norm = torch::nn::LayerNormOptions({width}).eps(1e-6);
    norm1 = register_module("norm1", torch::nn::LayerNorm(norm));
    attn = register_module("attn", VisionTransformerAttention(width, options_.heads()));
    norm2 = register_module("norm2", torch::nn::LayerNorm(norm));
    mlp = register_module("mlp", torch::nn::Sequential({{"fc1", torch::nn::Linear(width, 4 * width)},
                                                        {"act", torch::nn::GELU()},
                                                        {"fc2", torch::nn::Linear(4 * width, width)}}));
    if (options_.layer_scale() != 0) {
      ls1 = register_module("ls1", LayerScale(width, options_.layer_scale()));
      ls2 = register_module("ls2", LayerScale(width, options_.layer_scale()));
    }
  }

  Tensor forward(const Tensor& input) {
    const Tensor attended = attn(norm1(input));
    const Tensor x = input + (ls1.is_empty() ? attended : ls1(attended));
    const Tensor mapped = mlp->forward(norm2(x));
    return x + (ls2.is_empty() ? mapped : ls2(mapped));
  }

  torch::nn::LayerNorm norm1{nullptr}, norm2{nullptr};
  VisionTransformerAttention attn{nullptr};
  torch::nn::Sequential mlp{nullptr};
  LayerScale ls1{nullptr}, ls2{nullptr};

 private:
  VisionTransformerOptions options_;
};
TORCH_MODULE(VisionTransformerBlock);

/// Vision Transformer (arXiv 2010.11929): patches of patch_size x patch_size as tokens, a class token before
/// them, learned position embeddings, `depth` blocks of attention and MLP with layer norm before each, and a
/// dense layer on the class token.
///
/// Images [N, in_channels, H, W] to logits [N, num_classes], H and W multiples of patch_size: where they are
/// not image_size, the position embedding is interpolated (bicubic, antialiased: timm's dynamic_img_size).
/// Parameters and their names are timm's, and DINOv2's own where those differ, so that published weights load
/// unchanged (load_pretrained). timm's "augreg" weights expect images in [-1, 1], as augment::normalize()
/// gives, DINOv2's such as are normalised by ImageNet's mean and deviation. No layer looks at other rows of
/// the batch, and there is no dropout. Initial weights come from LibTorch's default generator: dense layers,
/// position embedding and registers N(0, .02^2), class token N(0, 1e-12), biases 0. Throws on options out of
/// range and on images of another size.
class VisionTransformerImpl : public torch::nn::Cloneable<VisionTransformerImpl> {
 public:
  /// The name of the last layer, for load_pretrained().
  static constexpr const char* head_name = "head";

  explicit VisionTransformerImpl(const VisionTransformerOptions& options) : options_(options) {
    detail::check_positive("VisionTransformer", "num_classes", options.num_classes());
    detail::check_positive("VisionTransformer", "patch_size", options.patch_size());
    detail::check_positive("VisionTransformer", "image_size", options.image_size());
    detail::check_positive("VisionTransformer", "depth", options.depth());
    detail::check_positive("VisionTransformer", "heads", options.heads());
    detail::check_positive("VisionTransformer", "width", options.width());
    detail::check_positive("VisionTransformer", "in_channels", options.in_channels());
    TORCH_CHECK(options.image_size() % options.patch_size() == 0,
                "VisionTransformer: image_size must be a multiple of patch_size ", options.patch_size(),
                ", got ", options.image_size());
    TORCH_CHECK(options.width() % options.heads() == 0,
                "VisionTransformer: width must be a multiple of heads ", options.heads(), ", got ",
                options.width());
    TORCH_CHECK(options.registers() >= 0, "VisionTransformer: registers must be >= 0, got ",
                options.registers());
    reset();
  }

  void reset() override {
    const int64_t width = options_.width(), patch = options_.patch_size();
    const int64_t side = options_.image_size() / patch;
    cls_token = register_parameter("cls_token", torch::randn({1, 1, width}) * 1e-6);
    pos_embed = register_parameter("pos_embed", torch::randn({1, 1 + side * side, width}) * 0.02);
    if (options_.registers() > 0) {
      register_tokens =
          register_parameter("register_tokens", torch::randn({1, options_.registers(), width}) * 0.02);
    }
    if (options_.mask_token()) {
      register_buffer("mask_token", torch::zeros({1, width}));
    }
    const auto convolution = torch::nn::Conv2dOptions(options_.in_channels(), width, patch).stride(patch);
    patch_embed =
        register_module("patch_embed", torch::nn::Sequential({{"proj", torch::nn::Conv2d(convolution)}}));
    blocks = register_module("blocks", torch::nn::Sequential());
    for (int64_t i = 0; i < options_.depth(); ++i) {
      blocks->push_back(VisionTransformerBlock(options_));
    }
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width}).eps(1e-6)));
    head = register_module("head", torch::nn::Linear(width, options_.num_classes()));
    const torch::NoGradGuard no_grad;
    apply([](torch::nn::Module& module) {
      if (auto* dense = module.as<torch::nn::Linear>()) {
        dense->weight.normal_(0, 0.02);
        dense->bias.zero_();
      }
    });
  }

  Tensor forward(const Tensor& images) { return head(features(images)); }

  /// What the last layer sees, [N, width].
  Tensor features(const Tensor& images) {
    const int64_t patch = options_.patch_size();
    detail::check_images("VisionTransformer", images, options_.in_channels());
    TORCH_CHECK(images.size(2) > 0 && images.size(2) % patch == 0 && images.size(3) > 0 &&
                    images.size(3) % patch == 0,
                "VisionTransformer: height and width of the images must be multiples of the patch size ",
                patch, ", got ", images.size(2), " x ", images.size(3));
    const Tensor patches = patch_embed->forward(images);
    const Tensor positions = position_embedding(patches.size(2), patches.size(3));
    Tensor x = patches.flatten(2).transpose(1, 2);
    const Tensor one = x.narrow(1, 0, 1);  // no size of the batch: a trace is for any
    x = at::cat({cls_token.expand_as(one), x}, 1) + positions;
    if (register_tokens.defined()) {
      x = at::cat({x.narrow(1, 0, 1), at::zeros_like(one) + register_tokens, x.narrow(1, 1, x.size(1) - 1)},
                  1);
    }
    return norm(blocks->forward(x).select(1, 0));
  }

  /// Each row is normalised by itself whatever the groups are (see forward_each()).
  void set_batch_norm_groups(int64_t /*groups*/) {}

  const VisionTransformerOptions& options() const { return options_; }

  Tensor cls_token, pos_embed, register_tokens;
  torch::nn::Sequential patch_embed{nullptr}, blocks{nullptr};
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear head{nullptr};

 private:
  /// [1, 1 + height width, width]
  Tensor position_embedding(int64_t height, int64_t width) const {
    const int64_t side = options_.image_size() / options_.patch_size();
    if (height == side && width == side) {
      return pos_embed;
    }
    const Tensor grid =
        pos_embed.narrow(1, 1, side * side).reshape({1, side, side, -1}).permute({0, 3, 1, 2});
    // Not torch::nn::functional::interpolate(): g++ 16 warns of what it does for one dimension.
    const Tensor resized =
        at::_upsample_bicubic2d_aa(grid.to(at::kFloat), {height, width}, /*align_corners=*/false)
            .to(pos_embed.scalar_type());
    return at::cat({pos_embed.narrow(1, 0, 1), resized.flatten(2).transpose(1, 2)}, 1);
  }

  VisionTransformerOptions options_;
};
TORCH_MODULE(VisionTransformer);

}  // namespace mixmatch::models
