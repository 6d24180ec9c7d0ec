#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training::detail {

/// The gradients of copies of parameters, as long as they are kept apart from the parameters' own.
struct KeptGradients {
  bool open = false;
  std::vector<torch::Tensor> of_copy;
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
    if (!gradient.defined() || !kept_->open || at::GradMode::is_enabled()) {
      return {gradient.defined() ? gradient.to(type_) : gradient};
    }
    torch::Tensor& place = kept_->of_copy[place_];
    place = place.defined() ? place + gradient : gradient;
    return {torch::Tensor()};
  }

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

}  // namespace mixmatch::training::detail
