#pragma once

#include <torch/arg.h>
#include <torch/serialize/archive.h>
#include <mixmatch/detail/cpu/adam_kernel.hpp>
#include <mixmatch/detail/flat_copies.hpp>
#include <mixmatch/ema_model.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct FusedAdamOptions {
  FusedAdamOptions() = default;
  /* implicit */ FusedAdamOptions(double learning_rate) : learning_rate_(learning_rate) {}

  TORCH_ARG(double, learning_rate) = 2e-3;
  TORCH_ARG(double, beta1) = 0.9;
  TORCH_ARG(double, beta2) = 0.999;
  TORCH_ARG(double, eps) = 1e-8;
};

/// Adam (arXiv 1412.6980), decoupled weight decay and the moving average of the weights, for all parameters
/// in one pass over memory:
///
///     m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
///     w <- w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
///     w <- w (1 - rate)                          kernels only, see decay_weights()
///     average <- decay average + (1 - decay) w
///
/// the papers' order, and what torch::optim::Adam, decay_weights() and EmaModel::update() do one after the
/// other, equal to rounding.
///
/// On construction the model's parameters, and Adam's moments, move into one block of memory each (per dtype
/// and device), in the order of the model; values, strides, names and gradients stay. So make it after
/// `model->to(...)`, to_channels_last() and torch::load(model, ...), which replace that memory. The fused
/// pass is that of float32 and float64 parameters on the CPU, whose results do not depend on the number of
/// threads; others take ATen's calls. A parameter without a gradient is left as it is, but for decay and
/// average, and its t does not count the step. Draws nothing.
///
/// state: save() and load(), by parameter, so that a file fits a model of another memory format.
class FusedAdam {
 public:
  template <ModuleModel Model>
  explicit FusedAdam(Model& model, const FusedAdamOptions& options = {}) : options_(options) {
    TORCH_CHECK(options.learning_rate() >= 0 && std::isfinite(options.learning_rate()),
                "FusedAdam: learning_rate must be finite and >= 0, got ", options.learning_rate());
    TORCH_CHECK(options.beta1() >= 0 && options.beta1() < 1, "FusedAdam: beta1 must be in [0, 1), got ",
                options.beta1());
    TORCH_CHECK(options.beta2() >= 0 && options.beta2() < 1, "FusedAdam: beta2 must be in [0, 1), got ",
                options.beta2());
    TORCH_CHECK(options.eps() >= 0, "FusedAdam: eps must be >= 0, got ", options.eps());
    const torch::NoGradGuard no_grad;
    std::vector<Tensor> values;
    for (const auto& item : mixmatch::detail::model_parameters(model)) {
      TORCH_CHECK(at::isFloatingType(item.tensor.scalar_type()), "FusedAdam: parameter ", item.name,
                  " must be floating-point, got ", item.tensor.scalar_type());
      parameters_.push_back({item.name, item.tensor, {}, {}, {}, 0});
      values.push_back(item.tensor);
    }
    const auto weights = mixmatch::detail::flat_copies(values);
    const auto first = mixmatch::detail::flat_copies(values), second = mixmatch::detail::flat_copies(values);
    for (size_t i = 0; i < parameters_.size(); ++i) {
      auto& parameter = parameters_[i];
      parameter.tensor.set_data(weights[i]);
      parameter.memory = weights[i];
      parameter.first_moment = first[i].zero_();
      parameter.second_moment = second[i].zero_();
      index_.emplace(parameter.tensor.unsafeGetTensorImpl(), i);
    }
  }
  FusedAdam(const FusedAdam&) = delete;
  FusedAdam& operator=(const FusedAdam&) = delete;
  FusedAdam(FusedAdam&&) = default;
  FusedAdam& operator=(FusedAdam&&) = default;

  /// Adam alone.
  void step() {
    const torch::NoGradGuard no_grad;
    run({}, {}, {}, 1.0);
  }

  /// Adam, decay of the model's kernels by `weight_decay` * learning rate, and ema.update(), in one pass.
  /// `ema` is that of the same model.
  template <class Model>
  void step(EmaModel<Model>& ema, double weight_decay) {
    TORCH_CHECK(weight_decay >= 0, "FusedAdam: weight_decay must be >= 0, got ", weight_decay);
    ema.update_with(weight_decay * options_.learning_rate(),
                    [this](const auto& live, const auto& average, const auto& shrink, double decay) {
                      run(live, average, shrink, decay);
                    });
  }

