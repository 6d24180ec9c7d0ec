// MixMatch on CIFAR-10: the complete training loop, from the binary files to a resumable run directory.
// The method is MixMatch::operator(); the rest is what every training program needs.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <memory>
#include <utility>
#include <vector>

namespace mm = mixmatch;
using mm::training::StepOn;
using mm::training::TrainingData;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace {

constexpr int64_t kClasses = 10;

/// The method: MixMatch's loss of one step. The batch is one augmentation of labeled images and K of
/// unlabeled ones (Algorithm 1, lines 2-6). The same code runs on the CPU, and on a GPU as a part of one CUDA
/// graph: numbers that change from step to step are tensors, and nothing waits for the device.
struct MixMatch {
  mm::MixMatchOptions options;
  mm::RampedLoss criterion;

  template <class Model>
  mm::StepLoss operator()(Model& model, const mm::Batch& batch, const Tensor& step,
                          const at::Generator& generator) const {
    // The rest of Algorithm 1: guess and sharpen the views' labels; then MixUp.
    const auto guessed = mm::with_guessed_labels(model, batch.labeled, batch.labels, batch.weak, options);
    const auto mixed = mm::mix_labeled_unlabeled(guessed, options, generator);

    // K + 1 forward passes, each normalised by its own batch. Only the first moves the batch-norm running
    // statistics; interleaving gives it labeled and unlabeled rows alike.
    const int64_t rows = batch.labeled.size(0);
    std::vector<Tensor> inputs = mixed.unlabeled_inputs.split(rows);
    inputs.insert(inputs.begin(), mixed.labeled_inputs);
    inputs = mm::interleave(std::move(inputs), options.workspace().get());
    const auto logits = mm::interleave(mm::forward_each(model, inputs));
    const Tensor logits_x = logits.front();
    const Tensor logits_u = torch::cat(std::vector<Tensor>(logits.begin() + 1, logits.end()));

    // Eqs. 3-5 with the ramped weight of the unlabeled loss.
    const auto loss = criterion(logits_x, mixed.labeled_targets, logits_u, mixed.unlabeled_targets, step);
    // CIFAR-10's unlabeled images have labels, which only this line looks at.
    const auto guesses =
        mm::training::guess_quality(guessed.unlabeled_targets.narrow(0, 0, rows), batch.hidden_labels);
    return {loss.total,
            {{"loss_labeled", loss.labeled},
             {"loss_unlabeled", loss.unlabeled},
             {"lambda_u", loss.weight},
             {"guess_confidence", guesses.mean_max_probability},
             {"guess_entropy", guesses.mean_entropy},
             {"guess_accuracy", guesses.accuracy}}};
  }
};

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
  // Model, moving average, optimiser, streams of batches, generators: what a step changes.
  mm::training::TrainState state(mm::training::make_wide_resnet(o, kClasses, device), data.split.labeled,
                                 data.split.unlabeled, mm::training::train_state_options(o));
  // On a GPU data and random numbers stay there too, and the whole step is one CUDA graph.
  const StepOn where = device.is_cuda() ? StepOn::device : StepOn::host;

  const auto train = [&](auto method) {
    // A step: the method's loss, its gradient, Adam, decay of the kernels, moving average.
    mm::training::Trainer trainer(state, method, o, data, device, where);
    auto run_config = config();
    run_config.emplace_back("step-on", mm::training::name_of(where));
    mm::training::TrainingRun run(mm::training::run_directory(o, resumed),
                                  mm::training::training_run_options(o, run_config, data, device),
                                  state.step);
    state.register_in(run.checkpoint());
    trainer.register_in(run.checkpoint());
    if (resumed.has_value()) {
      run.resume();
    } else {
      mm::training::save_split(run.directory().split(), o, data);
      run.start();
      mm::training::log_example_images(run.board(), state.model, o, data, device);
    }
    while (run.running()) {
      run.record(trainer.run(run.steps_until_due()));
      if (run.evaluation_due()) {
        run.record_errors(mm::training::evaluate_all(state, data.validation, data.test,
                                                     mm::training::evaluate_options(o, device)));
      }
      run.finish_step();
    }
    return run.interrupted() ? run.leave() : mm::training::finish_run(run, o, state, data, device);
  };
  if (o.method == "supervised") {
    return train(mm::methods::Supervised());
  }
  auto options = mm::training::mixmatch_options(o);
  if (where == StepOn::host) {
    options.workspace(std::make_shared<mm::Workspace>());  // each step's mixed batches in the same memory
  }
  return train(MixMatch{options, mm::RampedLoss(mm::training::ramped_loss_options(o))});
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
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      return mm::training::evaluate_saved_run(
          options, [&] { return mm::data::load_cifar10(options.data, mm::data::Split::test); });
    }
    return train_run(app, options);
  });
}
