#pragma once

#include <torch/arg.h>
#include <torch/serialize/archive.h>
#include <mixmatch/detail/cpu/ema_kernel.hpp>
#include <mixmatch/detail/weight_copies.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/weight_decay.hpp>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch {

/// What the averaged model does with buffers, batch-norm running statistics above all.
enum class EmaBuffers {
  copy,     ///< takes the live model's at each update: averaged parameters with live statistics, as in the
            ///< papers
  average,  ///< averages floating-point buffers like parameters, copies the others
  keep      ///< keeps those it started with
};

struct EmaModelOptions {
  EmaModelOptions() = default;
  /* implicit */ EmaModelOptions(double decay) : decay_(decay) {}

  /// In [0, 1]: 0 follows the model, 1 never moves.
  TORCH_ARG(double, decay) = 0.999;
  TORCH_ARG(EmaBuffers, buffers) = EmaBuffers::copy;
  /// Uses min(decay, (1 + n) / (10 + n)) at the n-th update, so that a short run forgets its random start.
  /// Off in the papers.
  TORCH_ARG(bool, warmup) = false;
  /// Where the averages live; by default beside each parameter.
  TORCH_ARG(std::optional<torch::Device>, device) = std::nullopt;
};

/// Exponential moving average of a model's parameters, which MixMatch evaluates in place of a decayed
/// learning rate:
///
///     average <- decay * average + (1 - decay) * parameter          at each update()
///
/// Works on every model with parameters, clonable or not: it keeps a deep copy of the tensors, not of the
/// module, and lends them to the module for the length of a forward(). A tensor that a module holds under two
/// names counts once. Only trainable parameters are averaged: a frozen one (`requires_grad` false) stands as
/// the model has it. Averages of half-precision parameters are kept in float32, where a step of 1 - decay is
/// not rounded away. Parameters are any dtype and device and may carry gradients; nothing here records any.
/// Draws nothing.
///
/// Modules, ModuleHolders and TorchScript modules are shared with the caller; a module passed by reference
/// must outlive it.
template <class Model>
class EmaModel {
  static_assert(ModuleModel<Model>,
                "mixmatch: EmaModel needs a module with parameters, not a plain callable");

 public:
  explicit EmaModel(Model& model, const EmaModelOptions& options = {})
      : model_(reference(model)), options_(options) {
    TORCH_CHECK(options.decay() >= 0 && options.decay() <= 1, "EmaModel: decay must be in [0, 1], got ",
                options.decay());
    torch::NoGradGuard no_grad;
    const auto kernels = detail::model_kernels(model);
    for (auto& item : detail::model_parameters(model)) {
      parameters_.push_back(entry(std::move(item)));
      const Tensor& live = parameters_.back().live;
      is_kernel_.push_back(
          std::any_of(kernels.begin(), kernels.end(), [&](const Tensor& k) { return k.is_same(live); }));
    }
    for (auto& item : detail::model_buffers(model)) {
      buffers_.push_back(entry(std::move(item)));
    }
  }
  EmaModel(EmaModel&&) = default;
  EmaModel& operator=(EmaModel&&) = delete;
  EmaModel(const EmaModel&) = delete;
  EmaModel& operator=(const EmaModel&) = delete;

  /// Moves the averages towards the model's present parameters; buffers by policy.
  void update() { decay_weights_and_update(0); }

