#pragma once

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <future>
#include <optional>
#include <utility>

namespace mixmatch::training {

namespace detail {

/// Makes LibTorch compute on this thread alone when it is called from it. at::set_num_threads would change
/// the number for the whole process; OpenMP's own call is for the calling thread, and reaches the runtime
/// that LibTorch brought without our being compiled for OpenMP. Where there is none, nothing changes.
inline void compute_on_this_thread_alone() {
  at::get_num_threads();  // LibTorch sets a new thread's number at its first question, and not again
  if (auto* set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) {
    set(1);
  }
}

}  // namespace detail

/// Makes the next step's batch on another thread while the present step runs.
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
      pending_ = std::async(std::launch::async, [this, next = step + 1] {
        detail::compute_on_this_thread_alone();
        return make(next);
      });
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
  std::future<Batch> pending_;  // waits for its task when it goes
};

}  // namespace mixmatch::training
