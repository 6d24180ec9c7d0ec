// What a step costs on a GPU, by what makes it fast and by method, and training with all of it. See run.py,
// which builds this against the machine's PyTorch and runs everything. Runs on the CPU too, to be tried out.
//
//     gpu_benchmark check   --device cuda [--sanitize yes]     (few and small, for compute-sanitizer)
//     gpu_benchmark time    --device cuda --steps 200 [--only "augmentation in the graph"]
//     gpu_benchmark evaluation --device cuda                   (of 10,000 images)
//     gpu_benchmark convolutions --device cuda                 (each layer of a step by itself)
//     gpu_benchmark profile --device cuda --trace trace.json
//     gpu_benchmark train   --device cuda --data DIR --labels 250 --minutes 60 --out DIR [--preset fast]

#include <fmt/format.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/optim/adam.h>
#include <torch/torch.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/data/cifar10.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/program/check_options.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/network.hpp>
#include <mixmatch/program/option_presets.hpp>
#include <mixmatch/program/start_run.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/program/with_method.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/step/run_evaluation.hpp>
#include <mixmatch/step/trainer.hpp>

#include <algorithm>
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

#include "checks.hpp"

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

using mm::training::TrainingOptions;
using State = mm::training::TrainState<mm::models::WideResNet>;

/// CIFAR-10's numbers for the method, on the program's own.
TrainingOptions training_options(const Options& o, const std::string& method = "mixmatch") {
  TrainingOptions options(mm::presets::cifar10);
  options.method = o.text("method", method);
  mm::training::use_method_preset(options);
  if (o.text("preset", "paper") == "fast") {
    mm::training::use_fast_preset(options);
  }
  options.eval_every = o.number("eval-every", options.eval_every);
  options.depth = o.number("depth", options.depth);
  options.widen = o.number("widen", options.widen);
  options.batch = o.number("batch", options.batch);
  options.steps = o.number("train-steps", options.steps);
  options.seed = static_cast<uint64_t>(o.number("seed", 1));
  options.precision = o.text("precision", "bf16");
  options.graph = o.text("graph", "yes") == "yes";
  mm::training::check_options(options);
  return options;
}

mm::models::WideResNet make_network(const Options& o, bool channels_last) {
  torch::manual_seed(1);
  mm::models::WideResNet model(mm::models::WideResNetOptions(kClasses)
                                   .depth(o.number("depth", 28))
                                   .widen_factor(o.number("widen", 2)));
  model->to(o.device());
  if (channels_last) {
    mm::training::to_channels_last(model);
  }
  return model;
}

/// The size of CIFAR-10, of noise, on the CPU.
mm::training::TrainingData make_data(const Options& o) {
  torch::manual_seed(2);
  const int64_t count = o.number("images", 50000);
  return {
      mm::data::ImagePool(
          {{at::randint(256, {count, 3, 32, 32}, at::kByte), at::randint(kClasses, {count}, at::kLong), {}}}),
      {at::arange(250, at::kLong), at::arange(250, count, at::kLong), at::empty({0}, at::kLong)},
      {},
      {}};
}

mm::training::TrainingData data_on(const mm::training::TrainingData& data, torch::Device device) {
  const auto& pool = data.pool;
  const Tensor all = at::arange(pool.size(), at::kLong);
  return {mm::data::ImagePool({mm::data::to_device({pool.gather(all), pool.labels, {}}, device)}),
          data.split,
          {},
          {}};
}

struct Timing {
  double median, fastest, slowest;  // milliseconds a step
};

/// Steps in five runs, each timed as a whole: a step alone is too short to wait for.
Timing time_steps(const std::function<void(int64_t)>& run_steps, torch::Device device, int64_t steps) {
  constexpr int64_t runs = 5;
  const int64_t each = std::max<int64_t>(1, steps / runs);
  run_steps(std::min<int64_t>(10, each));
  std::vector<double> times;
  for (int64_t run = 0; run < runs; ++run) {
    wait_for(device);
    const auto start = std::chrono::steady_clock::now();
    run_steps(each);
    wait_for(device);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    times.push_back(took.count() / static_cast<double>(each));
  }
  std::sort(times.begin(), times.end());
  return {times[runs / 2], times.front(), times.back()};
}

