#pragma once

#include <mixmatch/report/line_chart.hpp>
#include <mixmatch/run/metrics_table.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

namespace detail {

inline std::string metric_label(const std::string& column) {
  static const std::vector<std::pair<std::string, std::string>> labels = {
      {"loss", "total"},
      {"loss_labeled", "labeled"},
      {"loss_unlabeled", "unlabeled"},
      {"lambda_u", "lambda_u"},
      {"test_error", "test, raw weights"},
      {"ema_test_error", "test, EMA"},
      {"validation_error", "validation, EMA"},
      {"guess_confidence", "largest probability"},
      {"guess_accuracy", "share that is right"},
      {"guess_entropy", "of each row's guess, mean"},
      {"guess_class_entropy", "of the guessed classes"}};
  for (const auto& [name, label] : labels) {
    if (name == column) {
      return label;
    }
  }
  return column;
}

/// The losses differ by orders of magnitude: told apart on a logarithmic axis, where there is one.
inline bool wants_logarithm(const std::vector<Curve>& curves) {
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const auto& curve : curves) {
    for (const double y : curve.y) {
      if (std::isfinite(y)) {
        low = std::min(low, y);
        high = std::max(high, y);
      }
    }
  }
  return low > 0 && high > 30 * low;
}

}  // namespace detail

/// A chart for each kind of column: losses (loss, loss_*), errors in percent (*_error), lambda_u, guessed
/// labels (guess_confidence and guess_accuracy together, guess_entropy and guess_class_entropy), and one for
/// each column that is none of these. Losses stand on a logarithmic axis where they are all positive and
/// differ by more than 30 times; a loss that is 0 throughout is left out. Columns without a number are left
/// out.
inline std::vector<LineChart> metrics_charts(const MetricsTable& metrics) {
  std::vector<double> steps = metrics.column("step");
  const std::string x_label = steps.empty() ? "row" : "step";
  if (steps.empty()) {
    for (size_t i = 1; i <= metrics.rows.size(); ++i) {
      steps.push_back(static_cast<double>(i));
    }
  }
  LineChart loss{"Loss", x_label, "mean since the row before", {}};
  LineChart error{"Error", x_label, "percent", {}};
  LineChart weight{"Weight of the unlabeled loss", x_label, "", {}};
  LineChart guess{"Guessed labels", x_label, "mean over rows", {}};
  LineChart entropy{"Entropy of guessed labels", x_label, "nats", {}};
  std::vector<LineChart> others;
  for (const auto& column : metrics.columns) {
    Curve curve{detail::metric_label(column), steps, metrics.column(column)};
    const bool is_loss = column == "loss" || column.starts_with("loss_");
    const auto shown = [&](double y) { return std::isfinite(y) && !(is_loss && y == 0); };
    if (column == "step" || std::none_of(curve.y.begin(), curve.y.end(), shown)) {
      continue;
    }
    if (is_loss) {
      loss.curves.push_back(std::move(curve));
    } else if (column.ends_with("_error")) {
      error.curves.push_back(std::move(curve));
    } else if (column == "lambda_u") {
      weight.curves.push_back(std::move(curve));
    } else if (column == "guess_confidence" || column == "guess_accuracy") {
      guess.curves.push_back(std::move(curve));
    } else if (column == "guess_entropy" || column == "guess_class_entropy") {
      entropy.curves.push_back(std::move(curve));
    } else {
      others.push_back({column, x_label, "", {std::move(curve)}});
    }
  }
  loss.logarithmic = detail::wants_logarithm(loss.curves);
  std::vector<LineChart> charts{std::move(loss), std::move(error), std::move(weight), std::move(guess),
                                std::move(entropy)};
  charts.insert(charts.end(), others.begin(), others.end());
  charts.erase(std::remove_if(charts.begin(), charts.end(),
                              [](const LineChart& chart) { return chart.curves.empty(); }),
               charts.end());
  return charts;
}

}  // namespace mixmatch::training
