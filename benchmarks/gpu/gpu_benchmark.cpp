// What a MixMatch step costs on a GPU, by what makes it fast, and training with all of it. See run.py, which
// builds this against the machine's PyTorch and runs everything. Runs on the CPU too, to be tried out.
//
//     gpu_benchmark check   --device cuda
//     gpu_benchmark time    --device cuda --steps 200 [--only "augmentation in the graph"]
//     gpu_benchmark profile --device cuda --trace trace.json
//     gpu_benchmark train   --device cuda --data DIR --labels 250 --minutes 60 --out DIR

#include <fmt/format.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/optim/adam.h>
#include <torch/torch.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/data/cifar10.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/step/device_step.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernel_checks.hpp"
#include "step_checks.hpp"

namespace mm = mixmatch;
using torch::Tensor;

namespace {

constexpr int64_t kClasses = 10;

struct Options {
  std::map<std::string, std::string> given;

  std::string text(const std::string& name, const std::string& otherwise) const {
    const auto found = given.find(name);
    return found == given.end() ? otherwise : found->second;
  }
  int64_t number(const std::string& name, int64_t otherwise) const {
    return std::stoll(text(name, std::to_string(otherwise)));
  }
  torch::Device device() const {
    return text("device", "cuda") == "cpu" ? torch::Device(torch::kCPU) : torch::Device(torch::kCUDA, 0);
  }
};

/// Everything enqueued so far is done.
void wait_for(torch::Device device) {
  if (device.is_cuda()) {
    torch::cuda::synchronize(device.index());
  }
}

struct Network {
  mm::models::WideResNet model{nullptr};
  std::unique_ptr<mm::EmaModel<mm::models::WideResNet>> ema;
};

Network make_network(const Options& o, bool channels_last) {
  torch::manual_seed(1);
  Network network;
  network.model = mm::models::WideResNet(mm::models::WideResNetOptions(kClasses)
                                             .depth(o.number("depth", 28))
                                             .widen_factor(o.number("widen", 2)));
  network.model->to(o.device());
  if (channels_last) {
    mm::training::to_channels_last(network.model);
  }
  network.ema = std::make_unique<mm::EmaModel<mm::models::WideResNet>>(
      network.model, mm::EmaModelOptions(mm::presets::cifar10.ema_decay).warmup(true));
  return network;
}

struct Images {
  Tensor images, labels, labeled, unlabeled;
};

/// The size of CIFAR-10, of noise.
Images make_images(const Options& o) {
  torch::manual_seed(2);
  const int64_t count = o.number("images", 50000);
  return {at::randint(256, {count, 3, 32, 32}, at::kByte), at::randint(kClasses, {count}, at::kLong),
          at::arange(250, at::kLong), at::arange(250, count, at::kLong)};
}

mm::training::DeviceStepOptions step_options(const Options& o, at::ScalarType precision) {
  const auto preset = mm::presets::cifar10;
  return mm::training::DeviceStepOptions()
      .batch_size(o.number("batch", preset.batch_size))
      .seed(static_cast<uint64_t>(o.number("seed", 1)))
      .optimizer(mm::training::DeviceAdamOptions()
                     .learning_rate(preset.learning_rate)
                     .weight_decay(preset.weight_decay))
      .precision(precision);
}

mm::methods::MixMatch mixmatch_method() {
  const auto preset = mm::presets::cifar10;
  return mm::methods::MixMatch(
      {}, mm::RampedLossOptions().lambda_u(preset.lambda_u).rampup_steps(preset.rampup_steps));
}

struct Timing {
  double median, fastest, slowest;  // milliseconds a step
};

/// Steps in five runs, each timed as a whole: a step alone is too short to wait for.
Timing time_steps(const std::function<void()>& step, torch::Device device, int64_t steps) {
  constexpr int64_t runs = 5;
  const int64_t each = std::max<int64_t>(1, steps / runs);
  for (int64_t i = 0; i < std::min<int64_t>(10, each); ++i) {
    step();
  }
  std::vector<double> times;
  for (int64_t run = 0; run < runs; ++run) {
    wait_for(device);
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < each; ++i) {
      step();
    }
    wait_for(device);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    times.push_back(took.count() / static_cast<double>(each));
  }
  std::sort(times.begin(), times.end());
  return {times[runs / 2], times.front(), times.back()};
}