/// The library's blocks one by one, as a loop of one's own has them: the host draws rows and numbers.
std::function<void()> eager_step(const Options& o, const mm::training::TrainingData& data) {
  struct Loop {
    mm::models::WideResNet model{nullptr};
    std::unique_ptr<mm::EmaModel<mm::models::WideResNet>> ema;
    std::unique_ptr<torch::optim::Adam> adam;
    at::Generator generator;
    int64_t step = 0;
  };
  const int64_t batch = o.number("batch", 64);
  auto loop = std::make_shared<Loop>();
  loop->model = make_network(o, /*channels_last=*/false);
  loop->ema = std::make_unique<mm::EmaModel<mm::models::WideResNet>>(loop->model);
  loop->adam =
      std::make_unique<torch::optim::Adam>(loop->model->parameters(), torch::optim::AdamOptions(2e-3));
  loop->generator = at::detail::createCPUGenerator(1);
  const mm::RampedLoss criterion(mm::RampedLossOptions().lambda_u(75));
  const mm::data::BatchStream labeled(data.split.labeled, batch, 1),
      unlabeled(data.split.unlabeled, batch, 2);
  return [loop, criterion, labeled, unlabeled, &data, device = o.device()] {
    const mm::augment::RandomCropFlip augment({}, loop->generator);
    const Tensor rows = labeled.rows(loop->step), others = unlabeled.rows(loop->step);
    const auto loss = mm::methods::mixmatch_loss(
        loop->model, augment, data.pool.gather(rows).to(device), data.pool.labels_of(rows, device),
        data.pool.gather(others).to(device), loop->step++, criterion, {}, loop->generator);
    loss.total.backward();
    loop->adam->step();
    loop->ema->decay_weights_and_update(4e-5);
    loop->adam->zero_grad();
  };
}

struct Variant {
  bool channels_last = true;
  const char* precision = "bf16";
  bool graph = true;
  bool resident = true;  ///< else the host reads the images
  bool measure_convolutions = false;
  bool overlap = true;  ///< the convolutions' weight gradients on a stream of their own
};

/// f(steps): steps of a Trainer.
using Steps = std::function<void(int64_t)>;

Steps trainer_steps(const Options& o, const mm::training::TrainingData& host, const std::string& method,
                    const Variant& variant) {
  auto options = training_options(o, method);
  options.precision = variant.precision;
  options.graph = variant.graph;
  auto data =
      std::make_shared<mm::training::TrainingData>(variant.resident ? data_on(host, o.device()) : host);
  auto state = std::make_shared<State>(make_network(o, variant.channels_last),
                                       mm::training::train_state_options(options));
  return mm::training::with_method(options, [&](auto made) -> Steps {
    auto trainer = std::make_shared<mm::training::Trainer<mm::models::WideResNet, decltype(made)>>(
        *state, std::move(made), *data,
        mm::training::trainer_options(options)
            .measure_convolutions(variant.measure_convolutions)
            .overlap_weight_gradients(variant.overlap));
    return [data, state, trainer](int64_t steps) {
      for (int64_t done = state->step; state->step < done + steps;) {
        trainer->run(done + steps - state->step);
      }
    };
  });
}

int measure(const Options& o) {
  const auto device = o.device();
  const auto data = make_data(o);
  const auto with = [&](const Variant& variant, const std::string& method = "mixmatch") {
    return [&o, &data, variant, method] { return trainer_steps(o, data, method, variant); };
  };
  std::vector<std::pair<std::string, std::function<Steps()>>> variants{
      {"eager",
       [&] {
         return [step = eager_step(o, data)](int64_t steps) {
           for (int64_t i = 0; i < steps; ++i) {
             step();
           }
         };
       }},
      {"+ fused kernels, optimiser", with({false, "fp32", false, false})},
      {"+ graph", with({false, "fp32", true, false})},
      {"+ channels-last bf16", with({.resident = false, .overlap = false})},
      {"+ data and augmentation in the graph", with({.overlap = false})},
      {"+ weight gradients on a stream of their own", with({})},
      {"+ convolutions chosen by measuring them", with({.measure_convolutions = true})},
      {"without a graph", with({.graph = false})}};
  for (const auto& method : mm::training::method_names()) {
    variants.emplace_back("method " + method, with({}, method));
  }
  int failed = 0;
  for (const auto& [name, make] : variants) {
    if (name.find(o.text("only", "")) == std::string::npos) {
      continue;
    }
    try {
      const auto timing = time_steps(make(), device, o.number("steps", 200));
      fmt::print("{:44} {:9.3f} ms a step  ({:.3f} to {:.3f})\n", name, timing.median, timing.fastest,
                 timing.slowest);
    } catch (const std::exception& error) {
      fmt::print("{:44} failed: {}\n", name, mm::training::detail::one_line_of(error));
      ++failed;
    }
    std::fflush(stdout);
  }
  return failed == 0 ? 0 : 1;
}

