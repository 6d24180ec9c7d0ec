#pragma once

#include <fmt/format.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/split_file.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/shell_quote.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/run_record.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/train_state.hpp>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// What the training programs can be told, with a preset's numbers as defaults; command_line.hpp makes
/// options of it. A plain struct: programs of one's own add to it what they need. Errors of the functions of
/// this header speak of these options as the command line does.
struct TrainingOptions {
  TrainingOptions() = default;
  explicit TrainingOptions(const Preset& preset)
      : steps(preset.total_steps),
        batch(preset.batch_size),
        widen(preset.filters / 16),
        filters(preset.filters % 16 == 0 ? 0 : preset.filters),
        scales(preset.scales),
        learning_rate(preset.learning_rate),
        weight_decay(preset.weight_decay),
        lambda_u(preset.lambda_u),
        rampup_steps(preset.rampup_steps),
        alpha(preset.alpha),
        temperature(preset.temperature),
        num_augmentations(preset.num_augmentations),
        ema_decay(preset.ema_decay),
        padding(preset.padding),
        mirror(preset.mirror),
        eval_every(preset.steps_per_checkpoint) {}

  // Where from and where to.
  std::string data, out, eval, split;
  std::string program;  ///< how it was called, for the command that resumes a run
  bool resume = false;
  // What a run is defined by; a resumed run takes these from its checkpoint, and only `steps` and `threads`
  // may change.
  std::string method = "mixmatch";
  int64_t labels = 250, validation = 1;
  int64_t steps = 0, batch = 64;
  uint64_t seed = 1;
  int64_t depth = 28, widen = 2, filters = 0, scales = 3;
  std::string precision = "auto";  ///< choose_device() puts the one chosen in its place
  int threads = 0;                 ///< the same; results are equal to the bit with equal numbers alone
  double learning_rate = 2e-3, weight_decay = 0.02;
  double lambda_u = 75;
  int64_t rampup_steps = 16384;  ///< -1: check_options() puts 40 % of the steps in its place
  double threshold = 0.95;
  double alpha = 0.75, temperature = 0.5;
  int64_t num_augmentations = 2;
  std::string mix_mode = "xxy.yxy";
  double ema_decay = 0.999;
  bool warmup = true;
  int64_t padding = 4;
  bool mirror = true;
  int64_t eval_every = 1024, log_every = 50;
  // How it is run, without changing its result.
  std::string device = "auto";
  bool prefetch = true;
  bool graph = true;  ///< on a GPU: the step as one CUDA graph
  int64_t checkpoint_every = 0;
  int64_t recalibrate = 16384;
};

namespace detail {

/// What the config.json beside a run's split.txt says of the images that the run was trained on.
inline std::optional<std::string> training_data_beside(const std::filesystem::path& split) {
  const auto config = split.parent_path() / "config.json";
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(config, ignored)) {
    return std::nullopt;
  }
  try {
    const auto settings = read_json_object(config);
    const auto* found = find_setting(settings, "training-data");
    return found != nullptr ? std::optional(*found) : std::nullopt;
  } catch (const c10::Error&) {  // another program's config.json
    return std::nullopt;
  }
}

/// " class NAME without …", of the first class that has images with its label but none that trains with it;
/// "" if there is no such class.
inline std::string class_without_labels(const TrainingData& data) {
  const auto count = [&](const Tensor& labels) {
    return at::bincount(labels.masked_select(labels.ge(0)), {}, data.pool.num_classes());
  };
  const Tensor known = count(data.pool.labels.cpu());
  const Tensor trained = count(data.pool.labels_of(data.split.labeled, torch::kCPU));
  for (int64_t c = 0; c < known.size(0); ++c) {
    const auto images = known[c].item<int64_t>();
    if (images > 0 && (c >= trained.size(0) || trained[c].item<int64_t>() == 0)) {
      return fmt::format(" class {} without a labeled image to train with; {} {} its label",
                         data::detail::class_text(static_cast<size_t>(c), data.pool.class_names), images,
                         images == 1 ? "has" : "have");
    }
  }
  return "";
}

}  // namespace detail

/// What defines a run, by the names of the command line.
inline Config config_of(const TrainingOptions& o) {
  const auto text = [](const auto& value) { return fmt::format("{}", value); };
  return {{"method", o.method},
          {"labels", text(o.labels)},
          {"validation", text(o.validation)},
          {"steps", text(o.steps)},
          {"batch", text(o.batch)},
          {"seed", text(o.seed)},
          {"depth", text(o.depth)},
          {"widen", text(o.widen)},
          {"filters", text(o.filters)},
          {"scales", text(o.scales)},
          {"precision", o.precision},
          {"threads", text(o.threads)},
          {"lr", text(o.learning_rate)},
          {"weight-decay", text(o.weight_decay)},
          {"lambda-u", text(o.lambda_u)},
          {"rampup-steps", text(o.rampup_steps)},
          {"threshold", text(o.threshold)},
          {"alpha", text(o.alpha)},
          {"temperature", text(o.temperature)},
          {"num-augmentations", text(o.num_augmentations)},
          {"mix-mode", o.mix_mode},
          {"ema-decay", text(o.ema_decay)},
          {"warmup", text(o.warmup)},
          {"padding", text(o.padding)},
          {"mirror", text(o.mirror)},
          {"eval-every", text(o.eval_every)},
          {"log-every", text(o.log_every)}};
}

