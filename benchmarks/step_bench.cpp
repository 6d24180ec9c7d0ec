// The time of a whole MixMatch step by variant, each optimisation on and off, and by part: what is spent
// outside the network's forward and backward passes. With --scaling, by batch size, K, number of classes and
// image size. The step is that of examples/cifar10.cpp on random images; the variants take turns.

#include <fmt/format.h>
#include <sys/resource.h>
#include <torch/optim/adam.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "machine.hpp"

namespace mm = mixmatch;
using torch::Tensor;

namespace {

std::atomic<int64_t> allocated_bytes{0};

}  // namespace

// LibTorch and oneDNN take tensors and scratch memory from this function: in place of the C library's, it
// counts.
extern "C" int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
  allocated_bytes.fetch_add(static_cast<int64_t>(size), std::memory_order_relaxed);
  *memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  return *memory != nullptr ? 0 : ENOMEM;
}

namespace {

struct Shape {
  int64_t depth = 28, widen = 2, batch = 64, views = 2, classes = 10, size = 32;
};

struct Variant {
  std::string name;
  at::ScalarType precision = at::kFloat;
  bool channels_last = false, fused_norm = false, fused_adam = false, grouped = false, prefetch = false;
};

enum Part { data, guess, mix, forward, backward, update, num_parts };
constexpr std::array<const char*, num_parts> kPartNames{"data",    "guess",    "mix",
                                                        "forward", "backward", "update"};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

/// One model in training; step() appends the seconds of each part.
class Trainer {
 public:
  Trainer(const Shape& shape, const Variant& variant)
      : variant_(variant),
        generator_(at::detail::createCPUGenerator(1)),
        criterion_(mm::RampedLossOptions().lambda_u(75).rampup_steps(16384)),
        data_(random_data(shape)),
        mixing_(mm::MixMatchOptions().num_augmentations(shape.views)) {
    torch::manual_seed(1);
    model_ = mm::models::WideResNet(mm::models::WideResNetOptions(shape.classes)
                                        .depth(shape.depth)
                                        .widen_factor(shape.widen)
                                        .fused(variant.fused_norm));
    if (variant.channels_last) {
      mm::training::to_channels_last(model_);
    }
    separate_ = torch::nn::AnyModule(model_);
    feed_.emplace(data_, mm::training::FeedOptions().batch_size(shape.batch).weak_views(shape.views));
    images_.emplace([this](int64_t step) { return feed_->gather(at::full({}, step, at::kLong)); },
                    variant.prefetch);
    ema_.emplace(model_);
    if (variant.fused_adam) {
      optimizer_.emplace(model_, *ema_, mm::training::OptimizerOptions(2e-3).weight_decay(0.02));
    } else {
      adam_.emplace(model_->parameters(), torch::optim::AdamOptions(2e-3));
    }
  }

  void step() {
    const int64_t faults_before = page_faults();
    last_ = std::chrono::steady_clock::now();
    last_bytes_ = allocated_bytes;
    seconds_.emplace_back();
    megabytes_.emplace_back();
    Tensor loss;
    {
      mm::training::Autocast autocast(torch::kCPU, variant_.precision);
      const Tensor step = at::full({}, steps_, at::kLong);
      auto batch = feed_->augment((*images_)(steps_), step);
      if (!variant_.channels_last) {
        batch.labeled = batch.labeled.contiguous();
        for (Tensor& view : batch.weak) {
          view = view.contiguous();
        }
      }
      lap(data);
      // Behind an AnyModule nobody sees that the network takes groups.
      const auto guessed =
          variant_.grouped
              ? mm::with_guessed_labels(model_, batch.labeled, batch.labels, batch.weak, mixing_)
              : mm::with_guessed_labels(separate_, batch.labeled, batch.labels, batch.weak, mixing_);
      lap(guess);
      const auto mixed = mm::mix_labeled_unlabeled(guessed, mixing_, generator_);
      lap(mix);
      const auto logits =
          variant_.grouped ? mm::forward_interleaved(model_, mixed.labeled_inputs, mixed.unlabeled_inputs)
                           : mm::forward_interleaved(separate_, mixed.labeled_inputs, mixed.unlabeled_inputs);
      loss = criterion_(logits.labeled, mixed.labeled_targets, logits.unlabeled, mixed.unlabeled_targets,
                        steps_++)
                 .total;
      lap(forward);
    }
    loss.backward();
    lap(backward);
    if (optimizer_.has_value()) {
      optimizer_->step();
    } else {
      adam_->step();
      ema_->decay_weights_and_update(2e-3 * 0.02);
      adam_->zero_grad();
    }
    lap(update);
    faults_.push_back(static_cast<double>(page_faults() - faults_before));
  }

