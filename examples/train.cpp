// Every method on every data set, with the papers' numbers for them. The loop is
// mixmatch::training::train_classifier; cifar10.cpp shows one in full.

#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <algorithm>
#include <concepts>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mm = mixmatch;
using mm::data::Split;
using mm::training::TrainingData;
using mm::training::TrainingOptions;

namespace {

struct Options : TrainingOptions {
  using TrainingOptions::TrainingOptions;
  std::string dataset = "cifar10", preset = "paper";
};

template <class O, class Visit>
requires std::same_as<std::remove_const_t<O>, Options>
void visit_options(O& o, Visit&& visit) {
  mm::training::visit_training_options(o, visit);
  mm::training::visit_train_classifier_options(o, visit);
  visit(mm::training::OptionText{"dataset",
                                 "Decides the other options' defaults, as --method does: --help shows "
                                 "them"},
        o.dataset, mm::training::Choice{"cifar10", "cifar100", "svhn", "svhn-extra", "stl10", "shapes"});
  visit(
      mm::training::OptionText{"preset",
                               "Decides the other options' defaults too. paper: the papers' numbers; fast: "
                               "FixMatch on CIFAR-10 for a quarter of an hour on one GPU, see docs/GUIDE.md"},
      o.preset, mm::training::Choice{"paper", "fast"});
}

/// The sets that `--dataset` names, by their preset and by what they read from the directory.
struct DataSource {
  std::string name;
  const mm::Preset& preset;
  std::function<mm::data::ImageDataset(const std::string& dir, Split)> load;
  std::vector<Split> train{Split::train};
};

const DataSource& source_of(const std::string& dataset) {
  static const std::vector<DataSource> sources{
      {"cifar10", mm::presets::cifar10, mm::data::load_cifar10},
      {"cifar100", mm::presets::cifar100,
       [](const auto& dir, Split split) { return mm::data::load_cifar100(dir, split); }},
      {"svhn", mm::presets::svhn, mm::data::load_svhn},
      {"svhn-extra", mm::presets::svhn_extra, mm::data::load_svhn, {Split::train, Split::extra}},
      {"stl10", mm::presets::stl10, mm::data::load_stl10, {Split::train, Split::unlabeled}},
      {"shapes", mm::presets::ablation, [](const auto&, Split split) {
         return split == Split::train ? mm::data::make_shapes(4000, 1) : mm::data::make_shapes(1000, 2);
       }}};
  const auto found = std::find_if(sources.begin(), sources.end(),
                                  [&](const DataSource& source) { return source.name == dataset; });
  return found != sources.end() ? *found : sources.front();  // another name is refused later, by its option
}

TrainingData load(const Options& o, torch::Device device) {
  const auto& source = source_of(o.dataset);
  std::vector<mm::data::ImageDataset> sets;
  for (const Split split : source.train) {
    sets.push_back(source.load(o.data, split));
  }
  auto test = source.load(o.data, Split::test);
  const mm::data::ImagePool in_memory(sets);
  auto split = mm::training::make_split(o, in_memory);
  mm::data::ImageDataset validation{in_memory.gather(split.validation),
                                    in_memory.labels_of(split.validation, torch::kCPU),
                                    in_memory.class_names};
  // One set may live on the device; what comes in several the host reads.
  if (sets.size() == 1) {
    sets.front() = mm::data::to_device(sets.front(), device);
  }
  return {mm::data::ImagePool(std::move(sets)), std::move(split), std::move(validation), std::move(test)};
}

void check_data(const Options& o) {
  TORCH_CHECK(o.dataset == "shapes" || !o.data.empty(), "--data is required: the directory of ", o.dataset);
  TORCH_CHECK(o.dataset != "shapes" || o.data.empty(), "--data ", o.data,
              " has no effect with --dataset shapes, which are drawn");
}

void check_preset(const Options& o) {
  TORCH_CHECK(
      o.preset != "fast" || (o.dataset == "cifar10" && o.method == "fixmatch" && o.weights.empty()),
      "--preset fast is for --dataset cifar10 and --method fixmatch from random weights, got --dataset ",
      o.dataset, " --method ", o.method, o.weights.empty() ? "" : " --weights");
}

int train_run(CLI::App& app, Options& o) {
  const auto resumed = mm::training::adopt_run(app, o);
  check_preset(o);
  check_data(o);
  mm::training::check_options(o);
  const auto device = mm::training::choose_device(o);
  const TrainingData data = load(o, device);
  mm::training::adopt_data(o, data);
  mm::training::TrainState state(mm::training::make_network(o, data, device),
                                 mm::training::train_state_options(o));
  return mm::training::train_classifier(o, data, state, mm::training::run_directory(o, resumed));
}

/// What trains procedural shapes in minutes: a small network, averages over a hundred steps, and weights for
/// runs a thousandth as long as the papers'. docs/RESULTS.md has what they come to.
void use_small_task(TrainingOptions& o) {
  o.labels = 40;
  o.depth = 10;
  o.widen = 1;
  o.filters = 0;
  o.batch = 32;
  o.steps = 1500;
  o.ema_decay = 0.99;
  o.eval_every = 500;
  if (o.method == "mixmatch") {
    o.lambda_u = 75;
    o.rampup_steps = o.steps;
  } else if (o.method == "pi_model") {
    o.lambda_u = 3;
    o.ema_decay = 0.97;
  } else if (o.method == "mean_teacher") {
    o.lambda_u = 5;
    o.ema_decay = 0.97;
  } else if (o.method == "ict") {
    o.lambda_u = 2;
  } else if (o.method == "vat") {
    o.lambda_u = 1;
    o.radius = 2;
  } else if (o.method == "uda" || o.method == "fixmatch") {
    const TrainingOptions usual(mm::presets::ablation);
    o.annealing = "log";
    o.unlabeled_ratio = 3;
    o.optimizer = usual.optimizer;
    o.lr_schedule = usual.lr_schedule;
    o.learning_rate = usual.learning_rate;
    o.weight_decay = usual.weight_decay;
    o.l2 = 0;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string dataset = mm::training::find_option(argc, argv, "--dataset", "cifar10");
  Options options(source_of(dataset).preset);
  options.dataset = dataset;
  options.program = argv[0];
  options.out = "runs/" + dataset;
  options.labels = dataset == "cifar100" ? 10000 : dataset == "stl10" ? 1000 : 250;
  options.method = mm::training::find_option(argc, argv, "--method", options.method);
  options.methods = mm::training::method_names();
  mm::training::use_method_preset(options);
  options.preset = mm::training::find_option(argc, argv, "--preset", options.preset);
  if (options.preset == "fast") {
    mm::training::use_fast_preset(options);
  }
  if (dataset == "shapes") {
    use_small_task(options);
  }
  if (dataset == "cifar100" && (options.method == "fixmatch" || options.method == "uda")) {
    options.filters = 0;
    options.widen = mm::presets::cifar100_sgd_widen;
    options.l2 = mm::presets::cifar100_sgd_l2;
  }
  mm::training::use_weights_preset(argc, argv, options, /*has_train=*/true);
  CLI::App app("Semi-supervised learning by one of several methods, with the papers' numbers.", "train");
  mm::training::add_options(app, options);
  app.get_option("--data")->required(false);  // shapes are drawn, not read
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      if (mm::training::left_to_rank_0()) {
        return 0;
      }
      const auto run = mm::training::RunDirectory::open(options.eval);
      const auto config = mm::training::read_config(run.checkpoint());
      if (const auto* stored = mm::training::find_setting(config, "dataset")) {
        TORCH_CHECK(app.count("--dataset") == 0 || options.dataset == *stored, "--dataset ", options.dataset,
                    " is not the run's: it was started with ", *stored);
        options.dataset = *stored;
      }
      check_data(options);
      return mm::training::evaluate_saved_run(
          options, [&] { return source_of(options.dataset).load(options.data, Split::test); });
    }
    return train_run(app, options);
  });
}
