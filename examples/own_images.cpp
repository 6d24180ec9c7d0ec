// Your own pictures: DIR/labeled/<class>/… and DIR/unlabeled/…, or a CSV of labels, to a trained classifier,
// a report, and predictions for the unlabeled pictures, without writing code.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <concepts>
#include <set>
#include <string>
#include <type_traits>
#include <utility>

namespace mm = mixmatch;
using mm::training::TrainingData;
using mm::training::TrainingOptions;

namespace {

struct Options : TrainingOptions {
  /// The paper's numbers for CIFAR-10, but for a network and a run that a computer without a GPU has patience
  /// for.
  Options() : TrainingOptions(mm::presets::cifar10) {
    out = "runs/own_images";
    labels = 0;
    validation = 0;
    depth = 10;
    steps = 3000;
    eval_every = 500;
  }
  int64_t size = 32, baseline_steps = -1;
  mm::training::LabelSources sources;
  std::string fit = "crop", cache_memory = "auto";
  bool strict = false;
};

template <class O, class Visit>
requires std::same_as<std::remove_const_t<O>, Options>
void visit_options(O& o, Visit&& visit) {
  mm::training::visit_training_options(o, visit);
  mm::training::visit_train_classifier_options(o, visit);
  visit(mm::training::OptionText{"size", "Pixels of the square that pictures are resized and cropped to"},
        o.size, mm::training::Range<int64_t>{8, 1024});
  visit(mm::training::OptionText{"from",
                                 "Run to start from: its weights, its network and size unless given, its "
                                 "labels, and what it held out",
                                 mm::training::OptionRole::place},
        o.sources.from);
  visit(
      mm::training::OptionText{"fit",
                               "Of a picture that is not square, crop: the middle; letterbox: all, on grey"},
      o.fit, mm::training::Choice{"crop", "letterbox"});
  visit(mm::training::OptionText{"cache-memory",
                                 "Memory for decoded pictures, as 500M or 4G; where all take more, they are "
                                 "decoded when they are drawn; auto = a quarter of the machine's",
                                 mm::training::OptionRole::how},
        o.cache_memory);
  visit(mm::training::OptionText{"baseline-steps",
                                 "Steps of the supervised baseline that the verdict compares with, where "
                                 "--validation holds pictures out; -1 = --steps, 0 = no verdict",
                                 mm::training::OptionRole::how, mm::training::detail::unlabeled_methods(),
                                 mm::training::detail::why_none_held_out(o)},
        o.baseline_steps, mm::training::Range<int64_t>{-1});
}

int train_run(CLI::App& app, Options& o) {
  TORCH_CHECK(
      !o.resume || (o.sources.files.empty() && o.sources.from.empty()),
      "--resume: the run keeps the labels and the start that it has, without --labels FILE and --from");
  const auto resumed = mm::training::adopt_run(app, o);
  if (resumed.has_value()) {
    o.sources = {};  // a launcher that starts a run anew repeats its options
  }
  if (!o.sources.from.empty()) {
    mm::training::start_from(app, o.sources.from, o);
  }
  mm::training::check_options(o);
  if (!resumed.has_value()) {
    mm::training::check_new_run(o);
  }
  const auto device = mm::training::choose_device(o);
  const auto pictures = mm::training::find_pictures(o, o.sources, resumed, o.strict, "own_images").list;
  mm::training::check_network(o, pictures.num_classes(), o.size);
  std::set<std::string> replaced;  // found unreadable when they were drawn
  const auto on_replaced = [&replaced](const mm::data::ReplacedPicture& picture) {
    replaced.insert(picture.unreadable.file);
    mm::training::print_message(stderr, "own_images: cannot read {}\n", mm::data::describe(picture));
  };
  const auto folder = mm::data::load_pictures(
      pictures, o.size,
      mm::data::ImageFolderOptions()
          .strict(o.strict)
          .fit(mm::data::parse_picture_fit(o.fit))
          .cache_memory(mm::training::parse_cache_memory(o.cache_memory))
          .on_replaced(on_replaced)
          .on_loaded(mm::training::DelayedProgress("decoding", pictures.size(), "picture")));
  for (const auto& file : folder.unreadable) {
    mm::training::print_message(stderr, "own_images: {}\n", mm::data::describe(file));
  }
  if (const auto count = static_cast<int64_t>(folder.unreadable.size()); count > 0) {
    mm::training::print_message(stderr, "own_images: left out {} of {} pictures\n", count,
                                folder.size() + count);
  }
  for (const auto& entries : folder.left_out) {
    mm::training::print_message(stderr, "own_images: {}\n", mm::data::describe(entries));
  }
  if (folder.on_demand()) {
    const int64_t kept = mm::training::parse_cache_memory(o.cache_memory) / (3 * o.size * o.size);
    mm::training::print_message(
        stdout, "{} pictures are decoded when they are drawn; {} in memory (--cache-memory)\n", folder.size(),
        kept == 0 ? "none of them stays" : fmt::format("{} of them stay{}", kept, kept == 1 ? "s" : ""));
  }
  auto split = mm::training::split_pictures(o, folder);
  const int64_t known = split.labeled.size(0) + split.validation.size(0);
  mm::training::print_message(
      stdout, "{} picture{} with a label in {} classes ({} of them for validation), {} without\n", known,
      known == 1 ? "" : "s", folder.num_classes(), split.validation.size(0), split.unlabeled.size(0));
  if (split.unlabeled.size(0) == 0 && o.method != "supervised") {
    TORCH_CHECK(
        app.count("--method") == 0, "--method ", o.method,
        " needs unlabeled pictures, and there are none: put some into unlabeled/, or train with --method "
        "supervised");
    mm::training::print_message(stdout, "there are no unlabeled pictures: training is supervised\n");
    o.method = "supervised";
  }
  auto validation = mm::data::take(folder, split.validation);
  const TrainingData data{mm::data::ImagePool({mm::data::to_device(folder, device)}),
                          std::move(split),
                          std::move(validation),
                          {},
                          folder.files,
                          mm::data::parse_picture_fit(o.fit)};
  mm::training::adopt_data(o, data);
  if (const auto single = mm::training::single_picture_classes(folder.class_names, o.class_counts);
      !single.empty()) {
    mm::training::print_message(stderr, "own_images: {}\n", single);
  }
  if (!resumed.has_value()) {
    mm::training::use_suggested(
        app, mm::training::suggest_settings(
                 {o.class_counts, data.split.unlabeled.size(0), o.method, o.steps, o.batch}));
  }
  mm::training::RunTensors shared;
  mm::training::TrainState state(mm::training::make_network(o, data, device, /*quiet=*/false, &shared),
                                 mm::training::train_state_options(o));
  const auto directory = mm::training::run_directory(o, resumed);  // locked to the end
  if (!resumed.has_value() && (!o.sources.files.empty() || !o.sources.from.empty())) {
    mm::data::write_label_file(directory.labels(), pictures);
  }
  const int status = mm::training::train_classifier(o, data, state, directory, &shared);
  if (status != 0) {
    return status;
  }

  if (!replaced.empty()) {
    mm::training::print_message(
        stderr, "own_images: {} of {} pictures cannot be read; others were used in their place\n",
        replaced.size(), folder.size());
  }
  mm::training::print_message(stdout, "model, report and predictions are in {}\n", o.out);
  mm::training::print_message(stdout, "{}\n",
                              mm::training::verdict(o, data, state, device, o.baseline_steps, shared));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Trains on DIR/labeled/<class>/… and DIR/unlabeled/…, or train/<class>/…, or what a CSV says: "
      "model.safetensors, report.html, predictions.csv.",
      "own_images");
  options.program = argv[0];
  options.method = mm::training::find_option(argc, argv, "--method", options.method);
  mm::training::use_method_preset(options);
  mm::training::use_weights_preset(argc, argv, options, /*has_train=*/true);
  const auto model = mm::training::find_option(argc, argv, "--model", options.model);
  if (const int64_t size = mm::models::published_image_size(model); size > 0) {
    options.size = size;
  }
  options.methods = mm::training::method_names();
  mm::training::add_options(app, options);
  app.add_flag("--strict", options.strict, "Stop at whatever would be left out");
  for (const char* derived : {"--lambda-u", "--rampup-steps", "--imbalance", "--alignment"}) {
    if (options.method == "mixmatch" || derived == std::string("--imbalance") ||
        derived == std::string("--alignment")) {
      app.get_option(derived)->default_str("by the data");
    }
  }
  app.remove_option(app.get_option("--eval"));  // there is no test set; predict uses the model
  mm::training::add_labels_option(app, options.labels, options.sources.files);
  return mm::training::run_program(app, argc, argv, [&] { return train_run(app, options); });
}
