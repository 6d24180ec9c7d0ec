#pragma once

#include <torch/types.h>
#include <mixmatch/detail/serial_thread.hpp>

#include <cstdint>
#include <functional>
#include <future>
#include <optional>
#include <utility>

namespace mixmatch::training {

/// Makes the next step's batch on a thread of its own while the present step runs.
///
///     Prefetch<Batch> batches([&](int64_t step) { return make_batch(step); });
///     const Batch batch = batches(state.step);                 // waits for it, and starts the next one
///
/// `make` is a function of the step's number alone, for instance with streams that it owns and seeks, and
/// with a generator that it seeds by the step: then nothing is lost or drawn twice when steps are skipped or
/// a run is resumed, there is no state to save, and a run with prefetching equals one without, to the bit. It
/// is called by one thread at a time, with gradients off, and on one CPU thread, so as not to get in the
/// step's way. What it throws is thrown by the call that asks for that step. With `ahead` false everything
/// happens in the calls.
template <class Batch>
class Prefetch {
 public:
  explicit Prefetch(std::function<Batch(int64_t)> make, bool ahead = true)
      : make_(std::move(make)), ahead_(ahead) {}
  Prefetch(const Prefetch&) = delete;
  Prefetch& operator=(const Prefetch&) = delete;

  /// The batch of a step; steps are expected to follow each other, and may do otherwise.
  Batch operator()(int64_t step) {
    std::optional<Batch> batch;
    if (pending_.valid()) {
      if (pending_step_ == step) {
        batch.emplace(pending_.get());
      } else {
        // Nobody asked for that one: nor for its errors.
        pending_.wait();
        pending_ = {};
      }
    }
    if (!batch.has_value()) {
      batch.emplace(make(step));
    }
    if (ahead_) {
      pending_step_ = step + 1;
      pending_ = worker_.run([this, next = step + 1] { return make(next); });
    }
    return std::move(*batch);
  }

 private:
  Batch make(int64_t step) {
    const torch::NoGradGuard no_grad;
    return make_(step);
  }

  std::function<Batch(int64_t)> make_;
  bool ahead_;
  int64_t pending_step_ = 0;
  mixmatch::detail::SerialThread worker_;
  std::future<Batch> pending_;
};

}  // namespace mixmatch::training
