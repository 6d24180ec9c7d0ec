#pragma once

#include <fmt/format.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/csv.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>
#include <mixmatch/evaluation/label_errors.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/evaluation/review_order.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/models/load_pretrained.hpp>
#include <mixmatch/program/predictions_file.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/report/report.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/step/train_state.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace mixmatch::training {

namespace detail {

/// compute(images) of rows of a pool, with no more than a thousand images at a time, the results joined.
template <class Compute>
Tensor compute_rows(const data::ImagePool& pool, const Tensor& rows, Compute&& compute) {
  std::vector<Tensor> parts;
  for (const Tensor& part : rows.split(1000)) {
    parts.push_back(compute(data::ImageDataset{pool.gather(part), {}, {}}));
  }
  return at::cat(parts);
}

/// What pictures differ by: the averaged network's features or, where its last layer is not known, the square
/// roots of the probabilities (then distances are Hellinger's).
template <class Model>
Tensor embed_rows(TrainState<Model>& state, const data::ImagePool& pool, const Tensor& rows,
                  const Tensor& probabilities, const EvaluateOptions& options) {
  if constexpr (requires { state.model->features(probabilities); }) {
    if (!models::detail::head_name_of(state.model).empty()) {
      const auto average = state.ema.average_parameters();
      const mixmatch::detail::EvaluationModeGuard evaluation(state.model);
      return compute_rows(pool, rows, [&](const data::ImageDataset& images) {
        return extract_features([&](const Tensor& x) { return state.model->features(x); }, images, options);
      });
    }
  }
  return probabilities.sqrt();
}

/// A CSV of labels that the model doubts, the most doubtful first:
///
///     file,class,confidence,given,given_confidence,path,label
///
/// `class` is what the model says instead of `given`; `label` is for a person.
inline std::string format_label_errors(const LabelErrors& errors, const Predictions& p,
                                       const Tensor& labels) {
  using mixmatch::detail::csv_cell;
  std::string text = "file,class,confidence,given,given_confidence,path,label\n";
  for (int64_t i = 0; i < errors.rows.numel(); ++i) {
    const auto row = errors.rows[i].item<int64_t>();
    const auto found = errors.classes[i].item<int64_t>(), given = labels[row].item<int64_t>();
    const auto probability = [&](int64_t c) { return p.probabilities[row][c].item<double>(); };
    text += fmt::format("{},{},{:.6g},{},{:.6g},{},\n", csv_cell(p.files[static_cast<size_t>(row)]),
                        csv_cell(p.class_names[static_cast<size_t>(found)]), probability(found),
                        csv_cell(p.class_names[static_cast<size_t>(given)]), probability(given),
                        csv_cell((*p.paths)[static_cast<size_t>(row)]));
  }
  return text;
}

}  // namespace detail

/// What a person should look at after a run on a folder's pictures (data.files), by the averaged weights:
///
/// - predictions.csv: the pictures without a label, but those that cannot be read, in review_order() by the
///   network's features. `file` is relative to "unlabeled", or to the folder for a picture that is elsewhere;
/// - label_errors.csv: those that train with a label or are held out, and whose label is doubted
///   (find_label_errors) with a probability of at least 1/2; `file` is relative to the folder;
/// - in `report`, the first 24 of both.
///
/// Both files can be filled in and read by data::read_label_file(). Returns how many labels are doubted.
template <class Model>
int64_t write_review(const RunDirectory& directory, const TrainingOptions& o, TrainState<Model>& state,
                     const TrainingData& data, torch::Device device, const ConfidenceRule& rule,
                     Report& report) {
  constexpr int64_t shown = 24;
  const auto options = evaluate_options(o, device);
  const auto predict = [&](const Tensor& rows) {
    return rows.numel() == 0 ? at::empty({0, data.pool.num_classes()})
                             : detail::compute_rows(data.pool, rows, [&](const data::ImageDataset& images) {
                                 return predict_probabilities(
                                     [&](const Tensor& x) { return state.ema.forward(x); }, images, options);
                               });
  };
  // Leaves out of `rows` those in whose place others were predicted.
  const auto describe = [&](Tensor& rows, bool in_unlabeled) {
    const Tensor probabilities = predict(rows);
    const Tensor readable = at::isin(rows, data.pool.replaced()).logical_not().nonzero().view(-1);
    rows = rows.index_select(0, readable);
    Predictions p{
        {}, probabilities.index_select(0, readable), data.pool.class_names, rule, std::vector<std::string>()};
    for (int64_t i = 0; i < rows.numel(); ++i) {
      const auto& file = data.files[static_cast<size_t>(rows[i].item<int64_t>())];
      constexpr std::string_view unlabeled = "unlabeled/";
      p.files.push_back(in_unlabeled && file.starts_with(unlabeled) ? file.substr(unlabeled.size()) : file);
      p.paths->push_back((std::filesystem::path(o.data) / file).string());
    }
    return p;
  };
  const auto show = [&](const Tensor& rows, const Tensor& scaled, int64_t i, int64_t predicted,
                        int64_t label) {
    const auto row = rows.narrow(0, i, 1);
    return DoubtfulPicture{data.pool.gather(row)[0].cpu(),
                           data.files[static_cast<size_t>(row.item<int64_t>())], predicted,
                           scaled[i][predicted].item<double>(), label};
  };

  const Tensor labels = data.pool.labels.cpu();
  Tensor rows = labels.eq(-1).nonzero().view(-1);
  const Predictions unlabeled = describe(rows, true);
  const Tensor scaled = scale_temperature(unlabeled.probabilities, rule.temperature);
  const Tensor order = review_order(scaled.amax(1), [&](const Tensor& candidates) {
    return detail::embed_rows(state, data.pool, rows.index_select(0, candidates),
                              scaled.index_select(0, candidates), options);
  });
  write_predictions(directory.predictions(), unlabeled, order);
  for (int64_t k = 0; k < std::min(shown, order.numel()); ++k) {
    const auto i = order[k].item<int64_t>();
    report.uncertain.push_back(show(rows, scaled, i, scaled[i].argmax().item<int64_t>(), -1));
  }

  Tensor labeled_rows = at::cat({data.split.labeled.cpu(), data.split.validation.cpu()});
  Predictions labeled = describe(labeled_rows, false);
  labeled.probabilities = scale_temperature(labeled.probabilities, rule.temperature);
  const Tensor given = labels.index_select(0, labeled_rows);
  const LabelErrors errors = find_label_errors(labeled.probabilities, given, /*least_confidence=*/0.5);
  write_file_atomically(directory.label_errors(), detail::format_label_errors(errors, labeled, given));
  for (int64_t k = 0; k < std::min(shown, errors.rows.numel()); ++k) {
    const auto i = errors.rows[k].item<int64_t>();
    report.label_errors.push_back(show(labeled_rows, labeled.probabilities, i,
                                       errors.classes[k].item<int64_t>(), given[i].item<int64_t>()));
  }
  return errors.rows.numel();
}

}  // namespace mixmatch::training
