// MixMatch on CIFAR-10: the complete training loop, from the binary files to a resumable run directory.
// The method is train_step(); the rest is what every training program needs.

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>

#include <CLI/CLI.hpp>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mm = mixmatch;
using torch::Tensor;

namespace {

struct Options {
  std::string data, out = "runs/cifar10", eval;
  bool resume = false;
  std::string method = "mixmatch";
  int64_t labels = 250, validation = 1;
  int64_t steps = mm::presets::cifar10.total_steps, batch = mm::presets::cifar10.batch_size;
  uint64_t seed = 1;
  int64_t depth = 28, widen = 2;
  std::string precision = "fp32", device = "auto";
  int threads = 0;
  double learning_rate = mm::presets::cifar10.learning_rate, weight_decay = mm::presets::cifar10.weight_decay;
  double lambda_u = mm::presets::cifar10.lambda_u, alpha = mm::presets::cifar10.alpha;
  double temperature = mm::presets::cifar10.temperature, ema_decay = mm::presets::cifar10.ema_decay;
  bool warmup = true;
  int64_t rampup_steps = mm::presets::cifar10.rampup_steps;
  int64_t num_augmentations = mm::presets::cifar10.num_augmentations;
  std::string mix_mode = "xxy.yxy";
  int64_t eval_every = mm::presets::cifar10.steps_per_checkpoint, checkpoint_every = 0, log_every = 50;
};

/// What a run is defined by. A resumed run takes these from its checkpoint; only `steps` may change.
mm::training::Config config_of(const Options& o) {
  const auto text = [](const auto& value) { return fmt::format("{}", value); };
  return {{"method", o.method},
          {"labels", text(o.labels)},
          {"validation", text(o.validation)},
          {"steps", text(o.steps)},
          {"batch", text(o.batch)},
          {"seed", text(o.seed)},
          {"depth", text(o.depth)},
          {"widen", text(o.widen)},
          {"precision", o.precision},
          {"lr", text(o.learning_rate)},
          {"weight-decay", text(o.weight_decay)},
          {"lambda-u", text(o.lambda_u)},
          {"rampup-steps", text(o.rampup_steps)},
          {"alpha", text(o.alpha)},
          {"temperature", text(o.temperature)},
          {"num-augmentations", text(o.num_augmentations)},
          {"mix-mode", o.mix_mode},
          {"ema-decay", text(o.ema_decay)},
          {"warmup", text(o.warmup)},
          {"eval-every", text(o.eval_every)},
          {"log-every", text(o.log_every)}};
}

void add_options(CLI::App& app, Options& o) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  const auto positive = CLI::Range(int64_t{1}, std::numeric_limits<int64_t>::max());
  const auto not_negative = CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max());
  const CLI::Validator real(
      [](const std::string& text) {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        const bool fine = !text.empty() && *end == '\0' && std::isfinite(value) && value >= 0;
        return fine ? std::string() : "expected a finite number >= 0, got " + text;
      },
      "NUMBER >= 0");
  const auto share = CLI::Range(0.0, 1.0);
  app.add_option("--data", o.data, "Directory of CIFAR-10's binary version")->required();
  app.add_option("--labels", o.labels, "Labeled images, class-balanced")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--validation", o.validation, "Images held out from training")
      ->check(not_negative)
      ->capture_default_str();
  app.add_option("--steps", o.steps, "Optimiser steps")->check(positive)->capture_default_str();
  app.add_option("--batch", o.batch, "Labeled images a step, and unlabeled ones")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--seed", o.seed, "Seed of split, weights, batches, augmentation and MixUp")
      ->capture_default_str();
  app.add_option("--out", o.out, "Run directory to write")->capture_default_str();
  app.add_flag("--resume", o.resume, "Go on from the run directory's checkpoint");
  app.add_option("--eval", o.eval, "Only print the EMA model's test error of this run directory");
  app.add_option("--method", o.method, "mixmatch, or supervised: the labeled images alone")
      ->check(CLI::IsMember({"mixmatch", "supervised"}))
      ->capture_default_str();
  app.add_option("--device", o.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}))->capture_default_str();
  app.add_option("--precision", o.precision, "bf16: autocast, weights stay fp32")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "CPU threads; 0 = one a processor, at most 16")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--depth", o.depth, "6 n + 4 layers")->check(positive)->capture_default_str();
  app.add_option("--widen", o.widen, "Widen factor")->check(positive)->capture_default_str();
  app.add_option("--lr", o.learning_rate, "Adam's learning rate")->check(real)->capture_default_str();
  app.add_option("--weight-decay", o.weight_decay, "Decoupled, times the learning rate")
      ->check(real)
      ->capture_default_str();
  app.add_option("--lambda-u", o.lambda_u, "Weight of the unlabeled loss")
      ->check(real)
      ->capture_default_str();
  app.add_option("--rampup-steps", o.rampup_steps, "Steps until that weight")
      ->check(not_negative)
      ->capture_default_str();
  app.add_option("--alpha", o.alpha, "MixUp's Beta(alpha, alpha)")->check(real)->capture_default_str();
  app.add_option("--temperature", o.temperature, "Sharpening")->check(real)->capture_default_str();
  app.add_option("--num-augmentations", o.num_augmentations, "K, views of each unlabeled image")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--mix-mode", o.mix_mode, ". xx. .yy xx.yy xxy. .yxy xx.yxy xx.yx xxy.yxy")
      ->capture_default_str();
  app.add_option("--ema-decay", o.ema_decay)->check(share)->capture_default_str();
  app.add_option("--warmup", o.warmup,
                 "Let EMA and batch-norm statistics forget the random start sooner; matters in the first "
                 "thousands of steps only. false = as in the paper")
      ->capture_default_str();
  app.add_option("--eval-every", o.eval_every, "Steps between evaluations")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--log-every", o.log_every, "Steps between rows of metrics.csv")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--checkpoint-every", o.checkpoint_every,
                 "Steps between checkpoints; 0 = at each evaluation, and each minute")
      ->check(not_negative)
      ->capture_default_str();
}

