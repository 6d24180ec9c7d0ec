#pragma once

#include <mixmatch/optim/optimizer_step.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/step/augmented_batch.hpp>
#include <mixmatch/step/device_step.hpp>
#include <mixmatch/step/learner.hpp>
#include <mixmatch/step/meter.hpp>
#include <mixmatch/step/prefetch.hpp>
#include <mixmatch/step/train_state.hpp>

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Where the steps of a Trainer run.
enum class StepOn {
  host,   ///< the host draws rows, gathers and augments images, the next batch on a thread of its own
  device  ///< the device does all of it alone; on a GPU as one CUDA graph
};

inline const char* name_of(StepOn where) { return where == StepOn::device ? "device" : "host"; }

/// The steps of a run: a batch, the method's loss under autocast, its gradient, Adam with decay of kernels
/// and the moving average, and the numbers to report.
///
///     TrainState state(…);
///     Trainer trainer(state, methods::MixMatch(mixing, ramp), o, data, device, StepOn::host);
///     state.register_in(run.checkpoint());
///     trainer.register_in(run.checkpoint());
///     while (run.running()) {
///       run.record(trainer.run(run.steps_until_due()));
///       … evaluation …
///       run.finish_step();
///     }
///
/// `method` is any callable `StepLoss(Learner<Model>&, const Batch&, const Tensor& step, const
/// at::Generator&)`: `step` is int64 [] on the device and counts from 0; all that the method draws comes from
/// the generator, on the generator's device. `weak_views()`, if it has that, says how many augmentations of
/// each unlabeled image it looks at, else o.num_augmentations. A method with state of its own keeps it in
/// tensors that it changes in place, which `state()` returns (for the graph) and save(OutputArchive&) and
/// load(InputArchive&) store (for the checkpoint). `state` and `data` must outlive the Trainer.
///
/// On the device, images, streams, augmentation and optimiser are DeviceStep's: `state` gives model, average
/// and step alone, the images are on the device, all of them, and the host waits once for many steps.
/// `o.graph` false runs the same steps without a graph. A run goes on only where it was started.
template <ModuleModel Model, class Method>
class Trainer {
  static_assert(
      !requires(Method & method) { method.state(); } || detail::HasArchiveMembers<Method>,
      "mixmatch: a method with state() needs save(OutputArchive&) const and load(InputArchive&), or a "
      "resumed run forgets its state");

 public:
  Trainer(TrainState<Model>& state, Method method, const TrainingOptions& o, const TrainingData& data,
          torch::Device device, StepOn where)
      : state_(&state), device_(device), options_(o), meter_(device) {
    auto learner = LearnerOptions().warmup(o.warmup);
    if constexpr (requires { state.model->options().batch_norm_momentum(); }) {
      learner.batch_norm_momentum(state.model->options().batch_norm_momentum());
    }
    int64_t views = o.num_augmentations;
    if constexpr (requires { method.weak_views(); }) {
      views = method.weak_views();
    }
    if (where == StepOn::device) {
      step_.emplace(
          state.model, state.ema, std::move(method), data.pool.all_images().to(device), data.pool.labels,
          data.split.labeled, data.split.unlabeled,
          DeviceStepOptions()
              .batch_size(o.batch)
              .weak_views(views)
              .seed(o.seed)
              .optimizer(DeviceAdamOptions().learning_rate(o.learning_rate).weight_decay(o.weight_decay))
              .augmentation(augment_options(o))
              .learner(learner)
              .precision(parse_precision(o.precision)));
    } else {
      host_.emplace(state.model, state.ema, learner, std::move(method),
                    augmented_batches(o, data, device, views), prefetches(o, device), device);
    }
  }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// What the steps change besides the TrainState.
  void register_in(Checkpoint& checkpoint) {
    if (step_.has_value()) {
      checkpoint.add("device_step", *step_);
    }
    if constexpr (detail::HasArchiveMembers<Method>) {
      checkpoint.add("method", step_.has_value() ? step_->method() : host_->method);
    }
  }

  /// One step on the host, `at_most` steps on the device; their means. state.step counts them, and state and
  /// average are up to date at the end.
  StepMeans run(int64_t at_most) {
    TORCH_CHECK(at_most >= 1, "Trainer: at_most must be >= 1, got ", at_most);
    if (step_.has_value()) {
      run_on_device(at_most);
    } else {
      run_on_host();
    }
    return meter_.read();
  }

  /// Whether run() replays a graph, once it has run.
  bool is_graphed() const { return graphed_.has_value() && graphed_->is_graphed(); }

 private:
  struct Host {
    Host(Model& model, EmaModel<Model>& ema, const LearnerOptions& options, Method own,
         std::function<Batch(int64_t)> make, bool ahead, torch::Device device)
        : method(std::move(own)),
          learner(model, ema, options),
          batches(std::move(make), ahead),
          step(at::zeros({}, at::TensorOptions(device).dtype(at::kLong))) {}

    Method method;
    Learner<Model> learner;
    Prefetch<Batch> batches;
    Tensor step;
  };

  void run_on_host() {
    const Batch batch = host_->batches(state_->step);
    host_->step.fill_(state_->step);
    StepLoss loss;
    {
      const auto statistics = host_->learner.training_step(host_->step);
      const Autocast autocast(device_, parse_precision(options_.precision));
      loss = host_->method(host_->learner, batch, host_->step, state_->generator);
    }
    meter_.check(loss);
    loss.total.backward();
    const bool finite = optimizer_step(state_->optimizer, state_->ema, options_.weight_decay);
    meter_.add(loss, at::full({}, finite, at::TensorOptions(device_).dtype(at::kBool)));
    state_->finish_step();
  }

  void run_on_device(int64_t steps) {
    if (!graphed_.has_value()) {
      auto options = step_->graph_options().enabled(options_.graph);
      auto changed = options.state();
      for (const Tensor& tensor : meter_.state()) {
        changed.push_back(tensor);
      }
      graphed_.emplace(
          [this] {
            const auto result = (*step_)();
            meter_.add(result.loss, result.finite);
            return result.loss.total;
          },
          device_, options.state(std::move(changed)));
    }
    for (int64_t i = 0; i < steps; ++i) {
      (*graphed_)();
    }
    state_->step += steps;
    step_->synchronize(state_->ema);
  }

  TrainState<Model>* state_;
  torch::Device device_;
  TrainingOptions options_;
  Meter meter_;
  std::optional<Host> host_;
  std::optional<DeviceStep<Model, Method>> step_;
  std::optional<GraphedStep<std::function<Tensor()>>> graphed_;
};

}  // namespace mixmatch::training
