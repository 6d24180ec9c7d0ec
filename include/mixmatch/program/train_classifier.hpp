#pragma once

#include <mixmatch/program/example_images.hpp>
#include <mixmatch/program/feed_watch.hpp>
#include <mixmatch/program/finish_run.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/ramp_watch.hpp>
#include <mixmatch/program/run_split.hpp>
#include <mixmatch/program/run_tensors.hpp>
#include <mixmatch/program/start_run.hpp>
#include <mixmatch/program/trained_on.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/program/with_method.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/run_evaluation.hpp>
#include <mixmatch/step/trainer.hpp>

#include <utility>

namespace mixmatch::training {

/// A whole run: trains `state`'s model on `data` by the method that o.method names until o.steps, into
/// `directory` (of run_directory), or goes on there (o.resume). `o` is a TrainingOptions, or a program's own
/// that visit_options() knows. With o.train "head" the images' features are computed first, and the last
/// layer is trained on those. Returns 0, or the status of TrainingRun::leave after an interrupt, with a
/// checkpoint saved. `state` then holds the trained model and its averages, and `shared` what verdict() can
/// use.
template <ModuleModel Model, class Options>
int train_classifier(const Options& o, const TrainingData& data, TrainState<Model>& state,
                     const RunDirectory& directory, RunTensors* shared = nullptr) {
  const auto device = detail::device_of(state.model);
  if (o.resume && o.train == "head") {  // features of the run's own network, wherever its weights came from
    Checkpoint(directory.checkpoint()).add("model", state.model).load();
  }
  TrainedOn seen(o, state.model, data, device);
  return with_method(o, [&](auto method) {
    const TrainerOptions options = trainer_options(o);
    Trainer trainer(state, std::move(method), seen.data(), options);
    TrainingRun run(directory, training_run_options(o, data, device), state.step);
    state.register_in(run.checkpoint());
    trainer.register_in(run.checkpoint());
    if (o.resume) {
      run.resume();
    } else {
      save_split(run.directory().split(), o, data);
      run.start();
      if (o.train == "all") {
        log_example_images(run.board(), trainer.feed());
      }
    }
    RunEvaluation evaluation(state, seen.options(), options.graph());
    RampWatch ramp(o, seen.data(), seen.options(), state.step);
    while (run.running()) {
      run.record(trainer.run(run.steps_until_due()));
      if (run.evaluation_due()) {
        run.record_errors(evaluation(seen.data().validation, seen.data().test));
      }
      run.finish_step();
      ramp.look(run, state);
    }
    seen.end();
    say_if_feed_limits(trainer.host_batches());
    if (run.interrupted()) {
      return run.leave();
    }
    if (o.train == "head") {
      // The run's own is of features. Images are judged once, which is not worth a graph.
      RunEvaluation of_images(state, evaluate_options(o, device), /*graph=*/false);
      return finish_run(run, o, state, data, of_images, shared);
    }
    return finish_run(run, o, state, data, evaluation, shared);
  });
}

}  // namespace mixmatch::training
