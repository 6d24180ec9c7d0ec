// MixMatch on STL-10: WRN-28 with four scales on 96x96 images, the official folds, and 100,000 unlabeled
// images that are read from the disk as they are drawn. What differs from cifar10.cpp: the data, the preset
// (fourth scale, wider crop, lambda_u), and the unlabeled rows, which come from two sets. The method is the
// same, taken from methods/.

#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <concepts>
#include <string>
#include <type_traits>
#include <utility>

namespace mm = mixmatch;
using mm::training::TrainingData;
using mm::training::TrainingOptions;

namespace {

struct Options : TrainingOptions {
  Options() : TrainingOptions(mm::presets::stl10) {
    out = "runs/stl10";
    labels = 1000;
  }
  int64_t fold = 0;
};

template <class O, class Visit>
requires std::same_as<std::remove_const_t<O>, Options>
void visit_options(O& o, Visit&& visit) {
  using mm::training::OptionText;
  mm::training::visit_training_options(o, [&](OptionText text, auto& value, const auto&... limits) {
    if (text.name == std::string("labels") && o.fold >= 0 && o.split.empty()) {
      text.no_effect = " with an official --fold, whose images are labeled; take --fold -1";
    }
    visit(text, value, limits...);
  });
  visit(OptionText{"fold",
                   "Official fold that is labeled (1,000 images); -1 = --labels images drawn by the seed",
                   mm::training::OptionRole::run,
                   {},
                   mm::training::detail::why_no_split(o)},
        o.fold, mm::training::Range<int64_t>{-1, 9});
}

/// The pool is the training images, of which a fold or `--labels` have their labels, then the unlabeled ones.
TrainingData load(const Options& o) {
  const auto train = mm::data::load_stl10(o.data, mm::data::Split::train);
  const auto unlabeled = mm::data::load_stl10(o.data, mm::data::Split::unlabeled);
  auto test = mm::data::load_stl10(o.data, mm::data::Split::test);
  // 105,000 images of 96 pixels: they stay where they are, mapped from the disk, and the host reads the next
  // step's while this one runs.
  mm::data::ImagePool pool({train, unlabeled});
  auto split = o.fold >= 0 && o.split.empty()
                   ? mm::training::draw_split(o, pool.labels, mm::data::load_stl10_folds(o.data).at(o.fold),
                                              pool.class_names)
                   : mm::training::make_split(o, pool);
  auto validation = mm::data::take(train, split.validation);
  return {std::move(pool), std::move(split), std::move(validation), std::move(test)};
}

int train_run(CLI::App& app, Options& o) {
  const auto resumed = mm::training::adopt_run(app, o);
  // Data and options are checked before anything is written.
  mm::training::check_options(o);
  const auto device = mm::training::choose_device(o);
  const TrainingData data = load(o);
  mm::training::adopt_data(o, data, /*every_class=*/o.fold < 0);
  mm::training::TrainState state(mm::training::make_network(o, data, device),
                                 mm::training::train_state_options(o));

  const auto train = [&](auto method) {
    // A step begins with the host's images; on a GPU the rest of it is one CUDA graph.
    const auto options = mm::training::trainer_options(o);
    mm::training::Trainer trainer(state, method, data, options);
    mm::training::TrainingRun run(mm::training::run_directory(o, resumed),
                                  mm::training::training_run_options(o, data, device), state.step);
    state.register_in(run.checkpoint());
    trainer.register_in(run.checkpoint());
    if (resumed.has_value()) {
      run.resume();
    } else {
      mm::training::save_split(run.directory().split(), o, data);
      run.start();
      mm::training::log_example_images(run.board(), trainer.feed());
    }
    mm::training::RunEvaluation evaluation(state, mm::training::evaluate_options(o, device), options.graph());
    mm::training::RampWatch ramp(o, data, mm::training::evaluate_options(o, device), state.step);
    while (run.running()) {
      run.record(trainer.run(run.steps_until_due()));
      if (run.evaluation_due()) {
        run.record_errors(evaluation(data.validation, data.test));
      }
      run.finish_step();
      ramp.look(run, state);
    }
    mm::training::say_if_feed_limits(trainer.host_batches());
    return run.interrupted() ? run.leave() : mm::training::finish_run(run, o, state, data, evaluation);
  };
  // methods::MixMatch, which cifar10.cpp spells out, or Supervised.
  return mm::training::with_method(o, train);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "MixMatch on STL-10 (arXiv 1905.02249): WRN-28 with four scales, or its supervised-only baseline.",
      "stl10");
  options.program = argv[0];
  mm::training::use_weights_preset(argc, argv, options);
  mm::training::add_options(app, options);
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      return mm::training::evaluate_saved_run(
          options, [&] { return mm::data::load_stl10(options.data, mm::data::Split::test); });
    }
    return train_run(app, options);
  });
}