/// The library's blocks one by one, as examples/cifar10 spells them out: the host draws rows and numbers.
std::function<void()> eager_step(const Options& o, const Images& data) {
  struct State {
    Network network;
    std::unique_ptr<torch::optim::Adam> adam;
    std::unique_ptr<mm::data::BatchStream> labeled, unlabeled;
    at::Generator generator;
    int64_t step = 0;
  };
  const int64_t batch = o.number("batch", 64);
  auto state = std::make_shared<State>();
  state->network = make_network(o, /*channels_last=*/false);
  state->adam = std::make_unique<torch::optim::Adam>(state->network.model->parameters(),
                                                     torch::optim::AdamOptions(2e-3));
  state->labeled = std::make_unique<mm::data::BatchStream>(data.labeled, batch, 1);
  state->unlabeled = std::make_unique<mm::data::BatchStream>(data.unlabeled, batch, 2);
  state->generator = at::detail::createCPUGenerator(1);
  const mm::RampedLoss criterion(mm::RampedLossOptions().lambda_u(75));
  return [state, criterion, &data, device = o.device()] {
    const mm::augment::RandomCropFlip augment({}, state->generator);
    const Tensor rows = state->labeled->next(), others = state->unlabeled->next();
    const auto loss = mm::methods::mixmatch_loss(
        state->network.model, augment, data.images.index_select(0, rows).to(device),
        data.labels.index_select(0, rows).to(device), data.images.index_select(0, others).to(device),
        state->step++, criterion, {}, state->generator);
    loss.total.backward();
    state->adam->step();
    state->network.ema->decay_weights_and_update(4e-5);
    state->adam->zero_grad();
  };
}

struct Variant {
  bool channels_last = false;
  at::ScalarType precision = at::kFloat;
  bool graph = false;
  bool augment_in_step = false;  ///< else the host gathers, and augmentation runs before the step
  bool measure_convolutions = false;
};

/// A DeviceStep, in parts or captured whole.
std::function<void()> device_step(const Options& o, const Images& data, const Variant& variant) {
  using Step = mm::training::DeviceStep<mm::models::WideResNet, mm::methods::MixMatch>;
  using Call = std::function<mm::training::DeviceStepResult()>;
  struct State {
    Network network;
    std::unique_ptr<Step> step;
    std::unique_ptr<mm::data::BatchStream> labeled, unlabeled;
    Tensor images;  // of the batch, one after the other
    mm::Batch inputs;
    std::unique_ptr<mm::training::GraphedStep<Call>> graphed;
  };
  const auto device = o.device();
  const int64_t batch = o.number("batch", 64);
  auto state = std::make_shared<State>();
  state->network = make_network(o, variant.channels_last);
  state->step = std::make_unique<Step>(state->network.model, *state->network.ema, mixmatch_method(),
                                       data.images.to(device), data.labels, data.labeled, data.unlabeled,
                                       step_options(o, variant.precision));
  auto options =
      state->step->graph_options().enabled(variant.graph).measure_convolutions(variant.measure_convolutions);
  auto* raw = state.get();
  if (variant.augment_in_step) {
    state->graphed =
        std::make_unique<mm::training::GraphedStep<Call>>([raw] { return (*raw->step)(); }, device, options);
    return [state] { (*state->graphed)(); };
  }
  state->labeled = std::make_unique<mm::data::BatchStream>(data.labeled, batch, 1);
  state->unlabeled = std::make_unique<mm::data::BatchStream>(data.unlabeled, batch, 2);
  // Rows of the labeled and the unlabeled images, and the batch's images, augmented.
  const auto draw = [raw, device, &data] {
    const Tensor rows = raw->labeled->next(), others = raw->unlabeled->next();
    const Tensor all = data.images.index_select(0, at::cat({rows, others, others}));
    return std::array<Tensor, 3>{rows, others, mm::augment::random_crop_flip(all.to(device))};
  };
  const auto labels_of = [&data, device](const Tensor& rows) {
    return data.labels.index_select(0, rows).to(device);
  };
  const auto [rows, others, images] = draw();
  state->images = images;
  state->inputs = {images.narrow(0, 0, batch),
                   labels_of(rows),
                   {images.narrow(0, batch, batch), images.narrow(0, 2 * batch, batch)},
                   labels_of(others)};
  state->graphed = std::make_unique<mm::training::GraphedStep<Call>>(
      [raw] { return raw->step->train(raw->inputs); }, device, options);
  return [state, draw, labels_of] {
    const auto [labeled, unlabeled, augmented] = draw();
    state->images.copy_(augmented);
    state->inputs.labels.copy_(labels_of(labeled));
    state->inputs.hidden_labels.copy_(labels_of(unlabeled));
    (*state->graphed)();
  };
}

