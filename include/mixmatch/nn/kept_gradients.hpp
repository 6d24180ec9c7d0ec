#pragma once

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda/side_stream.hpp>

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training::detail {

/// The gradients of copies of parameters, as long as they are kept apart from the parameters' own.
struct KeptGradients {
  bool open = false;
  /// Whether the weights' gradients of convolutions (see convolve()) are to be computed beside all else.
  bool overlap = false;
  std::vector<torch::Tensor> of_copy;
  mixmatch::detail::SideStream side;

  /// In a backward pass: with gradients on, a second derivative was asked for.
  bool keeps() const { return open && !at::GradMode::is_enabled(); }
  /// Not while cuDNN measures its convolutions: it is to time one alone.
  bool overlaps() const { return keeps() && overlap && !at::globalContext().benchmarkCuDNN(); }

  void add(size_t place, const torch::Tensor& gradient) {
    torch::Tensor& sum = of_copy[place];
    if (!sum.defined()) {
      sum = gradient;
      return;
    }
    side.wait();  // which may have made it
    sum = sum + gradient;
  }

  /// Adds gradient(), which reads `inputs`. Not before side.wait() is it there.
  template <class Gradient>
  void add_beside(size_t place, std::vector<torch::Tensor> inputs, const Gradient& gradient) {
    const torch::Device device = inputs.front().device();
    if (of_copy[place].defined()) {
      inputs.push_back(of_copy[place]);
    }
    side.run(device, std::move(inputs), [&] {
      torch::Tensor& sum = of_copy[place];
      sum = sum.defined() ? sum + gradient() : gradient();
    });
  }
};

/// From a parameter's copy in another precision to the parameter: the gradient in the parameter's dtype, or
/// as it is into KeptGradients, where that is open.
class CopyBackward : public torch::autograd::Node {
 public:
  CopyBackward(const torch::Tensor& parameter, std::shared_ptr<KeptGradients> kept, size_t place)
      : Node(torch::autograd::collect_next_edges(parameter)),
        type_(parameter.scalar_type()),
        kept_(std::move(kept)),
        place_(place) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    const torch::Tensor& gradient = gradients[0];
    if (!gradient.defined() || !kept_->keeps()) {
      return {gradient.defined() ? gradient.to(type_) : gradient};
    }
    kept_->add(place_, gradient);
    return {torch::Tensor()};
  }

  KeptGradients& kept() { return *kept_; }
  size_t place() const { return place_; }

 private:
  at::ScalarType type_;
  std::shared_ptr<KeptGradients> kept_;
  size_t place_;
};

/// Makes `copy` the output of a CopyBackward. `NodePointer` is shared by std or, in later LibTorch,
/// intrusive.
template <class NodePointer = decltype(torch::autograd::Edge::function)>
void connect_copy(torch::Tensor& copy, const torch::Tensor& parameter,
                  const std::shared_ptr<KeptGradients>& kept, size_t place) {
  NodePointer node;
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    node = std::make_shared<CopyBackward>(parameter, kept, place);
  } else {
    node = c10::make_intrusive<CopyBackward>(parameter, kept, place);
  }
  torch::autograd::create_gradient_edge(copy, std::move(node));
}

/// Whose output `tensor` is; null if it is no copy.
inline CopyBackward* copy_backward_of(const torch::Tensor& tensor) {
  return tensor.is_leaf() ? nullptr : dynamic_cast<CopyBackward*>(tensor.grad_fn().get());
}

}  // namespace mixmatch::training::detail