inline MixMatchOptions mixmatch_options(const TrainingOptions& o) {
  return MixMatchOptions()
      .temperature(o.temperature)
      .num_augmentations(o.num_augmentations)
      .alpha(o.alpha)
      .mix_mode(parse_mix_mode(o.mix_mode));
}

inline RampedLossOptions ramped_loss_options(const TrainingOptions& o) {
  return RampedLossOptions().lambda_u(o.lambda_u).rampup_steps(o.rampup_steps);
}

inline TrainStateOptions train_state_options(const TrainingOptions& o) {
  return TrainStateOptions()
      .batch_size(o.batch)
      .seed(o.seed)
      .learning_rate(o.learning_rate)
      .ema(EmaModelOptions().decay(o.ema_decay).warmup(o.warmup));
}

inline augment::RandomCropFlipOptions augment_options(const TrainingOptions& o) {
  return augment::RandomCropFlipOptions().padding(o.padding).mirror(o.mirror);
}

namespace detail {

/// The command that continues the run: the data, and how it is run, which the checkpoint does not have.
inline std::string resume_command(const TrainingOptions& o) {
  using mixmatch::detail::shell_quote;
  std::string command =
      fmt::format("{}{}{} --out {} --resume", shell_quote(o.program), o.data.empty() ? "" : " --data ",
                  o.data.empty() ? "" : shell_quote(o.data), shell_quote(o.out));
  const TrainingOptions usual;
  if (o.device != usual.device) {
    command += " --device " + o.device;
  }
  if (o.checkpoint_every != usual.checkpoint_every) {
    command += fmt::format(" --checkpoint-every {}", o.checkpoint_every);
  }
  if (o.recalibrate != usual.recalibrate) {
    command += fmt::format(" --recalibrate {}", o.recalibrate);
  }
  if (o.prefetch != usual.prefetch) {
    command += fmt::format(" --prefetch {}", o.prefetch);
  }
  return command + (o.graph ? "" : " --no-graph");
}

}  // namespace detail

/// With the errors that every program's metrics.csv has. `config` is config_of(o), and what a program adds;
/// here the data's checksum joins it, so that a run does not go on with other images.
inline TrainingRunOptions training_run_options(const TrainingOptions& o, Config config,
                                               const TrainingData& data, torch::Device device) {
  config.emplace_back("training-data", "crc32c " + data::data_checksum(data.pool));
  return TrainingRunOptions()
      .label(o.method)
      .steps(o.steps)
      .eval_every(o.eval_every)
      .log_every(o.log_every)
      .checkpoint_every(o.checkpoint_every)
      .errors({"validation_error", "test_error", "ema_test_error"})
      .config(std::move(config))
      .surroundings({{"data", o.data}, {"device", device.str()}})
      .resume_command(detail::resume_command(o));
}

inline EvaluateOptions evaluate_options(const TrainingOptions& o, torch::Device device) {
  return EvaluateOptions().device(device).precision(parse_precision(o.precision));
}

/// The device that `--device` names. Chooses the precision that `--precision auto` and the number of threads
/// that `--threads 0` leave open, once for the whole run, and prints all three: a resumed run keeps what its
/// start had chosen.
inline torch::Device choose_device(TrainingOptions& o) {
  const auto device = parse_device(o.device);
  o.threads = set_threads(o.threads);
  if (o.precision == "auto") {
    o.precision = fastest_precision(device) == at::kBFloat16 ? "bf16" : "fp32";
  }
  const int threads = at::get_num_threads();
  print_message(stdout, "device {}, {} CPU thread{}, precision {}\n", device.str(), threads,
                threads == 1 ? "" : "s", o.precision);
  return device;
}

/// The network with weights drawn from the seed, channels-last on the device.
inline models::WideResNet make_wide_resnet(const TrainingOptions& o, int64_t num_classes,
                                           torch::Device device) {
  torch::manual_seed(o.seed);
  models::WideResNet network(models::WideResNetOptions(num_classes)
                                 .depth(o.depth)
                                 .widen_factor(o.widen)
                                 .filters(o.filters)
                                 .scales(o.scales));
  network->to(device);
  to_channels_last(network);
  return network;
}