int check(const Options& o) {
  const auto device = o.device();
  const bool kernels = mm::detail::cuda_kernels_available(device);
  if (device.is_cuda() && !kernels) {
    fmt::print("no kernels on this machine: see the warning above\n");
    return 1;
  }
  std::map<std::string, std::pair<double, double>> worst;
  bool passed = true;
  auto checks = kernel_checks::run_all(device);
  const auto of_steps = step_checks::run_all(device);
  checks.insert(checks.end(), of_steps.begin(), of_steps.end());
  for (const auto& one : checks) {
    auto& entry = worst[one.name];
    entry = {std::max(entry.first, one.error), one.tolerance};
    passed = passed && one.passed();
  }
  for (const auto& [name, numbers] : worst) {
    fmt::print("{:44} error {:.2e}, at most {:.0e}{}\n", name, numbers.first, numbers.second,
               numbers.first <= numbers.second ? "" : "   FAILED");
  }
  fmt::print("{}, on {}\n", kernels ? "kernels" : "ATen composites", device.str());
  return passed ? 0 : 1;
}

int measure(const Options& o) {
  const auto device = o.device();
  const auto data = make_images(o);
  const auto bf16 = at::kBFloat16;
  const std::vector<std::pair<std::string, std::function<std::function<void()>()>>> variants{
      {"eager", [&] { return eager_step(o, data); }},
      {"+ fused kernels, optimiser", [&] { return device_step(o, data, {}); }},
      {"+ graph", [&] { return device_step(o, data, {.graph = true}); }},
      {"+ channels-last bf16",
       [&] { return device_step(o, data, {.channels_last = true, .precision = bf16, .graph = true}); }},
      {"+ data and augmentation in the graph",
       [&] {
         return device_step(
             o, data, {.channels_last = true, .precision = bf16, .graph = true, .augment_in_step = true});
       }},
      {"+ convolutions chosen by measuring them",
       [&] {
         return device_step(o, data,
                            {.channels_last = true,
                             .precision = bf16,
                             .graph = true,
                             .augment_in_step = true,
                             .measure_convolutions = true});
       }},
      {"without a graph", [&] {
         return device_step(o, data, {.channels_last = true, .precision = bf16, .augment_in_step = true});
       }}};
  int failed = 0;
  for (const auto& [name, make] : variants) {
    if (name.find(o.text("only", "")) == std::string::npos) {
      continue;
    }
    try {
      const auto step = make();
      const auto timing = time_steps(step, device, o.number("steps", 200));
      fmt::print("{:40} {:9.3f} ms a step  ({:.3f} to {:.3f})\n", name, timing.median, timing.fastest,
                 timing.slowest);
    } catch (const std::exception& error) {
      fmt::print("{:40} failed: {}\n", name, mm::training::detail::one_line_of(error));
      ++failed;
    }
    std::fflush(stdout);
  }
  return failed == 0 ? 0 : 1;
}

/// A trace of a few steps, as LibTorch's profiler writes it; run.py reads it.
int profile(const Options& o) {
  using namespace torch::autograd::profiler;
  const auto device = o.device();
  const auto data = make_images(o);
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  std::set<torch::profiler::impl::ActivityType> activities{torch::profiler::impl::ActivityType::CPU};
  if (device.is_cuda()) {
    activities.insert(torch::profiler::impl::ActivityType::CUDA);
    // A graph that was captured before CUPTI was first in use may not be replayed under it (pytorch#75504),
    // and CUPTI must stay once it is there.
    setenv("DISABLE_CUPTI_LAZY_REINIT", "1", 0);
    setenv("TEARDOWN_CUPTI", "0", 0);
    prepareProfiler(config, activities);
    enableProfiler(config, activities);
    disableProfiler();
  }
  const auto step = device_step(o, data,
                                {.channels_last = true,
                                 .precision = at::kBFloat16,
                                 .graph = o.text("graph", "yes") == "yes",
                                 .augment_in_step = true,
                                 .measure_convolutions = o.text("measured", "no") == "yes"});
  const int64_t steps = o.number("steps", 10);
  for (int i = 0; i < 5; ++i) {
    step();
  }
  wait_for(device);
  prepareProfiler(config, activities);
  enableProfiler(config, activities);
  for (int64_t i = 0; i < steps; ++i) {
    step();
  }
  wait_for(device);
  const auto trace = o.text("trace", "trace.json");
  disableProfiler()->save(trace);
  fmt::print("{} steps in {}\n", steps, trace);
  return 0;
}

