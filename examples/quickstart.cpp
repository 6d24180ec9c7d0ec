// The shortest honest training: 40 labeled images out of 4,000, supervised-only against MixMatch, on
// procedural shapes.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

namespace mm = mixmatch;
using torch::Tensor;

namespace {

constexpr int64_t kBatch = 32;

struct Task {
  mm::data::ImageDataset train = mm::data::make_shapes(4000, 1);
  mm::data::ImageDataset test = mm::data::make_shapes(1000, 2);
};

/// Trains a small Wide ResNet and returns the averaged model's test error in percent.
double train(const Task& task, bool use_mixmatch, int64_t steps, uint64_t seed) {
  torch::manual_seed(seed);
  auto generator = at::detail::createCPUGenerator(seed);
  const auto split =
      mm::data::split_labels(task.train.labels, /*num_labeled=*/40, /*num_validation=*/0, seed);
  mm::data::BatchStream labeled(split.labeled, kBatch, seed);
  mm::data::BatchStream unlabeled(split.unlabeled, kBatch, seed + 1);
  mm::augment::RandomCropFlip augment(mm::augment::RandomCropFlipOptions(), generator);

  // Of the papers' settings, these suit 600 steps instead of a million: batch-norm statistics and weights are
  // averaged over tens of steps, and lambda_u ramps over the whole run.
  mm::models::WideResNet model(
      mm::models::WideResNetOptions(10).depth(10).widen_factor(1).batch_norm_momentum(0.05));
  mm::EmaModel ema(model, mm::EmaModelOptions().decay(0.99));
  mm::RampedLoss criterion(mm::RampedLossOptions().lambda_u(75).rampup_steps(steps));
  mm::training::Optimizer optimizer(model, ema, mm::training::OptimizerOptions(2e-3).weight_decay(0.02));

  mm::training::Progress progress(use_mixmatch ? "MixMatch" : "supervised-only", steps);
  for (int64_t step = 0; step < steps; ++step) {
    const Tensor rows = labeled.rows(step);
    const Tensor x = task.train.images.index_select(0, rows);
    const Tensor labels = task.train.labels.index_select(0, rows);
    Tensor loss;
    if (use_mixmatch) {
      const Tensor u = task.train.images.index_select(0, unlabeled.rows(step));
      const auto mixed = mm::mixmatch_batch(model, augment, x, labels, u, {}, generator);

      // Three forward passes, interleaved so that the first one's batch statistics, the only ones that count,
      // speak for labeled and unlabeled rows.
      const auto logits = mm::forward_interleaved(model, mixed.labeled_inputs, mixed.unlabeled_inputs);
      loss = criterion(logits.labeled, mixed.labeled_targets, logits.unlabeled, mixed.unlabeled_targets, step)
                 .total;
    } else {
      loss = mm::soft_cross_entropy(model->forward(augment(x)), mm::one_hot(labels, 10));
    }
    loss.backward();
    optimizer.step();  // Adam, decay of the kernels, moving average
    progress.update(step + 1, "");
  }
  progress.finish();
  return mm::training::error_percent([&](const Tensor& images) { return ema.forward(images); }, task.test);
}

}  // namespace

int main(int argc, char** argv) {
  int64_t steps = 600;
  uint64_t seed = 1;
  int threads = 0;
  CLI::App app("Trains on procedural shapes with 40 labels: supervised-only, then MixMatch.", "quickstart");
  mm::training::add_number<int64_t>(app, "--steps", steps, "Optimiser steps of each", 1);
  mm::training::add_number<uint64_t>(app, "--seed", seed, "Seed of split, weights, batches and augmentation",
                                     0);
  mm::training::add_number(app, "--threads", threads, "CPU threads; 0 = one a processor", 0);
  return mm::training::run_program(app, argc, argv, [&] {
    mm::training::set_threads(threads);
    const Task task;
    const double supervised = train(task, /*use_mixmatch=*/false, steps, seed);
    const double mixmatch = train(task, /*use_mixmatch=*/true, steps, seed);
    mm::training::print_result("test error: supervised-only {:.2f} %, MixMatch {:.2f} %\n", supervised,
                               mixmatch);
    return 0;
  });
}