/// Takes what the command line leaves open from the run's own configuration, and refuses to change the rest.
void adopt_config(CLI::App& app, Options& options, const mm::training::Config& stored) {
  for (const auto& [name, value] : stored) {
    CLI::Option* option = app.get_option_no_throw("--" + name);
    if (option != nullptr && option->count() == 0) {
      option->add_result(value);
      option->run_callback();
    }
  }
  const mm::training::Config now = config_of(options);
  for (const auto& [name, value] : stored) {
    for (const auto& [known, chosen] : now) {
      TORCH_CHECK(known != name || name == "steps" || chosen == value, "--", name, " ", chosen,
                  " is not the run's: it was started with ", value);
    }
  }
}

/// Everything that a step changes, and so everything that a checkpoint holds.
struct Training {
  Training(const Options& o, const mm::data::SslSplit& split, torch::Device device)
      : generator(at::detail::createCPUGenerator(o.seed)),
        labeled(split.labeled, o.batch, o.seed),
        // The fully supervised baseline has no unlabeled rows, and draws none.
        unlabeled(split.unlabeled.numel() > 0 ? split.unlabeled : split.labeled, o.batch, o.seed + 1),
        model(make_model(o, device)),
        ema(model, mm::EmaModelOptions().decay(o.ema_decay).warmup(o.warmup)),
        optimizer(model->parameters(), torch::optim::AdamOptions(o.learning_rate)) {}

  static mm::models::WideResNet make_model(const Options& o, torch::Device device) {
    torch::manual_seed(o.seed);
    mm::models::WideResNet network(mm::models::WideResNetOptions(10).depth(o.depth).widen_factor(o.widen));
    network->to(device);
    mm::training::to_channels_last(network);
    return network;
  }

  at::Generator generator;  // of augmentation and MixUp
  mm::data::BatchStream labeled, unlabeled;
  mm::models::WideResNet model;
  mm::EmaModel<mm::models::WideResNet> ema;
  torch::optim::Adam optimizer;
  int64_t step = 0;
  // Of the row of metrics.csv that is being filled:
  double loss_sum = 0, labeled_sum = 0, unlabeled_sum = 0;
  int64_t summed = 0;
  std::vector<double> ema_errors;  // one an evaluation

  void register_in(mm::training::Checkpoint& checkpoint) {
    checkpoint.add("step", step)
        .add("model", model)
        .add("ema", ema)
        .add("optimizer", optimizer)
        .add("labeled", labeled)
        .add("unlabeled", unlabeled)
        .add("generator", generator)
        .add("loss_sum", loss_sum)
        .add("labeled_sum", labeled_sum)
        .add("unlabeled_sum", unlabeled_sum)
        .add("summed", summed)
        .add("ema_errors", ema_errors);
  }
};

