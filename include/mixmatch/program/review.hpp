#pragma once

#include <fmt/format.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/csv.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>
#include <mixmatch/evaluation/cross_validated_probe.hpp>
#include <mixmatch/evaluation/label_errors.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/evaluation/review_order.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/models/load_pretrained.hpp>
#include <mixmatch/program/predictions_file.hpp>
#include <mixmatch/program/trained_on.hpp>
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

/// Whether the network tells what its last layer sees.
template <class Model>
bool has_features(const TrainState<Model>& state) {
  if constexpr (requires(Model model, Tensor images) { model->features(images); }) {
    return !models::detail::head_name_of(state.model).empty();
  } else {
    return false;
  }
}

/// That of rows of a pool, by the averaged weights.
template <class Model>
Tensor compute_features(TrainState<Model>& state, const data::ImagePool& pool, const Tensor& rows,
                        const EvaluateOptions& options) {
  if constexpr (requires(Model model, Tensor images) { model->features(images); }) {
    const auto average = state.ema.average_parameters();
    return features_of_rows(state.model, pool, rows, options, [](int64_t) {});
  } else {
    return {};
  }
}

constexpr const char* label_errors_header = "file,class,confidence,given,given_confidence,path,label\n";

/// Lines of a CSV of labels that are doubted: `class` is what is said instead of `given`, `label` is for a
/// person.
inline std::string format_label_errors(const LabelErrors& errors, const Predictions& p,
                                       const Tensor& labels) {
  using mixmatch::detail::csv_cell;
  std::string text;
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

/// What a person should look at after a run on the pictures of `folder` (data.files), by the averaged
/// weights:
///
/// - predictions.csv: the pictures without a label, but those that cannot be read, in review_order() by the
///   network's features, or where these are not known by the square roots of the probabilities (whose
///   distances are Hellinger's). `file` is relative to "unlabeled", or to the folder for a picture that is
///   elsewhere;
/// - label_errors.csv: those whose label is doubted (find_label_errors), the ones that train first, as a
///   cross_validated_probe() of the features sees them, for the network knows them by heart; then those that
///   are held out, as the network sees them with a probability of at least 1/2. A class with fewer than three
///   pictures to train with is not judged. `file` is relative to the folder;
/// - in `report`, the first 24 of both.
///
/// Both files can be filled in and read by data::read_label_file(). Returns how many labels are doubted.
template <class Model>
int64_t write_review(const RunDirectory& directory, const std::filesystem::path& folder,
                     TrainState<Model>& state, const TrainingData& data, const EvaluateOptions& options,
                     const ConfidenceRule& rule, Report& report) {
  constexpr int64_t shown = 24;
  // By the averaged network, with no more than a thousand images at a time.
  const auto predict = [&](const Tensor& rows) {
    std::vector<Tensor> parts{at::empty({0, data.pool.num_classes()})};
    for (const Tensor& part : rows.split(1000)) {
      if (part.numel() > 0) {
        parts.push_back(predict_probabilities([&](const Tensor& x) { return state.ema.forward(x); },
                                              data::ImageDataset{data.pool.gather(part), {}, {}}, options));
      }
    }
    return at::cat(parts);
  };
  // Leaves out of `rows` those in whose place others were predicted.
  const auto describe = [&](Tensor& rows, bool in_unlabeled, const Tensor& probabilities) {
    const Tensor readable = at::isin(rows, data.pool.replaced()).logical_not().nonzero().view(-1);
    rows = rows.index_select(0, readable);
    Predictions p{
        {}, probabilities.index_select(0, readable), data.pool.class_names, rule, std::vector<std::string>()};
    for (int64_t i = 0; i < rows.numel(); ++i) {
      const auto& file = data.files[static_cast<size_t>(rows[i].item<int64_t>())];
      constexpr std::string_view unlabeled = "unlabeled/";
      p.files.push_back(in_unlabeled && file.starts_with(unlabeled) ? file.substr(unlabeled.size()) : file);
      p.paths->push_back((folder / file).string());
    }
    return p;
  };
  const auto show = [&](const Tensor& rows, const Tensor& scaled, int64_t i, int64_t predicted,
                        int64_t label) {
    const auto row = rows.narrow(0, i, 1);
    return DoubtfulPicture{data.pool.gather(row)[0].cpu(),
                           data.files[static_cast<size_t>(row.item<int64_t>())],
                           predicted,
                           scaled[i][predicted].item<double>(),
                           label,
                           label < 0 ? 0.0 : scaled[i][label].item<double>()};
  };

  const Tensor labels = data.pool.labels.cpu();
  Tensor rows = labels.eq(-1).nonzero().view(-1);
  const Predictions unlabeled = describe(rows, true, predict(rows));
  const Tensor scaled = scale_temperature(unlabeled.probabilities, rule.temperature);
  const Tensor order = review_order(scaled.amax(1), [&](const Tensor& candidates) {
    return detail::has_features(state)
               ? detail::compute_features(state, data.pool, rows.index_select(0, candidates), options)
               : scaled.index_select(0, candidates).sqrt();
  });
  write_predictions(directory.predictions(), unlabeled, order);
  for (int64_t k = 0; k < std::min(shown, order.numel()); ++k) {
    const auto i = order[k].item<int64_t>();
    report.uncertain.push_back(show(rows, scaled, i, scaled[i].argmax().item<int64_t>(), -1));
  }

  std::string text = detail::label_errors_header;
  int64_t doubted = 0;
  for (const bool trains : {true, false}) {
    Tensor known = (trains ? data.split.labeled : data.split.validation).cpu();
    const bool by_probe = trains && detail::has_features(state) && known.numel() > 0;
    Predictions p =
        describe(known, false,
                 by_probe ? cross_validated_probe(detail::compute_features(state, data.pool, known, options),
                                                  labels.index_select(0, known), data.pool.num_classes())
                          : predict(known));
    if (!by_probe) {
      p.probabilities = scale_temperature(p.probabilities, rule.temperature);
    }
    Tensor given = labels.index_select(0, known);
    if (by_probe) {
      const Tensor few = at::bincount(given, {}, data.pool.num_classes()).lt(3).index_select(0, given);
      given = given.masked_fill(few, -1);
    }
    const LabelErrors errors = find_label_errors(p.probabilities, given, by_probe ? 0 : 0.5);
    text += detail::format_label_errors(errors, p, given);
    for (int64_t k = 0; k < errors.rows.numel() && doubted + k < shown; ++k) {
      const auto i = errors.rows[k].item<int64_t>();
      report.label_errors.push_back(
          show(known, p.probabilities, i, errors.classes[k].item<int64_t>(), given[i].item<int64_t>()));
    }
    doubted += errors.rows.numel();
  }
  write_file_atomically(directory.label_errors(), text);
  return doubted;
}

}  // namespace mixmatch::training
