#pragma once

#include <c10/core/InferenceMode.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <vector>

namespace mixmatch {

using torch::Tensor;

/// Memory for the tensors that every step of a loop makes anew, such as its batch: what a step has let go of
/// serves the next one, so that steps alike allocate nothing after the first few.
///
///     auto options = MixMatchOptions().workspace(std::make_shared<Workspace>());    // before the loop
///
/// Nothing is overwritten that is still in use: memory is given out again when no tensor refers to it any
/// more, neither the one that empty() returned nor a view of it nor what autograd saved for a backward pass.
/// CPU memory alone: on other devices, whose allocators do the same, and in inference mode, empty() is
/// at::empty. One thread at a time may call it; tensors may be released on any.
class Workspace {
 public:
  /// Like at::empty: uninitialised, of its own version for autograd, without gradient.
  Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options,
               at::MemoryFormat format = at::MemoryFormat::Contiguous) {
    if (!options.device().is_cpu() || c10::InferenceMode::is_enabled()) {
      return at::empty(sizes, options, format);
    }
    const auto type = c10::typeMetaToScalarType(options.dtype());
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Tensor& kept) {
      return kept.scalar_type() == type && kept.sizes() == sizes && kept.is_contiguous(format) && is_free(kept);
    });
    if (found != kept_.end()) {
      return found->variable_data();
    }
    if (kept_.size() >= kManyTensors) {
      std::erase_if(kept_, is_free);  // of steps of other shapes
    }
    kept_.push_back(at::empty(sizes, options, format));
    return kept_.back().variable_data();
  }

  /// Like at::empty_like: with the strides of `other`, in new memory unless it is contiguous or
  /// channels-last.
  Tensor empty_like(const Tensor& other) {
    for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
      if (other.is_contiguous(format)) {
        return empty(other.sizes(), other.options(), format);
      }
    }
    return at::empty_like(other);
  }

 private:
  static constexpr size_t kManyTensors = 16;

  static bool is_free(const Tensor& kept) {
    if (kept.storage().use_count() != 1) {
      return false;
    }
    // What another thread did to it before it let go of it was before this.
    std::atomic_thread_fence(std::memory_order_acquire);
    return true;
  }

  std::vector<Tensor> kept_;
};

}  // namespace mixmatch
