#pragma once

#include <fmt/format.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/csv.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/evaluation/calibration.hpp>
#include <mixmatch/evaluation/class_scores.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>
#include <mixmatch/evaluation/confident_errors.hpp>
#include <mixmatch/evaluation/confusion_matrix.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/evaluation/test_time_flips.hpp>
#include <mixmatch/evaluation/update_bn.hpp>
#include <mixmatch/nn/sync_batch_norm.hpp>
#include <mixmatch/program/classifier_file.hpp>
#include <mixmatch/program/error_text.hpp>
#include <mixmatch/program/review.hpp>
#include <mixmatch/program/run_tensors.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/report/report.hpp>
#include <mixmatch/run/json.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/run_evaluation.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace mixmatch::training {

namespace detail {

struct RecalibratedErrors {
  double raw = std::numeric_limits<double>::quiet_NaN(), averaged = raw;
};

/// Errors of both sets of weights with batch-norm statistics recomputed for them; the model is left as it
/// was.
template <class Model>
RecalibratedErrors recalibrated_errors(TrainState<Model>& state, const data::ImageDataset& judged,
                                       const TrainingData& data, int64_t num_images,
                                       const EvaluateOptions& options) {
  RecalibratedErrors errors;
  if (num_images == 0 || judged.size() == 0) {
    return errors;
  }
  const Tensor trained = torch::cat({data.split.labeled, data.split.unlabeled});
  const auto gather = [&](const Tensor& rows) {
    return augment::normalize(data.pool.gather(trained.index_select(0, rows)).to(options.device()),
                              options.normalization());
  };
  const auto recalibrate = UpdateBnOptions()
                               .num_images(num_images)
                               .batch_size(options.batch_size())
                               .precision(options.precision())
                               .device(options.device());
  {
    UpdatedBatchNorm recalibration(state.model, trained.size(0), gather, recalibrate);
    errors.raw = evaluate_model(state.model, judged, options);
  }
  auto average = state.ema.average_parameters();
  UpdatedBatchNorm recalibration(state.model, trained.size(0), gather, recalibrate);
  errors.averaged = evaluate_model(state.model, judged, options);
  return errors;
}

inline std::string confusion_csv(const Tensor& confusion, const std::vector<std::string>& class_names) {
  std::string text = "true \\ predicted";
  for (const auto& name : class_names) {
    text += "," + mixmatch::detail::csv_cell(name);
  }
  text += "\n";
  for (int64_t row = 0; row < confusion.size(0); ++row) {
    text += mixmatch::detail::csv_cell(class_names[static_cast<size_t>(row)]);
    for (int64_t column = 0; column < confusion.size(1); ++column) {
      text += fmt::format(",{}", confusion[row][column].item<int64_t>());
    }
    text += "\n";
  }
  return text;
}

/// The last share of unlabeled rows that a run left out as of no class; NaN where it has no gate.
inline double last_open_set_rate(const MetricsTable& metrics) {
  const auto rates = metrics.column("open_set_rate");
  return rates.empty() ? std::numeric_limits<double>::quiet_NaN() : rates.back();
}

/// Whether confidences are calibrated, and by what.
inline std::string confidence_text(const ConfidenceRuleFit& fit) {
  return fit.temperature.fitted ? fmt::format("calibrated on {} validation images", fit.temperature.rows)
                                : "not calibrated: " + fit.temperature.why_not;
}

/// What a program says of its threshold.
inline std::string acceptance_text(const ConfidenceRuleFit& fit) {
  const auto target = fmt::format("precision {}", fit.rule.target_precision);
  if (!fit.acceptance.has_value()) {
    return fmt::format("{} cannot be shown with {} held-out images: every prediction abstains", target,
                       fit.temperature.rows);
  }
  return fmt::format(
      "{} is shown from confidence {:.4f} on: {} of {} held-out images, {} of them right; others abstain",
      target, fit.acceptance->confidence, fit.acceptance->accepted, fit.acceptance->rows,
      fit.acceptance->right);
}

}  // namespace detail

