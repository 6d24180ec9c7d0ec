#pragma once

#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/step/feed.hpp>
#include <mixmatch/step/prefetch.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#ifdef MIXMATCH_HAS_CUDA
#include <ATen/cuda/CUDAEvent.h>
#endif

namespace mixmatch::training {

/// The images of a training whose data the host reads: each step's on another thread while the step before
/// runs, and on a GPU copied by a stream of their own meanwhile, into memory that stays, so that a graph can
/// read it.
///
///     HostBatches batches(feed, device);
///     RawBatch raw;
///     while (…) {
///       batches.take(step, raw);                     // the same memory from the second step on
///       … the step on the device …
///       batches.end_step();
///     }
///     … the host waits for the device …
///     batches.count();
///     const double share = batches.waited();         // in [0, 1]: was reading the images the limit?
///
/// Nothing waits for the device, but take() for the eighth step before, so that images do not pile up. `feed`
/// must outlive it.
class HostBatches {
 public:
  /// `ahead`: on another thread.
  HostBatches(const Feed& feed, torch::Device device, bool ahead = true)
      : device_(device),
        batches_([&feed](int64_t step) { return feed.gather(at::full({}, step, at::kLong)); }, ahead) {}
  HostBatches(const HostBatches&) = delete;
  HostBatches& operator=(const HostBatches&) = delete;

  /// The images of a step into `raw`, on the device.
  void take(int64_t step, RawBatch& raw) {
    const auto begin = Clock::now();
    const RawBatch batch = batches_(step);
    const double waited = seconds_since(begin);
    host_waited_ += waited;
    if (!device_.is_cuda()) {
      raw = batch;
      return;
    }
#ifdef MIXMATCH_HAS_CUDA
    if (steps_.empty()) {
      first_waited_ = waited;
    }
    copy_on_the_side(batch, raw);
#endif
  }

  /// What the step does has been said to the device.
  void end_step() {
#ifdef MIXMATCH_HAS_CUDA
    if (device_.is_cuda() && !steps_.empty()) {
      steps_.back().end.record(stream());
    }
#endif
  }

  /// Adds up what waited() says of the steps since the call before: once the device has done them all.
  /// `seconds`: what they took the host.
  void count(double seconds) {
    if (!device_.is_cuda()) {
      waited_ += std::exchange(host_waited_, 0.0);
      total_ += seconds;
      return;
    }
#ifdef MIXMATCH_HAS_CUDA
    if (!steps_.empty() && steps_.back().end.isCreated()) {
      // Before the first of them the device had nothing else to do: it waited as long as the host.
      waited_ += first_waited_;
      total_ += first_waited_ + std::max(0.0F, steps_.front().begin.elapsed_time(steps_.front().end)) / 1e3;
    }
    for (size_t i = 1; i < steps_.size(); ++i) {
      const auto &before = steps_[i - 1].end, &now = steps_[i].end;
      waited_ += std::max(0.0F, before.elapsed_time(steps_[i].begin)) / 1e3;
      total_ += std::max(0.0F, before.elapsed_time(now)) / 1e3;
    }
    steps_.clear();
#endif
  }

  /// The share of the counted steps' time in which they waited for images; 0 before count().
  double waited() const { return total_ > 0 ? std::min(1.0, waited_ / total_) : 0.0; }
  /// Of that time, in seconds.
  double seconds_waited() const { return waited_; }

 private:
  static constexpr size_t kMostAhead = 8;
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

#ifdef MIXMATCH_HAS_CUDA
  struct StepEvents {
    at::cuda::CUDAEvent begin{cudaEventDefault}, end{cudaEventDefault};  // with times
  };

  at::cuda::CUDAStream stream() const { return c10::cuda::getCurrentCUDAStream(device_.index()); }

  static void for_each_pair(RawBatch& to, const RawBatch& from, const auto& f) {
    for (auto [place, value] : {std::pair{&to.images, &from.images},
                                {&to.labels, &from.labels},
                                {&to.unlabeled_rows, &from.unlabeled_rows},
                                {&to.hidden_labels, &from.hidden_labels}}) {
      if (value->defined()) {
        f(*place, *value);
      }
    }
  }

  void copy_on_the_side(const RawBatch& batch, RawBatch& raw) {
    const c10::cuda::CUDAGuard guard(device_);
    if (!side_.has_value()) {
      side_ = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device_.index());
      for_each_pair(raw, batch, [this](Tensor& place, const Tensor& value) { place = value.to(device_); });
      for_each_pair(staged_, raw, [](Tensor& place, const Tensor& value) { place = at::empty_like(value); });
      free_.record(stream());
      begin_step();
      return;
    }
    if (steps_.size() >= kMostAhead) {
      steps_[steps_.size() - kMostAhead].end.synchronize();
    }
    free_.block(*side_);
    {
      const c10::cuda::CUDAStreamGuard on_the_side(*side_);
      for_each_pair(staged_, batch, [](Tensor& place, const Tensor& value) {
        place.copy_(value.pin_memory(), /*non_blocking=*/true);  // the allocator keeps it until it is read
      });
      there_.record(*side_);
    }
    there_.block(stream());
    begin_step();
    for_each_pair(raw, staged_, [](Tensor& place, const Tensor& value) { place.copy_(value); });
    free_.record(stream());
  }

  void begin_step() {
    if (!steps_.empty() && !steps_.back().end.isCreated()) {  // of a step that threw
      steps_.pop_back();
    }
    steps_.emplace_back();
    steps_.back().begin.record(stream());
  }

  std::optional<c10::cuda::CUDAStream> side_;
  RawBatch staged_;                   // on the device, until the step before has read its own
  at::cuda::CUDAEvent there_, free_;  // staged_ is full; it may be filled
  std::deque<StepEvents> steps_;      // since count()
  double first_waited_ = 0;           // the host, for the first of them
#endif

  torch::Device device_;
  double host_waited_ = 0, waited_ = 0, total_ = 0;
  Prefetch<RawBatch> batches_;
};

}  // namespace mixmatch::training
