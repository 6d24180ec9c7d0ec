#pragma once

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <mixmatch/detail/weight_copies.hpp>
#include <mixmatch/model.hpp>
#include <mixmatch/optim/optimizer.hpp>

#include <algorithm>
#include <functional>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// What autocast does for each weight of a convolution or linear layer, once in a forward pass and once more
/// for its gradient, done at once for all of them:
///
///     LowPrecisionWeights weights(model, optimizer);
///     {
///       const Autocast autocast(device, at::kBFloat16);
///       const auto scope = weights.use(at::kBFloat16);      // one conversion of the optimiser's block
///       loss = method(model, …);
///     }
///     { const auto scope = optimizer.keep_copies_gradients(); loss.backward(); }
///     optimizer.step();                                     // takes gradients of any precision
///
/// The same values as autocast's, whose rules for everything else hold on. Within use() the members `weight`
/// and `bias` of torch::nn's convolutions and linear layers (those very classes, not what derives from them)
/// are the copies; the parameters that modules register, and what lists them, are as always. Gradients go to
/// the parameters, with keep_copies_gradients() straight to the optimiser; those of several uses in the scope
/// add up in the copies' precision. Where an Autocast of another precision is entered inside, the layers have
/// their own weights for as long. Where average_parameters() of the optimiser's averages is entered with
/// gradient mode off, the layers have copies of the averages, by one conversion too, which take no gradient.
/// Frozen parameters, other modules and TorchScript are left to autocast. With `enabled` false all are. This,
/// model and optimiser must outlive the scope; one thread at a time.
class LowPrecisionWeights {
 public:
  template <ModuleModel Model>
  LowPrecisionWeights(Model& model, const Optimizer& optimizer, bool enabled = true)
      : optimizer_(&optimizer) {
    if constexpr (!mixmatch::detail::is_script_module<std::remove_const_t<Model>>) {
      const auto trained = enabled ? optimizer.parameters() : std::vector<Tensor>();
      mixmatch::detail::nn_module(model).apply([&](torch::nn::Module& module) {
        visit<torch::nn::LinearImpl, torch::nn::Conv1dImpl, torch::nn::Conv2dImpl, torch::nn::Conv3dImpl,
              torch::nn::ConvTranspose1dImpl, torch::nn::ConvTranspose2dImpl, torch::nn::ConvTranspose3dImpl>(
            module, trained);
      });
    }
  }

  /// Their number.
  size_t size() const { return places_.size(); }

  /// `type`: bfloat16 or half, autocast's; float32: the layers' own. To be entered where the parameters are
  /// the model's own: average_parameters() comes inside.
  [[nodiscard]] mixmatch::detail::WeightCopies use(at::ScalarType type) const {
    std::vector<mixmatch::detail::WeightCopies::Place> places;
    if (!places_.empty() && type != at::kFloat) {
      const auto copies = optimizer_->copies(type);
      for (const auto& [member, index] : places_) {
        places.push_back({member, copies[index]});
      }
    }
    const bool any = !places.empty();
    return {std::move(places), type, any ? [this, type] { return averages(type); } : Averages()};
  }

 private:
  struct Place {
    Tensor* member;
    size_t index;  // of the optimiser's parameters
  };
  using Averages = std::function<std::vector<mixmatch::detail::WeightCopies::Place>()>;

  /// Copies of the optimiser's averages, if these are what the parameters hold now.
  std::vector<mixmatch::detail::WeightCopies::Place> averages(at::ScalarType type) const {
    const auto own = optimizer_->averages();
    const bool held = !own.empty() && std::all_of(places_.begin(), places_.end(), [&](const Place& place) {
      return place.member->data_ptr() == own[place.index].data_ptr();
    });
    std::vector<mixmatch::detail::WeightCopies::Place> places;
    if (held) {
      const auto copies = optimizer_->copies_of_averages(type);
      for (const auto& [member, index] : places_) {
        places.push_back({member, copies[index]});
      }
    }
    return places;
  }

  template <class... Layers>
  void visit(torch::nn::Module& module, const std::vector<Tensor>& trained) {
    const auto visit_one = [&](auto* layer) {
      if (layer != nullptr) {
        add(layer->weight, trained);
        add(layer->bias, trained);
      }
    };
    (visit_one(typeid(module) == typeid(Layers) ? module.as<Layers>() : nullptr), ...);
  }

  void add(Tensor& member, const std::vector<Tensor>& trained) {
    const auto found = std::find_if(trained.begin(), trained.end(),
                                    [&](const Tensor& tensor) { return tensor.is_same(member); });
    const bool known = std::any_of(places_.begin(), places_.end(),
                                   [&](const Place& place) { return place.member == &member; });
    if (found != trained.end() && !known) {
      places_.push_back({&member, static_cast<size_t>(found - trained.begin())});
    }
  }

  const Optimizer* optimizer_;
  std::vector<Place> places_;
};

}  // namespace mixmatch::training
