// MixMatch on STL-10: WRN-28 with four scales on 96x96 images, the official folds, and 100,000 unlabeled
// images that are read from the disk as they are drawn. What differs from cifar10.cpp: the data, the preset
// (fourth scale, wider crop, lambda_u), and the unlabeled rows, which come from two sets.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>
#include <mixmatch/training/command_line.hpp>

#include <memory>
#include <utility>

namespace mm = mixmatch;
using mm::training::AugmentedBatch;
using mm::training::StepLoss;
using mm::training::TrainingData;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace {

constexpr int64_t kClasses = 10;
using State = mm::training::TrainState<mm::models::WideResNet>;

struct Options : TrainingOptions {
  Options() : TrainingOptions(mm::presets::stl10) {
    out = "runs/stl10";
    labels = 1000;
  }
  int64_t fold = 0;
};

mm::training::Config config_of(const Options& o) {
  auto config = mm::training::config_of(static_cast<const TrainingOptions&>(o));
  config.emplace_back("fold", fmt::format("{}", o.fold));
  return config;
}

/// One step of the method. What it reads, one augmentation of labeled images and K of unlabeled ones
/// (Algorithm 1, lines 2-6), depends on the step's number alone and was made while the step before it ran.
StepLoss train_step(State& state, const Options& o, const mm::MixMatchOptions& options,
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

      // K + 1 interleaved forward passes, which cifar10.cpp spells out.
      const auto logits = mm::forward_interleaved(state.model, mixed.labeled_inputs, mixed.unlabeled_inputs,
                                                  options.workspace().get());

      // Eqs. 3-5 with the ramped weight of the unlabeled loss.
      const auto out = criterion(logits.labeled, mixed.labeled_targets, logits.unlabeled,
                                 mixed.unlabeled_targets, state.step);
      loss.total = out.total;
      loss.labeled = out.labeled;
      loss.unlabeled = out.unlabeled;
      loss.weight = out.weight;
      // The training images among the unlabeled have labels, which only this line looks at.
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

/// The pool is the training images, of which a fold or `--labels` have their labels, then the unlabeled ones.
TrainingData load(const Options& o, torch::Device device) {
  const auto train = mm::data::load_stl10(o.data, mm::data::Split::train);
  const auto unlabeled = mm::data::load_stl10(o.data, mm::data::Split::unlabeled);
  auto test = mm::data::load_stl10(o.data, mm::data::Split::test);
  mm::data::ImagePool pool({mm::data::to_device(train, device), mm::data::to_device(unlabeled, device)});
  auto split = o.fold >= 0 && o.split.empty()
                   ? mm::data::split_by_rows(pool.labels, mm::data::load_stl10_folds(o.data).at(o.fold),
                                             o.validation, o.seed, pool.class_names)
                   : mm::training::make_split(o, pool);
  auto validation = mm::data::take(train, split.validation);
  return {std::move(pool), std::move(split), std::move(validation), std::move(test)};
}

int train_run(CLI::App& app, Options& o) {
  const auto config = [&o] { return config_of(o); };
  const auto resumed = mm::training::adopt_run(app, o, config);
  // Data and options are checked before anything is written.
  mm::training::check_options(o);
  const auto device = mm::training::choose_device(o);
  const TrainingData data = load(o, device);
  mm::training::adopt_data(o, data, /*every_class=*/o.fold < 0);
  State state(mm::training::make_wide_resnet(o, kClasses, device), data.split.labeled, data.split.unlabeled,
              mm::training::train_state_options(o));
  const mm::RampedLoss criterion(mm::training::ramped_loss_options(o));

  mm::training::TrainingRun run(mm::training::run_directory(o, resumed),
                                mm::training::training_run_options(o, config(), data, device), state.step);
  state.register_in(run.checkpoint());
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
    const StepLoss loss = train_step(state, o, options, batches, criterion, device);
    run.record(loss.values(), loss.finite);
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
  Options options;
  CLI::App app(
      "MixMatch on STL-10 (arXiv 1905.02249): WRN-28 with four scales, or its supervised-only baseline.",
      "stl10");
  options.program = argv[0];
  mm::training::add_training_options(app, options);
  mm::training::add_number<int64_t>(
      app, "--fold", options.fold,
      "Official fold that is labeled (1,000 images); -1 = --labels images drawn by the seed", -1, 9);
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      return mm::training::evaluate_saved_run(
          options, [&] { return mm::data::load_stl10(options.data, mm::data::Split::test); });
    }
    return train_run(app, options);
  });
}
