#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training::detail {

using torch::Tensor;

/// A trained parameter, how it is to be updated, and its place in the blocks of a FlatLayout.
struct PlacedParameter {
  std::string name;
  Tensor tensor, average;  // the model's and the EmaModel's own handles
  bool is_kernel;
  double rate_factor;
  int64_t offset, size;  // in the blocks; `size` is rounded up
  std::vector<int64_t> strides;

  Tensor view_in(const Tensor& block) const { return block.as_strided(tensor.sizes(), strides, offset); }
};

/// Where parameters lie in blocks of memory that each hold something of all of them, such as their values,
/// averages, moments or gradients: one after the other, in the order in which they were added, each from a
/// multiple of `alignment` elements on. All float32, or all float64, of one device.
class FlatLayout {
 public:
  /// Every parameter begins at a multiple of 256 bytes, as memory of its own would: cuDNN asks for alignment.
  static constexpr int64_t alignment = 64;

  /// `average` may be undefined. Throws on another dtype or device than the first parameter's.
  void add(const std::string& name, const Tensor& tensor, const Tensor& average, bool is_kernel,
           double rate_factor) {
    if (parameters_.empty()) {
      options_ = tensor.options().requires_grad(false);
    }
    const Tensor& first = parameters_.empty() ? tensor : parameters_.front().tensor;
    const auto type = first.scalar_type();
    TORCH_CHECK((type == at::kFloat || type == at::kDouble) && tensor.scalar_type() == type,
                "Optimizer: parameters must be all float32 or all float64, got ", tensor.scalar_type(), " ",
                name);
    for (const Tensor* placed : {&tensor, &average}) {
      TORCH_CHECK(!placed->defined() || placed->device() == first.device(), "Optimizer: parameter ", name,
                  " and its average must be on ", first.device(), " as the first is, got ", placed->device());
    }
    const int64_t size = (tensor.numel() + alignment - 1) / alignment * alignment;
    const Tensor dense = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
    parameters_.push_back(
        {name, tensor, average, is_kernel, rate_factor, num_elements_, size, dense.strides().vec()});
    num_elements_ += size;
  }

  const std::vector<PlacedParameter>& parameters() const { return parameters_; }
  /// Of a block, with the gaps between parameters.
  int64_t num_elements() const { return num_elements_; }
  /// The parameters' dtype and device.
  const at::TensorOptions& options() const { return options_; }

  /// Zeros.
  Tensor new_block() const { return at::zeros({num_elements_}, options_); }

  /// A view for each parameter; none where there is no block.
  std::vector<Tensor> views_in(const Tensor& block) const {
    std::vector<Tensor> list;
    for (const PlacedParameter& parameter : parameters_) {
      if (block.defined()) {
        list.push_back(parameter.view_in(block));
      }
    }
    return list;
  }

  /// The parameters and averages lie in these blocks from now on, with the values that they have.
  void move_into(const Tensor& parameters, const Tensor& averages) const {
    for (const PlacedParameter& parameter : parameters_) {
      for (auto [tensor, block] :
           {std::pair<Tensor, Tensor>{parameter.tensor, parameters}, {parameter.average, averages}}) {
        if (tensor.defined()) {
          const Tensor view = parameter.view_in(block);
          view.copy_(tensor);
          tensor.set_data(view);
        }
      }
    }
  }

  /// Throws unless all parameters still lie in the block.
  void check_lie_in(const Tensor& block) const {
    const auto* base = static_cast<const char*>(block.data_ptr());
    for (const PlacedParameter& parameter : parameters_) {
      const int64_t offset = parameter.offset * static_cast<int64_t>(block.element_size());
      TORCH_CHECK(parameter.tensor.scalar_type() == block.scalar_type() &&
                      parameter.tensor.data_ptr() == base + offset,
                  "Optimizer: parameter ", parameter.name,
                  " no longer lies in the optimiser's memory; make the optimiser after model->to(...) and "
                  "torch::load(model, ...), and use it outside average_parameters()");
    }
  }

 private:
  std::vector<PlacedParameter> parameters_;
  int64_t num_elements_ = 0;
  at::TensorOptions options_;
};

}  // namespace mixmatch::training::detail
