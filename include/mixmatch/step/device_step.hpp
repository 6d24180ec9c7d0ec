#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/arg.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/data/device_batch_stream.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/optim/device_adam.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/graphed_step.hpp>
#include <mixmatch/step/learner.hpp>
#include <mixmatch/step/step_loss.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct DeviceStepOptions {
  /// Labeled rows of a step, and unlabeled ones.
  TORCH_ARG(int64_t, batch_size) = 64;
  /// Augmentations of the unlabeled rows; 0: the method wants no unlabeled images.
  TORCH_ARG(int64_t, weak_views) = 2;
  /// Of the streams and, unless one is given, the generator.
  TORCH_ARG(uint64_t, seed) = 1;
  TORCH_ARG(DeviceAdamOptions, optimizer) = {};
  TORCH_ARG(augment::RandomCropFlipOptions, augmentation) = {};
  TORCH_ARG(LearnerOptions, learner) = {};
  /// bfloat16: by autocast.
  TORCH_ARG(at::ScalarType, precision) = at::kFloat;
};

/// What a DeviceStep has to say of itself: the method's loss, without its graph, and whether all gradients
/// were finite, bool [] on the device.
struct DeviceStepResult {
  StepLoss loss;
  Tensor finite;
};

namespace detail {

/// The generator that a device draws from by default, or one of its own on the CPU.
inline at::Generator device_generator(torch::Device device, uint64_t seed) {
#ifdef MIXMATCH_HAS_CUDA
  if (device.is_cuda()) {
    // All versions of LibTorch capture draws from this one.
    auto generator = at::cuda::detail::getDefaultCUDAGenerator(device.index());
    generator.set_current_seed(seed);
    return generator;
  }
#endif
  TORCH_CHECK(device.is_cpu(), "DeviceStep: the device must be cpu or, in a build with CUDA, cuda, got ",
              device);
  return at::detail::createCPUGenerator(seed);
}

}  // namespace detail

/// One whole step of a method that runs on its device alone, from the rows of a batch to the moving average,
/// so that GraphedStep can capture it: the images stay on the device as uint8; streams, augmentation, the
/// method, batch-norm momentum, optimiser and average read and move state that is there, and nothing waits.
///
///     training::DeviceStep step(model, ema, method, images, labels, labeled_rows, unlabeled_rows, options);
///     training::GraphedStep graphed([&] { return step(); }, device, step.graph_options());
///     … const auto& result = graphed(); …               // result.loss.total.item() waits: now and then
///     step.synchronize(ema);                             // before evaluation and saving
///
/// `method` is any callable `StepLoss(Learner<Model>&, const Batch&, const Tensor& step, const
/// at::Generator&)`, such as methods::MixMatch; `step` counts the optimiser's, int64 [] on the device. What
/// the method draws comes from the generator; it must not wait for the device (item(), boolean masks). State
/// of its own is tensors that it changes in place; `state()` then returns them, std::vector<Tensor>.
///
/// Runs eagerly on the CPU too. `model` is a module of float32 parameters on the device of `images` [N, C, H,
/// W] (uint8); `labels` int64 [N], -1 where unknown; rows int64. Model and `ema` are referred to and must
/// outlive it, in place: parameters and statistics lie in blocks of the step's from now on. Draws from
/// generator(), on a GPU the device's default one, which the constructor seeds.
///
/// State: save() and load(), besides the model's and the EmaModel's own; a resumed run equals one never
/// stopped.
template <ModuleModel Model, class Method>
class DeviceStep {
 public:
  DeviceStep(Model& model, EmaModel<Model>& ema, Method method, const Tensor& images, const Tensor& labels,
             const Tensor& labeled_rows, const Tensor& unlabeled_rows, const DeviceStepOptions& options = {})
      : method_(std::move(method)),
        options_(options),
        images_(checked(images)),
        labels_(labels.to(images.device(), at::kLong)),
        generator_(detail::device_generator(images.device(), options.seed())),
        labeled_(labeled_rows, options.batch_size(), options.seed(), images.device()),
        learner_(model, ema, options.learner()),
        optimizer_(model, ema, options.optimizer()),
        augment_(options.augmentation(), generator_) {
    TORCH_CHECK(labels.dim() == 1 && labels.size(0) == images.size(0), "DeviceStep: labels must be int64 [",
                images.size(0), "], got ", labels.sizes());
    TORCH_CHECK(options.weak_views() >= 0, "DeviceStep: weak_views must be >= 0, got ", options.weak_views());
    if (options.weak_views() > 0) {
      unlabeled_.emplace(unlabeled_rows, options.batch_size(), options.seed() + 1, images.device());
    }
  }
  DeviceStep(const DeviceStep&) = delete;
  DeviceStep& operator=(const DeviceStep&) = delete;

  DeviceStepResult operator()() { return train(draw()); }