namespace detail {

template <class Model>
int finish_run_alone(TrainingRun& run, const TrainingOptions& o, TrainState<Model>& state,
                     const TrainingData& data, RunEvaluation<Model>& evaluation, RunTensors* shared) {
  const auto& class_names = data.pool.class_names;
  const auto options = EvaluateOptions(evaluation.options()).processes(nullptr);
  const auto classes = static_cast<int64_t>(class_names.size());
  const auto averaged = [&](const Tensor& images) { return evaluation.averaged(images); };
  const auto predict = [&](const data::ImageDataset& images) {
    return images.size() == 0 ? at::empty({0, classes}) : predict_probabilities(averaged, images, options);
  };
  const Tensor held_out = predict(data.validation);
  if (shared != nullptr) {
    shared->held_out_probabilities = held_out;
  }
  const auto confidence = fit_confidence_rule(
      held_out, data.validation.size() == 0 ? at::empty({0}, at::kLong) : data.validation.labels,
      o.target_precision);
  models::save_classifier(run.directory().weights(), state.model, state.ema, class_names,
                          data.pool.image_size(), confidence.rule, data.fit);
  const auto last = [&](const std::string& column) {
    const auto errors = run.errors(column);
    return errors.empty() ? std::numeric_limits<double>::quiet_NaN() : errors.back();
  };
  const double test_error = last("test_error"), ema_error = last("ema_test_error");
  const auto ema_errors = run.errors("ema_test_error");
  const double median = median_of_last(ema_errors, 20);
  const bool has_test = data.test.size() > 0;
  const auto& judged = has_test ? data.test : data.validation;
  const auto recalibrated = detail::recalibrated_errors(state, judged, data, o.recalibrate, options);

  const double flipped = o.test_time_flips && judged.size() > 0
                             ? error_percent(with_test_time_flips(averaged), judged, options)
                             : std::numeric_limits<double>::quiet_NaN();

  const double validation_error = last("validation_error");
  const std::string kind = has_test ? "test" : "validation";
  const std::string judged_error_name = has_test ? "ema_test_error" : "validation_error";
  const double judged_error = has_test ? ema_error : validation_error;
  const auto interval = error_interval(judged_error, judged.size());
  auto summary = JsonObject()
                     .set("method", o.method)
                     .set("seed", o.seed)
                     .set("labels", data.split.labeled.size(0))
                     .set("steps", state.step)
                     .set("test_error", test_error)
                     .set("ema_test_error", ema_error)
                     .set("median_last20_test_error", median)
                     .set("validation_error", validation_error)
                     .set("recalibrated_" + kind + "_error", recalibrated.raw)
                     .set("recalibrated_ema_" + kind + "_error", recalibrated.averaged)
                     .set("seconds_per_step", run.seconds_per_step());
  if (!std::isnan(flipped)) {
    summary.set("ema_" + kind + "_error_with_test_time_flips", flipped);
  }
  const double open_set_rate = detail::last_open_set_rate(run.metrics());
  if (!std::isnan(open_set_rate)) {
    summary.set("open_set_rate", open_set_rate);
  }
  Report report;
  Tensor calibrated;
  double balanced = 0, calibration_error = 0, scaled_calibration_error = 0;  // in percent
  if (judged.size() > 0) {
    const Tensor probabilities = has_test ? predict(judged) : held_out;
    calibrated = scale_temperature(probabilities, confidence.rule.temperature);
    report.confusion = confusion_matrix(judged.labels, probabilities.argmax(1), classes);
    report.reliability = reliability_bins(probabilities, judged.labels);
    report.reliability_scaled = reliability_bins(calibrated, judged.labels);
    report.temperature = confidence.rule.temperature;
    balanced = 100 * balanced_accuracy(report.confusion);
    calibration_error = 100 * expected_calibration_error(report.reliability);
    scaled_calibration_error = 100 * expected_calibration_error(report.reliability_scaled);
    summary.set(judged_error_name + "_low", interval.low)
        .set(judged_error_name + "_high", interval.high)
        .set(kind + "_balanced_accuracy", balanced)
        .set(kind + "_calibration_error", calibration_error)
        .set(kind + "_calibration_error_scaled", scaled_calibration_error);
  }
  summary.set("temperature", confidence.rule.temperature)
      .set("confidence", detail::confidence_text(confidence))
      .set("target_precision", o.target_precision)
      .set("abstain_below", confidence.rule.threshold.value_or(std::numeric_limits<double>::quiet_NaN()));
  if (judged.size() > 0) {
    const auto scores = class_scores(report.confusion);
    for (size_t i = 0; i < scores.size(); ++i) {
      summary.set("precision of " + class_names[i], 100 * scores[i].precision)
          .set("recall of " + class_names[i], 100 * scores[i].recall);
    }
  }
  if (run.interrupted()) {
    return run.leave();
  }
  write_file_atomically(run.directory().summary(), summary.str());

  report.title = fmt::format("{}: {}{}{}", run.directory().path().filename().string(), o.method,
                             o.data.empty() ? "" : " on ", o.data);
  report.class_names = class_names;
  if (judged.size() > 0) {
    write_file_atomically(run.directory().confusion(), detail::confusion_csv(report.confusion, class_names));
    const auto errors = per_class_error(report.confusion);
    std::string line = kind + " error by class (averaged weights):";
    for (size_t i = 0; i < errors.size(); ++i) {
      line += fmt::format("{} {} ", i == 0 ? "" : ",", mixmatch::detail::printable(class_names[i])) +
              (std::isnan(errors[i]) ? "has no images" : fmt::format("{:.1f} %", errors[i]));
    }
    print_message(stdout, line + "\n");
    print_message(stdout, "balanced accuracy {:.2f} %, calibration error {:.2f} %{}; confidences are {}\n",
                  balanced, calibration_error,
                  confidence.temperature.fitted
                      ? fmt::format(", {:.2f} % at temperature {:.3f}", scaled_calibration_error,
                                    confidence.rule.temperature)
                      : std::string(),
                  detail::confidence_text(confidence));
    if (!has_test) {
      print_message(stdout, detail::acceptance_text(confidence) + "\n");
    }
    report.wrong_examples = wrong_examples(judged, calibrated, 24);
    if (!has_test && !data.files.empty()) {
      const Tensor rows = most_confident_errors(calibrated, judged.labels, 24);
      for (size_t i = 0; i < report.wrong_examples.size(); ++i) {
        const auto row = data.split.validation[rows[static_cast<int64_t>(i)].item<int64_t>()];
        report.wrong_examples[i].name = data.files[static_cast<size_t>(row.item<int64_t>())];
      }
    }
  }
  if (!std::isnan(flipped)) {
    print_message(stdout, "with test-time flips: EMA {}\n", error_text(flipped, judged.size()));
  }
  if (!std::isnan(open_set_rate)) {
    print_message(stdout, "left out as of no class: {:.1f} % of the unlabeled images of the last steps\n",
                  100 * open_set_rate);
  }
  report.metrics = run.metrics();
  report.config = run.settings();
  const auto percent = [&](const std::string& name, double error) {
    if (!std::isnan(error)) {
      report.summary.emplace_back(name, fmt::format("{:.2f} %", error));
    }
  };
  report.summary = {{"images with a label", fmt::format("{}", data.split.labeled.size(0))},
                    {"images without", fmt::format("{}", data.split.unlabeled.size(0))},
                    {"steps", fmt::format("{}", state.step)},
                    {"seconds a step", fmt::format("{:.3g}", run.seconds_per_step())}};
  if (!std::isnan(judged_error)) {
    report.summary.emplace_back(kind + " error, averaged weights [95 % interval]",
                                error_text(judged_error, judged.size()));
    report.summary.emplace_back("balanced accuracy", fmt::format("{:.2f} %", balanced));
  }
  percent("test error, raw weights", test_error);
  percent("median of the last 20 evaluations", median);
  if (has_test) {
    percent("validation error, averaged weights", validation_error);
  }
  percent("unlabeled images left out as of no class", 100 * open_set_rate);
  percent(kind + " error with batch norm recalibrated, averaged weights", recalibrated.averaged);
  percent(kind + " error with batch norm recalibrated, raw weights", recalibrated.raw);
  percent(kind + " error with test-time flips, averaged weights", flipped);
  report.summary.emplace_back("confidences", detail::confidence_text(confidence));
  if (!data.files.empty()) {
    const auto doubted = write_review(run.directory(), o.data, state, data, options, confidence.rule, report);
    report.summary.emplace_back("suspected label errors", fmt::format("{}", doubted));
    if (doubted > 0) {
      print_message(stdout, "{} label{} the model doubts: see label_errors.csv\n", doubted,
                    doubted == 1 ? "" : "s");
    }
  }
  write_report(run.directory().report(), report);
  if (run.interrupted()) {
    return run.leave();
  }
  run.finish();
  if (has_test) {
    print_message(stdout, "test error: raw {:.2f} %, EMA {}, median of the last {} evaluations {:.2f} %\n",
                  test_error, error_text(ema_error, data.test.size()),
                  std::min<size_t>(20, ema_errors.size()), median);
  } else if (data.validation.size() > 0) {
    print_message(stdout, "validation error: EMA {} of {} images\n",
                  error_text(validation_error, data.validation.size()), data.validation.size());
  }
  return 0;
}

}  // namespace detail

