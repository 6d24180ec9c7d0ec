#pragma once

#include <torch/arg.h>
#include <torch/serialize/archive.h>
#include <mixmatch/detail/cpu/optimizer_kernel.hpp>
#include <mixmatch/detail/cuda/cuda_optimizer.hpp>
#include <mixmatch/detail/update_rule.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/nn/kept_gradients.hpp>
#include <mixmatch/optim/flat_gradients.hpp>
#include <mixmatch/optim/flat_layout.hpp>
#include <mixmatch/optim/muon.hpp>
#include <mixmatch/optim/muon_kernels.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace mixmatch::training {

/// Their formulas and numbers are with their definitions.
using mixmatch::detail::AdamRule;
using mixmatch::detail::SgdRule;
using mixmatch::detail::UpdateRule;

struct OptimizerOptions {
  OptimizerOptions() = default;
  /* implicit */ OptimizerOptions(double learning_rate) : learning_rate_(learning_rate) {}

  TORCH_ARG(UpdateRule, rule) = AdamRule{};
  /// Kernels by Muon, all else by `rule`; none: everything by `rule`.
  TORCH_ARG(std::optional<MuonOptions>, muon) = std::nullopt;
  TORCH_ARG(double, learning_rate) = 2e-3;
  /// Decoupled, of kernels only: each step multiplies them by 1 - learning_rate * weight_decay.
  TORCH_ARG(double, weight_decay) = 0;
  /// L2 penalty, of kernels only: l2 * w joins their gradient.
  TORCH_ARG(double, l2) = 0;
  /// Factor on the learning rate, a function of the steps taken, int64 [], to float64 [] on the device, such
  /// as cosine_decay(); none: what learning_rate() holds.
  TORCH_ARG(std::function<Tensor(const Tensor&)>, schedule) = nullptr;
  /// Factor on the learning rate of a parameter, by its name, >= 0: smaller for a backbone with published
  /// weights than for a new head; none: 1.
  TORCH_ARG(std::function<double(const std::string&)>, rate_factor) = nullptr;
};

/// One update in the papers' order, after loss.backward(): the rule's step, decay of kernels (see
/// decay_weights()) and the moving average, in one pass over memory:
///
///     w <- rule(w, g),   w <- w (1 - lr weight_decay) for kernels,   lr = learning_rate rate_factor
///     average <- decay average + (1 - decay) w
///
/// what torch::optim::Adam or SGD, decay_weights() and EmaModel::update() do one after the other, equal to
/// rounding.
///
///     training::Optimizer optimizer(model, ema, training::OptimizerOptions(2e-3).weight_decay(0.02));
///     loss.backward();
///     optimizer.step();                             // lets go of the gradients
///
/// On construction the trainable parameters, their averages in `ema` and the rule's moments each move into
/// one block of memory; values, strides and names stay. So make it after model->to(...), to_channels_last()
/// and torch::load(model, ...), which replace that memory, and do not call ema.update() beside it. All
/// parameters float32, or all float64, of one device. On the CPU the pass is vectorised and its result does
/// not depend on the number of threads; on CUDA it is three kernels, which a graph can capture; elsewhere
/// ATen's calls. Muon adds its matrix products, whose rounding is LibTorch's. Every number that changes from
/// step to step is a tensor on the device.
///
/// A step whose gradients are not all finite changes nothing and is not counted. A parameter without a
/// gradient counts as one of gradient 0. Nothing waits for the device but synchronize(), save() and load().
/// Draws nothing. `ema` must stay where it is as long as the optimiser.
class Optimizer {
 public:
  template <ModuleModel Model>
  explicit Optimizer(Model& model, const OptimizerOptions& options = {})
      : Optimizer(options, std::nullopt, model, [](const Tensor&) { return Tensor(); }) {}

