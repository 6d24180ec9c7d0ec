#pragma once

#include <mixmatch/methods/fixmatch.hpp>
#include <mixmatch/methods/ict.hpp>
#include <mixmatch/methods/mean_teacher.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/mixup.hpp>
#include <mixmatch/methods/pi_model.hpp>
#include <mixmatch/methods/pseudo_label.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/methods/uda.hpp>
#include <mixmatch/methods/vat.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/training_options.hpp>

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace mixmatch::training {

/// visit(name, make) for each method of methods/: `make()` is the method, set up by the options. All that the
/// programs know of a method, besides its preset (use_method_preset), is its line here.
template <class Visit>
void visit_methods(const TrainingOptions& o, Visit&& visit) {
  using namespace methods;
  visit("mixmatch", [&] { return MixMatch(mixmatch_options(o), ramped_loss_options(o), guess_filter(o)); });
  visit("supervised", [] { return Supervised(); });
  visit("pseudo_label", [&] { return PseudoLabel(o.threshold, ramped_loss_options(o)); });
  visit("pi_model", [&] { return PiModel(ramped_loss_options(o)); });
  visit("mean_teacher", [&] { return MeanTeacher(ramped_loss_options(o)); });
  visit("mixup", [&] { return MixUp(MixUpOptions().alpha(o.alpha), o.lambda_u); });
  visit("ict",
        [&] { return Ict(MixUpOptions().alpha(o.alpha).keep_dominant(false), ramped_loss_options(o)); });
  visit("vat", [&] {
    return Vat(VatOptions().radius(o.radius).entropy_weight(o.entropy_weight), ramped_loss_options(o));
  });
  visit("uda", [&] {
    return Uda(UdaOptions()
                   .temperature(o.temperature)
                   .threshold(o.threshold)
                   .weight(o.lambda_u)
                   .annealing(parse_annealing(o.annealing))
                   .total_steps(schedule_length(o)),
               guess_filter(o));
  });
  visit("fixmatch", [&] {
    return FixMatch(FixMatchOptions().threshold(o.threshold).weight(o.lambda_u), guess_filter(o));
  });
}

/// The names that with_method() knows.
inline std::vector<std::string> method_names() {
  std::vector<std::string> names;
  visit_methods(TrainingOptions(), [&names](const char* name, const auto&) { names.emplace_back(name); });
  return names;
}

/// use(method), with the method that o.method names.
template <class Use>
auto with_method(const TrainingOptions& o, Use&& use) {
  using Result = decltype(use(methods::Supervised()));
  std::optional<std::conditional_t<std::is_void_v<Result>, std::monostate, Result>> result;
  visit_methods(o, [&](const char* name, const auto& make) {
    if (o.method == name) {
      if constexpr (std::is_void_v<Result>) {
        use(make());
        result.emplace();
      } else {
        result.emplace(use(make()));
      }
    }
  });
  TORCH_CHECK(result.has_value(), "there is no method ", o.method);
  if constexpr (!std::is_void_v<Result>) {
    return std::move(*result);
  }
}

}  // namespace mixmatch::training
