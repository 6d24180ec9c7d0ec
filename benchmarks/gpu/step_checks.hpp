#pragma once

// A whole step on the device that is at hand: against the same step on the CPU, and captured in a graph
// against itself without one.

#include <torch/torch.h>
#include <mixmatch/detail/cuda/side_stream.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/models/script_network.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/program/check_options.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/option_presets.hpp>
#include <mixmatch/program/with_method.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/step/run_evaluation.hpp>
#include <mixmatch/step/trainer.hpp>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../../tests/script_net.hpp"
#include "../../tests/test_util.hpp"
#include "kernel_checks.hpp"

namespace step_checks {

using kernel_checks::Check;
using mixmatch::StepMeans;
using torch::Tensor;

/// A small task, the same each time, with the numbers of a method; "NAME, filtered" has balanced batches, and
/// guesses that are aligned and gated.
inline mixmatch::training::TrainingOptions small_options(const std::string& method) {
  mixmatch::training::TrainingOptions o(mixmatch::presets::cifar10);
  o.method = method.substr(0, method.find(','));
  mixmatch::training::use_method_preset(o);
  if (o.method != method) {
    o.imbalance = "balanced_batches";
    o.alignment = "labeled";
    o.open_set = "energy";
    o.class_counts = {5, 4, 3, 2, 1, 1, 1, 1, 1, 1};
  }
  o.steps = 200;
  o.batch = 8;
  o.rampup_steps = std::min<int64_t>(o.rampup_steps, 100);
  o.precision = "fp32";
  mixmatch::training::check_options(o);
  return o;
}

inline mixmatch::models::WideResNet small_network(torch::Device device, int64_t depth = 10) {
  torch::manual_seed(3);
  mixmatch::models::WideResNet network(mixmatch::models::WideResNetOptions(10).depth(depth).widen_factor(1));
  network->to(device);
  mixmatch::training::to_channels_last(network);
  return network;
}

/// The images on `device`, or elsewhere than the network.
inline mixmatch::training::TrainingData small_data(torch::Device device) {
  torch::manual_seed(5);
  const Tensor labels = at::arange(60, at::kLong).remainder(10);
  mixmatch::data::ImageDataset images{at::randint(256, {60, 3, 16, 16}, at::kByte), labels, {}};
  return {mixmatch::data::ImagePool({mixmatch::data::to_device(images, device)}),
          {at::arange(20, at::kLong), at::arange(20, 60, at::kLong), at::empty({0}, at::kLong)},
          {},
          {}};
}

/// To evaluate on, of noise, on the CPU.
inline mixmatch::data::ImageDataset some_images(int64_t count) {
  auto generator = at::detail::createCPUGenerator(6);
  return {at::randint(0, 256, {count, 3, 16, 16}, generator, at::TensorOptions(at::kByte)),
          at::arange(count, at::kLong).remainder(10),
          {}};
}

struct Trained {
  std::vector<StepMeans> rows;
  Tensor weight;
  bool graphed = false;
};

struct How {
  bool resident = true;                   ///< else the host reads the images
  int64_t of_row = 1;                     ///< steps between two looks at the device
  bool evaluates = false;                 ///< after each row
  bool overlap = true;                    ///< TrainerOptions::overlap_weight_gradients()
  int64_t depth = 10;                     ///< of the network
  std::filesystem::path checkpoint = {};  ///< read first, where there is one, and written at the end
};

/// The method of `o`, MixMatch.
inline mixmatch::methods::MixMatch mixmatch_of(const mixmatch::training::TrainingOptions& o) {
  return mixmatch::methods::MixMatch(mixmatch::training::mixmatch_options(o),
                                     mixmatch::training::ramped_loss_options(o));
}

/// `steps` steps of a method on `device`, where the network is.
template <class Model, class Method>
Trained train_by(Method method, const Model& network, torch::Device device,
                 const mixmatch::training::TrainingOptions& o, int64_t steps, const How& how) {
  const auto data = small_data(how.resident ? device : torch::Device(torch::kCPU));
  mixmatch::training::TrainState state(network, mixmatch::training::train_state_options(o));
  mixmatch::training::Trainer trainer(
      state, std::move(method), data,
      mixmatch::training::trainer_options(o).overlap_weight_gradients(how.overlap));
  mixmatch::training::RunEvaluation evaluation(state, mixmatch::training::evaluate_options(o, device),
                                               o.graph);
  const auto test = some_images(20);
  Trained result;
  std::optional<mixmatch::training::Checkpoint> checkpoint;
  if (!how.checkpoint.empty()) {
    checkpoint.emplace(how.checkpoint);
    state.register_in(*checkpoint);
    trainer.register_in(*checkpoint);
    checkpoint->add("step", state.step);
    if (checkpoint->exists()) {
      checkpoint->load();
    }
  }
  while (state.step < steps) {
    result.rows.push_back(trainer.run(std::min(how.of_row, steps - state.step)));
    if (how.evaluates) {
      evaluation({}, test);
    }
  }
  if (checkpoint.has_value()) {
    checkpoint->save();
  }
  result.weight = state.model->parameters().front().detach().clone().cpu();
  result.graphed = trainer.is_graphed();
  return result;
}

inline Trained train(torch::Device device, const mixmatch::training::TrainingOptions& o, int64_t steps,
                     const How& how = {}) {
  return mixmatch::training::with_method(o, [&](auto method) {
    return train_by(std::move(method), small_network(device, how.depth), device, o, steps, how);
  });
}

inline Tensor losses_of(const Trained& trained) {
  std::vector<double> losses;
  for (const StepMeans& row : trained.rows) {
    losses.push_back(row.values.front());
  }
  return at::tensor(losses, at::kDouble);
}

/// Convolutions with one order of sums and without TF32, for as long as it lives.
class ExactConvolutions {
 public:
  ExactConvolutions() {
    at::globalContext().setDeterministicCuDNN(true);
    at::globalContext().setAllowTF32CuDNN(false);
  }
  ExactConvolutions(const ExactConvolutions&) = delete;
  ExactConvolutions& operator=(const ExactConvolutions&) = delete;
  ~ExactConvolutions() {
    at::globalContext().setDeterministicCuDNN(deterministic_);
    at::globalContext().setAllowTF32CuDNN(tf32_);
  }