  /// Whether every gradient is finite. Waits for the device.
  bool gradients_are_finite() const {
    const torch::NoGradGuard no_grad;
    std::vector<mixmatch::detail::AdamTask> floats, doubles;
    bool finite = true;
    for (const auto& parameter : parameters_) {
      const Tensor gradient = parameter.tensor.grad();
      if (!gradient.defined()) {
        continue;
      }
      const auto task = fused_task(parameter, gradient);
      if (task.size < 0) {
        finite = finite && at::isfinite(gradient).all().item<bool>();
      } else {
        (gradient.scalar_type() == at::kFloat ? floats : doubles).push_back(task);
      }
    }
    return finite && mixmatch::detail::all_finite<float>(floats) &&
           mixmatch::detail::all_finite<double>(doubles);
  }

  /// Lets go of the gradients: the next backward pass hands over its own without adding.
  void zero_grad() {
    for (auto& parameter : parameters_) {
      parameter.tensor.mutable_grad().reset();
    }
  }

  const FusedAdamOptions& options() const { return options_; }
  /// For learning-rate schedules.
  void set_learning_rate(double learning_rate) {
    TORCH_CHECK(learning_rate >= 0 && std::isfinite(learning_rate),
                "FusedAdam: learning_rate must be finite and >= 0, got ", learning_rate);
    options_.learning_rate(learning_rate);
  }
  /// Calls of step().
  int64_t num_steps() const { return num_steps_; }

  void save(torch::serialize::OutputArchive& archive) const {
    Tensor steps = at::empty({static_cast<int64_t>(parameters_.size())}, at::kLong);
    for (size_t i = 0; i < parameters_.size(); ++i) {
      steps[static_cast<int64_t>(i)] = parameters_[i].num_steps;
    }
    archive.write("num_steps", c10::IValue(num_steps_));
    archive.write("parameter_steps", steps, /*is_buffer=*/true);
    archive.write("num_parameters", c10::IValue(static_cast<int64_t>(parameters_.size())));
    for (size_t i = 0; i < parameters_.size(); ++i) {
      archive.write("first_moment_" + std::to_string(i), parameters_[i].first_moment, /*is_buffer=*/true);
      archive.write("second_moment_" + std::to_string(i), parameters_[i].second_moment, /*is_buffer=*/true);
    }
  }

  /// Throws, changing nothing, if the archive is of other parameters or of another optimiser.
  void load(torch::serialize::InputArchive& archive) {
    const torch::NoGradGuard no_grad;
    c10::IValue steps, count;
    TORCH_CHECK(archive.try_read("num_steps", steps) && archive.try_read("num_parameters", count),
                "FusedAdam::load: the archive is not of this optimiser");
    TORCH_CHECK(count.toInt() == static_cast<int64_t>(parameters_.size()), "FusedAdam::load: the model has ",
                parameters_.size(), " parameters, the archive ", count.toInt());
    const int64_t num_steps = steps.toInt();
    Tensor parameter_steps;
    archive.read("parameter_steps", parameter_steps, /*is_buffer=*/true);
    parameter_steps = parameter_steps.cpu();
    std::vector<std::pair<Tensor, Tensor>> moments(parameters_.size());
    for (size_t i = 0; i < parameters_.size(); ++i) {
      for (const auto& [key, moment] : {std::pair<const char*, Tensor*>{"first_moment_", &moments[i].first},
                                        {"second_moment_", &moments[i].second}}) {
        archive.read(key + std::to_string(i), *moment, /*is_buffer=*/true);
        TORCH_CHECK(moment->sizes() == parameters_[i].tensor.sizes(),
                    "FusedAdam::load: ", parameters_[i].name, " has shape ", parameters_[i].tensor.sizes(),
                    ", in the archive ", moment->sizes());
      }
    }
    for (size_t i = 0; i < parameters_.size(); ++i) {
      parameters_[i].first_moment.copy_(moments[i].first);
      parameters_[i].second_moment.copy_(moments[i].second);
      parameters_[i].num_steps = parameter_steps[static_cast<int64_t>(i)].item<int64_t>();
    }
    num_steps_ = num_steps;
  }

 private:
  struct Parameter {
    std::string name;
    Tensor tensor;                               // the model's own handle
    Tensor memory, first_moment, second_moment;  // views of the flat blocks
    int64_t num_steps;                           // those that had a gradient
  };

  /// Whether two tensors of one shape lie alike in memory; strides of dimensions of size 1 mean nothing.
  static bool lie_alike(const Tensor& a, const Tensor& b) {
    for (int64_t d = 0; d < a.dim(); ++d) {
      if (a.size(d) != 1 && a.stride(d) != b.stride(d)) {
        return false;
      }
    }
    return a.sizes() == b.sizes();
  }

  /// A gradient lies as its parameter does, but for a user's own.
  static Tensor laid_out_like(const Tensor& gradient, const Tensor& parameter) {
    if (lie_alike(gradient, parameter) && gradient.scalar_type() == parameter.scalar_type()) {
      return gradient;
    }
    return at::empty_like(parameter).copy_(gradient);
  }