/// What it costs to evaluate 10,000 images by the averaged weights.
int evaluation(const Options& o) {
  const auto device = o.device();
  const auto options = training_options(o);
  State state(make_network(o, /*channels_last=*/true), mm::training::train_state_options(options));
  torch::manual_seed(2);
  const int64_t count = o.number("images", 10000);
  const mm::data::ImageDataset images{
      at::randint(256, {count, 3, 32, 32}, at::kByte), at::randint(kClasses, {count}, at::kLong), {}};
  const auto evaluate = mm::training::evaluate_options(options, device);
  for (const bool resident : {false, true}) {
    const auto placed = resident ? mm::data::to_device(images, device) : images;
    for (const bool graph : {false, true}) {
      mm::training::GraphedPredictor averaged([&](const Tensor& x) { return state.ema.forward(x); }, graph);
      const auto timing = time_steps(
          [&](int64_t times) {
            for (int64_t i = 0; i < times; ++i) {
              mm::training::error_percent(averaged, placed, evaluate);
            }
          },
          device, o.number("steps", 50));
      fmt::print("{:6} images {:14} {:10} {:9.2f} ms  ({:.2f} to {:.2f})\n", count,
                 resident ? "on the device," : "of the host,", graph ? "captured" : "eager", timing.median,
                 timing.fastest, timing.slowest);
      std::fflush(stdout);
    }
  }
  return 0;
}

/// Each convolution of a WRN-28-2 step by itself, many of one in a graph: what predict.py has beside it. The
/// last two are other forms of that from 32 to 32 channels.
int convolutions(const Options& o) {
  struct Layer {
    int64_t inner, outer, height, width, stride, side;
    const char* note;
  };
  const std::vector<Layer> layers{
      {3, 16, 32, 32, 1, 3, ""},          {16, 32, 32, 32, 1, 3, ""},
      {16, 32, 32, 32, 1, 1, ""},         {32, 32, 32, 32, 1, 3, ""},
      {32, 64, 32, 32, 2, 3, ""},         {32, 64, 32, 32, 2, 1, ""},
      {64, 64, 16, 16, 1, 3, ""},         {64, 128, 16, 16, 2, 3, ""},
      {64, 128, 16, 16, 2, 1, ""},        {128, 128, 8, 8, 1, 3, ""},
      {64, 64, 32, 32, 1, 3, ", padded"}, {64, 64, 32, 16, 1, 3, ", pairs of pixels"}};
  const std::vector<std::pair<std::string, int64_t>> kinds{
      {"forward", 2}, {"forward", 3}, {"input gradient", 3}, {"weight gradient", 3}};
  const auto device = o.device();
  const int64_t batch = o.number("batch", 64), calls = device.is_cuda() ? 20 : 1;
  const auto options = at::TensorOptions(device).dtype(at::kBFloat16);
  const auto images = [&](int64_t count, int64_t channels, int64_t height, int64_t width) {
    return at::randn({count, channels, height, width}, options).contiguous(at::MemoryFormat::ChannelsLast);
  };
  const torch::NoGradGuard no_grad;
  for (const Layer& layer : layers) {
    const Tensor weight = images(layer.outer, layer.inner, layer.side, layer.side);
    const std::vector<int64_t> stride(2, layer.stride), padding(2, layer.side / 2), one(2, 1), none(2, 0);
    for (const auto& [kind, groups] : kinds) {
      if (kind == "input gradient" && layer.inner == 3) {
        continue;  // images have none
      }
      const Tensor x = images(groups * batch, layer.inner, layer.height, layer.width);
      const Tensor grad =
          images(groups * batch, layer.outer, layer.height / layer.stride, layer.width / layer.stride);
      const auto once = [&, &of = kind] {
        if (of == "forward") {
          return at::conv2d(x, weight, {}, stride, padding);
        }
        const bool of_input = of == "input gradient";
        const auto grads = at::convolution_backward(grad, x, weight, {}, stride, padding, one, false, none, 1,
                                                    {of_input, !of_input, false});
        return of_input ? std::get<0>(grads) : std::get<1>(grads);
      };
      mm::training::GraphedStep graphed(
          [&] {
            Tensor last;
            for (int64_t i = 0; i < calls; ++i) {
              last = once();
            }
            return last;
          },
          device);
      const auto timing = time_steps(
          [&](int64_t steps) {
            for (int64_t i = 0; i < steps; ++i) {
              graphed();
            }
          },
          device, o.number("steps", 200));
      const auto shape =
          fmt::format("{} to {} of {}x{}, {}x{}{}", layer.inner, layer.outer, layer.height / layer.stride,
                      layer.width / layer.stride, layer.side, layer.side, layer.note);
      fmt::print("{:16} {:4} images  {:44} {:9.2f} us\n", kind, groups * batch, shape,
                 timing.median * 1000 / static_cast<double>(calls));
    }
    std::fflush(stdout);
  }
  return 0;
}

