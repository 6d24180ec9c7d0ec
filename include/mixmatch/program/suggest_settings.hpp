#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <mixmatch/presets.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// What settings can be told from before training.
struct DataFacts {
  std::vector<int64_t> class_counts;  ///< labeled images of each class
  int64_t unlabeled = 0;
  std::string method = "mixmatch";
  int64_t steps = 0, batch = 0;
};

/// A value for an option of that name, and why.
struct SuggestedSetting {
  std::string name, value, reason;
};

namespace detail {

/// Labeled images of the largest class for each of the smallest from which on classes count as unequal.
inline constexpr double kUnequal = 1.5;

}  // namespace detail

/// Settings that fit the data, where the papers' fit a million steps on ten equal classes; what is not named
/// stays as it is. A pure function; docs/GUIDE.md ("Choosing for your data") has the measurements behind it.
///
/// - lambda-u (mixmatch) = 75 L/10 sqrt(images / 2^20), at most 75 L/10: the loss is a mean over the L
///   classes, so the same weight pulls the harder the fewer they are; and a run of few images (steps times
///   batch; the papers' ramp has 2^20) has guesses that are worth less.
/// - rampup-steps (mixmatch) = steps: guesses are at chance in the beginning, and how long that lasts is not
///   known before; a ramp over the whole run gives them little weight until half of it is done.
/// - imbalance = balanced_batches where a class has 1.5 times the labeled images of another.
/// - alignment (mixmatch, uda, fixmatch) = labeled there, as the unlabeled images are then taken to be as
///   unequal as the labeled ones.
///
/// Throws on no class, a class without a labeled image, or steps or batch < 1.
inline std::vector<SuggestedSetting> suggest_settings(const DataFacts& facts) {
  const auto& counts = facts.class_counts;
  TORCH_CHECK(!counts.empty() && *std::min_element(counts.begin(), counts.end()) > 0,
              "suggest_settings: every class must have a labeled image");
  TORCH_CHECK(facts.steps >= 1 && facts.batch >= 1, "suggest_settings: steps and batch must be >= 1, got ",
              facts.steps, " and ", facts.batch);
  std::vector<SuggestedSetting> settings;
  if (facts.method == "mixmatch") {
    const auto classes = static_cast<double>(counts.size());
    const double images = static_cast<double>(facts.steps) * static_cast<double>(facts.batch);
    const double papers = static_cast<double>(presets::cifar10.rampup_steps * presets::cifar10.batch_size);
    const double weight =
        presets::cifar10.lambda_u * classes / 10 * std::min(1.0, std::sqrt(images / papers));
    // Two digits say all that there is to say.
    const double digit = std::pow(10, std::floor(std::log10(weight)) - 1);
    settings.push_back({"lambda-u", fmt::format("{:.6g}", std::round(weight / digit) * digit),
                        fmt::format("75 for ten classes and 2^20 images of training; here {} and {}",
                                    counts.size(), facts.steps * facts.batch)});
    settings.push_back({"rampup-steps", fmt::format("{}", facts.steps),
                        "over the whole run: the first guesses are no better than chance"});
  }
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  if (static_cast<double>(*most) >= detail::kUnequal * static_cast<double>(*least)) {
    const auto unequal = fmt::format("labeled classes have {} to {} images", *least, *most);
    settings.push_back({"imbalance", "balanced_batches", unequal});
    if (facts.unlabeled > 0 &&
        (facts.method == "mixmatch" || facts.method == "uda" || facts.method == "fixmatch")) {
      settings.push_back(
          {"alignment", "labeled", unequal + ", and those without a label are taken to be alike"});
    }
  }
  return settings;
}

}  // namespace mixmatch::training
