#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/arg.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/data/device_batch_stream.hpp>
#include <mixmatch/forward_each.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/interleave.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/training/batch_norm_statistics.hpp>
#include <mixmatch/training/device_adam.hpp>
#include <mixmatch/training/graphed_step.hpp>
#include <mixmatch/training/precision.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct DeviceStepOptions {
  /// Labeled rows of a step, and unlabeled ones.
  TORCH_ARG(int64_t, batch_size) = 64;
  /// Of the streams and, unless one is given, the generator.
  TORCH_ARG(uint64_t, seed) = 1;
  TORCH_ARG(DeviceAdamOptions, optimizer) = {};
  TORCH_ARG(RampedLossOptions, loss) = {};
  TORCH_ARG(MixMatchOptions, mixing) = {};
  TORCH_ARG(augment::RandomCropFlipOptions, augmentation) = {};
  /// Share of the new batch in the batch norms' running statistics, and whether a run's first steps average
  /// them plainly (see batch_norm_momentum()).
  TORCH_ARG(double, batch_norm_momentum) = 0.001;
  TORCH_ARG(bool, batch_norm_warmup) = true;
  /// bfloat16: by autocast.
  TORCH_ARG(at::ScalarType, precision) = at::kFloat;
  /// One forward pass over all parts of the batch where the model can keep their statistics apart (see
  /// GroupedModel), in place of one pass each.
  TORCH_ARG(bool, grouped) = true;
};

/// What a DeviceStep has to say of itself, scalars on its device: the loss and its terms, their weight, the
/// quality of the guessed labels (see GuessQuality; `accuracy` is NaN where no label is known), and whether
/// all gradients were finite.
struct DeviceStepLoss {
  Tensor total, labeled, unlabeled, weight;
  Tensor mean_max_probability, mean_entropy, accuracy;
  Tensor finite;
};

/// What a step trains on: augmented images [B + K B, C, H, W], labeled rows first and then the views of the
/// unlabeled ones, and the labels int64 [B] of either, of which those of the unlabeled rows (-1 where
/// unknown) are only looked at to judge the guesses.
struct DeviceInputs {
  Tensor images, labels, hidden_labels;
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

/// One whole step of MixMatch (arXiv 1905.02249) that runs on its device alone, from the rows of a batch to
/// the moving average, so that GraphedStep can capture it: the images stay on the device as uint8; streams,
/// augmentation, lambdas, permutations, ramp, batch-norm momentum, optimiser and average read and move state
/// that is there, and nothing waits.
///
///     training::DeviceStep step(model, ema, images, labels, labeled_rows, unlabeled_rows, options);
///     training::GraphedStep graphed([&] { return step(); }, device, step.graph_options());
///     … const auto& loss = graphed(); …                 // loss.total.item() waits: now and then
///     step.synchronize(ema);                             // before evaluation and saving
///
/// The maths is that of methods::mixmatch_loss(), DeviceAdam and BatchNormStatistics; runs eagerly on the CPU
/// too. `model` is a module of float32 parameters on the device of `images` [N, C, H, W] (uint8); `labels`
/// int64 [N], -1 where unknown; rows int64. Both are referred to and must outlive it, in place: its
/// parameters and statistics lie in blocks of the step's from now on. Draws from generator(), on a GPU the
/// device's default one, which the constructor seeds.
///
/// State: save() and load(), besides the model's and the EmaModel's own; a resumed run equals one never
/// stopped.
template <ModuleModel Model>
class DeviceStep {
 public:
  DeviceStep(Model& model, EmaModel<Model>& ema, const Tensor& images, const Tensor& labels,
             const Tensor& labeled_rows, const Tensor& unlabeled_rows, const DeviceStepOptions& options = {})
      : model_(&model),
        options_(options),
        images_(checked(images)),
        labels_(labels.to(images.device(), at::kLong)),
        generator_(detail::device_generator(images.device(), options.seed())),
        labeled_(labeled_rows, options.batch_size(), options.seed(), images.device()),
        unlabeled_(unlabeled_rows, options.batch_size(), options.seed() + 1, images.device()),
        statistics_(model),
        optimizer_(model, ema, options.optimizer()),
        criterion_(options.loss()),
        augment_(options.augmentation(), generator_),
        grouped_(options.grouped() && GroupedModel<Model>) {
    TORCH_CHECK(labels.dim() == 1 && labels.size(0) == images.size(0), "DeviceStep: labels must be int64 [",
                images.size(0), "], got ", labels.sizes());
    TORCH_CHECK(options.mixing().num_augmentations() >= 1, "DeviceStep: num_augmentations must be >= 1, got ",
                options.mixing().num_augmentations());
    TORCH_CHECK(options.batch_norm_momentum() >= 0 && options.batch_norm_momentum() <= 1,
                "DeviceStep: batch_norm_momentum must be in [0, 1], got ", options.batch_norm_momentum());
    momentum_ = at::full({}, options.batch_norm_momentum(), images.options().dtype(at::kDouble));
  }
  DeviceStep(const DeviceStep&) = delete;
  DeviceStep& operator=(const DeviceStep&) = delete;

  DeviceStepLoss operator()() { return train(draw()); }

  /// The next rows of both streams, augmented: Algorithm 1, lines 3 and 5.
  DeviceInputs draw() {
    const Tensor labeled = labeled_.next(), unlabeled = unlabeled_.next();
    std::vector<Tensor> rows(static_cast<size_t>(options_.mixing().num_augmentations()) + 1, unlabeled);
    rows.front() = labeled;
    return {augment_(images_.index_select(0, at::cat(rows))), labels_.index_select(0, labeled),
            labels_.index_select(0, unlabeled)};
  }