/// A trace of a few steps, as LibTorch's profiler writes it; run.py reads it.
int profile(const Options& o) {
  using namespace torch::autograd::profiler;
  const auto device = o.device();
  const auto data = make_data(o);
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
  const auto run_steps = trainer_steps(o, data, "mixmatch",
                                       {.graph = o.text("graph", "yes") == "yes",
                                        .measure_convolutions = o.text("measured", "no") == "yes",
                                        .overlap = o.text("overlap", "yes") == "yes"});
  const int64_t steps = o.number("steps", 10);
  run_steps(5);
  wait_for(device);
  prepareProfiler(config, activities);
  enableProfiler(config, activities);
  run_steps(steps);
  wait_for(device);
  const auto trace = o.text("trace", "trace.json");
  const auto result = disableProfiler();
  try {
    result->save(trace);
  } catch (const c10::Error& error) {  // a LibTorch without a tracing profiler, such as Debian's
    fmt::print("no trace: {}\n", mm::training::detail::one_line_of(error));
    return device.is_cuda() ? 1 : 0;
  }
  fmt::print("{} steps in {}\n", steps, trace);
  return 0;
}

/// Training with everything, as far as the time goes; goes on where the last call stopped.
int train(const Options& o) {
  const auto device = o.device();
  const auto directory = o.text("data", "");
  const auto out = std::filesystem::path(o.text("out", "gpu_run"));
  std::filesystem::create_directories(out);
  auto options = training_options(o);
  options.rampup_steps = o.number("rampup-steps", options.rampup_steps);
  const auto images = mm::data::load_cifar10(directory, mm::data::Split::train);
  const auto test = mm::data::load_cifar10(directory, mm::data::Split::test);
  const mm::training::TrainingData data{
      mm::data::ImagePool({mm::data::to_device(images, device)}),
      mm::data::split_labels(images.labels, o.number("labels", 250), 1, options.seed),
      {},
      {}};
  State state(make_network(o, /*channels_last=*/true), mm::training::train_state_options(options));
  return mm::training::with_method(options, [&](auto method) {
    mm::training::Trainer trainer(
        state, std::move(method), data,
        mm::training::trainer_options(options).measure_convolutions(o.text("measured", "no") == "yes"));
    double seconds = 0;
    mm::training::Checkpoint checkpoint(out / "checkpoint.pt");
    state.register_in(checkpoint);
    trainer.register_in(checkpoint);
    checkpoint.add("step", state.step).add("seconds", seconds);
    if (checkpoint.exists()) {
      checkpoint.load();
    }
    const int64_t every = options.eval_every;
    const double limit = 60 * std::stod(o.text("minutes", "60"));
    mm::training::RunEvaluation evaluation(state, mm::training::evaluate_options(options, device),
                                           options.graph);
    const double before = seconds;
    const auto start = std::chrono::steady_clock::now();
    while (state.step < options.steps) {
      mm::StepMeans means;
      for (const int64_t end = std::min(options.steps, (state.step / every + 1) * every); state.step < end;) {
        means = trainer.run(end - state.step);
        if (!means.finite) {
          fmt::print("a gradient was not finite before step {}\n", state.step);
          return 1;
        }
      }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      seconds = before + took.count();
      fmt::print("step {:8} {:8.2f} minutes", state.step, seconds / 60);
      for (size_t i = 0; i < means.names.size(); ++i) {
        fmt::print("  {} {:.4g}", means.names[i], means.values[i]);
      }
      const auto errors = evaluation({}, test);
      fmt::print("  test error {:.2f} %  averaged {:.2f} %\n", errors[1], errors[2]);
      std::fflush(stdout);
      checkpoint.save();
      if (took.count() > limit) {
        break;
      }
    }
    return 0;
  });
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
      return run_checks(options.device(), options.text("sanitize", "no") == "yes") ? 0 : 1;
    }
    if (command == "time") {
      return measure(options);
    }
    if (command == "evaluation") {
      return evaluation(options);
    }
    if (command == "convolutions") {
      return convolutions(options);
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
  fmt::print(stderr,
             "usage: gpu_benchmark check|time|evaluation|convolutions|profile|train [--name value]…\n");
  return 2;
}
