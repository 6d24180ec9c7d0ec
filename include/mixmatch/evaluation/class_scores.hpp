#pragma once

#include <mixmatch/evaluation/confusion_matrix.hpp>

#include <cstdint>
#include <limits>
#include <vector>

namespace mixmatch::training {

/// How well one class is found. What is a quotient of nothing by nothing is NaN; JsonObject writes it as
/// null, a report as a dash.
struct ClassScores {
  int64_t images = 0, predicted = 0;  ///< of that true class; put into it
  double precision = 0;               ///< TP / predicted; NaN for a class that is never predicted
  double recall = 0;                  ///< TP / images; NaN for a class without images
  double f1 = 0;                      ///< 2 TP / (images + predicted); NaN only where both are 0
};

/// Precision, recall and F1 of each class, in [0, 1], from a confusion matrix int64 [L, L] (rows are true
/// classes, columns predicted ones). See per_class_error for 1 - recall in percent. Throws on other shapes
/// and dtypes.
inline std::vector<ClassScores> class_scores(const Tensor& confusion) {
  detail::check_confusion("class_scores", confusion);
  const Tensor counts = confusion.cpu().contiguous();
  const int64_t classes = counts.size(0);
  const auto* count = counts.data_ptr<int64_t>();
  const auto ratio = [](int64_t part, int64_t whole) {
    return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole)
                     : std::numeric_limits<double>::quiet_NaN();
  };
  std::vector<ClassScores> scores(static_cast<size_t>(classes));
  for (int64_t i = 0; i < classes; ++i) {
    for (int64_t j = 0; j < classes; ++j) {
      scores[static_cast<size_t>(i)].images += count[i * classes + j];
      scores[static_cast<size_t>(j)].predicted += count[i * classes + j];
    }
  }
  for (int64_t i = 0; i < classes; ++i) {
    auto& score = scores[static_cast<size_t>(i)];
    const int64_t right = count[i * classes + i];
    score.precision = ratio(right, score.predicted);
    score.recall = ratio(right, score.images);
    score.f1 = ratio(2 * right, score.images + score.predicted);
  }
  return scores;
}

/// Mean recall over the classes that have images, in [0, 1]: what a classifier that always says the same
/// class cannot raise above 1 / L, however unequal the classes are. NaN for a matrix without images. Throws
/// as class_scores().
inline double balanced_accuracy(const Tensor& confusion) {
  double sum = 0;
  int64_t classes = 0;
  for (const auto& score : class_scores(confusion)) {
    if (score.images > 0) {
      sum += score.recall;
      ++classes;
    }
  }
  return classes > 0 ? sum / static_cast<double>(classes) : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace mixmatch::training
