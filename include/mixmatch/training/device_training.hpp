#pragma once

#include <mixmatch/training/device_step.hpp>
#include <mixmatch/training/step_loss.hpp>
#include <mixmatch/training/train_state.hpp>
#include <mixmatch/training/training_data.hpp>
#include <mixmatch/training/training_options.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace mixmatch::training {

inline DeviceStepOptions device_step_options(const TrainingOptions& o, double batch_norm_momentum) {
  return DeviceStepOptions()
      .batch_size(o.batch)
      .seed(o.seed)
      .optimizer(DeviceAdamOptions().learning_rate(o.learning_rate).weight_decay(o.weight_decay))
      .loss(ramped_loss_options(o))
      .mixing(mixmatch_options(o))
      .augmentation(augment_options(o))
      .batch_norm_momentum(batch_norm_momentum)
      .batch_norm_warmup(o.warmup)
      .precision(parse_precision(o.precision));
}

/// Steps from `done` until a training program looks at its numbers again: to write a row, evaluate, save, or
/// because it is done.
inline int64_t steps_until_due(const TrainingOptions& o, int64_t done) {
  int64_t next = o.steps;
  for (const int64_t every : {o.log_every, o.eval_every, o.checkpoint_every}) {
    if (every > 0) {
      next = std::min(next, (done / every + 1) * every);
    }
  }
  return next - done;
}

/// MixMatch's steps for a training program on a GPU: a DeviceStep over the program's state, captured in a
/// CUDA graph at the first call, whose numbers are added up on the device, so that the host waits once for
/// many steps.
///
///     TrainState state(…);
///     DeviceTraining on_device(state, o, data, device);
///     on_device.register_in(run.checkpoint());            // besides state.register_in()
///     … const StepLoss loss = on_device.run(steps_until_due(o, state.step));
///     run.record(loss.values(), loss.finite, loss.counts); …
///
/// `state` gives model, average and step and must outlive it; its streams, generator and optimiser are not
/// used. The images are copied to the device, all of them. `o.graph` false runs the same steps without a
/// graph. A run that was started here goes on here alone.
template <ModuleModel Model>
class DeviceTraining {
 public:
  DeviceTraining(TrainState<Model>& state, const TrainingOptions& o, const TrainingData& data,
                 torch::Device device)
      : state_(&state),
        device_(device),
        graph_(o.graph),
        images_(data.pool.gather(at::arange(data.pool.size(), at::kLong)).to(device)),
        step_(state.model, state.ema, images_, data.pool.labels, data.split.labeled, data.split.unlabeled,
              device_step_options(o, state.model->options().batch_norm_momentum())),
        sums_(at::zeros({kValues}, at::TensorOptions(device).dtype(at::kDouble))),
        counts_(at::zeros_like(sums_)),
        finite_(at::ones({}, at::TensorOptions(device).dtype(at::kBool))) {}
  DeviceTraining(const DeviceTraining&) = delete;
  DeviceTraining& operator=(const DeviceTraining&) = delete;

  void register_in(Checkpoint& checkpoint) { checkpoint.add("device_step", step_); }

  /// `steps` steps; returns the means of their numbers, and of how many each is. Waits for the device at its
  /// end, when state and average are up to date.
  StepLoss run(int64_t steps) {
    TORCH_CHECK(steps >= 1, "DeviceTraining: steps must be >= 1, got ", steps);
    if (!graphed_.has_value()) {
      auto options = step_.graph_options().enabled(graph_);
      auto changed = options.state();
      changed.insert(changed.end(), {sums_, counts_, finite_});
      graphed_.emplace([this] { return counted_step(); }, device_, options.state(std::move(changed)));
    }
    sums_.zero_();
    counts_.zero_();
    finite_.fill_(true);
    for (int64_t i = 0; i < steps; ++i) {
      (*graphed_)();
    }
    state_->step += steps;
    step_.synchronize(state_->ema);
    const Tensor counts = counts_.to(torch::kCPU);
    const Tensor means = sums_.to(torch::kCPU) / counts;  // NaN where there was no number
    StepLoss loss;
    loss.counts.assign(counts.data_ptr<double>(), counts.data_ptr<double>() + kValues);
    loss.total = means[0];
    loss.labeled = means[1];
    loss.unlabeled = means[2];
    loss.weight = means[3].item<double>();
    loss.guesses = {means[4].item<double>(), means[5].item<double>(), means[6].item<double>()};
    loss.finite = finite_.item<bool>();
    return loss;
  }

  /// Whether run() replays a graph, once it has run.
  bool is_graphed() const { return graphed_.has_value() && graphed_->is_graphed(); }

 private:
  static constexpr int64_t kValues = 7;

  Tensor counted_step() {
    const auto loss = step_();
    std::vector<Tensor> numbers;
    for (const Tensor& number : {loss.total, loss.labeled, loss.unlabeled, loss.weight,
                                 loss.mean_max_probability, loss.mean_entropy, loss.accuracy}) {
      numbers.push_back(number.to(at::kDouble));
    }
    const Tensor values = at::stack(numbers);
    // A loss that is not a number must show; an unknown accuracy must not.
    const Tensor known = at::cat({at::ones({kValues - 1}, values.options().dtype(at::kBool)),
                                  values.narrow(0, kValues - 1, 1).isnan().logical_not_()});
    sums_.add_(at::where(known, values, at::zeros_like(values)));
    counts_.add_(known);
    finite_.logical_and_(loss.finite);
    return loss.total;
  }

  TrainState<Model>* state_;
  torch::Device device_;
  bool graph_;
  Tensor images_;
  DeviceStep<Model> step_;
  Tensor sums_, counts_, finite_;
  std::optional<GraphedStep<std::function<Tensor()>>> graphed_;
};

}  // namespace mixmatch::training