  /// Pages that the system gave to a step: memory that the allocator had not kept.
  double median_faults(size_t warmup) const {
    return median(std::vector<double>(faults_.begin() + static_cast<std::ptrdiff_t>(warmup), faults_.end()));
  }

  /// Of the steps after the first `warmup`.
  double median_seconds(size_t warmup) const { return median(totals(warmup)); }
  double spread(size_t warmup) const {
    auto values = totals(warmup);
    std::sort(values.begin(), values.end());
    return (values[values.size() * 3 / 4] - values[values.size() / 4]) / values[values.size() / 2];
  }
  double median_part(Part part, size_t warmup) const { return median_of(seconds_, part, warmup); }
  /// What the allocator handed out, in megabytes; a prefetch thread's counts for the part that runs
  /// meanwhile.
  double median_megabytes(Part part, size_t warmup) const { return median_of(megabytes_, part, warmup); }

 private:
  using Parts = std::array<double, num_parts>;
  static double median_of(const std::vector<Parts>& steps, Part part, size_t warmup) {
    std::vector<double> values;
    for (size_t i = warmup; i < steps.size(); ++i) {
      values.push_back(steps[i][part]);
    }
    return median(std::move(values));
  }

  static mm::training::TrainingData random_data(const Shape& shape) {
    torch::manual_seed(1);
    const int64_t rows = 4 * shape.batch + 512;
    mm::data::ImageDataset set{torch::randint(256, {rows, 3, shape.size, shape.size}, at::kByte),
                               torch::randint(shape.classes, {rows}, at::kLong),
                               {}};
    const Tensor all = torch::arange(rows, at::kLong);
    return {mm::data::ImagePool({set}), {all, all, all.narrow(0, 0, 0)}, {}, {}};
  }

  void lap(Part part) {
    const auto now = std::chrono::steady_clock::now();
    seconds_.back()[part] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
    const int64_t bytes = allocated_bytes;
    megabytes_.back()[part] += static_cast<double>(bytes - last_bytes_) / 1e6;
    last_bytes_ = bytes;
  }
  std::vector<double> totals(size_t warmup) const {
    std::vector<double> values;
    for (size_t i = warmup; i < seconds_.size(); ++i) {
      double sum = 0;
      for (const double part : seconds_[i]) {
        sum += part;
      }
      values.push_back(sum);
    }
    return values;
  }

  Variant variant_;
  at::Generator generator_;
  mm::RampedLoss criterion_;
  mm::training::TrainingData data_;
  mm::MixMatchOptions mixing_;
  mm::models::WideResNet model_{nullptr};
  torch::nn::AnyModule separate_;
  std::optional<mm::training::Feed> feed_;
  std::optional<mm::training::Prefetch<mm::training::RawBatch>> images_;
  std::optional<mm::EmaModel<mm::models::WideResNet>> ema_;
  std::optional<mm::training::Optimizer> optimizer_;
  std::optional<torch::optim::Adam> adam_;
  std::chrono::steady_clock::time_point last_;
  int64_t last_bytes_ = 0;
  std::vector<Parts> seconds_, megabytes_;
  std::vector<double> faults_;
  int64_t steps_ = 0;
};

constexpr size_t kWarmup = 3;

std::vector<std::unique_ptr<Trainer>> measure(const std::vector<std::pair<Shape, Variant>>& cases,
                                              int64_t steps) {
  std::vector<std::unique_ptr<Trainer>> trainers;
  for (const auto& [shape, variant] : cases) {
    trainers.push_back(std::make_unique<Trainer>(shape, variant));
  }
  for (size_t i = 0; i < kWarmup + static_cast<size_t>(steps); ++i) {
    for (auto& trainer : trainers) {
      trainer->step();
    }
  }
  return trainers;
}

void print_variants(const Shape& shape, const std::vector<Variant>& variants, int64_t steps) {
  std::vector<std::pair<Shape, Variant>> cases;
  for (const auto& variant : variants) {
    cases.emplace_back(shape, variant);
  }
  const auto trainers = measure(cases, steps);
  fmt::print("{:<46}{:>10}{:>9}{:>8}", "variant", "s a step", "spread", "ratio");
  for (const char* part : kPartNames) {
    fmt::print("{:>10}", part);
  }
  fmt::print("{:>10}{:>8}{:>8}{:>10}\n", "outside", "faults", "MB", "outside");
  const double first = trainers[0]->median_seconds(kWarmup);
  for (size_t i = 0; i < trainers.size(); ++i) {
    const auto& trainer = *trainers[i];
    const double total = trainer.median_seconds(kWarmup);
    fmt::print("{:<46}{:>10.4f}{:>8.1f}%{:>8.3f}", variants[i].name, total, 100 * trainer.spread(kWarmup),
               total / first);
    for (int part = 0; part < num_parts; ++part) {
      fmt::print("{:>10.4f}", trainer.median_part(static_cast<Part>(part), kWarmup));
    }
    const double outside = trainer.median_part(data, kWarmup) + trainer.median_part(mix, kWarmup) +
                           trainer.median_part(update, kWarmup);
    double megabytes = 0;
    for (int part = 0; part < num_parts; ++part) {
      megabytes += trainer.median_megabytes(static_cast<Part>(part), kWarmup);
    }
    fmt::print("{:>9.2f}%{:>8.0f}{:>8.0f}{:>10.1f}\n", 100 * outside / total, trainer.median_faults(kWarmup),
               megabytes,
               trainer.median_megabytes(data, kWarmup) + trainer.median_megabytes(mix, kWarmup) +
                   trainer.median_megabytes(update, kWarmup));
  }
}

void print_scaling(const Shape& base, const Variant& variant, int64_t steps) {
  const auto table = [&](const char* title, int64_t Shape::*member, const std::vector<int64_t>& values,
                         const std::string& unit) {
    fmt::print("\n{:<24}{:>10}{:>12}\n", title, "s a step", unit);
    for (const int64_t value : values) {
      Shape shape = base;
      shape.*member = value;
      const double seconds = measure({{shape, variant}}, steps)[0]->median_seconds(kWarmup);
      fmt::print("{:<24}{:>10.4f}{:>12.3f}\n", value, seconds, 1e3 * seconds / static_cast<double>(value));
      std::fflush(stdout);
    }
  };
  table("batch size", &Shape::batch, {16, 32, 64, 128}, "ms a row");
  table("K", &Shape::views, {1, 2, 4}, "ms a view");
  table("classes", &Shape::classes, {10, 100, 1000}, "ms a class");
  table("image size", &Shape::size, {32, 64, 96}, "ms a row");
}

}  // namespace

