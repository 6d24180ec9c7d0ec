// MixMatch on CIFAR-10: the complete training loop, from the binary files to a resumable run directory.
// The method is train_step(); the rest is what every training program needs.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>
#include <mixmatch/training/command_line.hpp>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace mm = mixmatch;
using mm::training::AugmentedBatch;
using mm::training::StepLoss;
using mm::training::TrainingData;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace {

constexpr int64_t kClasses = 10;
using State = mm::training::TrainState<mm::models::WideResNet>;

/// One step of the method. What it reads, one augmentation of labeled images and K of unlabeled ones
/// (Algorithm 1, lines 2-6), depends on the step's number alone and was made while the step before it ran.
StepLoss train_step(State& state, const TrainingOptions& o, const mm::MixMatchOptions& options,
                    mm::training::Prefetch<AugmentedBatch>& batches, const mm::RampedLoss& criterion,
                    torch::Device device) {
  const AugmentedBatch batch = batches(state.step);
  if (o.warmup) {
    mm::set_batch_norm_momentum(
        state.model, mm::batch_norm_momentum(state.step, state.model->options().batch_norm_momentum()));
  }
  StepLoss loss;
  {
    mm::training::Autocast autocast(device, mm::training::parse_precision(o.precision));
    if (o.method == "supervised") {
      loss.total = loss.labeled =
          mm::soft_cross_entropy(state.model->forward(batch.labeled), mm::one_hot(batch.labels, kClasses));
    } else {
      // The rest of Algorithm 1: guess and sharpen the views' labels; then MixUp.
      const auto guessed =
          mm::with_guessed_labels(state.model, batch.labeled, batch.labels, batch.views, options);
      const auto mixed = mm::mix_labeled_unlabeled(guessed, options, state.generator);

      // K + 1 forward passes, each normalised by its own batch. Only the first moves the batch-norm running
      // statistics; interleaving gives it labeled and unlabeled rows alike.
      std::vector<Tensor> inputs = mixed.unlabeled_inputs.split(o.batch);
      inputs.insert(inputs.begin(), mixed.labeled_inputs);
      inputs = mm::interleave(std::move(inputs), options.workspace().get());
      const auto logits = mm::interleave(mm::forward_each(state.model, inputs));
      const Tensor logits_x = logits.front();
      const Tensor logits_u = torch::cat(std::vector<Tensor>(logits.begin() + 1, logits.end()));

      // Eqs. 3-5 with the ramped weight of the unlabeled loss.
      const auto out =
          criterion(logits_x, mixed.labeled_targets, logits_u, mixed.unlabeled_targets, state.step);
      loss.total = out.total;
      loss.labeled = out.labeled;
      loss.unlabeled = out.unlabeled;
      loss.weight = out.weight;
      // CIFAR-10's unlabeled images have labels, which only this line looks at.
      loss.guesses = mm::training::guess_quality(guessed.unlabeled_targets.narrow(0, 0, o.batch),
                                                 batch.unlabeled_labels);
    }
  }
  loss.total.backward();
  // Adam, decay of the kernels, moving average.
  loss.finite = mm::training::optimizer_step(state.optimizer, state.ema, o.weight_decay);
  state.finish_step();
  return loss;
}

TrainingData load(const TrainingOptions& o, torch::Device device) {
  const auto train = mm::data::load_cifar10(o.data, mm::data::Split::train);
  auto test = mm::data::load_cifar10(o.data, mm::data::Split::test);
  auto split = mm::training::make_split(o, mm::data::ImagePool({train}));
  auto validation = mm::data::take(train, split.validation);
  return {mm::data::ImagePool({mm::data::to_device(train, device)}), std::move(split), std::move(validation),
          std::move(test)};
}

int train_run(CLI::App& app, TrainingOptions& o) {
  const auto config = [&o] { return mm::training::config_of(o); };
  const auto resumed = mm::training::adopt_run(app, o, config);
  // Data and options are checked before anything is written.
  mm::training::check_options(o);
  const auto device = mm::training::choose_device(o);
  const TrainingData data = load(o, device);
  mm::training::adopt_data(o, data);
  State state(mm::training::make_wide_resnet(o, kClasses, device), data.split.labeled, data.split.unlabeled,
              mm::training::train_state_options(o));
  const mm::RampedLoss criterion(mm::training::ramped_loss_options(o));
  // On a GPU the same step runs there alone, data and random numbers included, as one CUDA graph.
  std::optional<mm::training::DeviceTraining<mm::models::WideResNet>> on_device;
  if (device.is_cuda() && o.method == "mixmatch") {
    on_device.emplace(state, o, data, device);
  }

  auto run_config = config();
  run_config.emplace_back("step-on", on_device.has_value() ? "device" : "host");
  mm::training::TrainingRun run(mm::training::run_directory(o, resumed),
                                mm::training::training_run_options(o, run_config, data, device), state.step);
  state.register_in(run.checkpoint());
  if (on_device.has_value()) {
    on_device->register_in(run.checkpoint());
  }
  if (resumed.has_value()) {
    run.resume();
  } else {
    mm::training::save_split(run.directory().split(), o, data);
    run.start();
    mm::training::log_example_images(run.board(), state.model, o, data, device);
  }
  mm::training::Prefetch<AugmentedBatch> batches(mm::training::augmented_batches(o, data, device),
                                                 mm::training::prefetches(o, device));
  // The steps' mixed batches are all in the same memory.
  const auto options = mm::training::mixmatch_options(o).workspace(std::make_shared<mm::Workspace>());
  while (run.running()) {
    const StepLoss loss = on_device.has_value() ? on_device->run(mm::training::steps_until_due(o, state.step))
                                                : train_step(state, o, options, batches, criterion, device);
    run.record(loss.values(), loss.finite, loss.counts);
    if (run.evaluation_due()) {
      run.record_errors(mm::training::evaluate_all(state, data.validation, data.test,
                                                   mm::training::evaluate_options(o, device)));
    }
    run.finish_step();
  }
  if (run.interrupted()) {
    return run.leave();
  }
  return mm::training::finish_run(run, o, state, data, device);
}

}  // namespace

int main(int argc, char** argv) {
  TrainingOptions options(mm::presets::cifar10);
  options.out = "runs/cifar10";
  CLI::App app(
      "MixMatch on CIFAR-10 (arXiv 1905.02249): WRN-28-2 by default, or its supervised-only baseline.",
      "cifar10");
  options.program = argv[0];
  mm::training::add_training_options(app, options);
  app.add_flag("--no-graph{false}", options.graph,
               "On a GPU: launch the step piece by piece, not as one CUDA graph");
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      return mm::training::evaluate_saved_run(
          options, [&] { return mm::data::load_cifar10(options.data, mm::data::Split::test); });
    }
    return train_run(app, options);
  });
}
