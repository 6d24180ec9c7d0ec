#pragma once

#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/evaluation/confusion_matrix.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace mixmatch::training {

namespace detail {

/// The rows of known label without NaN, float64 on the CPU, and their labels.
struct KnownRows {
  Tensor values, labels;
};

inline KnownRows known_rows(const char* function, const char* name, const Tensor& values,
                            const Tensor& labels) {
  TORCH_CHECK(
      values.defined() && values.dim() == 2 && values.size(1) > 0 && at::isFloatingType(values.scalar_type()),
      function, ": ", name, " must be floating-point [N, L], got ", mixmatch::detail::type_and_sizes(values));
  check_class_indices(function, "labels", labels);
  TORCH_CHECK(labels.size(0) == values.size(0), function, ": ", name, " has ", values.size(0),
              " rows, labels ", labels.size(0));
  const Tensor all = values.detach().cpu().to(at::kDouble), truth = labels.cpu();
  const Tensor rows = truth.ne(-1).logical_and(all.isnan().any(1).logical_not()).nonzero().view(-1);
  KnownRows known{all.index_select(0, rows), truth.index_select(0, rows)};
  const Tensor outside =
      known.labels.masked_select(known.labels.lt(0).logical_or(known.labels.ge(values.size(1))));
  TORCH_CHECK(outside.numel() == 0, function, ": labels must be in [0, ", values.size(1), "), got ",
              outside[0].item<int64_t>());
  return known;
}

/// -inf, the logarithm of a probability that underflowed, as that of the smallest float32 below the row's
/// largest.
inline Tensor finite_logits(const Tensor& logits) {
  constexpr double smallest = -104;
  return at::max(logits, logits.amax(1, /*keepdim=*/true) + smallest);
}

}  // namespace detail

/// The predictions of which the confidence is in (low, high].
struct ReliabilityBin {
  double low = 0, high = 0;
  int64_t rows = 0;
  double confidence = 0, accuracy = 0;  ///< mean confidence; share that is right; NaN for a bin without rows
};

/// The predictions in `bins` intervals of equal width by confidence, a row's largest probability: what a
/// reliability diagram draws (Guo et al. 2017, arXiv 1706.04599, eqs. 1 and 2).
///
/// `probabilities`: floating-point [N, L], any device. `labels`: int64 [N], -1 = unknown. Rows without a
/// label and rows with a NaN are left out. Throws on other shapes and dtypes, on a label outside [0, L) and
/// on bins < 1.
inline std::vector<ReliabilityBin> reliability_bins(const Tensor& probabilities, const Tensor& labels,
                                                    int64_t bins = 15) {
  TORCH_CHECK(bins >= 1, "reliability_bins: bins must be >= 1, got ", bins);
  const auto known = detail::known_rows("reliability_bins", "probabilities", probabilities, labels);
  const auto [largest, predicted] = known.values.max(1);
  const Tensor confidence = largest.contiguous(), right = predicted.eq(known.labels).contiguous();
  const auto width = static_cast<double>(bins);
  std::vector<ReliabilityBin> result(static_cast<size_t>(bins));
  for (int64_t i = 0; i < confidence.size(0); ++i) {
    const double value = confidence.data_ptr<double>()[i];
    const auto place = static_cast<int64_t>(std::ceil(value * width)) - 1;
    auto& bin = result[static_cast<size_t>(std::clamp<int64_t>(place, 0, bins - 1))];
    ++bin.rows;
    bin.confidence += value;
    bin.accuracy += right.data_ptr<bool>()[i] ? 1 : 0;
  }
  for (size_t m = 0; m < result.size(); ++m) {
    auto& bin = result[m];
    bin.low = static_cast<double>(m) / width;
    bin.high = static_cast<double>(m + 1) / width;
    bin.confidence /= static_cast<double>(bin.rows);  // 0 / 0 is NaN
    bin.accuracy /= static_cast<double>(bin.rows);
  }
  return result;
}

/// Expected calibration error, in [0, 1] (the same paper, eq. 3): the mean over all rows of how far
/// confidence and accuracy of a row's bin differ,
///
///     ECE = sum_m |B_m| / n |accuracy(B_m) - confidence(B_m)|
///
/// NaN without rows. It grows with the noise of its bins: a few dozen rows of a perfectly calibrated model
/// give some percent.
inline double expected_calibration_error(const std::vector<ReliabilityBin>& bins) {
  double sum = 0;
  int64_t rows = 0;
  for (const auto& bin : bins) {
    if (bin.rows > 0) {
      sum += static_cast<double>(bin.rows) * std::abs(bin.accuracy - bin.confidence);
      rows += bin.rows;
    }
  }
  return sum / static_cast<double>(rows);
}

/// The same of reliability_bins(probabilities, labels, bins).
inline double expected_calibration_error(const Tensor& probabilities, const Tensor& labels,
                                         int64_t bins = 15) {
  return expected_calibration_error(reliability_bins(probabilities, labels, bins));
}

/// A temperature, and what it was fitted on.
struct TemperatureFit {
  double temperature = 1;
  bool fitted = false;     ///< false: the rows cannot tell, and the temperature is 1
  std::string why_not;     ///< why they cannot; empty where fitted
  int64_t rows = 0;        ///< rows of known label
  double loss_before = 0;  ///< mean negative log-likelihood in nats at temperature 1; NaN without rows
  double loss_after = 0;   ///< and at `temperature`
};

