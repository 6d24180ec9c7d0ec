#pragma once

#include <torch/arg.h>
#include <torch/serialize/archive.h>
#include <mixmatch/detail/cuda/cuda_adam.hpp>
#include <mixmatch/ema_model.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct DeviceAdamOptions {
  TORCH_ARG(double, learning_rate) = 2e-3;
  TORCH_ARG(double, beta1) = 0.9;
  TORCH_ARG(double, beta2) = 0.999;
  TORCH_ARG(double, eps) = 1e-8;
  /// Decoupled, of kernels only: each step multiplies them by 1 - learning_rate * weight_decay.
  TORCH_ARG(double, weight_decay) = 0;
};

/// Adam, decoupled weight decay and the moving average of the weights in one kernel, with every number that
/// changes from step to step on the device: the optimiser of a step that is captured in a graph
/// (training::GraphedStep). On other devices the same in ATen's calls.
///
///     m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
///     w <- w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
///     w <- w (1 - lr weight_decay)               kernels only, see decay_weights()
///     average <- decay average + (1 - decay) w   decay and warm-up are those of `ema`
///
/// On construction the trainable parameters (float32, of one device), their averages in `ema` and Adam's
/// moments each move into one block of memory; values, strides and names stay. So make it after
/// `model->to(...)` and to_channels_last(), and do not call ema.update() beside it. A step whose gradients
/// are not all finite changes nothing and is not counted. A parameter without a gradient counts as one of
/// gradient 0. `ema` learns of the updates from synchronize(), to be called before it is used or saved. Draws
/// nothing.
class DeviceAdam {
 public:
  template <class Model>
  DeviceAdam(Model& model, EmaModel<Model>& ema, const DeviceAdamOptions& options = {})
      : options_(options), ema_options_(ema.options()) {
    TORCH_CHECK(options.learning_rate() >= 0 && std::isfinite(options.learning_rate()),
                "DeviceAdam: learning_rate must be finite and >= 0, got ", options.learning_rate());
    TORCH_CHECK(options.beta1() >= 0 && options.beta1() < 1, "DeviceAdam: beta1 must be in [0, 1), got ",
                options.beta1());
    TORCH_CHECK(options.beta2() >= 0 && options.beta2() < 1, "DeviceAdam: beta2 must be in [0, 1), got ",
                options.beta2());
    TORCH_CHECK(options.weight_decay() >= 0 && options.learning_rate() * options.weight_decay() <= 1,
                "DeviceAdam: weight_decay must be >= 0 and at most 1 / learning_rate, got ",
                options.weight_decay());
    TORCH_CHECK(ema.options().buffers() != EmaBuffers::average,
                "DeviceAdam: ema must copy or keep buffers; averaging them is not done on the device");
    const torch::NoGradGuard no_grad;
    const auto kernels = mixmatch::detail::model_kernels(model);
    const auto averages = ema.named_parameters();  // handles of the same tensors
    for (const auto& item : mixmatch::detail::model_parameters(model)) {
      if (!item.tensor.requires_grad()) {
        continue;
      }
      const auto average = std::find_if(averages.begin(), averages.end(),
                                        [&](const auto& entry) { return entry.first == item.name; });
      TORCH_CHECK(average != averages.end(),
                  "DeviceAdam: ema must be of the same model, it has no parameter ", item.name);
      add(item.name, item.tensor, average->second,
          std::any_of(kernels.begin(), kernels.end(),
                      [&](const Tensor& kernel) { return kernel.is_same(item.tensor); }));
    }
    TORCH_CHECK(!parameters_.empty(), "DeviceAdam: the model has no trainable parameter");
    lay_out();
  }
  DeviceAdam(const DeviceAdam&) = delete;
  DeviceAdam& operator=(const DeviceAdam&) = delete;

