// MixMatch on the data sets that differ from CIFAR-10 by their files and by the paper's numbers for them. The
// loop is mixmatch::training::train_classifier; cifar10.cpp shows one in full.

#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>
#include <mixmatch/training/command_line.hpp>

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
  return dataset == "svhn-extra" ? mm::presets::svhn_extra : mm::presets::cifar10;
}

mm::data::ImageDataset load_test(const std::string& dataset, const std::string& dir) {
  if (dataset == "cifar100") {
    return mm::data::load_cifar100(dir, Split::test);
  }
  return dataset == "cifar10" ? mm::data::load_cifar10(dir, Split::test)
                              : mm::data::load_svhn(dir, Split::test);
}

std::vector<mm::data::ImageDataset> load_train(const std::string& dataset, const std::string& dir) {
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

int train_run(CLI::App& app, const std::string& dataset, TrainingOptions& o) {
  const auto config = [&] {
    auto all = mm::training::config_of(o);
    all.emplace_back("dataset", dataset);
    return all;
  };
  const auto resumed = mm::training::adopt_run(app, o, config);
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

/// The value of --dataset, which decides what the other options' defaults are.
std::string find_dataset(int argc, char** argv) {
  std::string dataset = "cifar10";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--dataset" && i + 1 < argc) {
      dataset = argv[i + 1];
    } else if (argument.starts_with("--dataset=")) {
      dataset = argument.substr(10);
    }
  }
  return dataset;
}

}  // namespace

int main(int argc, char** argv) {
  std::string dataset = find_dataset(argc, argv);
  TrainingOptions options(preset_of(dataset));
  options.program = argv[0];
  options.out = "runs/" + dataset;
  options.labels = dataset == "cifar100" ? 10000 : 250;
  CLI::App app("MixMatch with the paper's numbers for one of several data sets.", "train");
  mm::training::add_training_options(app, options);
  app.add_option("--dataset", dataset, "Decides the other options' defaults, which --help shows")
      ->check(CLI::IsMember({"cifar10", "cifar100", "svhn", "svhn-extra"}))
      ->capture_default_str();
  return mm::training::run_program(app, argc, argv, [&] {
    if (!options.eval.empty()) {
      const auto run = mm::training::RunDirectory::open(options.eval);
      const auto config = mm::training::read_config(run.checkpoint());
      if (const auto* stored = mm::training::find_setting(config, "dataset")) {
        TORCH_CHECK(app.count("--dataset") == 0 || dataset == *stored, "--dataset ", dataset,
                    " is not the run's: it was started with ", *stored);
        dataset = *stored;
      }
      return mm::training::evaluate_saved_run(options, [&] { return load_test(dataset, options.data); });
    }
    return train_run(app, dataset, options);
  });
}