namespace detail {

/// Mean negative log-likelihood of softmax(b z), and its first and second derivative by b.
struct InverseTemperatureLoss {
  double value = 0, slope = 0, curvature = 0;
};

inline InverseTemperatureLoss inverse_temperature_loss(const KnownRows& known, double b) {
  const int64_t rows = known.values.size(0), classes = known.values.size(1);
  const auto* z = known.values.data_ptr<double>();
  const auto* label = known.labels.data_ptr<int64_t>();
  InverseTemperatureLoss loss;
  for (int64_t i = 0; i < rows; ++i, z += classes) {  // one after the other: the same with any threads
    const double largest = *std::max_element(z, z + classes);
    double sum = 0, first = 0, second = 0;
    for (int64_t k = 0; k < classes; ++k) {
      const double below = z[k] - largest, weight = std::exp(b * below);
      sum += weight;
      first += weight * below;
      second += weight * below * below;
    }
    const double mean = first / sum, truth = z[label[i]] - largest;
    loss.value += std::log(sum) - b * truth;
    loss.slope += mean - truth;
    loss.curvature += std::max(0.0, second / sum - mean * mean);
  }
  const auto count = static_cast<double>(rows);
  return {loss.value / count, loss.slope / count, loss.curvature / count};
}

}  // namespace detail

/// The temperature T in [1/20, 20] of least negative log-likelihood of softmax(logits / T) on held-out rows:
/// temperature scaling (Guo et al. 2017, section 4.2). T > 1 says that the model is too sure of itself.
/// Classes and so errors stay what they are.
///
/// `logits`: floating-point [N, L], any device; logarithms of probabilities are as good. `labels`: int64 [N],
/// -1 = unknown. Rows without a label and with a NaN are left out; -inf counts as 104 below the row's
/// largest. The loss is convex in 1/T: Newton's method in float64, kept in a bracket that shrinks; nothing is
/// drawn, and the result does not depend on the number of threads. T stays 1, and why_not says it, where the
/// rows cannot tell: less than `least_rows`, all of one class, or all right, where the likelihood grows with
/// confidence without end. Throws on other shapes and dtypes and on a label outside [0, L).
inline TemperatureFit fit_temperature(const Tensor& logits, const Tensor& labels, int64_t least_rows = 20) {
  auto known = detail::known_rows("fit_temperature", "logits", logits, labels);
  TemperatureFit fit;
  fit.rows = known.values.size(0);
  if (fit.rows == 0) {
    fit.why_not = "there are no held-out images with a label";
    fit.loss_before = fit.loss_after = std::numeric_limits<double>::quiet_NaN();
    return fit;
  }
  known.values = detail::finite_logits(known.values).contiguous();
  known.labels = known.labels.contiguous();
  const auto at_one = detail::inverse_temperature_loss(known, 1);
  fit.loss_before = fit.loss_after = at_one.value;
  if (fit.rows < least_rows) {
    fit.why_not = c10::str(fit.rows, " held-out image", fit.rows == 1 ? "" : "s", ", it takes ", least_rows);
  } else if (known.labels.eq(known.labels[0]).all().item<bool>()) {
    fit.why_not = "the held-out images are all of one class";
  } else if (known.values.argmax(1).eq(known.labels).all().item<bool>()) {
    fit.why_not = "the held-out images are all classified right";
  }
  if (!fit.why_not.empty()) {
    return fit;
  }
  constexpr double bound = 20;
  double low = 1 / bound, high = bound, b = 1;
  if (detail::inverse_temperature_loss(known, low).slope >= 0) {
    b = low;
  } else if (detail::inverse_temperature_loss(known, high).slope <= 0) {
    b = high;
  } else {
    for (int i = 0; i < 100; ++i) {
      const auto loss = detail::inverse_temperature_loss(known, b);
      (loss.slope < 0 ? low : high) = b;
      double next = b - loss.slope / loss.curvature;
      if (!(next > low && next < high)) {
        next = std::sqrt(low * high);
      }
      const double change = std::abs(next - b);
      b = next;
      if (change < 1e-12 * b) {
        break;
      }
    }
  }
  fit.fitted = true;
  fit.temperature = 1 / b;
  fit.loss_after = detail::inverse_temperature_loss(known, b).value;
  return fit;
}

/// softmax(log p / temperature) of each row, float64 on the probabilities' device: what fit_temperature() of
/// their logarithms is for. At temperature 1 they are what they were. See sharpen(), which is the same
/// formula for guessed labels. `probabilities`: floating-point [N, L]. Throws on other shapes and dtypes, and
/// on a temperature that is not a finite number > 0.
inline Tensor scale_temperature(const Tensor& probabilities, double temperature) {
  TORCH_CHECK(
      probabilities.defined() && probabilities.dim() == 2 && at::isFloatingType(probabilities.scalar_type()),
      "scale_temperature: probabilities must be floating-point [N, L], got ",
      mixmatch::detail::type_and_sizes(probabilities));
  TORCH_CHECK(temperature > 0 && std::isfinite(temperature),
              "scale_temperature: temperature must be a finite number > 0, got ", temperature);
  const Tensor p = probabilities.to(at::kDouble);
  return temperature == 1 || p.numel() == 0 ? p
                                            : at::softmax(detail::finite_logits(p.log()) / temperature, 1);
}

}  // namespace mixmatch::training
