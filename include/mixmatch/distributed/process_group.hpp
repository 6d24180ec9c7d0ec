#pragma once

#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace mixmatch::training {

using torch::Tensor;

/// The processes that train one model together: which of them this is, and what they tell each other.
///
/// Every process calls the same functions in the same order with tensors of the same sizes and dtypes. Where
/// another process is gone or has failed, they throw PeerError, at the latest after the group's timeout. A
/// null pointer to a group means one process. C10dProcessGroup is the one of the programs; an own subclass
/// may stand in its place.
class ProcessGroup {
 public:
  /// A collective that has begun. Its tensor may be used when wait() has returned (on a GPU: by what the
  /// current stream does next).
  class Work {
   public:
    Work() = default;
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;
    virtual ~Work() = default;
    virtual void wait() = 0;
  };

  ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;
  virtual ~ProcessGroup() = default;

  virtual int64_t rank() const = 0;
  virtual int64_t world_size() const = 0;

  /// tensor <- its sum over all ranks, the same bits on each. Floating-point or int64, contiguous.
  virtual std::unique_ptr<Work> start_sum(Tensor tensor) = 0;
  /// All ranks' tensors, [world_size, …] of a tensor […] of any dtype.
  virtual Tensor gather(const Tensor& tensor) = 0;
  /// tensor <- rank 0's. Of any dtype, contiguous.
  virtual void broadcast_(Tensor tensor) = 0;

  /// Whether a CUDA graph can hold collectives of tensors on that device.
  virtual bool capturable(torch::Device device) const = 0;

  /// Says that a step begins: the collectives of one that is replayed as a graph are not called.
  virtual void begin_step() {}

  /// Waits until all ranks are here, however long one of them takes, as long as none has failed.
  virtual void meet() { max_of(0); }

  /// tensor <- its mean over all ranks.
  void mean_(Tensor tensor) {
    start_sum(tensor)->wait();
    tensor.div_(static_cast<double>(world_size()));
  }

  /// Each rank's text, in their order.
  std::vector<std::string> gather_texts(const std::string& text) {
    const Tensor sizes = gather(at::full({1}, static_cast<int64_t>(text.size()), at::kLong));
    Tensor bytes = at::zeros({sizes.max().item<int64_t>()}, at::kByte);
    std::copy(text.begin(), text.end(), reinterpret_cast<char*>(bytes.data_ptr<uint8_t>()));
    const Tensor all = bytes.numel() > 0 ? gather(bytes) : at::zeros({world_size(), 0}, at::kByte);
    std::vector<std::string> texts;
    for (int64_t i = 0; i < world_size(); ++i) {
      const auto size = static_cast<size_t>(sizes[i].item<int64_t>());
      texts.emplace_back(reinterpret_cast<const char*>(all.data_ptr<uint8_t>()) + i * bytes.numel(), size);
    }
    return texts;
  }

  /// Rank 0's text; the others' argument is not looked at.
  std::string broadcast_text(std::string text) {
    Tensor size = at::full({1}, static_cast<int64_t>(text.size()), at::kLong);
    broadcast_(size);
    text.resize(static_cast<size_t>(size.item<int64_t>()));
    if (!text.empty()) {
      broadcast_(at::from_blob(text.data(), size.item<int64_t>(), at::kByte));
    }
    return text;
  }

  /// The largest of all ranks' numbers.
  int64_t max_of(int64_t number) { return gather(at::full({1}, number, at::kLong)).max().item<int64_t>(); }
};

/// Another process of the group is gone or has failed. The message says whose fault it is.
class PeerError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// One that another rank speaks of: this one ends without a word.
class SilentPeerError : public PeerError {
 public:
  using PeerError::PeerError;
};

}  // namespace mixmatch::training
