#pragma once

#include <torch/types.h>
#include <mixmatch/training/guess_quality.hpp>

#include <limits>
#include <string>
#include <vector>

namespace mixmatch::training {

/// What a step of semi-supervised training has to say of itself: its loss, scalars on any device, and how
/// good the guessed labels were.
struct StepLoss {
  Tensor total, labeled, unlabeled;
  double weight = 0;  ///< of the unlabeled loss
  GuessQuality guesses{std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN(),
                       std::numeric_limits<double>::quiet_NaN()};
  bool finite = true;  ///< whether every gradient was
  /// For means over several steps: of how many numbers each of values() is the mean; empty: of one.
  std::vector<double> counts;

  /// The columns of metrics.csv that values() fills.
  static std::vector<std::string> columns() {
    return {"loss",          "loss_labeled",  "loss_unlabeled", "lambda_u", "guess_confidence",
            "guess_entropy", "guess_accuracy"};
  }
  std::vector<double> values() const {
    return {total.item<double>(),
            labeled.item<double>(),
            unlabeled.defined() ? unlabeled.item<double>() : 0,
            weight,
            guesses.mean_max_probability,
            guesses.mean_entropy,
            guesses.accuracy};
  }
};

}  // namespace mixmatch::training
