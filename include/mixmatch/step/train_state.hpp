#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <torch/arg.h>
#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/optim/optimizer.hpp>

#include <cstdint>
#include <utility>

#ifdef MIXMATCH_HAS_CUDA
#include <ATen/cuda/CUDAGeneratorImpl.h>
#endif

namespace mixmatch::training {

struct TrainStateOptions {
  /// The generator's; weights were drawn by whoever made the model.
  TORCH_ARG(uint64_t, seed) = 1;
  TORCH_ARG(EmaModelOptions, ema) = {};
  TORCH_ARG(OptimizerOptions, optimizer) = {};
};

namespace detail {

/// A generator for draws on a device, seeded: on a GPU the device's default one, which all versions of
/// LibTorch capture draws from.
inline at::Generator seeded_generator(torch::Device device, uint64_t seed) {
#ifdef MIXMATCH_HAS_CUDA
  if (device.is_cuda()) {
    auto generator = at::cuda::detail::getDefaultCUDAGenerator(device.index());
    generator.set_current_seed(seed);
    return generator;
  }
#endif
  TORCH_CHECK(device.is_cpu(),
              "TrainState: the model must be on the CPU or, in a build with CUDA, a GPU, got ", device);
  return at::detail::createCPUGenerator(seed);
}

template <class Model>
torch::Device device_of(Model& model) {
  const auto parameters = mixmatch::detail::model_parameters(model);
  TORCH_CHECK(!parameters.empty(), "TrainState: the model has no parameter");
  return parameters.front().tensor.device();
}

}  // namespace detail

/// Everything that a step of semi-supervised training changes, and so everything that a checkpoint must hold
/// for a resumed run to equal one that never stopped, but for a method's own state. Knows no method and no
/// data set.
///
/// `Model` is a ModuleHolder, a std::shared_ptr or a torch::jit::Module, on its device already, and in the
/// memory format that it keeps.
template <ModuleModel Model>
struct TrainState {
  explicit TrainState(Model network, const TrainStateOptions& options = {})
      : generator(detail::seeded_generator(detail::device_of(network), options.seed())),
        model(std::move(network)),
        ema(model, options.ema()),
        optimizer(model, ema, options.optimizer()) {}
  TrainState(const TrainState&) = delete;
  TrainState& operator=(const TrainState&) = delete;

  /// Adds every part by its name.
  template <class Checkpoint>
  void register_in(Checkpoint& checkpoint) {
    checkpoint.add("model", model)
        .add("ema", ema)
        .add("optimizer", optimizer)
        .add("generator", generator)
        .add("default_generator", default_generator);
  }

  int64_t step = 0;         ///< steps done; TrainingRun puts it into the checkpoint
  at::Generator generator;  ///< of what a method draws, on the model's device
  /// LibTorch's own, of the CPU: layers such as Dropout draw from it (on a GPU from `generator`).
  at::Generator default_generator = at::globalContext().defaultGenerator(at::kCPU);
  Model model;
  EmaModel<Model> ema;
  Optimizer optimizer;
};

}  // namespace mixmatch::training