int main(int argc, char** argv) {
  Shape shape;
  int64_t steps = 10;
  int threads = 0;
  std::vector<std::string> only;
  bool scaling = false, keep_memory = true;
  CLI::App app("Time of a MixMatch step by variant and by part.", "step_bench");
  app.add_option("--steps", steps, "Measured steps of each variant")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--threads", threads, "0 = one a processor")->capture_default_str();
  app.add_option("--depth", shape.depth)->capture_default_str();
  app.add_option("--widen", shape.widen)->capture_default_str();
  app.add_option("--batch", shape.batch)->capture_default_str();
  app.add_option("--only", only, "Variants whose names hold one of these");
  app.add_option("--keep-memory", keep_memory, "training::keep_freed_memory()")->capture_default_str();
  app.add_flag("--scaling", scaling, "By batch size, K, classes and image size instead");
  CLI11_PARSE(app, argc, argv);
  mm::training::set_threads(threads);
  if (keep_memory) {
    mm::training::keep_freed_memory();
  }
  fmt::print("{}\nWRN-{}-{}, batch {}, K {}; medians of {} steps\n", machine_line(), shape.depth, shape.widen,
             shape.batch, shape.views, steps);
  std::vector<Variant> variants{
      {"ATen fp32, NCHW", at::kFloat, false, false, false},
      {"+ channels-last", at::kFloat, true, false, false},
      {"+ fused norm", at::kFloat, true, true, false},
      {"+ fused Adam", at::kFloat, true, true, true},
      {"fp32 + all = the library in fp32", at::kFloat, true, true, true, true, true},
      {"ATen bf16, NCHW", at::kBFloat16, false, false, false},
      {"bf16 + channels-last", at::kBFloat16, true, false, false},
      {"bf16 + channels-last + fused norm", at::kBFloat16, true, true, false},
      {"bf16 + channels-last + fused norm + fused Adam", at::kBFloat16, true, true, true},
      {"bf16 + all of these + grouped passes", at::kBFloat16, true, true, true, true},
      {"bf16 + all, prefetch = the library in bf16", at::kBFloat16, true, true, true, true, true}};
  if (!only.empty()) {
    std::erase_if(variants, [&](const Variant& variant) {
      return std::none_of(only.begin(), only.end(), [&](const std::string& text) {
        return variant.name.find(text) != std::string::npos;
      });
    });
  }
  if (variants.empty()) {
    fmt::print(stderr, "step_bench: no variant is called so\n");
    return 2;
  }
  if (scaling) {
    print_scaling(shape, variants.back(), steps);
  } else {
    print_variants(shape, variants, steps);
  }
  return 0;
}