  template <ModuleModel Model>
  Optimizer(Model& model, EmaModel<Model>& ema, const OptimizerOptions& options = {})
      : Optimizer(options, ema.options(), model,
                  [&](const Tensor& parameter) { return ema.average_of(parameter); }) {
    TORCH_CHECK(ema.options().buffers() != EmaBuffers::average || steps_on_cpu(),
                "Optimizer: ema must copy or keep buffers; averaging them is not done on the device");
    set_num_updates_ = [&ema](int64_t updates) { ema.set_num_updates(updates); };
    num_updates_ = at::full({}, ema.num_updates(), num_steps_.options());
  }
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// One step by the parameters' gradients, which it lets go of. Returns bool [] on the device: whether every
  /// gradient was finite, and the step taken.
  Tensor step() {
    const torch::NoGradGuard no_grad;
    layout_.check_lie_in(flat_.parameters);
    gradients_.wait();
    if (options_.schedule()) {
      learning_rate_.copy_(options_.schedule()(num_steps_) * options_.learning_rate());
    }
    const Tensor finite = steps_on_cpu() ? step_on_cpu() : step_flat();
    drop_gradients();
    synchronized_ = false;
    if (steps_on_cpu() && finite.item<bool>()) {
      synchronize();
    }
    return finite;
  }

  /// Lets go of the parameters' and the copies' gradients, as step() does: those of a step that did not end.
  void drop_gradients() { gradients_.drop(); }

  /// A copy of each trained parameter in another precision, in their order (see parameters()), by one
  /// conversion of their block: what autocast makes one by one. Of float32 parameters. A copy's gradient goes
  /// to its parameter.
  std::vector<Tensor> copies(at::ScalarType type) const {
    std::vector<Tensor> list;
    Tensor block;
    {
      const torch::NoGradGuard no_grad;
      layout_.check_lie_in(flat_.parameters);
      block = flat_.parameters.to(type);
    }
    const auto& parameters = layout_.parameters();
    for (size_t i = 0; i < parameters.size(); ++i) {
      Tensor copy = parameters[i].view_in(block).variable_data();
      detail::connect_copy(copy, parameters[i].tensor, gradients_.kept(), i);
      list.push_back(std::move(copy));
    }
    return list;
  }

  /// The same of their moving averages, without gradient; none without an EmaModel.
  std::vector<Tensor> copies_of_averages(at::ScalarType type) const {
    const torch::NoGradGuard no_grad;
    return layout_.views_in(flat_.average.defined() ? flat_.average.to(type) : Tensor());
  }
  /// The averages themselves.
  std::vector<Tensor> averages() const { return layout_.views_in(flat_.average); }

  /// The trained parameters.
  std::vector<Tensor> parameters() const {
    std::vector<Tensor> list;
    for (const auto& parameter : layout_.parameters()) {
      list.push_back(parameter.tensor);
    }
    return list;
  }

  /// For a backward pass that step() follows: gradients of copies() do not become the parameters' own, each
  /// by a conversion, but are kept for step(), which takes all of them at once. With `overlap` weights'
  /// gradients of convolve() are computed on a second stream of a GPU, but for steps in which cuDNN measures
  /// its convolutions; step() and drop_gradients() wait for it. What up to eight of them read is held until
  /// then. Do not ask for a copy's own gradient, by autograd's grad() or a hook, within such a scope.
  class [[nodiscard]] GradientScope {
   public:
    GradientScope(detail::KeptGradients& kept, bool overlap) : kept_(&kept) {
      kept.open = true;
      kept.overlap = overlap;
    }
    GradientScope(const GradientScope&) = delete;
    GradientScope& operator=(const GradientScope&) = delete;
    ~GradientScope() { kept_->open = false; }

   private:
    detail::KeptGradients* kept_;
  };
  GradientScope keep_copies_gradients(bool overlap = false) {
    return GradientScope(*gradients_.kept(), overlap);
  }

  /// Whether the parameters are float32 on a device, where one call costs what many conversions do not.
  bool gains_by_copies() const { return !steps_on_cpu() && flat_.parameters.scalar_type() == at::kFloat; }

