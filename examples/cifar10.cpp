// MixMatch on CIFAR-10: the complete training loop, from the binary files to a resumable run directory.

#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <utility>
#include <vector>

namespace mm = mixmatch;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace {

/// The method: MixMatch's loss of one step, of one augmentation of labeled images and K of unlabeled ones
/// (Algorithm 1, lines 2-6). Numbers that change from step to step are tensors, and nothing waits for a GPU.
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
    std::vector<Tensor> inputs = mixed.unlabeled_inputs.split(batch.labeled.size(0));
    inputs.insert(inputs.begin(), mixed.labeled_inputs);
    const auto logits = mm::interleave(mm::forward_each(model, mm::interleave(std::move(inputs))));
    const Tensor logits_u = torch::cat(std::vector<Tensor>(logits.begin() + 1, logits.end()));

    // Eqs. 3-5 with the ramped weight of the unlabeled loss.
    const auto loss =
        criterion(logits.front(), mixed.labeled_targets, logits_u, mixed.unlabeled_targets, step);
    // Unlabeled images have labels here, which only this line looks at.
    const auto guesses = mm::training::guess_quality(
        guessed.unlabeled_targets.narrow(0, 0, batch.hidden_labels.size(0)), batch.hidden_labels);
    return {loss.total,
            {{"loss_labeled", loss.labeled},
             {"loss_unlabeled", loss.unlabeled},
             {"lambda_u", loss.weight},
             {"guess_confidence", guesses.mean_max_probability},
             {"guess_entropy", guesses.mean_entropy},
             {"guess_class_entropy", guesses.class_entropy},
             {"guess_accuracy", guesses.accuracy}}};
  }
};

mm::training::TrainingData load(const TrainingOptions& o, torch::Device device) {
  const auto train = mm::data::load_cifar10(o.data, mm::data::Split::train);
  auto test = mm::data::load_cifar10(o.data, mm::data::Split::test);
  auto split = mm::training::make_split(o, mm::data::ImagePool({train}));
  auto validation = mm::data::take(train, split.validation);
  return {mm::data::ImagePool({mm::data::to_device(train, device)}), std::move(split), std::move(validation),
          std::move(test)};
}

int train_run(CLI::App& app, TrainingOptions& o) {
  const auto resumed = mm::training::adopt_run(app, o);
  // Data and options are checked before anything is written.
  mm::training::check_options(o);
  const auto device = mm::training::choose_device(o);
  const auto data = load(o, device);
  mm::training::adopt_data(o, data);
  // Model, moving average, optimiser (Adam, with decay of the kernels), generators: what a step changes.
  mm::training::TrainState state(mm::training::make_network(o, data, device),
                                 mm::training::train_state_options(o));

  // Batches: endless reshuffled rows of both kinds, cropped and mirrored, as a function of seed and step.
  auto options = mm::training::trainer_options(o);
  options.feed().weak_views(o.method == "supervised" ? 0 : o.num_augmentations);
  mm::training::Feed feed(data, options.feed());
  // The model in training: batch-norm statistics that a graph can move.
  mm::training::Learner learner(state.model, state.ema, options.learner());
  // Of several processes: the same weights on each, and the means of their gradients.
  mm::training::DataParallel parallel(state, learner, options.processes(), options.data_parallel());
  // On a GPU in bf16: the weights of all layers by one conversion a step.
  const mm::training::LowPrecisionWeights weights(state.model, state.optimizer,
                                                  state.optimizer.gains_by_copies());
  mm::Meter meter(device);
  const Tensor step = torch::zeros({}, torch::TensorOptions(device).dtype(torch::kLong));

  const auto train = [&](const auto& method) {
    // One step: batch, loss under autocast, gradient; then optimiser, decay and average in one pass.
    const auto train_step = [&] {
      state.optimizer.drop_gradients();  // of a step that threw
      const mm::Batch batch = feed(step);
      mm::StepLoss loss;
      {
        const auto statistics = learner.training_step(step);
        const mm::training::Autocast autocast(device, options.precision());
        const auto copies = weights.use(options.precision());
        loss = method(learner, batch, step, state.generator);
      }
      parallel.backward(loss.total, options.overlap_weight_gradients());
      meter.add(loss, state.optimizer.step());
      step.add_(1);
      return loss.total.detach();
    };
    mm::training::TrainingRun run(mm::training::run_directory(o, resumed),
                                  mm::training::training_run_options(o, data, device), state.step);
    state.register_in(run.checkpoint());
    run.checkpoint().add("feed", feed);
    if (resumed.has_value()) {
      run.resume();
    } else {
      mm::training::save_split(run.directory().split(), o, data);
      run.start();
      mm::training::log_example_images(run.board(), feed);
    }
    step.fill_(state.step);
    // On a GPU the step is captured in a CUDA graph and replayed; what it changes is named for that.
    const auto changed = mm::training::joined(
        {{step}, state.model->buffers(), state.optimizer.state(), learner.state(), meter.state()});
    mm::training::GraphedStep graphed(train_step, device,
                                      mm::training::GraphedStepOptions()
                                          .enabled(options.graph() && parallel.capturable(device))
                                          .measure_convolutions(options.measure_convolutions())
                                          .state(changed)
                                          .parameters(state.model->parameters())
                                          .generators({state.generator}));
    mm::training::RunEvaluation evaluation(state, mm::training::evaluate_options(o, device), options.graph());
    // Says so where lambda_u has risen before the guesses are worth it.
    mm::training::RampWatch ramp(o, data, mm::training::evaluate_options(o, device), state.step);
    while (run.running()) {
      // On a GPU many steps, after which the host waits once; on the CPU one.
      for (int64_t i = device.is_cuda() ? run.steps_until_due() : 1; i > 0; --i, ++state.step) {
        parallel.begin_step();
        graphed();
      }
      state.optimizer.synchronize();
      run.record(parallel.mean(meter.read()));
      if (run.evaluation_due()) {
        run.record_errors(evaluation(data.validation, data.test));
      }
      run.finish_step();
      ramp.look(run, state);
    }
    return run.interrupted() ? run.leave() : mm::training::finish_run(run, o, state, data, evaluation);
  };
  if (o.method == "supervised") {
    return train(mm::methods::Supervised());
  }
  const mm::RampedLoss criterion(mm::training::ramped_loss_options(o));
  return train(MixMatch{mm::training::mixmatch_options(o), criterion});
}

}  // namespace

int main(int argc, char** argv) {
  TrainingOptions options(mm::presets::cifar10);
  options.out = "runs/cifar10";
  CLI::App app(
      "MixMatch on CIFAR-10 (arXiv 1905.02249): WRN-28-2 by default, or its supervised-only baseline.",
      "cifar10");
  options.program = argv[0];
  mm::training::use_weights_preset(argc, argv, options);
  mm::training::add_options(app, options);
  app.remove_option(app.get_option("--prefetch"));  // the images are in memory, where the step reads them
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      return mm::training::evaluate_saved_run(
          options, [&] { return mm::data::load_cifar10(options.data, mm::data::Split::test); });
    }
    return train_run(app, options);
  });
}
