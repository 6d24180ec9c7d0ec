#pragma once

#include <cmath>
#include <cstddef>
#include <deque>
#include <numeric>

namespace mixmatch::training {

/// Watches rows of metrics for guessed labels that run together into few classes: a model that believes its
/// own mistakes, becomes sure of them and says one class of everything.
///
///     if (collapse.add(guess_class_entropy, guess_confidence)) { … warn … }     // once a row
///
/// Means over `rows` rows tell: the entropy of the guessed classes is less than half of the highest that it
/// was, and the confidence higher than it was then. A model that learns unequal classes loses less of the
/// entropy, and random weights, which guess one class of everything before anything is learnt, are not sure.
class GuessCollapse {
 public:
  explicit GuessCollapse(size_t rows = 3) : rows_(rows) {}

  /// The next row; NaN leaves it out. True at the first row where the guesses have run together, and not
  /// again.
  bool add(double class_entropy, double confidence) {
    if (warned_ || std::isnan(class_entropy) || std::isnan(confidence)) {
      return false;
    }
    entropies_.push_back(class_entropy);
    confidences_.push_back(confidence);
    if (entropies_.size() < rows_) {
      return false;
    }
    if (entropies_.size() > rows_) {
      entropies_.pop_front();
      confidences_.pop_front();
    }
    now_ = {mean(entropies_), mean(confidences_)};
    if (now_.class_entropy > highest_.class_entropy) {
      highest_ = now_;
    }
    warned_ = now_.class_entropy < highest_.class_entropy / 2 && now_.confidence > highest_.confidence;
    return warned_;
  }

  struct Means {
    double class_entropy = 0, confidence = 0;
  };
  const Means& highest() const { return highest_; }  ///< when the classes' entropy was highest
  const Means& now() const { return now_; }

 private:
  static double mean(const std::deque<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }

  size_t rows_;
  std::deque<double> entropies_, confidences_;
  Means highest_, now_;
  bool warned_ = false;
};

}  // namespace mixmatch::training
