#pragma once

#include <mixmatch/evaluation/calibration.hpp>
#include <mixmatch/evaluation/proportion.hpp>

#include <cstdint>
#include <limits>
#include <optional>

namespace mixmatch::training {

/// From which confidence on predictions are as often right as is wanted.
struct AcceptanceThreshold {
  double confidence = 0;  ///< a prediction of at least this confidence is accepted; the others abstain
  int64_t rows = 0, accepted = 0, right = 0;  ///< held-out rows; of them accepted; of these right
  double precision_bound = 0;                 ///< lower bound of the precision of what is accepted
};

/// The lowest confidence at which held-out predictions show a precision of at least `target_precision`:
/// selective prediction, or classification with a reject option (Geifman and El-Yaniv 2017, arXiv
/// 1705.08500). Of all thresholds at which the one-sided lower bound of the accepted rows' precision
/// (Clopper-Pearson, at `level`) reaches the target it is the one that accepts most. nullopt where there is
/// none, for lack of precision or of rows: to show .95 takes 59 rows that are all right, .9 takes 29, .99
/// takes 299.
///
/// The bound is exact for one threshold chosen beforehand, and the best of many looks a little better than it
/// is; calibration_test.cpp draws 400 sets of 300 rows, and of the 274 thresholds found 21 miss the target.
/// It holds for pictures like the held-out ones, and no others.
///
/// `probabilities`: floating-point [N, L], any device; `labels`: int64 [N], -1 = unknown. Rows without a
/// label and with a NaN are left out; rows of equal confidence are accepted together. Throws on other shapes
/// and dtypes, a label outside [0, L), a target outside [0, 1] and a level outside (0, 1).
inline std::optional<AcceptanceThreshold> acceptance_threshold(const Tensor& probabilities,
                                                               const Tensor& labels, double target_precision,
                                                               double level = 0.95) {
  TORCH_CHECK(target_precision >= 0 && target_precision <= 1,
              "acceptance_threshold: target_precision must be in [0, 1], got ", target_precision);
  TORCH_CHECK(level > 0 && level < 1, "acceptance_threshold: level must be in (0, 1), got ", level);
  const auto known = detail::known_rows("acceptance_threshold", "probabilities", probabilities, labels);
  const auto [largest, predicted] = known.values.max(1);
  const auto [sorted, order] = largest.sort(/*stable=*/true, /*dim=*/0, /*descending=*/true);
  const Tensor right = predicted.eq(known.labels).index_select(0, order);
  const auto* confidence = sorted.data_ptr<double>();
  const auto* is_right = right.data_ptr<bool>();
  const int64_t rows = sorted.size(0);
  std::optional<AcceptanceThreshold> best;
  int64_t rights = 0;
  for (int64_t i = 0; i < rows; ++i) {
    rights += is_right[i] ? 1 : 0;
    const bool tied = i + 1 < rows && confidence[i + 1] == confidence[i];
    // The bound reaches the target where so many right rows are improbable at the target.
    if (!tied && detail::binomial_upper_tail(rights, i + 1, target_precision) <= 1 - level) {
      best = AcceptanceThreshold{confidence[i], rows, i + 1, rights, 0};
    }
  }
  if (best.has_value()) {
    best->precision_bound = clopper_pearson_lower(best->right, best->accepted, level);
  }
  return best;
}

/// How a classifier's probabilities are to be read, as held-out images tell it; a saved classifier has it.
struct ConfidenceRule {
  /// For scale_temperature(); 1 where none could be fitted.
  double temperature = 1;
  /// Confidence at that temperature from which on a prediction is accepted: infinity where none is, nullopt
  /// where nothing was held out that could tell.
  std::optional<double> threshold;
  double target_precision = 0.95;  ///< of what is accepted
};

/// A rule, and how it came about.
struct ConfidenceRuleFit {
  ConfidenceRule rule;
  TemperatureFit temperature;
  std::optional<AcceptanceThreshold> acceptance;  ///< nullopt: the target cannot be shown
};

/// The rule that held-out predictions tell: fit_temperature(), then acceptance_threshold() at that
/// temperature. Takes and throws what these do.
inline ConfidenceRuleFit fit_confidence_rule(const Tensor& probabilities, const Tensor& labels,
                                             double target_precision) {
  ConfidenceRuleFit fit;
  fit.rule.target_precision = target_precision;
  fit.temperature = fit_temperature(probabilities.to(at::kDouble).log(), labels);
  fit.rule.temperature = fit.temperature.temperature;
  if (fit.temperature.rows > 0) {
    fit.acceptance = acceptance_threshold(scale_temperature(probabilities, fit.rule.temperature), labels,
                                          target_precision);
    fit.rule.threshold =
        fit.acceptance.has_value() ? fit.acceptance->confidence : std::numeric_limits<double>::infinity();
  }
  return fit;
}

}  // namespace mixmatch::training
