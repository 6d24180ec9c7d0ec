#pragma once

#include <torch/types.h>

#include <utility>
#include <vector>

namespace mixmatch::training {

using torch::Tensor;

/// The tensors that a method changes in place from step to step, which its state() returns; none where it has
/// no state().
template <class Method>
std::vector<Tensor> state_of(const Method& method) {
  if constexpr (requires { method.state(); }) {
    return method.state();
  } else {
    return {};
  }
}

/// Those of them that belong to rows of data or count them, which its row_state() returns, of any dtype: an
/// unlabeled image's last guess at its own place, how many rows each class was guessed for. None where it has
/// no row_state(): then a method's floating-point state is means over rows, and its integers count steps.
template <class Method>
std::vector<Tensor> row_state_of(const Method& method) {
  if constexpr (requires { method.row_state(); }) {
    return method.row_state();
  } else {
    return {};
  }
}

/// A method's state in a step of several processes: all of it, and what is of rows with what it was before.
struct MethodState {
  std::vector<Tensor> all;
  std::vector<std::pair<Tensor, Tensor>> rows;
};

}  // namespace mixmatch::training