  /// One step by the parameters' gradients, which it lets go of. Returns bool [] on the device: whether every
  /// gradient was finite, and the step taken.
  Tensor step() {
    const torch::NoGradGuard no_grad;
    gather_gradients();
    // An overflowing sum of finite gradients counts as not finite.
    const Tensor finite = flat_.gradients.sum().isfinite();
    average_decay_.copy_(average_decay());
    mixmatch::detail::flat_adam_step_(
        flat_, {num_steps_, learning_rate_, average_decay_, finite},
        {options_.beta1(), options_.beta2(), options_.eps(), options_.weight_decay()});
    num_steps_.add_(finite);
    return finite;
  }

  /// Brings the EmaModel's count of updates, and its copies of buffers, up to date. Returns the steps taken.
  /// Waits for the device.
  template <class Model>
  int64_t synchronize(EmaModel<Model>& ema) const {
    const auto steps = num_steps_.item<int64_t>();
    ema.set_num_updates(steps);
    return steps;
  }

  /// Steps taken: int64 [] on the device, the optimiser's own.
  const Tensor& num_steps() const { return num_steps_; }
  /// float64 [] on the device; fill_() it for a schedule that a graph follows.
  const Tensor& learning_rate() const { return learning_rate_; }
  const DeviceAdamOptions& options() const { return options_; }

  /// All that step() changes.
  std::vector<Tensor> state() const {
    return {flat_.parameters, flat_.first_moment, flat_.second_moment, flat_.average, num_steps_};
  }