 private:
  bool deterministic_ = at::globalContext().deterministicCuDNN();
  bool tf32_ = at::globalContext().allowTF32CuDNN();
};

/// Rows, images and augmentation are the same on every device, and without MixUp a MixMatch step draws
/// nothing else; a strong view is a part of FixMatch's.
inline void check_step_of_cpu(std::vector<Check>& checks, torch::Device device) {
  for (const std::string method : {"mixmatch", "fixmatch", "mixmatch, filtered"}) {
    auto o = small_options(method);
    o.mix_mode = ".";
    o.rampup_steps = 0;
    o.threshold = 0.1;
    o.graph = false;
    const auto here = train(torch::kCPU, o, 3), there = train(device, o, 3);
    for (size_t step = 0; step < here.rows.size(); ++step) {
      for (size_t i = 0; i < here.rows[step].names.size(); ++i) {
        const auto number = [i](const StepMeans& row) { return at::full({}, row.values[i], at::kDouble); };
        checks.push_back({method + " step: " + here.rows[step].names[i] + " beside the CPU's",
                          kernel_checks::difference(number(there.rows[step]), number(here.rows[step])),
                          step == 0 ? 1e-4 : 2e-2});
      }
    }
    checks.push_back({method + " step: weights beside the CPU's",
                      kernel_checks::difference(there.weight, here.weight), 1e-2});
  }
}

/// Many replays of a method beside as many eager steps of the same random numbers.
inline void check_graph_of(std::vector<Check>& checks, torch::Device device, const std::string& method,
                           int64_t steps) {
  for (const std::string precision : {"fp32", "bf16"}) {
    auto o = small_options(method);
    o.precision = precision;
    o.threshold = std::min(o.threshold, 0.3);  // so that some rows pass
    Trained results[2];
    for (const bool graph : {false, true}) {
      o.graph = graph;
      results[graph] = train(device, o, steps);
      checks.push_back(
          {method + " graph: is one", results[graph].graphed == (graph && device.is_cuda()) ? 0.0 : 1.0, 0});
    }
    const auto name = [&](const std::string& text) { return method + " graph: " + text + " " + precision; };
    const Tensor eager = losses_of(results[0]), replayed = losses_of(results[1]);
    const bool exact = precision == "fp32";
    checks.push_back(
        {name("first loss beside the eager one"), kernel_checks::difference(replayed[0], eager[0]), 1e-4});
    checks.push_back({name("all losses beside the eager ones"), kernel_checks::difference(replayed, eager),
                      exact ? 1e-2 : 1e-1});
    checks.push_back({name("weights after them"),
                      kernel_checks::difference(results[1].weight, results[0].weight), exact ? 2e-2 : 5e-2});
  }
}

inline void check_graph(std::vector<Check>& checks, torch::Device device) {
  const int64_t steps = device.is_cuda() ? 60 : 2;  // elsewhere there is no graph to check
  for (const auto& method : mixmatch::training::method_names()) {
    check_graph_of(checks, device, method, steps);
  }
  for (const std::string method : {"mixmatch, filtered", "uda, filtered", "fixmatch, filtered"}) {
    check_graph_of(checks, device, method, steps);
  }
}

/// The host's images in a graph that begins with their augmentation: the same numbers.
inline void check_host_images(std::vector<Check>& checks, torch::Device device) {
  const auto o = small_options("mixmatch");
  // A step at a time; and more than the host may be ahead, without its waiting between them.
  for (const int64_t of_row : {1, 20}) {
    const int64_t steps = of_row == 1 ? 5 : 20;
    const auto resident = train(device, o, steps, {.of_row = of_row}),
               fed = train(device, o, steps, {.resident = false, .of_row = of_row});
    checks.push_back({"images of the host: is a graph", fed.graphed == device.is_cuda() ? 0.0 : 1.0, 0});
    checks.push_back(
        {"images of the host: losses", kernel_checks::difference(losses_of(fed), losses_of(resident)), 1e-6});
    checks.push_back(
        {"images of the host: weights", kernel_checks::difference(fed.weight, resident.weight), 1e-6});
  }
}

/// A graph whose convolutions cuDNN chose by measuring them: the same mathematics, and the process's setting
/// is as it was.
inline void check_measured_convolutions(std::vector<Check>& checks, torch::Device device) {
  at::globalContext().setDeterministicCuDNN(false);  // ExactConvolutions puts it back
  const auto data = small_data(device);
  for (const std::string precision : {"fp32", "bf16"}) {
    auto o = small_options("mixmatch");
    o.precision = precision;
    Tensor losses[2];
    for (const bool measured : {false, true}) {
      mixmatch::training::TrainState state(small_network(device), mixmatch::training::train_state_options(o));
      mixmatch::training::Trainer trainer(
          state, mixmatch_of(o), data, mixmatch::training::trainer_options(o).measure_convolutions(measured));
      losses[measured] = at::full({}, trainer.run(1).values.front(), at::kDouble);
      checks.push_back(
          {"measured convolutions: the setting", at::globalContext().benchmarkCuDNN() ? 1.0 : 0.0, 0});
    }
    checks.push_back({"measured convolutions: first loss " + precision,
                      kernel_checks::difference(losses[1], losses[0]), precision == "fp32" ? 1e-4 : 1e-2});
  }
}

/// Work on a second stream, of inputs that are let go of at once and whose memory is written to anew: what it
/// comes to in turn.
inline void check_side_stream(std::vector<Check>& checks, torch::Device device) {
  const int64_t runs = 20, size = device.is_cuda() ? 1024 : 8;
  const Tensor seed = at::eye(size, at::TensorOptions(device)).mul_(0.5);
  mixmatch::detail::SideStream side;
  const auto sums = [&](bool beside) {
    std::vector<Tensor> results(runs);
    for (int64_t i = 0; i < runs; ++i) {
      Tensor x = seed.mm(seed) + static_cast<double>(i);
      const auto work = [&] { results[static_cast<size_t>(i)] = x.mm(x).mm(x).sum(); };
      if (beside) {
        side.run(device, {x}, work);
      } else {
        work();
      }
      x.reset();
      x = at::full_like(seed, std::nan(""));
    }
    side.wait();
    return at::stack(results);
  };
  const Tensor expected = sums(false).clone();
  checks.push_back({"work on a second stream: eager", kernel_checks::difference(sums(true), expected), 1e-6});
  mixmatch::training::GraphedStep graphed([&] { return sums(true); }, device);
  const Tensor other = seed.mm(seed);  // memory that is in use between the replays
  for (int turn = 0; turn < 3; ++turn) {
    checks.push_back(
        {"work on a second stream: captured", kernel_checks::difference(graphed(), expected), 1e-6});
    other.mul_(2);
  }
}

/// Weight gradients on a stream of their own, eagerly and captured: the same numbers. Of a training pass that
/// is one, of two, and of one beside a gradient that the method asks for itself.
inline void check_overlap(std::vector<Check>& checks, torch::Device device) {
  for (const std::string method : {"mixmatch", "mean_teacher", "vat"}) {
    auto o = small_options(method);
    o.precision = "bf16";
    const int64_t steps = device.is_cuda() ? 40 : 1;
    const int64_t depth = device.is_cuda() ? 28 : 16;  // more convolutions than may be under way
    for (const bool graph : {false, true}) {
      o.graph = graph;
      const auto in_turn = train(device, o, steps, {.overlap = false, .depth = depth});
      const auto beside = train(device, o, steps, {.depth = depth});
      checks.push_back({method + ": weight gradients beside: is a graph",
                        beside.graphed == (graph && device.is_cuda()) ? 0.0 : 1.0, 0});
      checks.push_back({method + ": weight gradients beside: losses",
                        kernel_checks::difference(losses_of(beside), losses_of(in_turn)), 0});
      checks.push_back({method + ": weight gradients beside: weights",
                        kernel_checks::difference(beside.weight, in_turn.weight), 0});
    }
  }
}

/// A network from TorchScript, eagerly and captured: the same numbers. Its count of passes too, for which the
/// script makes a new tensor each time.
inline void check_script(std::vector<Check>& checks, torch::Device device) {
  const int64_t steps = device.is_cuda() ? 20 : 2;
  for (const std::string precision : {"fp32", "bf16"}) {
    auto o = small_options("mixmatch");
    o.precision = precision;
    Trained results[2];
    for (const bool graph : {false, true}) {
      o.graph = graph;
      mixmatch::models::ScriptNetwork network(small_net(), 10, "small_net");
      network->to(device);
      results[graph] = train_by(mixmatch_of(o), network, device, o, steps, {.evaluates = true});
      checks.push_back(
          {"TorchScript: is a graph", results[graph].graphed == (graph && device.is_cuda()) ? 0.0 : 1.0, 0});
      const auto passes = network->named_buffers()["num_batches_tracked"].item<int64_t>();
      checks.push_back({"TorchScript: passes", std::abs(static_cast<double>(passes - steps)), 0});
    }
    checks.push_back({"TorchScript: losses " + precision,
                      kernel_checks::difference(losses_of(results[1]), losses_of(results[0])), 1e-2});
    checks.push_back({"TorchScript: weights " + precision,
                      kernel_checks::difference(results[1].weight, results[0].weight), 2e-2});
  }
}

/// A run that goes on from a file, in a state and a graph of its own: the one that never stopped, to the bit.
inline void check_resume(std::vector<Check>& checks, torch::Device device) {
  const int64_t half = device.is_cuda() ? 20 : 2;
  const TempDir dir;
  for (const std::string method : {"mixmatch", "fixmatch", "mixmatch, filtered"}) {
    auto o = small_options(method);
    o.precision = "bf16";
    const auto file = dir / (method + ".pt");
    const auto whole = train(device, o, 2 * half);
    train(device, o, half, {.checkpoint = file});
    const auto resumed = train(device, o, 2 * half, {.checkpoint = file});
    checks.push_back(
        {method + " resumed: weights", kernel_checks::difference(resumed.weight, whole.weight), 0});
    checks.push_back({method + " resumed: losses",
                      kernel_checks::difference(losses_of(resumed), losses_of(whole).narrow(0, half, half)),
                      0});
  }
}

/// Passes that are captured beside passes that are not, of weights that change between them.
inline void check_evaluation(std::vector<Check>& checks, torch::Device device) {
  const auto o = small_options("mixmatch");
  mixmatch::training::TrainState state(small_network(device), mixmatch::training::train_state_options(o));
  const auto images = some_images(50);
  for (const auto precision : {at::kFloat, at::kBFloat16}) {
    const auto options = mixmatch::training::EvaluateOptions().device(device).precision(precision);
    mixmatch::training::GraphedPredictor raw([&](const Tensor& x) {
      const mixmatch::detail::EvaluationModeGuard evaluation(state.model);
      return state.model->forward(x);
    });
    mixmatch::training::GraphedPredictor averaged([&](const Tensor& x) { return state.ema.forward(x); });
    for (int turn = 0; turn < 3; ++turn) {
      for (const int64_t count : {20, 7}) {
        const Tensor x = images.images.narrow(0, turn, count).to(device).to(at::kFloat).div(255);
        const torch::NoGradGuard no_grad;
        const mixmatch::training::Autocast autocast(device, options.precision());
        const Tensor by_graphs[] = {raw(x).clone(), averaged(x).clone()};
        const mixmatch::detail::EvaluationModeGuard evaluation(state.model);
        const Tensor eager[] = {state.model->forward(x), state.ema.forward(x)};
        for (int i = 0; i < 2; ++i) {
          checks.push_back(
              {"evaluation: captured beside eager", kernel_checks::difference(by_graphs[i], eager[i]), 1e-6});
        }
      }
      const torch::NoGradGuard no_grad;
      for (const Tensor& parameter : state.model->parameters()) {
        parameter.mul_(1.1);
      }
      for (const auto& [name, average] : state.ema.named_parameters()) {
        average.mul_(0.9);
      }
    }
    const size_t graphs = device.is_cuda() ? 2 : 0;
    checks.push_back(
        {"evaluation: graphs", raw.num_graphs() == graphs && averaged.num_graphs() == graphs ? 0.0 : 1.0, 0});
    // Whole runs' numbers, twice.
    mixmatch::training::RunEvaluation captured(state, options), eager(state, options, /*graph=*/false);
    for (int turn = 0; turn < 2; ++turn) {
      const auto here = captured(images, images), there = eager(images, images);
      for (size_t i = 0; i < here.size(); ++i) {
        checks.push_back({"evaluation: errors", std::abs(here[i] - there[i]), 0});
      }
    }
  }
}

/// Evaluation in the middle of a captured run changes nothing in it.
inline void check_evaluation_between_steps(std::vector<Check>& checks, torch::Device device) {
  const auto o = small_options("mixmatch");
  const auto without = train(device, o, 6), with = train(device, o, 6, {.evaluates = true});
  checks.push_back(
      {"evaluation: between captured steps", kernel_checks::difference(with.weight, without.weight), 0});
}

/// `brief`: a few steps of MixMatch and a second stream alone.
inline std::vector<Check> run_all(torch::Device device, bool brief = false) {
  const ExactConvolutions exact;
  if (brief) {
    return kernel_checks::run_parts(
        {{"graph", [](auto& checks, auto on) { check_graph_of(checks, on, "mixmatch", 3); }},
         {"second stream", check_side_stream}},
        device);
  }
  return kernel_checks::run_parts({{"step", check_step_of_cpu},
                                   {"graph", check_graph},
                                   {"images of the host", check_host_images},
                                   {"measured convolutions", check_measured_convolutions},
                                   {"second stream", check_side_stream},
                                   {"weight gradients beside", check_overlap},
                                   {"TorchScript", check_script},
                                   {"resume", check_resume},
                                   {"evaluation", check_evaluation},
                                   {"evaluation between steps", check_evaluation_between_steps}},
                                  device);
}

}  // namespace step_checks
