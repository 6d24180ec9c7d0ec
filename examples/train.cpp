// Every method on the data sets that have a preset here (stl10.cpp has its own program), with the papers'
// numbers for them. The loop is mixmatch::training::train_classifier; cifar10.cpp shows one in full.

#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <string>
#include <utility>
#include <vector>

namespace mm = mixmatch;
using mm::data::Split;
using mm::training::TrainingData;
using mm::training::TrainingOptions;

namespace {

const mm::Preset& preset_of(const std::string& dataset) {
  if (dataset == "cifar100") {
    return mm::presets::cifar100;
  }
  if (dataset == "svhn") {
    return mm::presets::svhn;
  }
  if (dataset == "shapes") {
    return mm::presets::ablation;
  }
  return dataset == "svhn-extra" ? mm::presets::svhn_extra : mm::presets::cifar10;
}

mm::data::ImageDataset load_test(const std::string& dataset, const std::string& dir) {
  if (dataset == "shapes") {
    return mm::data::make_shapes(1000, 2);
  }
  if (dataset == "cifar100") {
    return mm::data::load_cifar100(dir, Split::test);
  }
  return dataset == "cifar10" ? mm::data::load_cifar10(dir, Split::test)
                              : mm::data::load_svhn(dir, Split::test);
}

std::vector<mm::data::ImageDataset> load_train(const std::string& dataset, const std::string& dir) {
  if (dataset == "shapes") {
    return {mm::data::make_shapes(4000, 1)};
  }
  if (dataset == "cifar100") {
    return {mm::data::load_cifar100(dir, Split::train)};
  }
  if (dataset == "cifar10") {
    return {mm::data::load_cifar10(dir, Split::train)};
  }
  std::vector<mm::data::ImageDataset> sets{mm::data::load_svhn(dir, Split::train)};
  if (dataset == "svhn-extra") {
    sets.push_back(mm::data::load_svhn(dir, Split::extra));
  }
  return sets;
}

TrainingData load(const std::string& dataset, const TrainingOptions& o, torch::Device device) {
  auto sets = load_train(dataset, o.data);
  auto test = load_test(dataset, o.data);
  const mm::data::ImagePool in_memory(sets);
  auto split = mm::training::make_split(o, in_memory);
  mm::data::ImageDataset validation{in_memory.gather(split.validation),
                                    in_memory.labels_of(split.validation, torch::kCPU),
                                    in_memory.class_names};
  for (auto& set : sets) {
    set = mm::data::to_device(set, device);
  }
  return {mm::data::ImagePool(std::move(sets)), std::move(split), std::move(validation), std::move(test)};
}

void check_data(const std::string& dataset, const TrainingOptions& o) {
  TORCH_CHECK(dataset == "shapes" || !o.data.empty(), "--data is required: the directory of ", dataset);
}

int train_run(CLI::App& app, const std::string& dataset, TrainingOptions& o) {
  const auto config = [&] {
    auto all = mm::training::config_of(o);
    all.emplace_back("dataset", dataset);
    return all;
  };
  const auto resumed = mm::training::adopt_run(app, o, config);
  check_data(dataset, o);
  mm::training::check_options(o);
  const auto device = mm::training::choose_device(o);
  const TrainingData data = load(dataset, o, device);
  mm::training::adopt_data(o, data);
  mm::training::TrainState<mm::models::WideResNet> state(
      mm::training::make_wide_resnet(o, data.pool.num_classes(), device), data.split.labeled,
      data.split.unlabeled, mm::training::train_state_options(o));
  return mm::training::train_classifier(o, config(), data, state, device,
                                        mm::training::run_directory(o, resumed));
}

/// What trains procedural shapes in a minute: a small network, and averages over tens of steps.
void use_small_task(TrainingOptions& o) {
  o.labels = 40;
  o.depth = 10;
  o.widen = 1;
  o.filters = 0;
  o.batch = 32;
  o.steps = 600;
  o.rampup_steps = 600;
  o.lambda_u = 75;
  o.ema_decay = 0.99;
  o.eval_every = 200;
}

}  // namespace

int main(int argc, char** argv) {
  std::string dataset = mm::training::find_option(argc, argv, "--dataset", "cifar10");
  TrainingOptions options(preset_of(dataset));
  options.program = argv[0];
  options.out = "runs/" + dataset;
  options.labels = dataset == "cifar100" ? 10000 : 250;
  if (dataset == "shapes") {
    use_small_task(options);
  }
  options.method = mm::training::find_option(argc, argv, "--method", options.method);
  mm::training::use_method_preset(options);
  CLI::App app("Semi-supervised learning by one of several methods, with the papers' numbers.", "train");
  mm::training::add_training_options(app, options, mm::training::method_names());
  app.add_option("--dataset", dataset,
                 "Decides the other options' defaults, as --method does: --help shows them")
      ->check(CLI::IsMember({"cifar10", "cifar100", "svhn", "svhn-extra", "shapes"}))
      ->capture_default_str();
  app.get_option("--data")->required(false);  // shapes are drawn, not read
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      const auto run = mm::training::RunDirectory::open(options.eval);
      const auto config = mm::training::read_config(run.checkpoint());
      if (const auto* stored = mm::training::find_setting(config, "dataset")) {
        TORCH_CHECK(app.count("--dataset") == 0 || dataset == *stored, "--dataset ", dataset,
                    " is not the run's: it was started with ", *stored);
        dataset = *stored;
      }
      check_data(dataset, options);
      return mm::training::evaluate_saved_run(options, [&] { return load_test(dataset, options.data); });
    }
    return train_run(app, dataset, options);
  });
}