  /// decay_weights(model, rate) and then update(), in one pass over memory: the papers' order after the
  /// optimiser's step.
  void decay_weights_and_update(double rate) {
    TORCH_CHECK(rate >= 0 && rate <= 1, "EmaModel: weight decay rate must be in [0, 1], got ", rate);
    check_no_scope();
    torch::NoGradGuard no_grad;
    std::vector<Tensor> live, average;
    std::vector<double> shrink;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      const Tensor& current = parameters_[i].live;
      if (current.requires_grad()) {
        live.push_back(current);
        average.push_back(parameters_[i].average);
        shrink.push_back(is_kernel_[i] ? 1.0 - rate : 1.0);
      }
    }
    detail::decay_and_average_(live, average, shrink, current_decay());
    follow(num_updates_ + 1);
  }

  /// For an optimiser that moves the averages itself (training::Optimizer): they have had `num_updates`
  /// updates by now. Buffers by policy: to be averaged, they must be told of each update.
  void set_num_updates(int64_t num_updates) {
    TORCH_CHECK(num_updates >= 0, "EmaModel: num_updates must be >= 0, got ", num_updates);
    check_no_scope();
    torch::NoGradGuard no_grad;
    if (num_updates != num_updates_ || options_.buffers() == EmaBuffers::copy) {
      follow(num_updates);
    }
  }

  /// The model's output with averaged weights, in evaluation mode, without gradient. The model's own weights
  /// and modes are back when it returns.
  Tensor forward(const Tensor& input) {
    torch::NoGradGuard no_grad;
    auto scope = average_parameters();
    detail::EvaluationModeGuard evaluation(*model_);
    // A TorchScript graph that was optimised for training marks its output even here.
    return detail::call_model(*model_, input).detach();
  }

  /// Gives the model its own tensors back when it goes; made by average_parameters().
  class [[nodiscard]] Scope {
   public:
    explicit Scope(EmaModel& ema) : ema_(&ema) { ema_->enter(); }
    Scope(Scope&& other) noexcept : ema_(std::exchange(other.ema_, nullptr)) {}
    Scope& operator=(Scope&&) = delete;
    ~Scope() {
      if (ema_ != nullptr) {
        ema_->leave();
      }
    }

   private:
    EmaModel* ema_;
  };

  /// Puts the averages into the model until the scope ends; the model's mode is left alone. Scopes nest.
  /// Storage is swapped, not copied, so gradients, optimiser state and a pending backward pass of the live
  /// weights survive.
  Scope average_parameters() { return Scope(*this); }

  int64_t num_updates() const { return num_updates_; }
  const EmaModelOptions& options() const { return options_; }

  /// The averaged parameters, by the model's names.
  std::vector<std::pair<std::string, Tensor>> named_parameters() const {
    std::vector<std::pair<std::string, Tensor>> list;
    for (const auto& item : parameters_) {
      list.emplace_back(item.name, item.average);
    }
    return list;
  }

  /// The average of that very parameter of the model; undefined if the model has no such parameter.
  Tensor average_of(const Tensor& parameter) const {
    const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                    [&](const Entry& item) { return item.live.is_same(parameter); });
    return found != parameters_.end() ? found->average : Tensor();
  }

  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("num_updates", c10::IValue(num_updates_));
    write(archive, "parameter", parameters_);
    write(archive, "buffer", buffers_);
  }

  /// Throws, naming the first difference and changing nothing, if the archive is of a model with other names
  /// or shapes.
  void load(torch::serialize::InputArchive& archive) {
    torch::NoGradGuard no_grad;
    c10::IValue updates;
    archive.read("num_updates", updates);
    const auto parameters = read(archive, "parameter", parameters_);
    const auto buffers = read(archive, "buffer", buffers_);
    for (size_t i = 0; i < parameters.size(); ++i) {
      parameters_[i].average.copy_(parameters[i]);
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
      buffers_[i].average.copy_(buffers[i]);
    }
    num_updates_ = updates.toInt();
  }

 private:
  struct Entry {
    std::string name;
    Tensor live;  // the module's own handle
    Tensor average;
    Tensor set_aside;  // the live data while the averages are in the model
  };

  // Values are borrowed; holders, shared pointers, AnyModule and TorchScript modules are handles worth
  // keeping.
  static constexpr bool kBorrowed = detail::is_nn_module<std::remove_const_t<Model>>;
  using Reference = std::conditional_t<kBorrowed, Model*, std::shared_ptr<std::remove_const_t<Model>>>;

  static Reference reference(Model& model) {
    if constexpr (kBorrowed) {
      return &model;
    } else {
      return std::make_shared<std::remove_const_t<Model>>(model);
    }
  }

  Entry entry(detail::NamedTensor item) const {
    auto options = item.tensor.options();
    const auto type = item.tensor.scalar_type();
    if (type == at::kHalf || type == at::kBFloat16) {
      options = options.dtype(at::kFloat);
    }
    if (options_.device().has_value()) {
      options = options.device(*options_.device());
    }
    Tensor average = item.tensor.detach().to(options, /*non_blocking=*/false, /*copy=*/true);
    return {std::move(item.name), std::move(item.tensor), std::move(average), Tensor()};
  }

  double current_decay() const {
    if (!options_.warmup()) {
      return options_.decay();
    }
    const auto n = static_cast<double>(num_updates_);
    return std::min(options_.decay(), (1.0 + n) / (10.0 + n));
  }

  void check_no_scope() const {
    TORCH_CHECK(scopes_ == 0,
                "EmaModel: update() must not be called while average_parameters() is in effect");
  }

  /// What an update does beside averaging.
  void follow(int64_t num_updates) {
    for (const auto& item : parameters_) {
      if (!item.live.requires_grad()) {  // frozen
        item.average.copy_(item.live);
      }
    }
    update_buffers(current_decay());
    num_updates_ = num_updates;
  }

  void update_buffers(double decay) {
    if (options_.buffers() == EmaBuffers::keep) {
      return;
    }
    for (auto& item : buffers_) {
      if (options_.buffers() == EmaBuffers::average && at::isFloatingType(item.average.scalar_type())) {
        item.average.mul_(decay).add_(item.live.to(item.average.options()), 1.0 - decay);
      } else {
        item.average.copy_(item.live);
      }
    }
  }

  void enter() {
    if (scopes_ > 0) {
      ++scopes_;
      return;
    }
    std::vector<Tensor> values;  // all of them before anything has changed: a copy may throw
    for (auto* list : {&parameters_, &buffers_}) {
      for (const auto& item : *list) {
        values.push_back(item.average.to(item.live.options()));
      }
    }
    auto value = values.cbegin();
    for (auto* list : {&parameters_, &buffers_}) {
      for (auto& item : *list) {
        item.set_aside = item.live.tensor_data();
        item.live.set_data(*value++);
      }
    }
    scopes_ = 1;
    copies_ = detail::WeightCopies::in_use();
    if (copies_ != nullptr) {
      copies_->suspend();  // they are of the live weights
      if (!at::GradMode::is_enabled()) {
        try {
          copies_of_averages_ = copies_->in_averages_place();
        } catch (...) {  // no memory, say: the model is to have its own weights
          leave();
          throw;
        }
      }
    }
    detail::forget_autocast_copies();
  }

  void leave() {
    if (--scopes_ == 0) {
      copies_of_averages_.reset();
      for (auto* list : {&parameters_, &buffers_}) {
        for (auto& item : *list) {
          item.live.set_data(item.set_aside);
          item.set_aside = Tensor();
        }
      }
      if (copies_ != nullptr) {
        std::exchange(copies_, nullptr)->resume();
      }
      detail::forget_autocast_copies();
    }
  }

  static void write(torch::serialize::OutputArchive& archive, const std::string& kind,
                    const std::vector<Entry>& list) {
    c10::List<std::string> names;
    for (size_t i = 0; i < list.size(); ++i) {
      names.push_back(list[i].name);
      archive.write(kind + "_" + std::to_string(i), list[i].average, /*is_buffer=*/true);
    }
    archive.write(kind + "_names", c10::IValue(names));
  }

  static std::vector<Tensor> read(torch::serialize::InputArchive& archive, const std::string& kind,
                                  const std::vector<Entry>& list) {
    c10::IValue stored;
    archive.read(kind + "_names", stored);
    const auto names = stored.toListRef();
    TORCH_CHECK(names.size() == list.size(), "EmaModel::load: the model has ", list.size(), " ", kind,
                "s, the archive ", names.size());
    std::vector<Tensor> tensors(list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      TORCH_CHECK(names[i].toStringRef() == list[i].name, "EmaModel::load: expected ", kind, " ",
                  list[i].name, ", the archive has ", names[i].toStringRef());
      archive.read(kind + "_" + std::to_string(i), tensors[i], /*is_buffer=*/true);
      TORCH_CHECK(tensors[i].sizes() == list[i].average.sizes(), "EmaModel::load: ", kind, " ", list[i].name,
                  " has shape ", list[i].average.sizes(), ", in the archive ", tensors[i].sizes());
    }
    return tensors;
  }

  Reference model_;
  EmaModelOptions options_;
  std::vector<Entry> parameters_;
  std::vector<Entry> buffers_;
  std::vector<bool> is_kernel_;
  int64_t num_updates_ = 0;
  int scopes_ = 0;
  detail::WeightCopies* copies_ = nullptr;  // that the outermost scope suspended
  std::unique_ptr<detail::WeightCopies> copies_of_averages_;
};

/// For torch::save(ema, …) and torch::load(ema, …).
template <class Model>
torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                            const EmaModel<Model>& ema) {
  ema.save(archive);
  return archive;
}
template <class Model>
torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, EmaModel<Model>& ema) {
  ema.load(archive);
  return archive;
}

}  // namespace mixmatch