  /// The next rows of the streams, augmented: Algorithm 1, lines 3 and 5.
  Batch draw() {
    const Tensor labeled = labeled_.next();
    std::vector<Tensor> rows{labeled};
    Batch batch;
    batch.labels = labels_.index_select(0, labeled);
    if (unlabeled_.has_value()) {
      const Tensor unlabeled = unlabeled_->next();
      rows.resize(static_cast<size_t>(options_.weak_views()) + 1, unlabeled);
      batch.hidden_labels = labels_.index_select(0, unlabeled);
    }
    const Tensor images = augment_(images_.index_select(0, at::cat(rows)));
    batch.labeled = images.narrow(0, 0, options_.batch_size());
    for (int64_t k = 1; k < static_cast<int64_t>(rows.size()); ++k) {
      batch.weak.push_back(images.narrow(0, k * options_.batch_size(), options_.batch_size()));
    }
    return batch;
  }

  /// The rest of a step: for images that come from elsewhere, because they do not fit the device.
  DeviceStepResult train(const Batch& batch) {
    DeviceStepResult result;
    {
      const auto statistics = learner_.training_step(optimizer_.num_steps());
      const Autocast autocast(images_.device(), options_.precision());
      result.loss = method_(learner_, batch, optimizer_.num_steps(), generator_);
    }
    result.loss.total.backward();
    result.loss.total = result.loss.total.detach();
    for (auto& [name, value] : result.loss.values) {
      value = value.detach();
    }
    result.finite = optimizer_.step();
    return result;
  }

  /// For GraphedStep: all that a step changes.
  GraphedStepOptions graph_options() {
    GraphedStepOptions options;
    auto state = optimizer_.state();
    for (const Tensor& tensor : learner_.state()) {
      state.push_back(tensor);
    }
    state.push_back(labeled_.position_tensor());
    if (unlabeled_.has_value()) {
      state.push_back(unlabeled_->position_tensor());
    }
    if constexpr (requires { method_.state(); }) {
      for (const Tensor& tensor : method_.state()) {
        state.push_back(tensor);
      }
    }
    std::vector<Tensor> parameters;
    for (const auto& item : mixmatch::detail::model_parameters(learner_.model())) {
      parameters.push_back(item.tensor);
    }
    return options.state(std::move(state)).parameters(std::move(parameters)).generators({generator_});
  }

  /// Brings the EmaModel up to date; returns the steps taken. Waits for the device.
  int64_t synchronize(EmaModel<Model>& ema) const { return optimizer_.synchronize(ema); }

  const at::Generator& generator() const { return generator_; }
  Method& method() { return method_; }
  DeviceAdam& optimizer() { return optimizer_; }
  const DeviceStepOptions& options() const { return options_; }

  /// Optimiser, streams and generator; parameters and statistics are the model's own, averages the
  /// EmaModel's.
  void save(torch::serialize::OutputArchive& archive) const {
    const auto write = [&archive](const std::string& name, const auto& part) {
      torch::serialize::OutputArchive nested(archive.compilation_unit());
      part.save(nested);
      archive.write(name, nested);
    };
    write("optimizer", optimizer_);
    write("labeled", labeled_);
    if (unlabeled_.has_value()) {
      write("unlabeled", *unlabeled_);
    }
    archive.write("generator", generator_.get_state(), /*is_buffer=*/true);
  }

  void load(torch::serialize::InputArchive& archive) {
    const auto read = [&archive](const std::string& name, auto& part) {
      torch::serialize::InputArchive nested;
      archive.read(name, nested);
      part.load(nested);
    };
    Tensor generator;
    archive.read("generator", generator, /*is_buffer=*/true);
    TORCH_CHECK(
        generator.sizes() == generator_.get_state().sizes(),
        "DeviceStep::load: the archive holds the state of another kind of generator, of another device");
    read("labeled", labeled_);
    if (unlabeled_.has_value()) {
      read("unlabeled", *unlabeled_);
    }
    read("optimizer", optimizer_);
    generator_.set_state(generator.cpu());
  }

 private:
  static const Tensor& checked(const Tensor& images) {
    TORCH_CHECK(
        images.defined() && images.dim() == 4 && images.scalar_type() == at::kByte,
        "DeviceStep: images must be uint8 [N, C, H, W], got ",
        images.defined() ? c10::str(images.scalar_type(), " ", images.sizes()) : std::string("undefined"));
    return images;
  }

  Method method_;
  DeviceStepOptions options_;
  Tensor images_, labels_;
  at::Generator generator_;
  data::DeviceBatchStream labeled_;
  std::optional<data::DeviceBatchStream> unlabeled_;
  Learner<Model> learner_;
  DeviceAdam optimizer_;
  augment::RandomCropFlip augment_;
};

}  // namespace mixmatch::training
