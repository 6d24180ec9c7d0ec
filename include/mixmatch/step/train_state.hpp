#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/optim/fused_adam.hpp>
#include <mixmatch/run/checkpoint.hpp>

#include <cstdint>
#include <optional>
#include <utility>

namespace mixmatch::training {

struct TrainStateOptions {
  TORCH_ARG(int64_t, batch_size) = 64;
  /// The streams' and the generator's; weights were drawn by whoever made the model.
  TORCH_ARG(uint64_t, seed) = 1;
  TORCH_ARG(double, learning_rate) = 2e-3;
  TORCH_ARG(EmaModelOptions, ema) = {};
};

/// The endless sequence of labeled batches of a run, and that of unlabeled ones, if there are any.
inline data::BatchStream labeled_stream(const Tensor& rows, const TrainStateOptions& options) {
  return {rows, options.batch_size(), options.seed()};
}
inline std::optional<data::BatchStream> unlabeled_stream(const Tensor& rows,
                                                         const TrainStateOptions& options) {
  return rows.numel() > 0 ? std::optional(data::BatchStream(rows, options.batch_size(), options.seed() + 1))
                          : std::nullopt;
}

/// Everything that a step of semi-supervised training changes, and so everything that a checkpoint must hold
/// for a resumed run to equal one that never stopped. Knows no method and no data set: the streams yield rows
/// of whatever the caller keeps.
///
/// `Model` is a ModuleHolder or std::shared_ptr. `labeled_rows` and `unlabeled_rows` are int64 [N]; without
/// unlabeled rows (a supervised baseline that labels all) there is no unlabeled stream.
template <class Model>
struct TrainState {
  TrainState(Model network, const Tensor& labeled_rows, const Tensor& unlabeled_rows,
             const TrainStateOptions& options = {})
      : generator(at::detail::createCPUGenerator(options.seed())),
        labeled(labeled_stream(labeled_rows, options)),
        unlabeled(unlabeled_stream(unlabeled_rows, options)),
        model(std::move(network)),
        ema(model, options.ema()),
        optimizer(model, FusedAdamOptions(options.learning_rate())) {
    for (const auto& parameter : model->parameters()) {
      if (!parameter.is_cpu()) {
        device_generator = at::globalContext().defaultGenerator(parameter.device());
        break;
      }
    }
  }
  TrainState(const TrainState&) = delete;
  TrainState& operator=(const TrainState&) = delete;

  /// Adds every part by its name.
  void register_in(Checkpoint& checkpoint) {
    checkpoint.add("model", model)
        .add("ema", ema)
        .add("optimizer", optimizer)
        .add("labeled", labeled)
        .add("generator", generator)
        .add("default_generator", default_generator);
    if (device_generator.defined()) {
      checkpoint.add("device_generator", device_generator);
    }
    if (unlabeled.has_value()) {
      checkpoint.add("unlabeled", *unlabeled);
    }
  }

  /// Counts a step whose batches came by its number (Prefetch), not from the streams themselves.
  void finish_step() {
    ++step;
    labeled.seek(step);
    if (unlabeled.has_value()) {
      unlabeled->seek(step);
    }
  }

  int64_t step = 0;         ///< optimiser steps done; TrainingRun puts it into the checkpoint
  at::Generator generator;  ///< of MixUp, and of augmentation that draws no seed of its own
  /// LibTorch's own, of the CPU and of the model's device if that is another: layers such as Dropout draw
  /// from them.
  at::Generator default_generator = at::globalContext().defaultGenerator(at::kCPU);
  at::Generator device_generator;
  data::BatchStream labeled;
  std::optional<data::BatchStream> unlabeled;
  Model model;
  EmaModel<Model> ema;
  FusedAdam optimizer;
};

}  // namespace mixmatch::training