  /// The task of the fused pass; its size is -1 where there is none.
  static mixmatch::detail::AdamTask fused_task(const Parameter& parameter, const Tensor& gradient) {
    const auto type = parameter.memory.scalar_type();
    if (!mixmatch::detail::has_plain_memory(parameter.memory) ||
        !mixmatch::detail::has_plain_memory(gradient) || gradient.scalar_type() != type ||
        !lie_alike(gradient, parameter.memory) || (type != at::kFloat && type != at::kDouble)) {
      return {nullptr, nullptr, nullptr, nullptr, nullptr, -1, 1.0, 0.0, 1.0};
    }
    return {parameter.memory.data_ptr(),
            gradient.data_ptr(),
            parameter.first_moment.data_ptr(),
            parameter.second_moment.data_ptr(),
            nullptr,
            parameter.memory.numel(),
            1.0,
            0.0,
            1.0};
  }

  void run(const std::vector<Tensor>& live, const std::vector<Tensor>& average,
           const std::vector<double>& shrink, double decay) {
    const mixmatch::detail::AdamNumbers numbers{options_.learning_rate(), options_.beta1(), options_.beta2(),
                                                options_.eps()};
    for (const Parameter& parameter : parameters_) {
      TORCH_CHECK(parameter.tensor.data_ptr() == parameter.memory.data_ptr(), "FusedAdam: parameter ",
                  parameter.name,
                  " no longer lies in the optimiser's memory; make the optimiser after model->to(...) and "
                  "torch::load(model, ...)");
    }
    std::vector<int64_t> averaged(parameters_.size(), -1);  // by parameter: its place in `live`
    std::vector<bool> done(live.size(), false);
    for (size_t i = 0; i < live.size(); ++i) {
      const auto found = index_.find(live[i].unsafeGetTensorImpl());
      TORCH_CHECK(found != index_.end(), "FusedAdam: ema must be of the optimiser's own model");
      averaged[found->second] = static_cast<int64_t>(i);
    }
    ++num_steps_;
    std::vector<Tensor> gradients;  // copies, which must live as long as the tasks
    std::vector<mixmatch::detail::AdamTask> floats, doubles;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& parameter = parameters_[i];
      const Tensor given = parameter.tensor.grad();
      if (!given.defined()) {
        continue;
      }
      ++parameter.num_steps;
      gradients.push_back(laid_out_like(given, parameter.memory));
      auto task = fused_task(parameter, gradients.back());
      if (task.size < 0) {
        step_composite(parameter, gradients.back(), numbers);
        continue;
      }
      if (averaged[i] >= 0) {
        const auto at = static_cast<size_t>(averaged[i]);
        const Tensor& mean = average[at];
        if (mean.scalar_type() == parameter.memory.scalar_type() &&
            mixmatch::detail::has_plain_memory(mean) && lie_alike(mean, parameter.memory)) {
          task.shrink = shrink[at];
          if (decay != 1) {  // which leaves the average as it is
            task.average = mean.data_ptr();
            mean.unsafeGetTensorImpl()->bump_version();
          }
          done[at] = true;
        }
      }
      task.step_size = numbers.step_size(parameter.num_steps);
      task.root_correction = numbers.root_correction(parameter.num_steps);
      parameter.tensor.unsafeGetTensorImpl()->bump_version();
      (parameter.memory.scalar_type() == at::kFloat ? floats : doubles).push_back(task);
    }
    mixmatch::detail::adam_step<float>(floats, numbers, decay);
    mixmatch::detail::adam_step<double>(doubles, numbers, decay);
    // What the pass could not take along.
    std::vector<Tensor> rest_live, rest_average;
    std::vector<double> rest_shrink;
    for (size_t i = 0; i < live.size(); ++i) {
      if (!done[i]) {
        rest_live.push_back(live[i]);
        rest_average.push_back(average[i]);
        rest_shrink.push_back(shrink[i]);
      }
    }
    mixmatch::detail::decay_and_average_(rest_live, rest_average, rest_shrink, decay);
  }

  static void step_composite(Parameter& parameter, const Tensor& gradient,
                             const mixmatch::detail::AdamNumbers& numbers) {
    parameter.first_moment.mul_(numbers.beta1).add_(gradient, 1 - numbers.beta1);
    parameter.second_moment.mul_(numbers.beta2).addcmul_(gradient, gradient, 1 - numbers.beta2);
    const Tensor root =
        parameter.second_moment.sqrt().div_(numbers.root_correction(parameter.num_steps)).add_(numbers.eps);
    parameter.tensor.addcdiv_(parameter.first_moment, root, -numbers.step_size(parameter.num_steps));
  }

  FusedAdamOptions options_;
  std::vector<Parameter> parameters_;
  std::unordered_map<const c10::TensorImpl*, size_t> index_;
  int64_t num_steps_ = 0;
};

}  // namespace mixmatch::training
