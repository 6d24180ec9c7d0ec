#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/detail/error_message.hpp>
#include <mixmatch/detail/version.hpp>

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef MIXMATCH_HAS_CUDA
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace mixmatch::training {

using torch::Tensor;

/// All the tensors of the lists: for GraphedStepOptions::state().
inline std::vector<Tensor> joined(const std::vector<std::vector<Tensor>>& lists) {
  std::vector<Tensor> all;
  for (const auto& list : lists) {
    all.insert(all.end(), list.begin(), list.end());
  }
  return all;
}

struct GraphedStepOptions {
  /// False runs the step as it is written, at every call.
  TORCH_ARG(bool, enabled) = true;
  /// Every tensor that a step changes and that outlives it: parameters, buffers, the optimiser's moments,
  /// averages, counters. They are put back after the warm-up.
  TORCH_ARG(std::vector<Tensor>, state);
  /// Tensors whose gradients are let go before the capture, so that the backward pass writes its own.
  TORCH_ARG(std::vector<Tensor>, parameters);
  /// Every generator that the step draws from, on the CPU or the device.
  TORCH_ARG(std::vector<at::Generator>, generators);
  /// Eager steps before the capture, >= 1: libraries choose their algorithms, kernels are compiled.
  TORCH_ARG(int64_t, warmup_steps) = 3;
  /// Lets cuDNN measure its convolutions in the warm-up and take the fastest of each, in place of its rule of
  /// thumb. The steps are faster, but two processes may choose differently: a resumed run is then not bit for
  /// bit the one that was never stopped. Without effect where deterministic convolutions are asked for.
  TORCH_ARG(bool, measure_convolutions) = false;
};

namespace detail {

inline std::string one_line_of(const std::exception& error) {
  const std::string_view text = mixmatch::detail::error_message(error);
  return std::string(text.substr(0, text.find('\n')));
}

/// cuDNN measures its convolutions at their first use, as long as it lives; what it chose it keeps.
class MeasuredConvolutions {
 public:
  explicit MeasuredConvolutions(bool enabled) : before_(at::globalContext().benchmarkCuDNN()) {
    if (enabled && !at::globalContext().deterministicCuDNN()) {
      at::globalContext().setBenchmarkCuDNN(true);
    }
  }
  MeasuredConvolutions(const MeasuredConvolutions&) = delete;
  MeasuredConvolutions& operator=(const MeasuredConvolutions&) = delete;
  ~MeasuredConvolutions() { at::globalContext().setBenchmarkCuDNN(before_); }

 private:
  bool before_;
};

/// What a step changes, as it was at construction; LibTorch's generator of the host too.
class StepSnapshot {
 public:
  explicit StepSnapshot(const GraphedStepOptions& options)
      : parameters_(options.parameters()), generators_(options.generators()) {
    const torch::NoGradGuard no_grad;
    generators_.push_back(at::detail::getDefaultCPUGenerator());
    for (const Tensor& tensor : options.state()) {
      tensors_.emplace_back(tensor.detach(), tensor.detach().clone());
    }
    for (const auto& generator : generators_) {
      generator_states_.push_back(state_of(generator));
    }
  }

  void restore() {
    const torch::NoGradGuard no_grad;
    for (auto& [tensor, before] : tensors_) {
      tensor.copy_(before);
    }
    for (size_t i = 0; i < generators_.size(); ++i) {
      const std::lock_guard<std::mutex> lock(generators_[i].mutex());
      generators_[i].set_state(generator_states_[i]);
    }
    drop_gradients();
  }

  /// Whether a generator of the host has drawn since construction or restore(): a graph would repeat what it
  /// drew.
  bool drew_on_host() const {
    for (size_t i = 0; i < generators_.size(); ++i) {
      if (generators_[i].device().is_cpu() && !state_of(generators_[i]).equal(generator_states_[i])) {
        return true;
      }
    }
    return false;
  }

  void drop_gradients() {
    for (const Tensor& parameter : parameters_) {
      parameter.mutable_grad().reset();
    }
  }

  std::vector<at::Generator>& generators() { return generators_; }
  const Tensor& generator_state(size_t i) const { return generator_states_[i]; }

 private:
  static Tensor state_of(at::Generator generator) {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state().clone();
  }

  std::vector<std::pair<Tensor, Tensor>> tensors_;
  std::vector<Tensor> parameters_;
  std::vector<at::Generator> generators_;
  std::vector<Tensor> generator_states_;
};

}  // namespace detail

/// A training step that is captured once in a CUDA graph and replayed from then on: one launch in place of
/// thousands, where a small network leaves a large GPU waiting for its host.
///
///     auto step = [&] { … forward, loss.backward(), optimiser …; return losses; };
///     training::GraphedStep graphed(step, device, training::GraphedStepOptions()
///                                                      .state(…).parameters(model->parameters()));
///     const auto& losses = graphed();     // the same tensors at each call, with new values
///
/// `step` is any callable without arguments; what it returns, a tensor or anything made of tensors, is
/// returned by each call, whose tensors the next call overwrites. It must do the same work at each call, on
/// `device`, in fixed shapes: no waiting for the device (item(), boolean masks), no host randomness and no
/// host number that changes: steps, weights and learning rates are tensors. It lets go of its gradients
/// itself, at its start or end, as an eager step does.
///
/// The constructor runs `step` for options.warmup_steps() on a side stream, puts back options.state() and the
/// generators, and captures it there, without running it: nothing has changed when it returns, and the
/// results of 100 calls are those of 100 eager steps to rounding, with the same random numbers. On the CPU,
/// or with enabled(false), nothing is run or captured and each call runs `step`. LibTorch before 2.4 captures
/// only draws from the device's default generator.
///
/// Throws one line of c10::Error, with the state as it was, if the step cannot be captured; on LibTorch
/// before 2.1 another capture in that process may then fail too, and on 2.4 to 2.14 a graph that was captured
/// before with the same generator is of no more use. Not thread-safe; nobody else may use the device or
/// LibTorch's CPU generator while the constructor runs, and no loss of an earlier, eager step may be alive
/// with its graph: autograd would go on with that step's stream.
template <class Step>
class GraphedStep {
 public:
  using Result = std::invoke_result_t<Step&>;
  static_assert(!std::is_void_v<Result>, "mixmatch: the step of a GraphedStep returns its losses");

  explicit GraphedStep(Step step, torch::Device device, const GraphedStepOptions& options = {})
      : step_(std::move(step)) {
    TORCH_CHECK(options.warmup_steps() >= 1, "GraphedStep: warmup_steps must be >= 1, got ",
                options.warmup_steps());
    for (const Tensor& tensor : options.state()) {
      TORCH_CHECK(tensor.defined(), "GraphedStep: state must hold defined tensors, got an undefined one");
    }
    if (options.enabled() && device.is_cuda()) {
      capture(device, options);
    }
  }
  GraphedStep(const GraphedStep&) = delete;
  GraphedStep& operator=(const GraphedStep&) = delete;

  /// One step.
  const Result& operator()() {
#ifdef MIXMATCH_HAS_CUDA
    if (graph_ != nullptr) {
      graph_->replay();
      return *result_;
    }
#endif
    result_.emplace(step_());
    return *result_;
  }

  /// Whether calls replay a graph.
  bool is_graphed() const {
#ifdef MIXMATCH_HAS_CUDA
    return graph_ != nullptr;
#else
    return false;
#endif
  }

 private:
#ifdef MIXMATCH_HAS_CUDA
  void capture(torch::Device device, const GraphedStepOptions& options) {
    const c10::cuda::CUDAGuard device_guard(device);
    const auto index = c10::cuda::current_device();
    const auto current = c10::cuda::getCurrentCUDAStream(index);
    // Of higher priority than a step's side stream, where graphs keep priorities.
    const auto side = c10::cuda::getStreamFromPool(/*isHighPriority=*/true, index);
    const auto wait_for = [](const c10::cuda::CUDAStream& stream) {
      C10_CUDA_CHECK(cudaStreamSynchronize(stream.stream()));
    };
    detail::StepSnapshot snapshot(options);
    wait_for(current);
    // With a name of its own, so that a capture that fails can be taken back from the allocator.
    const auto pool = at::cuda::graph_pool_handle();
    std::string attempted = "running it to warm up";
    bool begun = false;
    std::unique_ptr<at::cuda::CUDAGraph> graph;
    try {
      const c10::cuda::CUDAStreamGuard stream_guard(side);
      {
        const detail::MeasuredConvolutions measured(options.measure_convolutions());
        for (int64_t i = 0; i < options.warmup_steps(); ++i) {
          // In an autocast scope around this, copies of weights would outlive the step, and then the graph.
          at::autocast::clear_cache();
          static_cast<void>(step_());
        }
      }
      attempted = "putting its state back";
      snapshot.restore();
      at::autocast::clear_cache();
      wait_for(side);
      // What the warm-up needed serves neither the graph, which has memory of its own, nor other streams.
      c10::cuda::CUDACachingAllocator::emptyCache();
      attempted = "capturing it in a CUDA graph";
      graph = std::make_unique<at::cuda::CUDAGraph>();
      for (auto& generator : snapshot.generators()) {
        if (generator.device().is_cuda()) {
          mixmatch::detail::register_generator(*generator.get<at::CUDAGeneratorImpl>(), *graph,
                                               generator == at::cuda::detail::getDefaultCUDAGenerator(index));
        }
      }
      begun = true;
      graph->capture_begin(pool);
      result_.emplace(step_());
      TORCH_CHECK(!snapshot.drew_on_host(), "it drew from a generator of the host");
      graph->capture_end();
    } catch (const std::exception& error) {
      const std::string reason = detail::one_line_of(error);
      const bool restored = abandon(graph.get(), begun, pool, side, snapshot);
      graph.reset();
      TORCH_CHECK(false, "GraphedStep: ", attempted, " on ", c10::Device(at::kCUDA, index),
                  " failed: ", reason,
                  restored ? " (a captured step must not wait for the device, copy to or from the host, or "
                             "draw on the host; enabled(false), or a program's --no-graph, runs it "
                             "eagerly)"
                           : "; its state could not be put back");
    }
    at::autocast::clear_cache();
    graph_ = std::move(graph);
  }

  /// Ends a capture that failed, and puts everything back; false if the device no longer lets it. `graph` is
  /// null if the warm-up failed already.
  bool abandon(at::cuda::CUDAGraph* graph, bool begun, const auto& pool, const c10::cuda::CUDAStream& side,
               detail::StepSnapshot& snapshot) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const bool capturing = graph != nullptr && cudaStreamIsCapturing(side.stream(), &status) == cudaSuccess &&
                           status != cudaStreamCaptureStatusNone;
    if (capturing) {
      try {
        const c10::cuda::CUDAStreamGuard stream_guard(side);
        graph->capture_end();
      } catch (const std::exception&) {  // the capture is void: that is why we are here
      }
    }
    if (begun) {
      mixmatch::detail::end_failed_capture(*c10::cuda::CUDACachingAllocator::get(), side.device_index(),
                                           side.stream(), pool);
    }
    result_.reset();
    at::autocast::clear_cache();
    static_cast<void>(cudaGetLastError());
    static_cast<void>(cudaStreamSynchronize(side.stream()));
    try {
      for (size_t i = 0; graph != nullptr && i < snapshot.generators().size(); ++i) {
        auto& generator = snapshot.generators()[i];
        if (generator.device().is_cuda()) {
          mixmatch::detail::recover_generator(
              *generator.get<at::CUDAGeneratorImpl>(), generator,
              at::cuda::detail::createCUDAGenerator(generator.device().index()), snapshot.generator_state(i));
        }
      }
      snapshot.restore();
      return true;
    } catch (const std::exception&) {  // after an error that stays, such as a failed assertion on the device
      return false;
    }
  }

  std::unique_ptr<at::cuda::CUDAGraph> graph_;
#else
  void capture(torch::Device device, const GraphedStepOptions&) {
    TORCH_CHECK(false, "GraphedStep: the step on ", device,
                " cannot be captured: this build has no CUDA; enabled(false) runs it eagerly");
  }
#endif

  Step step_;
  std::optional<Result> result_;  // after graph_: its tensors live in the graph's memory
};

}  // namespace mixmatch::training