/// The end of a run: model.safetensors (the averaged weights) and summary.json first, then what is for
/// reading: confusion.csv, of a folder's pictures the files of write_review(), and report.html, with the last
/// errors, also those with recalibrated batch norm, and the confusion matrix. Prints the result. Returns 0,
/// or after an interrupt the status of TrainingRun::leave: a run that is resumed then finishes.
///
/// The test set may be empty; scores, pictures and matrix are then those of the validation images, if there
/// are any. The temperature and the threshold for confidences are fitted on the validation images alone
/// (fit_confidence_rule) and go into model.safetensors; without a test set their calibration error is that of
/// the images that they were fitted on, and so a little small.
///
/// `evaluation` is of images: the run's own, unless its steps saw something else. What judges the images here
/// has its device, precision, normalisation and batch size. Of several processes rank 0 does this, and the
/// others wait for it.
template <class Model>
int finish_run(TrainingRun& run, const TrainingOptions& o, TrainState<Model>& state, const TrainingData& data,
               RunEvaluation<Model>& evaluation, RunTensors* shared = nullptr) {
  run.finish_steps();
  ProcessGroup* group = o.processes;
  if (group == nullptr) {
    return detail::finish_run_alone(run, o, state, data, evaluation, shared);
  }
  int status = 0;
  if (group->rank() == 0) {
    if constexpr (!mixmatch::detail::is_script_module<Model>) {
      synchronize_batch_norm(state.model, nullptr);
    }
    status = detail::finish_run_alone(run, o, state, data, evaluation, shared);
  }
  group->meet();
  if (group->rank() != 0) {
    status = run.interrupted() ? run.interrupt_status() : 0;  // all has been done and saved
    run.finish();
  }
  return static_cast<int>(group->max_of(status));
}

}  // namespace mixmatch::training