  /// Brings the EmaModel's count of updates, and its copies of buffers, up to date: before it is used or
  /// saved; on the CPU step() does. Returns the steps taken. Waits for the device.
  int64_t synchronize() {
    if (!set_num_updates_ || (synchronized_ && steps_on_cpu())) {  // a graph's steps are not seen here
      return num_steps_.item<int64_t>();
    }
    synchronized_ = true;
    const Tensor counts = at::stack({num_steps_, num_updates_}).cpu();
    set_num_updates_(counts[1].item<int64_t>());
    return counts[0].item<int64_t>();
  }

  /// Steps taken: int64 [] on the device, the optimiser's own.
  const Tensor& num_steps() const { return num_steps_; }
  /// float64 [] on the device; fill_() it, unless there is a schedule(), which sets it at each step. load()
  /// takes the archive's.
  const Tensor& learning_rate() const { return learning_rate_; }
  const OptimizerOptions& options() const { return options_; }

  /// All that step() changes.
  std::vector<Tensor> state() const {
    std::vector<Tensor> tensors{flat_.parameters, flat_.first_moment, num_steps_, learning_rate_};
    for (const Tensor* tensor : {&flat_.second_moment, &flat_.average, &num_updates_}) {
      if (tensor->defined()) {
        tensors.push_back(*tensor);
      }
    }
    for (const Tensor& momentum : muon_kernels_.state()) {
      tensors.push_back(momentum);
    }
    return tensors;
  }

