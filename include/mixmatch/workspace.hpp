#pragma once

#include <c10/core/InferenceMode.h>
#include <c10/core/MemoryFormat.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
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
/// Ordinary CPU memory alone: on other devices, whose allocators do the same, for pinned memory, and in
/// inference mode, empty() is at::empty. Memory that the last kManyRequests calls had no use for is let go
/// of. One thread at a time may call it; tensors may be released on any.
class Workspace {
 public:
  static constexpr int64_t kManyRequests = 64;

  Workspace() = default;
  Workspace(Workspace&&) = default;
  Workspace& operator=(Workspace&&) = default;

  /// Like at::empty: uninitialised, with a version of its own for autograd; without gradient.
  Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options,
               at::MemoryFormat format = at::MemoryFormat::Contiguous) {
    if (!options.device().is_cpu() || options.layout() != at::kStrided || options.pinned_memory() ||
        c10::InferenceMode::is_enabled()) {
      return at::empty(sizes, options.requires_grad(false), format);
    }
    const auto type = c10::typeMetaToScalarType(options.dtype());
    if (format == at::MemoryFormat::ChannelsLast) {
      TORCH_CHECK(sizes.size() == 4, "Workspace: channels-last sizes must be [N, C, H, W], got ", sizes);
      return take(sizes, c10::get_channels_last_strides_2d(sizes), type);
    }
    TORCH_CHECK(format == at::MemoryFormat::Contiguous,
                "Workspace: format must be contiguous or channels-last, got ", format);
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size(); i-- > 1;) {
      strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
    }
    return take(sizes, strides, type);
  }

  /// Like at::empty_like, with the strides of `other`.
  Tensor empty_like(const Tensor& other) {
    if (!other.is_cpu() || other.layout() != at::kStrided || !other.is_non_overlapping_and_dense() ||
        c10::InferenceMode::is_enabled()) {
      return at::empty_like(other);
    }
    return take(other.sizes(), other.strides(), other.scalar_type());
  }

 private:
  struct Kept {
    Tensor tensor;
    int64_t last_request;

    bool is_free() const {
      if (tensor.storage().use_count() != 1) {
        return false;
      }
      // What another thread did to the memory before it let go of it comes before this.
      std::atomic_thread_fence(std::memory_order_acquire);
      return true;
    }
  };

  Tensor take(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type) {
    ++num_requests_;
    auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& kept) {
      return kept.tensor.scalar_type() == type && kept.tensor.sizes() == sizes &&
             kept.tensor.strides() == strides && kept.is_free();
    });
    if (found == kept_.end()) {
      std::erase_if(kept_, [&](const Kept& kept) {
        return num_requests_ - kept.last_request > kManyRequests && kept.is_free();
      });
      found = kept_.insert(kept_.end(), {at::empty_strided(sizes, strides, type), 0});
    }
    found->last_request = num_requests_;
    return found->tensor.variable_data();
  }

  std::vector<Kept> kept_;
  int64_t num_requests_ = 0;
};

namespace detail {

/// In memory of `workspace` if there is one, else of LibTorch's.
inline Tensor empty_in(Workspace* workspace, at::IntArrayRef sizes, const at::TensorOptions& options,
                       at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return workspace != nullptr ? workspace->empty(sizes, options, format) : at::empty(sizes, options, format);
}

}  // namespace detail

}  // namespace mixmatch
