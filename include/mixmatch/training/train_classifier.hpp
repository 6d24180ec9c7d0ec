#pragma once

#include <mixmatch/batch_norm.hpp>
#include <mixmatch/data/split_file.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/training/augmented_batch.hpp>
#include <mixmatch/training/example_images.hpp>
#include <mixmatch/training/finish_run.hpp>
#include <mixmatch/training/optimizer_step.hpp>
#include <mixmatch/training/prefetch.hpp>
#include <mixmatch/training/training_data.hpp>
#include <mixmatch/workspace.hpp>

#include <memory>

namespace mixmatch::training {

/// One step of MixMatch, or of its supervised-only baseline, on batches by the step's number: that of
/// examples/cifar10.cpp, for any data set. `mixing` is mixmatch_options(o), for a loop with a workspace.
inline StepLoss train_step(TrainState<models::WideResNet>& state, const TrainingOptions& o,
                           const MixMatchOptions& mixing, Prefetch<AugmentedBatch>& batches,
                           torch::Device device) {
  const RampedLoss criterion(ramped_loss_options(o));
  const AugmentedBatch batch = batches(state.step);
  if (o.warmup) {
    set_batch_norm_momentum(state.model,
                            batch_norm_momentum(state.step, state.model->options().batch_norm_momentum()));
  }
  StepLoss loss;
  {
    Autocast autocast(device, parse_precision(o.precision));
    if (o.method == "supervised") {
      loss.total = loss.labeled =
          soft_cross_entropy(state.model->forward(batch.labeled),
                             mixmatch::one_hot(batch.labels, state.model->options().num_classes()));
    } else {
      const auto out = methods::mixmatch_loss_of_views(state.model, batch.labeled, batch.labels, batch.views,
                                                       state.step, criterion, mixing, state.generator);
      loss.total = out.total;
      loss.labeled = out.labeled;
      loss.unlabeled = out.unlabeled;
      loss.weight = out.weight;
      loss.guesses = guess_quality(out.guesses, batch.unlabeled_labels);
    }
  }
  loss.total.backward();
  loss.finite = optimizer_step(state.optimizer, state.ema, o.weight_decay);
  state.finish_step();
  return loss;
}

/// A whole run: trains a Wide ResNet on `data` until o.steps, into `directory` (of run_directory), or goes on
/// there (o.resume). `config` is config_of(o), and what the program adds. Returns 0, or the status of
/// TrainingRun::leave after an interrupt, with a checkpoint saved. `state` then holds the trained model and
/// its averages.
inline int train_classifier(const TrainingOptions& o, const Config& config, const TrainingData& data,
                            TrainState<models::WideResNet>& state, torch::Device device,
                            const RunDirectory& directory) {
  TrainingRun run(directory, training_run_options(o, config, data, device), state.step);
  state.register_in(run.checkpoint());
  if (o.resume) {
    run.resume();
  } else {
    save_split(run.directory().split(), o, data);
    run.start();
    log_example_images(run.board(), state.model, o, data, device);
  }
  Prefetch<AugmentedBatch> batches(augmented_batches(o, data, device), prefetches(o, device));
  const auto mixing = mixmatch_options(o).workspace(std::make_shared<Workspace>());
  while (run.running()) {
    const StepLoss loss = train_step(state, o, mixing, batches, device);
    run.record(loss.values(), loss.finite);
    if (run.evaluation_due()) {
      run.record_errors(evaluate_all(state, data.validation, data.test, evaluate_options(o, device)));
    }
    run.finish_step();
  }
  if (run.interrupted()) {
    return run.leave();
  }
  return finish_run(run, o, state, data, device);
}

}  // namespace mixmatch::training
