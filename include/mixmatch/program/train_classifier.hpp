#pragma once

#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/methods/mean_teacher.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/pi_model.hpp>
#include <mixmatch/methods/pseudo_label.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/program/example_images.hpp>
#include <mixmatch/program/finish_run.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/train_state.hpp>
#include <mixmatch/step/trainer.hpp>
#include <mixmatch/workspace.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// The names that with_method() knows.
inline const std::vector<std::string>& method_names() {
  static const std::vector<std::string> names{"mixmatch", "supervised", "pseudo_label", "pi_model",
                                              "mean_teacher"};
  return names;
}

/// use(method), with the method of methods/ that o.method names, set up by the options.
template <class Use>
auto with_method(const TrainingOptions& o, StepOn where, Use&& use) {
  if (o.method == "supervised") {
    return use(methods::Supervised());
  }
  if (o.method == "pseudo_label") {
    return use(methods::PseudoLabel(o.threshold, ramped_loss_options(o)));
  }
  if (o.method == "pi_model") {
    return use(methods::PiModel(ramped_loss_options(o)));
  }
  if (o.method == "mean_teacher") {
    return use(methods::MeanTeacher(ramped_loss_options(o)));
  }
  TORCH_CHECK(o.method == "mixmatch", "there is no method ", o.method);
  auto mixing = mixmatch_options(o);
  if (where == StepOn::host) {
    mixing.workspace(std::make_shared<Workspace>());  // each step's mixed batches in the same memory
  }
  return use(methods::MixMatch(std::move(mixing), ramped_loss_options(o)));
}

/// A whole run: trains a Wide ResNet on `data` until o.steps, into `directory` (of run_directory), or goes on
/// there (o.resume); on a GPU as StepOn::device. `config` is config_of(o), and what the program adds. Returns
/// 0, or the status of TrainingRun::leave after an interrupt, with a checkpoint saved. `state` then holds the
/// trained model and its averages.
inline int train_classifier(const TrainingOptions& o, Config config, const TrainingData& data,
                            TrainState<models::WideResNet>& state, torch::Device device,
                            const RunDirectory& directory) {
  const StepOn where = device.is_cuda() ? StepOn::device : StepOn::host;
  config.emplace_back("step-on", name_of(where));
  return with_method(o, where, [&](auto method) {
    Trainer trainer(state, std::move(method), o, data, device, where);
    TrainingRun run(directory, training_run_options(o, std::move(config), data, device), state.step);
    state.register_in(run.checkpoint());
    trainer.register_in(run.checkpoint());
    if (o.resume) {
      run.resume();
    } else {
      save_split(run.directory().split(), o, data);
      run.start();
      log_example_images(run.board(), state.model, o, data, device);
    }
    while (run.running()) {
      run.record(trainer.run(run.steps_until_due()));
      if (run.evaluation_due()) {
        run.record_errors(evaluate_all(state, data.validation, data.test, evaluate_options(o, device)));
      }
      run.finish_step();
    }
    return run.interrupted() ? run.leave() : finish_run(run, o, state, data, device);
  });
}

}  // namespace mixmatch::training
