#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/conv.h>
#include <torch/types.h>
#include <mixmatch/nn/kept_gradients.hpp>

#include <array>
#include <cstdint>
#include <tuple>

namespace mixmatch::models {

using torch::Tensor;

namespace detail {

struct ConvolutionShape {
  std::array<int64_t, 2> stride, padding, dilation{1, 1};
  int64_t groups = 1;
};

/// A convolution whose two gradients are separate calls where the weight's is computed beside all else.
class ConvolveFunction : public torch::autograd::Function<ConvolveFunction> {
 public:
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;

  static Tensor forward(Context* ctx, const Tensor& x, const Tensor& weight, const ConvolutionShape& shape) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["stride"] = at::IntArrayRef(shape.stride);
    ctx->saved_data["padding"] = at::IntArrayRef(shape.padding);
    ctx->saved_data["dilation"] = at::IntArrayRef(shape.dilation);
    ctx->saved_data["groups"] = shape.groups;
    ctx->set_materialize_grads(false);
    return at::conv2d(x, weight, {}, shape.stride, shape.padding, shape.dilation, shape.groups);
  }

  static List backward(Context* ctx, List grads) {
    const Tensor grad = grads[0];
    if (!grad.defined()) {
      return {Tensor(), Tensor(), Tensor()};
    }
    const auto saved = ctx->get_saved_variables();
    const Tensor x = saved[0], weight = saved[1];
    const auto numbers = [ctx](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const auto gradients = [=, stride = numbers("stride"), padding = numbers("padding"),
                            dilation = numbers("dilation"),
                            groups = ctx->saved_data["groups"].toInt()](bool of_input, bool of_weight) {
      return at::convolution_backward(grad, x, weight, {}, stride, padding, dilation, /*transposed=*/false,
                                      {0, 0}, groups, {of_input, of_weight, false});
    };
    const bool of_input = ctx->needs_input_grad(0), of_weight = ctx->needs_input_grad(1);
    auto* copy = training::detail::copy_backward_of(weight);
    if (of_weight && copy != nullptr && copy->kept().overlaps()) {
      copy->kept().add_beside(copy->place(), {grad, x, weight},
                              [&] { return std::get<1>(gradients(false, true)); });
      return {of_input ? std::get<0>(gradients(true, false)) : Tensor(), Tensor(), Tensor()};
    }
    const auto both = gradients(of_input, of_weight);
    return {std::get<0>(both), std::get<1>(both), Tensor()};
  }
};

/// Without bias. See models::convolve().
inline Tensor convolve(const Tensor& x, const Tensor& weight, const ConvolutionShape& shape) {
  const bool of_copy = x.dim() == 4 && at::GradMode::is_enabled() &&
                       training::detail::copy_backward_of(weight) != nullptr &&
                       (x.scalar_type() == at::kFloat || x.scalar_type() == weight.scalar_type());
  // In the copy's precision, as autocast would have it.
  return of_copy ? ConvolveFunction::apply(x.to(weight.scalar_type()), weight, shape)
                 : at::conv2d(x, weight, {}, shape.stride, shape.padding, shape.dilation, shape.groups);
}

}  // namespace detail

/// conv(x), with the same values and gradients. For networks that are trained on a GPU: in training by
/// LowPrecisionWeights the gradient of the weight, which no other gradient waits for, is computed
/// on a stream of its own beside the rest of the backward pass (see Optimizer::keep_copies_gradients()). The
/// bundled convolutional networks call it, but for ResNet's shortcuts. `conv` has zero padding, in numbers,
/// and no bias, and x is [N, C, H, W]; others are left to conv(x).
inline Tensor convolve(torch::nn::Conv2d& conv, const Tensor& x) {
  const auto& options = conv->options;
  // Of std::variant or, in earlier LibTorch, c10::variant.
  const auto* padding = get_if<torch::ExpandingArray<2>>(&options.padding());
  if (padding == nullptr || conv->bias.defined() ||
      get_if<torch::enumtype::kZeros>(&options.padding_mode()) == nullptr) {
    return conv(x);
  }
  return detail::convolve(x, conv->weight,
                          {*options.stride(), **padding, *options.dilation(), options.groups()});
}

}  // namespace mixmatch::models
