#pragma once

// A report as a real run would leave it: metrics of many rows, pictures of shapes, and names that HTML must
// escape.

#include <mixmatch/data/shapes.hpp>
#include <mixmatch/report/report.hpp>

#include <cmath>
#include <limits>

#include "test_util.hpp"

/// Metrics of `rows` rows, 50 steps apart, with an evaluation at every 20th.
inline mixmatch::training::MetricsTable sample_metrics(int64_t rows) {
  const double none = std::numeric_limits<double>::quiet_NaN();
  mixmatch::training::MetricsTable table;
  table.columns = {"step",           "loss",           "loss_labeled",
                   "loss_unlabeled", "lambda_u",       "validation_error",
                   "test_error",     "ema_test_error", "guess_confidence",
                   "guess_entropy",  "guess_accuracy", "learning_rate"};
  for (int64_t i = 1; i <= rows; ++i) {
    const double step = 50 * static_cast<double>(i);
    const double learned = 1 - std::exp(-4 * static_cast<double>(i) / static_cast<double>(rows));
    const double noise = std::sin(static_cast<double>(i * i));
    const double weight = 75 * std::min(1.0, step / 16384);
    const double labeled = 2.3 - 1.7 * learned + 0.06 * noise,
                 unlabeled = 0.02 + 0.05 * learned + 0.003 * noise;
    const bool evaluated = i % 20 == 0 || i == rows;
    table.rows.push_back({step, labeled + weight * unlabeled / 10, labeled, unlabeled, weight, none,
                          evaluated ? 90 - 75 * learned + 2 * noise : none,
                          evaluated ? 90 - 81 * learned : none, 0.3 + 0.6 * learned + 0.02 * noise,
                          1.9 - 1.7 * learned, 0.2 + 0.7 * learned, 0.002});
  }
  return table;
}

/// Probabilities that mostly say the label, and sometimes something else with confidence.
inline mixmatch::training::Tensor sample_probabilities(const mixmatch::training::Tensor& labels,
                                                       int64_t classes) {
  const auto generator = seeded(7);
  const auto noise = torch::randn({labels.size(0), classes}, generator);
  return torch::softmax(3.2 * torch::one_hot(labels, classes) + 1.4 * noise, 1);
}

inline mixmatch::training::Report sample_report(int64_t metric_rows = 400) {
  using namespace mixmatch;
  auto test = data::make_shapes(2000, 5);
  test.class_names[3] = "star & <b>moon</b>";
  test.class_names[7] =
      "\"h\xC3\xA9"
      "art\"";
  const auto probabilities = sample_probabilities(test.labels, test.num_classes());
  training::Report report;
  report.title = "MixMatch, 250 labels <seed 1>";
  report.summary = {{"test error (EMA)", "9.31 %"},
                    {"test error (raw)", "15.02 %"},
                    {"median of the last 20", "9.44 %"},
                    {"steps", "20,000"},
                    {"seconds per step", "0.0671"}};
  report.config = {{"method", "mixmatch"},
                   {"labels", "250"},
                   {"validation", "1"},
                   {"steps", "20000"},
                   {"batch", "64"},
                   {"seed", "1"},
                   {"depth", "28"},
                   {"widen", "2"},
                   {"precision", "bf16"},
                   {"lr", "0.002"},
                   {"weight-decay", "0.02"},
                   {"lambda-u", "75"},
                   {"rampup-steps", "16384"},
                   {"alpha", "0.75"},
                   {"temperature", "0.5"},
                   {"num-augmentations", "2"},
                   {"mix-mode", "xxy.yxy"},
                   {"ema-decay", "0.999"},
                   {"debias", "true"},
                   {"eval-every", "1024"},
                   {"data", "/data/<cifar> & \"friends\"/cifar-10-batches-bin"},
                   {"device", "cuda"}};
  report.metrics = sample_metrics(metric_rows);
  report.confusion = training::confusion_matrix(test.labels, probabilities.argmax(1), test.num_classes());
  report.reliability = training::reliability_bins(probabilities, test.labels);
  report.temperature = training::fit_temperature(probabilities.log(), test.labels).temperature;
  report.reliability_scaled =
      training::reliability_bins(training::scale_temperature(probabilities, report.temperature), test.labels);
  report.class_names = test.class_names;
  report.wrong_examples = training::wrong_examples(test, probabilities, 18);
  report.wrong_examples[0].name = "shapes/a<b>&c.png";
  return report;
}

/// The same with a hundred classes, as CIFAR-100 has.
inline mixmatch::training::Report sample_report_100() {
  using namespace mixmatch;
  training::Report report = sample_report();
  const auto labels = torch::arange(10000, torch::kLong).remainder(100);
  report.title = "A hundred classes";
  report.confusion = training::confusion_matrix(labels, sample_probabilities(labels, 100).argmax(1), 100);
  report.class_names.clear();
  for (int i = 0; i < 100; ++i) {
    report.class_names.push_back("class number " + std::to_string(i));
  }
  report.wrong_examples.resize(6);
  for (auto& example : report.wrong_examples) {
    example.truth *= 10;
  }
  return report;
}