/// The split that `--split` names, of `pool`, or of the pictures `files` in the folder o.data. Throws where
/// it is of other images.
///
/// A split of old has neither names nor a checksum. That of a run is taken if the images have the checksum in
/// the config.json beside it; another one by the number of images, and for a folder not at all.
inline data::SslSplit read_split(const TrainingOptions& o, const data::ImagePool& pool,
                                 const std::vector<std::string>& files = {}) {
  const auto header = data::read_split_header(o.split);
  if (header.by_name && !files.empty()) {
    return data::load_split(o.split, {o.data, files, pool.labels});
  }
  if (header.by_name || !header.checksum.empty()) {
    return data::load_split(o.split, pool.size(), data::data_checksum(pool));
  }
  const std::string checksum = "crc32c " + data::data_checksum(pool);
  const auto run = detail::training_data_beside(o.split);
  TORCH_CHECK(!run.has_value() || *run == checksum, o.split, " splits other images: its run was trained on ",
              mixmatch::detail::printable(run.value_or("")), ", these have ", checksum);
  TORCH_CHECK(
      run.has_value() || files.empty(), o.split,
      " numbers its images, and which pictures those were cannot be told: name them, as the split.txt "
      "of a new run does");
  return data::load_split(o.split, pool.size());
}

/// The rows of `pool` that train with labels, without, and not at all: from `--split`, or drawn by the seed.
/// Throws where nothing is left to learn from.
inline data::SslSplit make_split(const TrainingOptions& o, const data::ImagePool& pool) {
  const auto split = o.split.empty()
                         ? data::split_labels(pool.labels, o.labels, o.validation, o.seed, pool.class_names)
                         : read_split(o, pool);
  TORCH_CHECK(o.method == "supervised" || split.unlabeled.size(0) > 0,
              o.split.empty() ? c10::str("--labels ", o.labels, " and --validation ", o.validation, " leave")
                              : o.split + " leaves",
              " no unlabeled image of ", pool.size());
  return split;
}

/// Writes a run's split.txt: by names where the images have files, else by rows with the data's checksum.
inline void save_split(const std::filesystem::path& path, const TrainingOptions& o,
                       const TrainingData& data) {
  if (data.files.empty()) {
    data::save_split(path, data.split, data.pool.size(), data::data_checksum(data.pool));
  } else {
    data::save_split(path, data.split, {o.data, data.files, data.pool.labels});
  }
}

/// The directory of a run: that of adopt_run() where it goes on, else o.out, made for a new one.
inline RunDirectory run_directory(const TrainingOptions& o, const std::optional<RunDirectory>& resumed) {
  if (resumed.has_value()) {
    return *resumed;
  }
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::path(o.out) / "checkpoint.pt", ignored)) {
    static_cast<void>(RunDirectory::resume(o.out));  // that it is in use is said first
    TORCH_CHECK(!std::filesystem::exists(std::filesystem::path(o.out) / "config.json", ignored), o.out,
                " already holds a run: continue it with --resume, or choose another --out");
  }
  return RunDirectory::create(o.out);
}

/// Puts the numbers of the method o.method in the place of MixMatch's (presets.hpp): weight and ramp of the
/// unlabeled loss.
inline void use_method_preset(TrainingOptions& o) {
  if (o.method == "mean_teacher" || o.method == "pi_model" || o.method == "pseudo_label") {
    o.lambda_u = o.method == "mean_teacher" ? presets::mean_teacher_weight
                 : o.method == "pi_model"   ? presets::pi_model_weight
                                            : presets::pseudo_label_weight;
    o.rampup_steps = -1;
  }
}

/// Throws on options that do not fit together, before anything is read or written. Settles the ramp that is
/// left to the number of steps.
inline void check_options(TrainingOptions& o) {
  if (o.rampup_steps < 0) {
    o.rampup_steps = static_cast<int64_t>(presets::consistency_rampup * static_cast<double>(o.steps));
  }
  TORCH_CHECK(o.learning_rate * o.weight_decay <= 1, "--lr ", o.learning_rate, " times --weight-decay ",
              o.weight_decay, " must be <= 1: the share that each step takes from the weights");
  parse_mix_mode(o.mix_mode);
  RampedLoss{ramped_loss_options(o)};
}

/// Throws where options and data do not fit, before anything is written: a class among them that has images
/// with a label and none to train with (`every_class` false, for an official fold: says so on stderr
/// instead). o.labels and o.validation then are how many there are, whoever drew them.
inline void adopt_data(TrainingOptions& o, const TrainingData& data, bool every_class = true) {
  TORCH_CHECK(o.padding < data.pool.image_size(), "--padding ", o.padding,
              " must be less than the images' size, ", data.pool.image_size());
  for (const auto& [kind, rows] : {std::pair<const char*, Tensor>{"labeled", data.split.labeled},
                                   {"validation", data.split.validation}}) {
    const Tensor unknown = data.pool.labels_of(rows, torch::kCPU).lt(0).nonzero();
    TORCH_CHECK(unknown.size(0) == 0, o.split, ": ", kind, " image ",
                rows[unknown[0][0].item<int64_t>()].item<int64_t>(), " has no label");
  }
  const auto lost = detail::class_without_labels(data);
  if (!lost.empty()) {
    const std::string text =
        (o.split.empty() ? fmt::format("--labels {} and --validation {} leave", o.labels, o.validation)
                         : o.split + " leaves") +
        lost;
    TORCH_CHECK(!every_class, text);
    print_message(stderr, "the fold leaves{}\n", lost);
  }
  o.labels = data.split.labeled.size(0);
  o.validation = data.split.validation.size(0);
}

}  // namespace mixmatch::training
