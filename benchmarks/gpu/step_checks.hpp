#pragma once

// A whole step on the device that is at hand: against the same step on the CPU, and captured in a graph
// against itself without one.

#include <torch/torch.h>
#include <mixmatch/methods/mean_teacher.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/pi_model.hpp>
#include <mixmatch/methods/pseudo_label.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/step/device_step.hpp>
#include <mixmatch/step/graphed_step.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernel_checks.hpp"

namespace step_checks {

using kernel_checks::Check;
using torch::Tensor;

/// A small network in training, on the same images and from the same weights each time.
template <class Method = mixmatch::methods::MixMatch>
struct Trainer {
  using Step = mixmatch::training::DeviceStep<mixmatch::models::WideResNet, Method>;

  explicit Trainer(torch::Device device, const mixmatch::training::DeviceStepOptions& options = {},
                   const Method& method = Method())
      : model(make(device)), ema(model) {
    torch::manual_seed(5);
    const Tensor labels = at::arange(60, at::kLong).remainder(10);
    const Tensor images = at::randint(256, {60, 3, 16, 16}, at::kByte);
    step = std::make_unique<Step>(model, ema, method, images.to(device), labels, at::arange(20, at::kLong),
                                  at::arange(20, 60, at::kLong),
                                  mixmatch::training::DeviceStepOptions(options).batch_size(8));
  }

  static mixmatch::models::WideResNet make(torch::Device device) {
    torch::manual_seed(3);
    mixmatch::models::WideResNet network(mixmatch::models::WideResNetOptions(10).depth(10).widen_factor(1));
    network->to(device);
    mixmatch::training::to_channels_last(network);
    return network;
  }

  mixmatch::models::WideResNet model;
  mixmatch::EmaModel<mixmatch::models::WideResNet> ema;
  std::unique_ptr<Step> step;
};

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

/// Without MixUp nothing of a step is drawn on the device, and images that come from outside are the same
/// everywhere.
inline void check_step_of_cpu(std::vector<Check>& checks, torch::Device device) {
  const mixmatch::methods::MixMatch method(mixmatch::MixMatchOptions().mix_mode(mixmatch::MixMode::none),
                                           mixmatch::RampedLossOptions().lambda_u(75).rampup_steps(0));
  Trainer<> there(device, {}, method), here(torch::kCPU, {}, method);
  for (int64_t step = 0; step < 3; ++step) {
    const auto batch = here.step->draw();
    mixmatch::Batch copy{
        batch.labeled.to(device), batch.labels.to(device), {}, batch.hidden_labels.to(device)};
    for (const Tensor& view : batch.weak) {
      copy.weak.push_back(view.to(device));
    }
    const auto expected = here.step->train(batch).loss, found = there.step->train(copy).loss;
    checks.push_back({"step: loss beside the CPU's",
                      kernel_checks::difference(found.total.cpu(), expected.total), step == 0 ? 1e-4 : 1e-2});
    for (size_t i = 0; i < expected.values.size(); ++i) {
      checks.push_back(
          {"step: " + expected.values[i].first + " beside the CPU's",
           kernel_checks::difference(found.values[i].second.cpu(), expected.values[i].second.cpu()),
           step == 0 ? 1e-4 : 1e-2});
    }
  }
  checks.push_back({"step: weights beside the CPU's",
                    kernel_checks::difference(there.model->conv1->weight.cpu(), here.model->conv1->weight),
                    1e-2});
}

/// A hundred replays of a method beside as many eager steps of the same random numbers, and construction,
/// which must change nothing.
template <class Method>
void check_graph_of(std::vector<Check>& checks, torch::Device device, const std::string& method) {
  const int64_t steps = device.is_cuda() ? 100 : 3;  // elsewhere there is no graph to check
  for (const auto precision : {at::kFloat, at::kBFloat16}) {
    const auto options =
        mixmatch::training::DeviceStepOptions().precision(precision).weak_views(Method().weak_views());
    std::vector<Tensor> losses[2];
    Tensor weights[2];
    for (const bool graph : {false, true}) {
      Trainer<Method> trainer(device, options);
      const Tensor before = trainer.model->conv1->weight.detach().clone();
      mixmatch::training::GraphedStep graphed([&] { return (*trainer.step)(); }, device,
                                              trainer.step->graph_options().enabled(graph));
      checks.push_back({method + " graph: weights after its construction",
                        kernel_checks::difference(trainer.model->conv1->weight, before), 0});
      checks.push_back(
          {method + " graph: is one", graphed.is_graphed() == (graph && device.is_cuda()) ? 0.0 : 1.0, 0});
      for (int64_t i = 0; i < steps; ++i) {
        losses[graph].push_back(graphed().loss.total.cpu());
      }
      weights[graph] = trainer.model->conv1->weight.detach().clone();
      checks.push_back({method + " graph: steps it counted",
                        static_cast<double>(std::abs(trainer.step->synchronize(trainer.ema) - steps)), 0});
    }
    const auto name = [&](const std::string& text) {
      return kernel_checks::named((method + " graph: " + text).c_str(), precision);
    };
    const auto all = [&](int which) { return at::stack(losses[which]); };
    checks.push_back({name("first loss beside the eager one"),
                      kernel_checks::difference(losses[1].front(), losses[0].front()), 1e-4});
    checks.push_back({name("all losses beside the eager ones"), kernel_checks::difference(all(1), all(0)),
                      precision == at::kFloat ? 1e-2 : 1e-1});
    checks.push_back({name("weights after them"), kernel_checks::difference(weights[1], weights[0]),
                      precision == at::kFloat ? 2e-2 : 5e-2});
  }
}

inline void check_graph(std::vector<Check>& checks, torch::Device device) {
  check_graph_of<mixmatch::methods::MixMatch>(checks, device, "mixmatch");
  check_graph_of<mixmatch::methods::Supervised>(checks, device, "supervised");
  check_graph_of<mixmatch::methods::PseudoLabel>(checks, device, "pseudo_label");
  check_graph_of<mixmatch::methods::PiModel>(checks, device, "pi_model");
  check_graph_of<mixmatch::methods::MeanTeacher>(checks, device, "mean_teacher");
}

/// A graph whose convolutions cuDNN chose by measuring them: the same mathematics, and the process's setting
/// is as it was.
inline void check_measured_convolutions(std::vector<Check>& checks, torch::Device device) {
  at::globalContext().setDeterministicCuDNN(false);  // ExactConvolutions puts it back
  Tensor losses[2];
  for (const bool measured : {false, true}) {
    Trainer<> trainer(device);
    mixmatch::training::GraphedStep graphed(
        [&] { return (*trainer.step)(); }, device,
        trainer.step->graph_options().enabled(device.is_cuda()).measure_convolutions(measured));
    losses[measured] = graphed().loss.total.cpu();
    checks.push_back(
        {"measured convolutions: the setting", at::globalContext().benchmarkCuDNN() ? 1.0 : 0.0, 0});
  }
  checks.push_back(
      {"measured convolutions: first loss", kernel_checks::difference(losses[1], losses[0]), 1e-4});
}

inline std::vector<Check> run_all(torch::Device device) {
  const ExactConvolutions exact;
  return kernel_checks::run_parts({{"step", check_step_of_cpu},
                                   {"graph", check_graph},
                                   {"measured convolutions", check_measured_convolutions}},
                                  device);
}

}  // namespace step_checks