mm::MixMatchOptions mixmatch_options(const Options& o) {
  return mm::MixMatchOptions()
      .temperature(o.temperature)
      .num_augmentations(o.num_augmentations)
      .alpha(o.alpha)
      .mix_mode(mm::parse_mix_mode(o.mix_mode));
}

struct StepLoss {
  Tensor total, labeled, unlabeled;
};

/// One step of the method.
StepLoss train_step(Training& t, const Options& o, const mm::data::ImageDataset& train,
                    const mm::RampedLoss& criterion, mm::augment::RandomCropFlip& augment) {
  const Tensor rows = t.labeled.next().to(train.images.device());
  const Tensor x = train.images.index_select(0, rows);
  const Tensor labels = train.labels.index_select(0, rows);
  StepLoss loss;
  if (o.warmup) {
    mm::set_batch_norm_momentum(t.model,
                                mm::batch_norm_momentum(t.step, t.model->options().batch_norm_momentum()));
  }
  {
    mm::training::Autocast autocast(train.images.device(), mm::training::parse_precision(o.precision));
    if (o.method == "supervised") {
      loss.total = loss.labeled =
          mm::soft_cross_entropy(t.model->forward(augment(x)), mm::one_hot(labels, 10));
      loss.unlabeled = torch::zeros_like(loss.total);
    } else {
      const Tensor u = train.images.index_select(0, t.unlabeled.next().to(train.images.device()));
      // Augment, guess and sharpen, MixUp: Algorithm 1.
      const auto mixed = mm::mixmatch_batch(t.model, augment, x, labels, u, mixmatch_options(o), t.generator);

      // K + 1 forward passes. Only the first moves the batch-norm running statistics; interleaving gives it
      // labeled and unlabeled rows alike.
      std::vector<Tensor> batches = mixed.unlabeled_inputs.split(o.batch);
      batches.insert(batches.begin(), mixed.labeled_inputs);
      batches = mm::interleave(std::move(batches));
      std::vector<Tensor> logits{t.model->forward(batches.front())};
      {
        mm::BatchNormFreeze freeze(t.model);
        for (size_t k = 1; k < batches.size(); ++k) {
          logits.push_back(t.model->forward(batches[k]));
        }
      }
      logits = mm::interleave(std::move(logits));
      const Tensor logits_x = logits.front();
      const Tensor logits_u = torch::cat(std::vector<Tensor>(logits.begin() + 1, logits.end()));

      // Eqs. 3-5 with the ramped weight of the unlabeled loss.
      const auto out = criterion(logits_x, mixed.labeled_targets, logits_u, mixed.unlabeled_targets, t.step);
      loss = {out.total, out.labeled, out.unlabeled};
    }
  }
  loss.total.backward();
  // Adam, decay of the kernels, moving average.
  mm::training::optimizer_step(t.optimizer, t.ema, o.learning_rate, o.weight_decay);
  ++t.step;
  return loss;
}

/// What the network sees at the start: augmented and mixed images, from a generator of their own.
void log_images(mm::training::TensorBoardWriter& board, Training& t, const Options& o,
                const mm::data::ImageDataset& train, const mm::data::SslSplit& split) {
  auto generator = at::detail::createCPUGenerator(o.seed);
  mm::augment::RandomCropFlip augment(mm::augment::RandomCropFlipOptions(), generator);
  const auto some = [&](const Tensor& indices) {
    return indices.narrow(0, 0, std::min<int64_t>(32, indices.size(0)));
  };
  const Tensor rows = some(split.labeled).to(train.images.device());
  const Tensor x = train.images.index_select(0, rows);
  board.image("augmented", mm::training::make_image_grid(augment(x)), 0);
  if (o.method == "mixmatch") {
    const Tensor u = train.images.index_select(0, some(split.unlabeled).to(train.images.device()));
    const auto mixed = mm::mixmatch_batch(t.model, augment, x, train.labels.index_select(0, rows), u,
                                          mixmatch_options(o), generator);
    board.image("mixed/labeled", mm::training::make_image_grid(mixed.labeled_inputs), 0);
    board.image("mixed/unlabeled", mm::training::make_image_grid(mixed.unlabeled_inputs), 0);
  }
}

