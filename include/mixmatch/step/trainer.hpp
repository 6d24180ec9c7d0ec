#pragma once

#include <torch/arg.h>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/optim/low_precision_weights.hpp>
#include <mixmatch/step/data_parallel.hpp>
#include <mixmatch/step/feed.hpp>
#include <mixmatch/step/graphed_step.hpp>
#include <mixmatch/step/host_batches.hpp>
#include <mixmatch/step/learner.hpp>
#include <mixmatch/step/meter.hpp>
#include <mixmatch/step/method_state.hpp>
#include <mixmatch/step/step_loss.hpp>
#include <mixmatch/step/train_state.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct TrainerOptions {
  /// Its views are for a method that does not say weak_views(); one that does has no strong views unless it
  /// says strong_views() too.
  TORCH_ARG(FeedOptions, feed) = {};
  TORCH_ARG(LearnerOptions, learner) = {};
  /// bfloat16: by autocast.
  TORCH_ARG(at::ScalarType, precision) = at::kFloat;
  /// On a GPU: the step as one CUDA graph; not of a bare torch::jit::Module (models::ScriptNetwork: yes).
  TORCH_ARG(bool, graph) = true;
  /// Of that graph: see GraphedStepOptions::measure_convolutions().
  TORCH_ARG(bool, measure_convolutions) = false;
  /// On a GPU, in low precision and one process: the weights' gradients of convolve(), which the bundled
  /// networks call, on a stream of their own, beside the rest of the backward pass. The same calls, so the
  /// same bits where cuDNN's are deterministic.
  TORCH_ARG(bool, overlap_weight_gradients) = true;
  /// Where the host reads the images: the next step's on a thread of its own.
  TORCH_ARG(bool, prefetch) = true;
  /// Batch::logit_adjustment, floating-point [L] as logit_adjustment() gives; undefined: none.
  TORCH_ARG(Tensor, logit_adjustment) = {};
  /// The processes that train together, which must outlive the Trainer; null: this one. use_processes() sets
  /// it, and what follows from it in feed() and learner().
  TORCH_ARG(std::add_pointer_t<ProcessGroup>, processes) = nullptr;
  TORCH_ARG(DataParallelOptions, data_parallel) = {};
};

/// `options` for a group: with joint batches every rank has the whole batch, else its part of it. Throws
/// where the batch is no multiple of the ranks.
inline TrainerOptions use_processes(TrainerOptions options, ProcessGroup* group) {
  options.processes(group);
  if (group == nullptr) {
    return options;
  }
  TORCH_CHECK(options.feed().batch_size() % group->world_size() == 0, "the batch must be a multiple of the ",
              group->world_size(), " processes, got ", options.feed().batch_size());
  if (options.data_parallel().batches() == RankBatches::joint) {
    options.learner().joint_group(group);
  } else {
    options.feed().rank(group->rank()).world_size(group->world_size());
  }
  return options;
}

/// The steps of a run: a batch, the method's loss under autocast, its gradient, the optimiser with decay of
/// kernels and the moving average, and the numbers to report.
///
///     TrainState state(model, TrainStateOptions());
///     Trainer trainer(state, methods::MixMatch(mixing, ramp), data, TrainerOptions());
///     state.register_in(run.checkpoint());
///     trainer.register_in(run.checkpoint());
///     while (run.running()) {
///       run.record(trainer.run(run.steps_until_due()));
///       … evaluation …
///       run.finish_step();
///     }
///
/// `method` is any callable `StepLoss(Learner<Model>&, const Batch&, const Tensor& step, const
/// at::Generator&)`: `step` is int64 [] on the model's device and counts from 0; all that the method draws
/// comes from the generator, which is on that device too. On a GPU it must not wait for the device (item(),
/// boolean masks). `weak_views()` and `strong_views()`, if it has them, say how many augmentations of each
/// unlabeled image it looks at. A method with state of its own keeps it in tensors that it changes in place,
/// which `state()` returns (for the graph) and save(OutputArchive&) and load(InputArchive&) store (for the
/// checkpoint); `row_state()` returns those of them that are of rows (row_state_of()), which several
/// processes with separate batches add up. One with `to(device)` is moved to the model's. `state` must
/// outlive the Trainer.
///
/// The same step on every device: on the CPU as it is written, on a GPU captured in a CUDA graph. Where the
/// images are on the GPU, rows and images are drawn in the graph; else the host reads them, and the graph
/// begins with their augmentation. In several processes (use_processes()) they all call it alike.
template <ModuleModel Model, class Method>
class Trainer {
  static_assert(
      !requires(Method & method) { method.state(); } ||
          requires(Method & method, torch::serialize::OutputArchive& out,
                   torch::serialize::InputArchive& in) {
            std::as_const(method).save(out);
            method.load(in);
          },
      "mixmatch: a method with state() needs save(OutputArchive&) const and load(InputArchive&), or a "
      "resumed run forgets its state");

