#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/simd.hpp>
#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/detail/cuda/cuda_optimizer.hpp>
#include <mixmatch/nn/kept_gradients.hpp>
#include <mixmatch/optim/flat_layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace mixmatch::training::detail {

/// What a backward pass leaves for the parameters of a layout: their own gradients and those kept of their
/// copies, each in its parameter's order of elements. Where the step is not the CPU's own there is a block
/// for all of them. The layout must stay where it is.
class FlatGradients {
 public:
  explicit FlatGradients(const FlatLayout& layout) : layout_(layout) {
    kept_->of_copy.resize(layout.parameters().size());
    if (!layout.options().device().is_cpu() || mixmatch::detail::cuda_is_emulated()) {
      block_ = layout.new_block();
      int64_t largest = 0;
      for (const PlacedParameter& parameter : layout.parameters()) {
        largest = std::max(largest, parameter.size);
      }
      zeros_ = at::zeros({largest}, layout.options());
    }
  }
  explicit FlatGradients(FlatLayout&&) = delete;
  FlatGradients(const FlatGradients&) = delete;
  FlatGradients& operator=(const FlatGradients&) = delete;

  /// Undefined where the step is the CPU's own.
  const Tensor& block() const { return block_; }
  const std::shared_ptr<KeptGradients>& kept() const { return kept_; }

  /// For what another stream still computes.
  void wait() { kept_->side.wait(); }

  void drop() {
    wait();
    for (size_t i = 0; i < layout_.parameters().size(); ++i) {
      layout_.parameters()[i].tensor.mutable_grad().reset();
      kept_->of_copy[i].reset();
    }
  }

  /// A gradient of the parameter's layout and dtype, as backward hands over, but for a user's own; undefined
  /// if none. For a kernel that reads them: of another dtype too.
  Tensor of(size_t i, bool for_kernel = false) const {
    const PlacedParameter& parameter = layout_.parameters()[i];
    const Tensor gradient = whole(i);
    if (!gradient.defined() ||
        (lies_alike(gradient, parameter) &&
         (for_kernel ? mixmatch::detail::can_gather(gradient, block_)
                     : gradient.scalar_type() == parameter.tensor.scalar_type() &&
                           (block_.defined() || mixmatch::detail::has_plain_memory(gradient))))) {
      return gradient;
    }
    return at::empty_strided(parameter.tensor.sizes(), parameter.strides, layout_.options()).copy_(gradient);
  }

  /// All of them into the block, by one call.
  void gather() {
    std::vector<Tensor> pieces;
    for (size_t i = 0; i < layout_.parameters().size(); ++i) {
      const PlacedParameter& parameter = layout_.parameters()[i];
      const Tensor gradient = of(i);
      int64_t filled = 0;
      if (gradient.defined()) {
        filled = gradient.numel();
        pieces.push_back(gradient.as_strided({filled}, {1}));
      }
      if (filled < parameter.size) {
        pieces.push_back(zeros_.narrow(0, 0, parameter.size - filled));
      }
    }
    at::cat_out(block_, pieces);
  }

  /// The same by a CUDA kernel. Returns which were not finite, for begin_step_on_cuda().
  Tensor gather_by_kernel() {
    std::vector<mixmatch::detail::GradientPiece> pieces;
    for (size_t i = 0; i < layout_.parameters().size(); ++i) {
      const PlacedParameter& parameter = layout_.parameters()[i];
      pieces.push_back({of(i, /*for_kernel=*/true), parameter.offset, parameter.size});
    }
    return mixmatch::detail::gather_gradients_on_cuda(block_, pieces);
  }

 private:
  /// Its own and its copy's, one of which there may not be; undefined if none.
  Tensor whole(size_t i) const {
    const Tensor &own = layout_.parameters()[i].tensor.grad(), &of_copy = kept_->of_copy[i];
    return !of_copy.defined() ? own : own.defined() ? own + of_copy : of_copy;
  }

  /// Whether the gradient's elements are in the order of the parameter's. The stride of a side of 1 says
  /// nothing: cuDNN's gradients of 1x1 kernels have others than the weights.
  static bool lies_alike(const Tensor& gradient, const PlacedParameter& parameter) {
    bool alike = gradient.sizes() == parameter.tensor.sizes();
    for (int64_t d = 0; alike && d < gradient.dim(); ++d) {
      alike = gradient.size(d) == 1 || gradient.stride(d) == parameter.strides[static_cast<size_t>(d)];
    }
    return alike;
  }

  const FlatLayout& layout_;
  std::shared_ptr<KeptGradients> kept_ = std::make_shared<KeptGradients>();
  Tensor block_, zeros_;
};

}  // namespace mixmatch::training::detail
