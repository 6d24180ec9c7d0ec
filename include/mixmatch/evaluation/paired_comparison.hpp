#pragma once

#include <mixmatch/evaluation/confusion_matrix.hpp>
#include <mixmatch/evaluation/proportion.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

namespace mixmatch::training {

/// Two-sided p-value of McNemar's exact test (McNemar 1947, with the binomial distribution in place of
/// chi-square) that two classifiers err equally often: of the images that just one of them gets right,
/// `first_only` were got right by the first and `second_only` by the second, each with probability 1/2.
///
///     min(1, 2 P(X <= min(first_only, second_only))),   X ~ Binomial(first_only + second_only, 1/2)
///
/// 1 where they never differ. Throws on a negative number.
inline double mcnemar_exact(int64_t first_only, int64_t second_only) {
  TORCH_CHECK(first_only >= 0 && second_only >= 0, "mcnemar_exact: numbers must be >= 0, got ", first_only,
              " and ", second_only);
  const int64_t total = first_only + second_only;
  // P(X <= k) = P(X >= total - k): the distribution is symmetric.
  return std::min(1.0, 2 * detail::binomial_upper_tail(std::max(first_only, second_only), total, 0.5));
}

/// Interval of the difference of two accuracies on the same images, first - second in [-1, 1] (Newcombe 1998,
/// Statistics in Medicine 17:2635, method 10): Wilson's intervals of both accuracies, squared and added with
/// the correlation phi of the two classifiers' successes, of which a positive numerator is reduced by n / 2.
///
/// The four numbers say how many of the images both, the first alone, the second alone and neither got right.
/// [-1, 1] without images. Throws on a negative number and a level outside (0, 1).
inline Interval newcombe_paired_interval(int64_t both, int64_t first_only, int64_t second_only,
                                         int64_t neither, double level = 0.95) {
  TORCH_CHECK(both >= 0 && first_only >= 0 && second_only >= 0 && neither >= 0,
              "newcombe_paired_interval: numbers must be >= 0, got ", both, ", ", first_only, ", ",
              second_only, " and ", neither);
  const int64_t total = both + first_only + second_only + neither;
  const auto first = wilson_interval(both + first_only, total, level);
  const auto second = wilson_interval(both + second_only, total, level);
  if (total == 0) {
    return {-1, 1};
  }
  const auto n = static_cast<double>(total);
  const double a = static_cast<double>(both), b = static_cast<double>(first_only),
               c = static_cast<double>(second_only), d = static_cast<double>(neither);
  const double p1 = (a + b) / n, p2 = (a + c) / n;
  const double margins = (a + b) * (c + d) * (a + c) * (b + d);
  double covariance = a * d - b * c;
  if (covariance > 0) {
    covariance = std::max(0.0, covariance - n / 2);
  }
  const double phi = margins > 0 ? covariance / std::sqrt(margins) : 0;
  const auto added = [&](double x, double y) {
    return std::sqrt(std::max(0.0, x * x - 2 * phi * x * y + y * y));
  };
  return {std::max(-1.0, p1 - p2 - added(p1 - first.low, second.high - p2)),
          std::min(1.0, p1 - p2 + added(first.high - p1, p2 - second.low))};
}

/// Two classifiers on the same held-out images.
struct PairedComparison {
  int64_t both = 0, first_only = 0, second_only = 0, neither = 0;  ///< images that they got right
  double difference = 0;  ///< accuracy of the first - accuracy of the second, in [-1, 1]; NaN without images
  Interval interval;      ///< newcombe_paired_interval of it
  double p_value = 1;     ///< mcnemar_exact
};

/// Compares predicted classes, int64 [N] of each classifier, with `labels`, int64 [N], -1 = unknown and left
/// out; any devices. Throws on other dtypes and lengths, and on a level outside (0, 1).
inline PairedComparison compare_predictions(const Tensor& labels, const Tensor& first, const Tensor& second,
                                            double level = 0.95) {
  for (const auto& [name, classes] :
       {std::pair<const char*, Tensor>{"labels", labels}, {"first", first}, {"second", second}}) {
    detail::check_class_indices("compare_predictions", name, classes);
    TORCH_CHECK(classes.size(0) == labels.size(0), "compare_predictions: labels has ", labels.size(0),
                " rows, ", name, " ", classes.size(0));
  }
  const Tensor truth = labels.cpu(), known = truth.ne(-1);
  const Tensor right = first.cpu().eq(truth), also = second.cpu().eq(truth);
  const auto count = [&](const Tensor& rows) { return rows.logical_and(known).sum().item<int64_t>(); };
  PairedComparison result;
  result.both = count(right.logical_and(also));
  result.first_only = count(right.logical_and(also.logical_not()));
  result.second_only = count(also.logical_and(right.logical_not()));
  result.neither = count(right.logical_or(also).logical_not());
  result.difference = static_cast<double>(result.first_only - result.second_only) /
                      static_cast<double>(known.sum().item<int64_t>());
  result.interval =
      newcombe_paired_interval(result.both, result.first_only, result.second_only, result.neither, level);
  result.p_value = mcnemar_exact(result.first_only, result.second_only);
  return result;
}

}  // namespace mixmatch::training