  /// By parameter, so that a file fits a model of another memory format.
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("num_steps", c10::IValue(num_steps_.item<int64_t>()));
    archive.write("num_parameters", c10::IValue(static_cast<int64_t>(parameters_.size())));
    for (size_t i = 0; i < parameters_.size(); ++i) {
      archive.write("first_moment_" + std::to_string(i), view_of(flat_.first_moment, parameters_[i]), true);
      archive.write("second_moment_" + std::to_string(i), view_of(flat_.second_moment, parameters_[i]), true);
    }
  }

  /// Throws, changing nothing, if the archive is of other parameters or of another optimiser.
  void load(torch::serialize::InputArchive& archive) {
    const torch::NoGradGuard no_grad;
    c10::IValue steps, count;
    TORCH_CHECK(archive.try_read("num_steps", steps) && archive.try_read("num_parameters", count),
                "DeviceAdam::load: the archive is not of this optimiser");
    TORCH_CHECK(count.toInt() == static_cast<int64_t>(parameters_.size()), "DeviceAdam::load: the model has ",
                parameters_.size(), " parameters, the archive ", count.toInt());
    std::vector<std::pair<Tensor, Tensor>> moments(parameters_.size());
    for (size_t i = 0; i < parameters_.size(); ++i) {
      for (const auto& [key, moment] : {std::pair<const char*, Tensor*>{"first_moment_", &moments[i].first},
                                        {"second_moment_", &moments[i].second}}) {
        archive.read(key + std::to_string(i), *moment, /*is_buffer=*/true);
        TORCH_CHECK(moment->sizes() == parameters_[i].tensor.sizes(),
                    "DeviceAdam::load: ", parameters_[i].name, " has shape ", parameters_[i].tensor.sizes(),
                    ", in the archive ", moment->sizes());
      }
    }
    for (size_t i = 0; i < parameters_.size(); ++i) {
      view_of(flat_.first_moment, parameters_[i]).copy_(moments[i].first);
      view_of(flat_.second_moment, parameters_[i]).copy_(moments[i].second);
    }
    num_steps_.fill_(steps.toInt());
  }

 private:
  struct Parameter {
    std::string name;
    Tensor tensor, average;  // the model's and the EmaModel's own handles
    bool is_kernel;
    int64_t offset, size;  // in the blocks; `size` is rounded up
    std::vector<int64_t> strides;
  };

  /// Every parameter begins at a multiple of 256 bytes, as memory of its own would: cuDNN asks for alignment.
  static constexpr int64_t kAlignment = 64;

  void add(const std::string& name, const Tensor& tensor, const Tensor& average, bool is_kernel) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat, "DeviceAdam: parameter ", name, " must be float32, got ",
                tensor.scalar_type());
    const auto device = parameters_.empty() ? tensor.device() : parameters_.front().tensor.device();
    TORCH_CHECK(tensor.device() == device && average.device() == device, "DeviceAdam: parameter ", name,
                " and its average must be on ", device, " as the first is, got ", tensor.device(), " and ",
                average.device());
    const int64_t size = (tensor.numel() + kAlignment - 1) / kAlignment * kAlignment;
    const Tensor dense = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
    parameters_.push_back({name, tensor, average, is_kernel, total_, size, dense.strides().vec()});
    total_ += size;
  }

  static Tensor view_of(const Tensor& block, const Parameter& parameter) {
    return block.as_strided(parameter.tensor.sizes(), parameter.strides, parameter.offset);
  }

  void lay_out() {
    const auto options = parameters_.front().tensor.options().requires_grad(false);
    flat_.parameters = at::zeros({total_}, options);
    flat_.gradients = at::zeros({total_}, options);
    flat_.first_moment = at::zeros({total_}, options);
    flat_.second_moment = at::zeros({total_}, options);
    flat_.average = at::zeros({total_}, options);
    flat_.is_kernel = at::zeros({total_}, options.dtype(at::kBool));
    zeros_ = at::zeros({std::max_element(parameters_.begin(), parameters_.end(),
                                         [](const auto& a, const auto& b) { return a.size < b.size; })
                            ->size},
                       options);
    num_steps_ = at::zeros({}, options.dtype(at::kLong));
    learning_rate_ = at::full({}, options_.learning_rate(), options.dtype(at::kDouble));
    average_decay_ = at::zeros({}, options.dtype(at::kDouble));
    for (Parameter& parameter : parameters_) {
      for (auto [tensor, block] : {std::pair<Tensor, Tensor>{parameter.tensor, flat_.parameters},
                                   {parameter.average, flat_.average}}) {
        const Tensor place = view_of(block, parameter);
        place.copy_(tensor);
        tensor.set_data(place);
      }
      if (parameter.is_kernel) {
        flat_.is_kernel.narrow(0, parameter.offset, parameter.tensor.numel()).fill_(true);
      }
    }
  }

  /// The gradients into their block, by one call for all.
  void gather_gradients() {
    std::vector<Tensor> pieces;
    for (Parameter& parameter : parameters_) {
      TORCH_CHECK(parameter.tensor.data_ptr() ==
                      static_cast<void*>(flat_.parameters.data_ptr<float>() + parameter.offset),
                  "DeviceAdam: parameter ", parameter.name,
                  " no longer lies in the optimiser's memory; make the optimiser after model->to(...)");
      Tensor gradient = parameter.tensor.grad();
      int64_t filled = 0;
      if (gradient.defined()) {
        filled = gradient.numel();
        if (gradient.strides() != at::IntArrayRef(parameter.strides) ||
            gradient.scalar_type() != at::kFloat) {
          gradient = at::empty_strided(parameter.tensor.sizes(), parameter.strides, flat_.gradients.options())
                         .copy_(gradient);
        }
        pieces.push_back(gradient.as_strided({filled}, {1}));
      }
      if (filled < parameter.size) {
        pieces.push_back(zeros_.narrow(0, 0, parameter.size - filled));
      }
      parameter.tensor.mutable_grad().reset();
    }
    at::cat_out(flat_.gradients, pieces);
  }

  /// EmaModel's: min(decay, (1 + n) / (10 + n)) where it warms up.
  Tensor average_decay() const {
    const Tensor n = num_steps_.to(at::kDouble);
    return ema_options_.warmup() ? ((n + 1) / (n + 10)).clamp_max_(ema_options_.decay())
                                 : at::full_like(n, ema_options_.decay());
  }

  DeviceAdamOptions options_;
  EmaModelOptions ema_options_;
  std::vector<Parameter> parameters_;
  int64_t total_ = 0;
  mixmatch::detail::FlatParameters flat_;
  Tensor zeros_, num_steps_, learning_rate_, average_decay_;
};

}  // namespace mixmatch::training