  /// The rest of a step: for images that come from elsewhere, because they do not fit the device.
  DeviceStepLoss train(const DeviceInputs& inputs) {
    const int64_t batch = options_.batch_size();
    const int64_t views = options_.mixing().num_augmentations();
    TORCH_CHECK(inputs.images.dim() == 4 && inputs.images.size(0) == (views + 1) * batch,
                "DeviceStep: inputs must have ", (views + 1) * batch, " images, got ", inputs.images.sizes());
    const Tensor x = inputs.images.narrow(0, 0, batch), u = inputs.images.narrow(0, batch, views * batch);
    DeviceStepLoss out;
    {
      const Autocast autocast(images_.device(), options_.precision());
      // Lines 7-8.
      const Tensor guess = guess_labels_from_logits(guess_logits(u), options_.mixing().temperature());
      mixmatch::detail::forget_autocast_copies();
      const Tensor targets = one_hot(inputs.labels, guess.size(1), guess.scalar_type());
      // Lines 10-14.
      const auto mixed =
          mix_labeled_unlabeled({x, targets, u, guess.repeat({views, 1})}, options_.mixing(), generator_);
      const auto logits = forward_parts(mixed);
      // Eqs. 3-5.
      const auto loss = criterion_(logits.labeled, mixed.labeled_targets, logits.unlabeled,
                                   mixed.unlabeled_targets, optimizer_.num_steps());
      out.total = loss.total;
      out.labeled = loss.labeled.detach();
      out.unlabeled = loss.unlabeled.detach();
      out.weight = loss.weight;
      judge(out, guess, inputs.hidden_labels);
    }
    out.total.backward();
    out.total = out.total.detach();
    out.finite = optimizer_.step();
    return out;
  }

  /// For GraphedStep: all that a step changes.
  GraphedStepOptions graph_options() {
    GraphedStepOptions options;
    auto state = optimizer_.state();
    for (const Tensor& tensor : statistics_.state()) {
      state.push_back(tensor);
    }
    state.push_back(labeled_.position_tensor());
    state.push_back(unlabeled_.position_tensor());
    std::vector<Tensor> parameters;
    for (const auto& item : mixmatch::detail::model_parameters(*model_)) {
      parameters.push_back(item.tensor);
    }
    return options.state(std::move(state)).parameters(std::move(parameters)).generators({generator_});
  }

  /// Brings the EmaModel up to date; returns the steps taken. Waits for the device.
  int64_t synchronize(EmaModel<Model>& ema) const { return optimizer_.synchronize(ema); }

  const at::Generator& generator() const { return generator_; }
  DeviceAdam& optimizer() { return optimizer_; }
  /// Whether one pass serves all parts of a batch.
  bool is_grouped() const { return grouped_; }
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
    write("unlabeled", unlabeled_);
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
    read("unlabeled", unlabeled_);
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

  /// Of each part of a batch, apart from `first`, the logits without a trace in the running statistics.
  void forward_rest(std::vector<Tensor>& logits, const std::vector<Tensor>& parts, size_t first) {
    const auto scope = statistics_.discard();
    for (size_t k = first; k < parts.size(); ++k) {
      logits.push_back(forward(*model_, parts[k]));
    }
  }

  /// The logits of the K views, without gradient.
  std::vector<Tensor> guess_logits(const Tensor& u) {
    const torch::NoGradGuard no_grad;
    const auto views = u.split(options_.batch_size());
    if (grouped_) {
      const auto scope = statistics_.discard();
      return forward_each(*model_, views);
    }
    std::vector<Tensor> logits;
    forward_rest(logits, views, 0);
    return logits;
  }

  /// The K + 1 interleaved parts, of which the first moves the running statistics.
  InterleavedLogits forward_parts(const MixMatchBatch& mixed) {
    std::vector<Tensor> parts = mixed.unlabeled_inputs.split(options_.batch_size());
    parts.insert(parts.begin(), mixed.labeled_inputs);
    parts = interleave(std::move(parts), options_.mixing().workspace().get());
    const Tensor momentum = options_.batch_norm_warmup()
                                ? batch_norm_momentum(optimizer_.num_steps(), options_.batch_norm_momentum())
                                : momentum_;
    std::vector<Tensor> logits;
    {
      const auto scope = statistics_.update(momentum);
      if (grouped_) {
        logits = forward_each(*model_, parts);
      } else {
        logits.push_back(forward(*model_, parts.front()));
      }
    }
    if (!grouped_) {
      forward_rest(logits, parts, 1);
    }
    logits = interleave(std::move(logits));
    const Tensor first = logits.front();
    logits.erase(logits.begin());
    return {first, torch::cat(logits)};
  }

  static void judge(DeviceStepLoss& out, const Tensor& guess, const Tensor& labels) {
    const torch::NoGradGuard no_grad;
    const auto [largest, predicted] = guess.max(1);
    out.mean_max_probability = largest.mean();
    out.mean_entropy = 0 - at::xlogy(guess, guess).sum(1).mean();  // entr() would be compiled at run time
    out.accuracy = labels.eq(predicted).sum().div(labels.ne(-1).sum());
  }

  Model* model_;
  DeviceStepOptions options_;
  Tensor images_, labels_;
  at::Generator generator_;
  data::DeviceBatchStream labeled_, unlabeled_;
  BatchNormStatistics statistics_;
  DeviceAdam optimizer_;
  RampedLoss criterion_;
  augment::RandomCropFlip augment_;
  bool grouped_;
  Tensor momentum_;
};

}  // namespace mixmatch::training