/// Training with everything, as far as the time goes; goes on where the last call stopped.
int train(const Options& o) {
  const auto device = o.device();
  const auto directory = o.text("data", "");
  const auto out = std::filesystem::path(o.text("out", "gpu_run"));
  std::filesystem::create_directories(out);
  auto data = mm::data::load_cifar10(directory, mm::data::Split::train);
  const auto test = mm::data::load_cifar10(directory, mm::data::Split::test);
  const auto split = mm::data::split_labels(data.labels, o.number("labels", 250), 1,
                                            static_cast<uint64_t>(o.number("seed", 1)));
  data = mm::data::to_device(data, device);
  const auto precision = o.text("precision", "bf16") == "bf16" ? at::kBFloat16 : at::kFloat;
  Network network = make_network(o, /*channels_last=*/true);
  mm::training::DeviceStep step(network.model, *network.ema, mixmatch_method(), data.images, data.labels,
                                split.labeled, split.unlabeled, step_options(o, precision));
  double seconds = 0;
  mm::training::Checkpoint checkpoint(out / "checkpoint.pt");
  checkpoint.add("model", network.model).add("ema", *network.ema).add("step", step).add("seconds", seconds);
  if (checkpoint.exists()) {
    checkpoint.load();
  }
  mm::training::GraphedStep graphed([&] { return step(); }, device, step.graph_options());
  int64_t done = step.synchronize(*network.ema);
  const int64_t total = o.number("train-steps", mm::presets::cifar10.total_steps);
  const int64_t every = o.number("eval-every", 1024);
  const double limit = 60 * std::stod(o.text("minutes", "60"));
  const auto options = mm::training::EvaluateOptions().device(device).precision(precision);
  const double before = seconds;
  const auto start = std::chrono::steady_clock::now();
  while (done < total) {
    Tensor loss, num_finite = at::zeros({}, at::TensorOptions(device).dtype(at::kLong));
    const int64_t first = done;
    for (int64_t i = 0; i < every && done < total; ++i, ++done) {
      const auto& result = graphed();
      loss = result.loss.total;
      num_finite.add_(result.finite);
    }
    // The optimiser leaves out a step whose gradients are not finite.
    const int64_t counted = num_finite.item<int64_t>(), left_out = done - first - counted;
    if (counted == 0) {
      fmt::print("no gradient was finite from step {} to {}\n", first, done);
      return 1;
    }
    if (left_out > 0) {
      fmt::print("{} of the steps from {} to {} had gradients that are not finite\n", left_out, first, done);
    }
    done = step.synchronize(*network.ema);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    seconds = before + took.count();
    fmt::print("step {:8} {:8.2f} minutes  loss {:.4f}  test error {:.2f} %  averaged {:.2f} %\n", done,
               seconds / 60, loss.item<double>(), mm::training::evaluate_model(network.model, test, options),
               mm::training::evaluate_ema(*network.ema, test, options));
    std::fflush(stdout);
    checkpoint.save();
    if (took.count() > limit) {
      break;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  Options options;
  for (int i = 2; i + 1 < argc; i += 2) {
    options.given[std::string(argv[i]).substr(2)] = argv[i + 1];
  }
  try {
    if (command == "check") {
      return check(options);
    }
    if (command == "time") {
      return measure(options);
    }
    if (command == "profile") {
      return profile(options);
    }
    if (command == "train") {
      return train(options);
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "gpu_benchmark: {}\n", mm::training::detail::one_line_of(error));
    return 2;
  }
  fmt::print(stderr, "usage: gpu_benchmark check|time|profile|train [--name value]…\n");
  return 2;
}