  /// By parameter, so that a file fits a model of another memory format. Weights and averages are the model's
  /// and the EmaModel's own.
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("rule", c10::IValue(rule_name()));
    archive.write("num_steps", c10::IValue(num_steps_.item<int64_t>()));
    archive.write("learning_rate", c10::IValue(learning_rate_.item<double>()));
    if (num_updates_.defined()) {
      archive.write("num_updates", c10::IValue(num_updates_.item<int64_t>()));
    }
    archive.write("num_parameters", c10::IValue(static_cast<int64_t>(layout_.parameters().size())));
    for (const auto& [name, moment, parameter] : moments()) {
      archive.write(name, moment, /*is_buffer=*/true);
    }
  }

  /// Throws, changing nothing, if the archive is of other parameters or of
  /// another rule.
  void load(torch::serialize::InputArchive& archive) {
    const torch::NoGradGuard no_grad;
    c10::IValue rule, steps, rate, updates, count;
    TORCH_CHECK(archive.try_read("rule", rule) && archive.try_read("num_steps", steps) &&
                    archive.try_read("learning_rate", rate) && archive.try_read("num_parameters", count),
                "Optimizer::load: the archive is not of this optimiser");
    TORCH_CHECK(!num_updates_.defined() || archive.try_read("num_updates", updates),
                "Optimizer::load: the archive is of an optimiser without a moving average");
    TORCH_CHECK(rule.toStringRef() == rule_name(), "Optimizer::load: the archive is of the rule ",
                rule.toStringRef(), ", the optimiser's is ", rule_name());
    TORCH_CHECK(count.toInt() == static_cast<int64_t>(layout_.parameters().size()),
                "Optimizer::load: the model has ", layout_.parameters().size(), " parameters, the archive ",
                count.toInt());
    std::vector<std::pair<Tensor, Tensor>> loaded;  // place and value
    for (const auto& [name, place, parameter] : moments()) {
      Tensor moment;
      archive.read(name, moment, /*is_buffer=*/true);
      TORCH_CHECK(moment.sizes() == place.sizes(), "Optimizer::load: ", parameter, " has shape ",
                  place.sizes(), ", in the archive ", moment.sizes());
      loaded.emplace_back(place, moment);
    }
    for (auto& [place, value] : loaded) {
      place.copy_(value);
    }
    synchronized_ = false;
    num_steps_.fill_(steps.toInt());
    learning_rate_.fill_(rate.toDouble());
    if (num_updates_.defined()) {
      num_updates_.fill_(updates.toInt());
    }
  }

 private:
  static const OptimizerOptions& checked(const OptimizerOptions& options) {
    if (const auto& muon = options.muon()) {
      TORCH_CHECK(muon->momentum() >= 0 && muon->momentum() < 1,
                  "Optimizer: muon's momentum must be in [0, 1), got ", muon->momentum());
      TORCH_CHECK(muon->iterations() >= 1, "Optimizer: muon's iterations must be >= 1, got ",
                  muon->iterations());
    }
    TORCH_CHECK(options.learning_rate() >= 0 && std::isfinite(options.learning_rate()),
                "Optimizer: learning_rate must be finite and >= 0, got ", options.learning_rate());
    TORCH_CHECK(options.weight_decay() >= 0 && options.learning_rate() * options.weight_decay() <= 1,
                "Optimizer: weight_decay must be >= 0 and at most 1 / learning_rate, got ",
                options.weight_decay());
    TORCH_CHECK(options.l2() >= 0 && std::isfinite(options.l2()),
                "Optimizer: l2 must be finite and >= 0, got ", options.l2());
    if (const auto* adam = std::get_if<AdamRule>(&options.rule())) {
      TORCH_CHECK(adam->beta1 >= 0 && adam->beta1 < 1, "Optimizer: beta1 must be in [0, 1), got ",
                  adam->beta1);
      TORCH_CHECK(adam->beta2 >= 0 && adam->beta2 < 1, "Optimizer: beta2 must be in [0, 1), got ",
                  adam->beta2);
      TORCH_CHECK(adam->eps >= 0, "Optimizer: eps must be >= 0, got ", adam->eps);
    } else {
      const double momentum = std::get<SgdRule>(options.rule()).momentum;
      TORCH_CHECK(momentum >= 0 && momentum < 1, "Optimizer: momentum must be in [0, 1), got ", momentum);
    }
    return options;
  }

  /// Else in one block, by flat_step_().
  bool steps_on_cpu() const { return !gradients_.block().defined(); }
  bool is_adam() const { return std::holds_alternative<AdamRule>(options_.rule()); }
  std::string rule_name() const {
    return std::string(options_.muon().has_value() ? "muon and " : "") + (is_adam() ? "adam" : "sgd");
  }
  bool moves_by_muon(const detail::PlacedParameter& parameter) const {
    return parameter.is_kernel && options_.muon().has_value();
  }
  /// Of the rule; kernels that Muon moves it leaves alone.
  double rule_rate_factor(const detail::PlacedParameter& parameter) const {
    return moves_by_muon(parameter) ? 0 : parameter.rate_factor;
  }

  struct Moment {
    std::string name;  // in the archive
    Tensor place;
    std::string parameter;
  };
  std::vector<Moment> moments() const {
    std::vector<Moment> list;
    const auto& parameters = layout_.parameters();
    const auto add_block = [&](const char* name, const Tensor& block) {
      for (size_t i = 0; block.defined() && i < parameters.size(); ++i) {
        list.push_back({name + std::to_string(i), parameters[i].view_in(block), parameters[i].name});
      }
    };
    add_block("first_moment_", flat_.first_moment);
    add_block("second_moment_", flat_.second_moment);
    for (const auto& [parameter, momentum] : muon_kernels_.moments()) {
      list.push_back({"muon_momentum_" + std::to_string(parameter), momentum, parameters[parameter].name});
    }
    return list;
  }

  /// average_of(parameter): its moving average, undefined without an EmaModel.
  template <class Model, class AverageOf>
  Optimizer(const OptimizerOptions& options, std::optional<EmaModelOptions> ema_options, Model& model,
            const AverageOf& average_of)
      : options_(checked(options)),
        ema_options_(std::move(ema_options)),
        layout_(layout_of(model, average_of)),
        gradients_(layout_) {
    const torch::NoGradGuard no_grad;
    const at::TensorOptions& placed = layout_.options();
    flat_.parameters = layout_.new_block();
    flat_.first_moment = layout_.new_block();
    if (is_adam()) {
      flat_.second_moment = layout_.new_block();
    }
    if (ema_options_.has_value()) {
      flat_.average = layout_.new_block();
      average_decay_ = at::zeros({}, placed.dtype(at::kDouble));
    }
    num_steps_ = at::zeros({}, placed.dtype(at::kLong));
    learning_rate_ = at::full({}, options_.learning_rate(), placed.dtype(at::kDouble));
    layout_.move_into(flat_.parameters, flat_.average);
    flat_.gradients = gradients_.block();
    if (!steps_on_cpu()) {
      set_kernels_and_rates();
    }
    const auto& parameters = layout_.parameters();
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (moves_by_muon(parameters[i]) && parameters[i].tensor.numel() > 0) {
        muon_kernels_.add(i, parameters[i].view_in(flat_.parameters), parameters[i].rate_factor);
      }
    }
  }

  template <class Model, class AverageOf>
  detail::FlatLayout layout_of(Model& model, const AverageOf& average_of) const {
    const torch::NoGradGuard no_grad;
    const auto kernels = mixmatch::detail::model_kernels(model);
    detail::FlatLayout layout;
    for (const auto& item : mixmatch::detail::model_parameters(model)) {
      if (!item.tensor.requires_grad()) {
        continue;
      }
      const Tensor average = average_of(item.tensor);
      TORCH_CHECK(average.defined() == ema_options_.has_value(),
                  "Optimizer: ema must be of the same model, it does not average its parameter ", item.name);
      const bool is_kernel = std::any_of(kernels.begin(), kernels.end(),
                                         [&](const Tensor& kernel) { return kernel.is_same(item.tensor); });
      layout.add(item.name, item.tensor, average, is_kernel, rate_factor_of(item.name));
    }
    TORCH_CHECK(!layout.parameters().empty(), "Optimizer: the model has no trainable parameter");
    return layout;
  }

  double rate_factor_of(const std::string& name) const {
    const double factor = options_.rate_factor() ? options_.rate_factor()(name) : 1;
    TORCH_CHECK(
        factor >= 0 && std::isfinite(factor) &&
            factor * options_.learning_rate() * options_.weight_decay() <= 1,
        "Optimizer: rate_factor must be finite, >= 0 and at most 1 / (learning_rate weight_decay), got ",
        factor, " for ", name);
    return factor;
  }

  /// What flat_step_() reads of each parameter.
  void set_kernels_and_rates() {
    flat_.is_kernel = at::zeros({layout_.num_elements()}, layout_.options().dtype(at::kBool));
    for (const auto& parameter : layout_.parameters()) {
      if (parameter.is_kernel) {
        flat_.is_kernel.narrow(0, parameter.offset, parameter.tensor.numel()).fill_(true);
      }
    }
    if (options_.rate_factor() || options_.muon().has_value()) {
      constexpr int64_t alignment = detail::FlatLayout::alignment;
      flat_.rate_factors = at::ones({layout_.num_elements() / alignment}, layout_.options());
      for (const auto& parameter : layout_.parameters()) {
        flat_.rate_factors.narrow(0, parameter.offset / alignment, parameter.size / alignment)
            .fill_(rule_rate_factor(parameter));
      }
    }
  }

  Tensor step_on_cpu() {
    return flat_.parameters.scalar_type() == at::kFloat ? step_on_cpu<float>() : step_on_cpu<double>();
  }

  template <class Scalar>
  Tensor step_on_cpu() {
    const double rate = *learning_rate_.data_ptr<double>();
    const double decay = ema_options_.has_value() ? average_decay().template item<double>() : 1.0;
    std::vector<Tensor> gradients;  // which must live as long as the tasks
    std::vector<mixmatch::detail::UpdateTask> tasks;
    const auto at = [](const Tensor& block, const detail::PlacedParameter& parameter) -> void* {
      return block.defined() ? block.data_ptr<Scalar>() + parameter.offset : nullptr;
    };
    for (size_t i = 0; i < layout_.parameters().size(); ++i) {
      const detail::PlacedParameter& parameter = layout_.parameters()[i];
      Tensor gradient = gradients_.of(i);
      if (!gradient.defined()) {
        gradient = at::zeros({parameter.tensor.numel()}, flat_.parameters.options());
      }
      tasks.push_back(
          {at(flat_.parameters, parameter), gradient.data_ptr(), at(flat_.first_moment, parameter),
           at(flat_.second_moment, parameter), decay == 1 ? nullptr : at(flat_.average, parameter),
           parameter.tensor.numel(), rule_rate_factor(parameter),
           parameter.is_kernel ? 1 - rate * options_.weight_decay() * rule_rate_factor(parameter) : 1.0,
           parameter.is_kernel ? options_.l2() : 0.0});
      gradients.push_back(std::move(gradient));
    }
    const bool finite = mixmatch::detail::all_finite<Scalar>(tasks);
    if (finite) {
      step_by_muon([&] { return gradients; }, at::ones({}, at::kBool));
      const auto t = static_cast<double>(*num_steps_.data_ptr<int64_t>() + 1);
      mixmatch::detail::update<Scalar>(tasks, options_.rule(), rate, t, decay);
      for (const detail::PlacedParameter& parameter : layout_.parameters()) {  // autograd must see the change
        parameter.tensor.unsafeGetTensorImpl()->bump_version();
        if (parameter.average.defined()) {
          parameter.average.unsafeGetTensorImpl()->bump_version();
        }
      }
    }
    const Tensor result = at::full({}, finite, at::TensorOptions(at::kBool));
    count(result);
    return result;
  }

  Tensor step_flat() {
    const mixmatch::detail::FlatConstants constants{options_.rule(), options_.weight_decay(), options_.l2()};
    if (mixmatch::detail::has_cuda_memory(flat_.gradients) &&
        mixmatch::detail::cuda_kernels_available(flat_.gradients.device())) {
      const Tensor finite = at::empty({}, flat_.parameters.options().dtype(at::kBool));
      const Tensor steps_before = at::empty_like(num_steps_);
      mixmatch::detail::begin_step_on_cuda(gradients_.gather_by_kernel(),
                                           {finite, num_steps_, steps_before, num_updates_, average_decay_},
                                           ema_options_.has_value() ? ema_options_->decay() : 1.0,
                                           ema_options_.has_value() && ema_options_->warmup());
      step_by_muon([&] { return layout_.views_in(flat_.gradients); }, finite);
      mixmatch::detail::flat_step_(flat_, {steps_before, learning_rate_, average_decay_, finite}, constants);
      return finite;
    }
    gradients_.gather();
    // An overflowing sum of finite gradients counts as not finite.
    const Tensor finite = flat_.gradients.sum().isfinite();
    step_by_muon([&] { return layout_.views_in(flat_.gradients); }, finite);
    if (average_decay_.defined()) {
      average_decay_.copy_(average_decay());
    }
    mixmatch::detail::flat_step_(flat_, {num_steps_, learning_rate_, average_decay_, finite}, constants);
    count(finite);
    return finite;
  }

  /// gradients(): of all parameters, in their order.
  template <class Gradients>
  void step_by_muon(const Gradients& gradients, const Tensor& finite) {
    if (!muon_kernels_.empty()) {
      muon_kernels_.step(gradients(), finite, learning_rate_, *options_.muon(),
                         {options_.weight_decay(), options_.l2()});
    }
  }

  void count(const Tensor& finite) {
    num_steps_.add_(finite);
    if (num_updates_.defined()) {
      num_updates_.add_(finite);
    }
  }

  /// EmaModel's: min(decay, (1 + n) / (10 + n)) where it warms up.
  Tensor average_decay() const {
    const Tensor n = num_updates_.to(at::kDouble);
    return ema_options_->warmup() ? ((n + 1) / (n + 10)).clamp_max_(ema_options_->decay())
                                  : at::full_like(n, ema_options_->decay());
  }

  OptimizerOptions options_;
  std::optional<EmaModelOptions> ema_options_;
  detail::FlatLayout layout_;
  detail::FlatGradients gradients_;
  mixmatch::detail::FlatParameters flat_;
  detail::MuonKernels muon_kernels_;
  Tensor num_steps_, num_updates_, learning_rate_, average_decay_;
  std::function<void(int64_t)> set_num_updates_;
  bool synchronized_ = false;  // whether the EmaModel has seen the last step
};

}  // namespace mixmatch::training