int evaluate_run(const Options& o) {
  const auto run = mm::training::RunDirectory::open(o.eval);
  Options trained;
  CLI::App stored("stored configuration");
  add_options(stored, trained);
  adopt_config(stored, trained, mm::training::read_config(run.checkpoint()));
  const auto test = mm::data::load_cifar10(o.data, mm::data::Split::test);
  const auto device = mm::training::parse_device(o.device);
  auto model = Training::make_model(trained, device);
  mm::EmaModel ema(model);
  mm::training::Checkpoint(run.checkpoint()).add("model", model).add("ema", ema).load();
  const auto evaluate = mm::training::EvaluateOptions().device(device).precision(
      mm::training::parse_precision(trained.precision));
  fmt::print("raw test error: {:.2f} %\n", mm::training::evaluate_model(model, test, evaluate));
  fmt::print(
      "test error: {:.2f} %\n",
      mm::training::error_percent([&](const Tensor& images) { return ema.forward(images); }, test, evaluate));
  return 0;
}

int train_run(CLI::App& app, Options& o) {
  using mm::training::RunDirectory;
  std::optional<RunDirectory> run;
  if (o.resume) {
    run = RunDirectory::open(o.out);
    adopt_config(app, o, mm::training::read_config(run->checkpoint()));
    int64_t done = 0;
    mm::training::Checkpoint(run->checkpoint()).add("step", done).load();
    TORCH_CHECK(done <= o.steps, "--steps ", o.steps, ": the run has done ", done, " already");
  }
  // Data and options are checked before anything is written.
  auto train = mm::data::load_cifar10(o.data, mm::data::Split::train);
  const auto test = mm::data::load_cifar10(o.data, mm::data::Split::test);
  const auto device = mm::training::parse_device(o.device);
  const auto split = mm::data::split_labels(train.labels, o.labels, o.validation, o.seed);
  TORCH_CHECK(o.method == "supervised" || split.unlabeled.size(0) > 0, "--labels ", o.labels,
              " and --validation ", o.validation, " leave no unlabeled image of ", train.size());
  TORCH_CHECK(o.learning_rate * o.weight_decay <= 1, "--lr ", o.learning_rate, " times --weight-decay ",
              o.weight_decay, " must be <= 1: the share that each step takes from the weights");
  const auto validation = mm::data::take(train, split.validation);
  train.images = train.images.to(device);
  train.labels = train.labels.to(device);
  mm::RampedLoss criterion(mm::RampedLossOptions().lambda_u(o.lambda_u).rampup_steps(o.rampup_steps));
  mixmatch_options(o);
  Training t(o, split, device);
  mm::augment::RandomCropFlip augment(mm::augment::RandomCropFlipOptions(), t.generator);

  const bool fresh = !run.has_value();
  if (fresh) {
    run = RunDirectory::create(o.out);
  }
  mm::training::MetricsCsv metrics(
      run->metrics(), {"step", "loss", "loss_labeled", "loss_unlabeled", "lambda_u", "validation_error",
                       "test_error", "ema_test_error"});
  mm::training::Checkpoint checkpoint(run->checkpoint());
  checkpoint.set_config(config_of(o));
  t.register_in(checkpoint);
  checkpoint.add("metrics", metrics);
  int64_t saved_step = 0;
  auto saved_at = std::chrono::steady_clock::now();
  const auto save = [&] {
    checkpoint.save();
    saved_step = t.step;
    saved_at = std::chrono::steady_clock::now();
  };
  if (fresh) {
    save();
  } else {
    checkpoint.load();
    saved_step = t.step;
  }
  mm::training::JsonObject config;
  for (const auto& [name, value] : config_of(o)) {
    config.set(name, value);
  }
  mm::training::write_file_atomically(run->config(),
                                      config.set("data", o.data).set("device", device.str()).str());
  mm::training::TensorBoardWriter board(run->path(), t.step);
  if (fresh) {
    log_images(board, t, o, train, split);
  }

  const auto evaluate =
      mm::training::EvaluateOptions().device(device).precision(mm::training::parse_precision(o.precision));
  const auto ema_error = [&](const mm::data::ImageDataset& images) {
    return mm::training::error_percent([&](const Tensor& batch) { return t.ema.forward(batch); }, images,
                                       evaluate);
  };
  const double none = std::numeric_limits<double>::quiet_NaN();
  double raw_error = none;
  std::string latest_error = "-";
  mm::training::InterruptGuard interrupt;
  mm::training::Progress progress(o.method, o.steps, t.step);
  while (t.step < o.steps && !interrupt.interrupted()) {
    const StepLoss loss = train_step(t, o, train, criterion, augment);
    const double total = loss.total.item<double>();
    if (!std::isfinite(total)) {
      progress.finish();
      fmt::print(stderr, "cifar10: the loss is {} at step {}; the last good checkpoint is {} of step {}\n",
                 total, t.step, run->checkpoint().string(), saved_step);
      return 1;
    }
    t.loss_sum += total;
    t.labeled_sum += loss.labeled.item<double>();
    t.unlabeled_sum += loss.unlabeled.item<double>();
    ++t.summed;

    const bool last = t.step == o.steps;
    const bool evaluate_now = t.step % o.eval_every == 0 || last;
    double validation_error = none, averaged_error = none;
    raw_error = none;
    if (evaluate_now) {
      raw_error = mm::training::evaluate_model(t.model, test, evaluate);
      averaged_error = ema_error(test);
      if (validation.size() > 0) {
        validation_error = ema_error(validation);
      }
      t.ema_errors.push_back(averaged_error);
      latest_error = fmt::format("{:.2f} %", averaged_error);
      board.scalar("error/test", raw_error, t.step);
      board.scalar("error/test_ema", averaged_error, t.step);
    }
    if (evaluate_now || t.step % o.log_every == 0) {
      const auto count = static_cast<double>(t.summed);
      const double weight = o.method == "supervised" ? 0 : criterion.weight(t.step - 1);
      metrics.append({static_cast<double>(t.step), t.loss_sum / count, t.labeled_sum / count,
                      t.unlabeled_sum / count, weight, validation_error, raw_error, averaged_error});
      board.scalar("loss/total", t.loss_sum / count, t.step);
      board.scalar("loss/labeled", t.labeled_sum / count, t.step);
      board.scalar("loss/unlabeled", t.unlabeled_sum / count, t.step);
      board.scalar("lambda_u", weight, t.step);
      board.flush();
      t.loss_sum = t.labeled_sum = t.unlabeled_sum = 0;
      t.summed = 0;
    }
    const bool minute_over = std::chrono::steady_clock::now() - saved_at > std::chrono::minutes(1);
    if (last || (o.checkpoint_every > 0 ? t.step % o.checkpoint_every == 0 : evaluate_now || minute_over)) {
      save();
    }
    progress.update(t.step,
                    fmt::format("loss {:.3f} (labeled {:.3f}, unlabeled {:.4f}), error {}", total,
                                loss.labeled.item<double>(), loss.unlabeled.item<double>(), latest_error));
  }
  progress.finish();
  if (t.step < o.steps) {
    save();
    fmt::print(stderr, "cifar10: interrupted at step {}; go on with --resume --out {}\n", t.step, o.out);
    return 130;
  }

  // A finished run that is resumed has nothing left to train: only its last evaluation is missing from
  // memory.
  if (std::isnan(raw_error)) {
    raw_error = mm::training::evaluate_model(t.model, test, evaluate);
  }
  const double averaged_error = t.ema_errors.empty() ? ema_error(test) : t.ema_errors.back();
  const double median = mm::training::median_of_last(t.ema_errors, 20);
  mm::training::write_file_atomically(run->summary(),
                                      mm::training::JsonObject()
                                          .set("method", o.method)
                                          .set("seed", o.seed)
                                          .set("labels", o.labels)
                                          .set("steps", t.step)
                                          .set("test_error", raw_error)
                                          .set("ema_test_error", averaged_error)
                                          .set("median_last20_test_error", median)
                                          .set("seconds_per_step", progress.seconds_per_step())
                                          .str());
  fmt::print("test error: raw {:.2f} %, EMA {:.2f} %, median of the last {} evaluations {:.2f} %\n",
             raw_error, averaged_error, std::min<size_t>(20, t.ema_errors.size()), median);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  CLI::App app(
      "MixMatch on CIFAR-10 (arXiv 1905.02249): WRN-28-2 by default, or its supervised-only baseline.");
  add_options(app, options);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("cifar10: {} (--help lists the options)\n", error.what());
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  mm::training::set_threads(options.threads);
  return options.eval.empty() ? train_run(app, options) : evaluate_run(options);
} catch (const c10::Error& error) {
  fmt::print(stderr, "cifar10: {}\n", error.what_without_backtrace());
  return 2;
} catch (const std::exception& error) {
  fmt::print(stderr, "cifar10: {}\n", error.what());
  return 2;
}