 public:
  Trainer(TrainState<Model>& state, Method method, const TrainingData& data,
          const TrainerOptions& options = {})
      : state_(&state),
        method_(std::move(method)),
        options_(options),
        device_(detail::device_of(state.model)),
        learner_(state.model, state.ema, options.learner()),
        parallel_(state, learner_, options.processes(), options.data_parallel()),
        weights_(state.model, state.optimizer, state.optimizer.gains_by_copies()),
        feed_(data, with_views(options.feed(), method_)),
        host_batches_(feed_, device_, options.prefetch()),
        meter_(device_),
        step_(at::zeros({}, at::TensorOptions(device_).dtype(at::kLong))) {
    TORCH_CHECK(feed_.device().is_cpu() || feed_.device() == device_,
                "Trainer: the images must be on the CPU or on ", device_, ", the model's device, got ",
                feed_.device());
    if (options.logit_adjustment().defined()) {
      options_.logit_adjustment(options.logit_adjustment().to(device_));
    }
    if constexpr (requires { method_.to(device_); }) {
      method_.to(device_);
    }
  }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// What the steps change besides the TrainState, and what they are a function of.
  template <class Checkpoint>
  void register_in(Checkpoint& checkpoint) {
    checkpoint.add("feed", feed_);
    if constexpr (requires(torch::serialize::OutputArchive & archive) {
                    std::as_const(method_).save(archive);
                  }) {
      checkpoint.add("method", method_);
    }
  }

  /// Does `at_most` steps (one on the CPU) and returns their means. state.step counts them, and state and
  /// average are up to date at the end. On a GPU the host waits once.
  StepMeans run(int64_t at_most) {
    TORCH_CHECK(at_most >= 1, "Trainer: at_most must be >= 1, got ", at_most);
    const int64_t steps = device_.is_cpu() ? 1 : at_most;
    const bool host_reads = feed_.device().is_cpu();
    const auto begin = std::chrono::steady_clock::now();
    step_.fill_(state_->step);
    for (int64_t i = 0; i < steps; ++i) {
      if (host_reads) {
        host_batches_.take(state_->step, raw_);
      }
      if (!graphed_.has_value()) {
        graphed_.emplace([this] { return step(); }, device_, graph_options());
      }
      parallel_.begin_step(state_of(method_));
      (*graphed_)();
      if (host_reads) {
        host_batches_.end_step();
      }
      ++state_->step;
    }
    state_->optimizer.synchronize();
    const StepMeans means = meter_.read();
    if (host_reads) {
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      host_batches_.count(took.count());
    }
    return parallel_.mean(means);
  }

  /// How long the steps so far waited for the host's images: see HostBatches.
  const HostBatches& host_batches() const { return host_batches_; }

  const Feed& feed() const { return feed_; }
  /// Whether run() replays a graph, once it has run.
  bool is_graphed() const { return graphed_.has_value() && graphed_->is_graphed(); }

 private:
  static FeedOptions with_views(FeedOptions options, const Method& method) {
    if constexpr (requires { method.weak_views(); }) {
      options.weak_views(method.weak_views()).strong_views(0);
    }
    if constexpr (requires { method.strong_views(); }) {
      options.strong_views(method.strong_views());
    }
    return options;
  }

  Tensor step() {
    state_->optimizer.drop_gradients();  // of a step that threw
    Batch batch = feed_.augment(feed_.device().is_cpu() ? raw_ : feed_.gather(step_), step_);
    batch.logit_adjustment = options_.logit_adjustment();
    const auto before = parallel_.begin_state(method_);
    StepLoss loss;
    {
      const auto statistics = learner_.training_step(step_);
      const Autocast autocast(device_, options_.precision());
      const auto copies = weights_.use(options_.precision());
      loss = method_(learner_, batch, step_, state_->generator);
      meter_.check(loss);  // what throws in here moves no statistics
    }
    parallel_.reduce_state(before);
    parallel_.backward(loss.total, options_.overlap_weight_gradients());
    meter_.add(loss, state_->optimizer.step());
    step_.add_(1);
    return loss.total.detach();
  }

  GraphedStepOptions graph_options() {
    const auto tensors_of = [](const auto& items) {
      std::vector<Tensor> tensors;
      for (const auto& item : items) {
        tensors.push_back(item.tensor);
      }
      return tensors;
    };
    const auto buffers = tensors_of(mixmatch::detail::model_buffers(state_->model));
    // A strong view looks at the host where no kernel can be compiled.
    const bool waits = feed_.options().strong_views() > 0 && !device_.is_cpu() &&
                       !mixmatch::detail::cuda_kernels_available(device_);
    return GraphedStepOptions()
        .enabled(options_.graph() && mixmatch::detail::is_capturable_model<Model> && !waits &&
                 parallel_.capturable(device_))
        .measure_convolutions(options_.measure_convolutions())
        .state(joined({{step_},
                       state_->optimizer.state(),
                       learner_.state(),
                       buffers,
                       meter_.state(),
                       state_of(method_)}))
        .parameters(tensors_of(mixmatch::detail::model_parameters(state_->model)))
        .generators({state_->generator});
  }

  TrainState<Model>* state_;
  Method method_;
  TrainerOptions options_;
  torch::Device device_;
  Learner<Model> learner_;
  DataParallel<Model> parallel_;
  LowPrecisionWeights weights_;
  Feed feed_;
  HostBatches host_batches_;
  RawBatch raw_;
  Meter meter_;
  Tensor step_;
  std::optional<GraphedStep<std::function<Tensor()>>> graphed_;
};

}  // namespace mixmatch::training
