#pragma once

#include <fmt/format.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/evaluation/calibration.hpp>
#include <mixmatch/evaluation/class_scores.hpp>
#include <mixmatch/evaluation/confident_errors.hpp>
#include <mixmatch/evaluation/confusion_matrix.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/report/html.hpp>
#include <mixmatch/report/line_chart.hpp>
#include <mixmatch/report/metrics_charts.hpp>
#include <mixmatch/run/config.hpp>
#include <mixmatch/run/image_grid.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/png.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// An image that a model puts into another class than its own.
struct WrongExample {
  Tensor image;  ///< [C, H, W] with C = 1 or 3, uint8 or floating point in [-1, 1]
  int64_t truth = 0, predicted = 0;
  double confidence = 0;  ///< the probability of `predicted`
  std::string name;       ///< of its file, say; may be empty
};

/// A picture that a person should look at.
struct DoubtfulPicture {
  Tensor image;                 ///< as WrongExample's
  std::string file;             ///< its name, to be copied
  int64_t predicted = 0;        ///< or, where it has a label, the class that may be the right one
  double confidence = 0;        ///< the probability of `predicted`
  int64_t label = -1;           ///< the class that it was given, if it was
  double label_confidence = 0;  ///< the probability of that class
};

/// What a report shows. A part that is empty is left out, and the report says that it is.
struct Report {
  std::string title = "Training run";
  Config summary;  ///< the run's results, name and value
  Config config;   ///< the run's settings, name and value
  /// Column "step" is the x axis (without it, the row's number); others are told by their names, see
  /// metrics_charts.
  MetricsTable metrics;
  Tensor confusion;  ///< int64 [L, L] as of confusion_matrix
  /// As of reliability_bins; and at `temperature`, which are drawn where it is not 1.
  std::vector<ReliabilityBin> reliability, reliability_scaled;
  double temperature = 1;
  std::vector<std::string> class_names;  ///< one a class, or none: then classes are numbers
  std::vector<WrongExample> wrong_examples;
  /// Pictures without a label, those whose labels would teach most first, and such whose label is doubted.
  /// Where there are none nothing is said of them.
  std::vector<DoubtfulPicture> uncertain, label_errors;
};

/// The images that are wrong with the greatest confidence, at most `count`: see most_confident_errors. Those
/// of other types and channels than pictures have are made displayable().
inline std::vector<WrongExample> wrong_examples(const data::ImageDataset& dataset,
                                                const Tensor& probabilities, int64_t count) {
  const Tensor rows = most_confident_errors(probabilities, dataset.labels, count);
  const Tensor images = displayable(dataset.gather(rows));
  std::vector<WrongExample> examples;
  for (int64_t i = 0; i < rows.size(0); ++i) {
    const auto row = rows[i].item<int64_t>();
    const auto [confidence, predicted] = probabilities[row].max(0);
    examples.push_back({images[i], dataset.labels[row].item<int64_t>(), predicted.item<int64_t>(),
                        confidence.item<double>(), ""});
  }
  return examples;
}

namespace detail {

/// 1234567 as 1,234,567.
inline std::string grouped(int64_t value) {
  const std::string digits = fmt::format("{}", value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    const bool after_digit = i > 0 && digits[i - 1] != '-';
    if (after_digit && (digits.size() - i) % 3 == 0) {
      text += ',';
    }
    text += digits[i];
  }
  return text;
}

inline std::string percent_or_dash(double value) {
  return std::isnan(value) ? "\xE2\x80\x93" : fmt::format("{:.2f}", value);
}

/// Builds the page section by section, and remembers what there is and what is missing.
class ReportPage {
 public:
  explicit ReportPage(const Report& report) : report_(report) {
    if (report.confusion.defined()) {
      errors_ = per_class_error(report.confusion);  // checks it
      confusion_ = report.confusion.cpu().contiguous();
      TORCH_CHECK(report.class_names.empty() || report.class_names.size() == errors_.size(),
                  "render_report: class_names must hold one name a class of confusion, ", errors_.size(),
                  ", got ", report.class_names.size());
    }
  }

  std::string render() {
    add("summary", "Summary", "summary numbers", settings(report_.summary, "cards"));
    add("curves", "Learning curves", "learning curves (no metrics)", curves());
    add("confusion", "Confusion matrix", "a confusion matrix (no labels known)", confusion());
    add("calibration", "Calibration", "calibration (no labels known)", calibration());
    add("wrong", "Most confidently wrong", "wrongly classified images", wrong_examples());
    if (!report_.uncertain.empty()) {
      add("uncertain", "Worth a label", "", uncertain());
    }
    if (!report_.label_errors.empty()) {
      add("label-errors", "Suspected label errors", "", label_errors());
    }
    add("configuration", "Configuration", "the configuration", settings(report_.config, "settings"));
    const std::string& title = report_.title.empty() ? Report().title : report_.title;
    std::string page = "<header><h1>" + escape_html(title) + "</h1>\n";
    if (!links_.empty()) {
      page += "<nav aria-label=\"Sections\">" + links_ + "</nav>";
    }
    page += "</header>\n<main>\n" + body_ + "</main>\n";
    if (!missing_.empty()) {
      page += "<footer><p class=\"missing\">Not in this report: " + join(missing_, ", ") + ".</p></footer>\n";
    }
    return html_page(title, page);
  }

 private:
  void add(const std::string& id, const std::string& heading, const std::string& what,
           const std::string& html) {
    if (html.empty()) {
      missing_.push_back(what);
      return;
    }
    links_ += "<a href=\"#" + id + "\">" + heading + "</a>\n";
    body_ += "<section id=\"" + id + "\"><h2>" + heading + "</h2>\n" + html + "</section>\n";
  }

  std::string class_name(int64_t index) const {
    if (report_.class_names.empty()) {
      return fmt::format("{}", index);
    }
    TORCH_CHECK(index >= 0 && index < static_cast<int64_t>(report_.class_names.size()),
                "render_report: a picture's class must be in [0, ", report_.class_names.size(), "), got ",
                index);
    return escape_html(report_.class_names[static_cast<size_t>(index)]);
  }

  static std::string settings(const Config& rows, const char* style) {
    std::string out;
    for (const auto& [name, value] : rows) {
      const char* begin = value.size() > 16 ? "<div class=\"long\"><dt>" : "<div><dt>";
      out += begin + escape_html(name) + "</dt><dd>" + escape_html(value) + "</dd></div>\n";
    }
    return out.empty() ? out : fmt::format("<dl class=\"{}\">\n", style) + out + "</dl>\n";
  }

  std::string curves() const {
    std::string out;
    size_t max_points = 0;
    for (const auto& chart : metrics_charts(report_.metrics)) {
      out += render_line_chart(chart);
      max_points = chart.max_points;
    }
    if (out.empty()) {
      return out;
    }
    std::vector<std::string> empty;
    for (const auto& column : report_.metrics.columns) {
      const auto values = report_.metrics.column(column);
      if (std::none_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) {
        empty.push_back(escape_html(column));
      }
    }
    std::string note = "<p class=\"muted\">From " +
                       grouped(static_cast<int64_t>(report_.metrics.rows.size())) + " rows of metrics.";
    if (report_.metrics.rows.size() > max_points) {
      note += fmt::format(
          " Curves of more than {} points are thinned: the lowest and the highest value of each stretch "
          "stay.",
          max_points);
    }
    if (!empty.empty()) {
      note += " Without values: " + join(empty, ", ") + ".";
    }
    return "<div class=\"charts\">\n" + out + "</div>\n" + note + "</p>\n";
  }

  std::string confusion() const {
    const auto classes = static_cast<int64_t>(errors_.size());
    const int64_t images = classes > 0 ? confusion_.sum().item<int64_t>() : 0;
    if (images == 0) {
      return "";
    }
    const int64_t wrong = images - confusion_.diagonal().sum().item<int64_t>();
    std::string out = fmt::format(
        "<p>{} images, {} of them in a wrong class: {:.2f} %. Rows are the true class, columns the predicted "
        "one; "
        "<span class=\"swatch good\"></span> is a row's share that is right, <span class=\"swatch "
        "bad\"></span> "
        "that is wrong.</p>\n",
        grouped(images), grouped(wrong), 100.0 * static_cast<double>(wrong) / static_cast<double>(images));
    out +=
        "<div class=\"beside\"><div class=\"scroll\" role=\"region\" aria-label=\"Confusion matrix\" "
        "tabindex=\"0\">";
    out += "<table class=\"matrix\">\n";
    out += "<thead><tr><th scope=\"col\">true \xE2\x86\x93 predicted \xE2\x86\x92</th>";
    out += "<th scope=\"col\" class=\"sum\">error %</th><th scope=\"col\" class=\"sum\">images</th>";
    for (int64_t j = 0; j < classes; ++j) {
      out += "<th scope=\"col\"><span>" + class_name(j) + "</span></th>";
    }
    out += "</tr></thead>\n<tbody>\n";
    const auto* count = confusion_.data_ptr<int64_t>();
    for (int64_t i = 0; i < classes; ++i, count += classes) {
      const int64_t row_images = std::accumulate(count, count + classes, int64_t{0});
      const double error = errors_[static_cast<size_t>(i)];
      out += "<tr><th scope=\"row\" title=\"" + class_name(i) + "\">" + class_name(i) + "</th>";
      out += fmt::format("<td class=\"sum share\" style=\"--w:{:.1f}%\">{}</td><td class=\"sum\">{}</td>",
                         std::isnan(error) ? 0.0 : error, percent_or_dash(error), grouped(row_images));
      for (int64_t j = 0; j < classes; ++j) {
        out += cell(count[j], row_images, i == j);
      }
      out += "</tr>\n";
    }
    return out + "</tbody></table></div>\n" + frequent_confusions() + "</div>\n" + scores();
  }

  /// Precision, recall and F1 of each class.
  std::string scores() const {
    const auto percent = [](double share) {
      return std::isnan(share) ? std::string("-") : fmt::format("{:.2f}", 100 * share);
    };
    std::vector<std::vector<std::string>> rows;
    int64_t index = 0;
    for (const auto& score : class_scores(confusion_)) {
      rows.push_back({report_.class_names.empty() ? fmt::format("{}", index)
                                                  : report_.class_names[static_cast<size_t>(index)],
                      grouped(score.images), grouped(score.predicted), percent(score.precision),
                      percent(score.recall), percent(score.f1)});
      ++index;
    }
    return fmt::format(
               "<h3>By class</h3>\n<p>Balanced accuracy, the mean recall of the classes that have images: {} "
               "%.</p>\n",
               percent(balanced_accuracy(confusion_))) +
           html_table({"class", "images", "predicted", "precision %", "recall %", "F1 %"}, rows);
  }

  /// The reliability diagram.
  std::string calibration() const {
    int64_t rows = 0;
    for (const auto& bin : report_.reliability) {
      rows += bin.rows;
    }
    if (rows == 0) {
      return "";
    }
    LineChart chart{
        "Reliability", "mean confidence", "share that is right", {{"calibrated", {0, 1}, {0, 1}}}};
    const auto draw = [&chart](const std::string& name, const std::vector<ReliabilityBin>& bins) {
      Curve curve{fmt::format("{}, calibration error {:.2f} %", name, 100 * expected_calibration_error(bins)),
                  {},
                  {}};
      for (const auto& bin : bins) {
        curve.x.push_back(bin.confidence);
        curve.y.push_back(bin.accuracy);
      }
      chart.curves.push_back(std::move(curve));
    };
    draw("as predicted", report_.reliability);
    if (report_.temperature != 1 && !report_.reliability_scaled.empty()) {
      draw(fmt::format("at temperature {:.3f}", report_.temperature), report_.reliability_scaled);
    }
    return fmt::format(
               "<p>{} images in {} bins by confidence. Below the line of \"calibrated\" the model is surer "
               "than it is right. A bin of few images is mostly noise: ",
               grouped(rows), report_.reliability.size()) +
           bin_sizes() + ".</p>\n<div class=\"charts\">\n" + render_line_chart(chart) + "</div>\n";
  }

  /// "12 up to 0.60, 30 up to 0.67, …" of the bins that have images.
  std::string bin_sizes() const {
    std::vector<std::string> sizes;
    for (const auto& bin : report_.reliability) {
      if (bin.rows > 0) {
        sizes.push_back(fmt::format("{} up to {:.2f}", grouped(bin.rows), bin.high));
      }
    }
    return join(sizes, ", ");
  }

  /// Shade 1 to 10 of a cell: the share of its row that is right, or the square root of the share that is
  /// wrong, so that a few percent can be seen.
  static std::string cell(int64_t count, int64_t row_images, bool right) {
    if (count == 0) {
      return "<td class=\"zero\">0</td>";
    }
    const double share = static_cast<double>(count) / static_cast<double>(row_images);
    const int shade = std::clamp(static_cast<int>(std::ceil(10 * (right ? share : std::sqrt(share)))), 1, 10);
    return fmt::format("<td class=\"{}{}\">{}</td>", right ? 'g' : 'b', shade, count);
  }

  std::string frequent_confusions() const {
    const auto classes = static_cast<int64_t>(errors_.size());
    const auto* count = confusion_.data_ptr<int64_t>();
    std::vector<std::tuple<int64_t, int64_t, int64_t>> pairs;  // count, true, predicted
    for (int64_t i = 0; i < classes; ++i) {
      for (int64_t j = 0; j < classes; ++j) {
        if (i != j && count[i * classes + j] > 0) {
          pairs.emplace_back(count[i * classes + j], i, j);
        }
      }
    }
    if (pairs.empty()) {
      return "";
    }
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const auto& a, const auto& b) { return std::get<0>(a) > std::get<0>(b); });
    pairs.resize(std::min<size_t>(pairs.size(), 10));
    std::string out = "<div><h3>Most frequent confusions</h3>\n<ol class=\"confusions\">\n";
    for (const auto& [number, truth, predicted] : pairs) {
      out += "<li>" + class_name(truth) + " taken for " + class_name(predicted) + ": " + grouped(number) +
             "</li>\n";
    }
    return out + "</ol></div>\n";
  }

  /// A picture of at most 128 pixels a side, so that a page of them stays small.
  static std::string figure(const Tensor& image, const std::string& text, const std::string& caption) {
    TORCH_CHECK(image.defined() && image.dim() == 3, "render_report: an image must be [C, H, W], got ",
                image.defined() ? c10::str(image.sizes()) : "undefined");
    Tensor grid = make_image_grid(image.unsqueeze(0), 1, 0);
    constexpr int64_t most = 128;
    const int64_t longer = std::max(grid.size(1), grid.size(2));
    if (longer > most) {
      const auto scaled = [&](int64_t side) { return std::max<int64_t>(1, side * most / longer); };
      grid = at::adaptive_avg_pool2d(grid.unsqueeze(0).to(at::kFloat),
                                     {scaled(grid.size(1)), scaled(grid.size(2))})
                 .squeeze(0)
                 .round()
                 .to(at::kByte);
    }
    return fmt::format(
        "<figure><img{} alt=\"{}\" width=\"{}\" height=\"{}\" src=\"data:image/png;base64,{}\">"
        "<figcaption>{}</figcaption></figure>\n",
        longer <= most / 2 ? " class=\"small\"" : "", text, grid.size(2), grid.size(1),
        encode_base64(encode_png(grid)), caption);
  }

  /// A file's name, to be copied, that breaks after its directories.
  static std::string file_name(const std::string& file) {
    std::string out = "<code>";
    for (const char c : escape_html(file)) {
      out += c;
      out += c == '/' ? "<wbr>" : "";
    }
    return out + "</code>";
  }

  /// "<b>cat</b>, 51.0 %", without a break before the sign.
  std::string class_and_percent(int64_t index, double probability) const {
    return "<b>" + class_name(index) + fmt::format("</b>, {:.1f}&nbsp;%", 100 * probability);
  }

  std::string wrong_examples() const {
    std::string out;
    for (const auto& example : report_.wrong_examples) {
      out += figure(example.image, class_name(example.truth),
                    fmt::format("true: <b>{}</b><br>predicted: {}{}", class_name(example.truth),
                                class_and_percent(example.predicted, example.confidence),
                                example.name.empty() ? std::string() : "<br>" + file_name(example.name)));
    }
    return out.empty() ? out : "<div class=\"images\">\n" + out + "</div>\n";
  }

  std::string doubtful(const std::vector<DoubtfulPicture>& pictures) const {
    std::string out;
    for (const auto& picture : pictures) {
      const std::string predicted = class_and_percent(picture.predicted, picture.confidence);
      out += figure(picture.image, escape_html(picture.file),
                    file_name(picture.file) +
                        (picture.label < 0
                             ? "<br>predicted: " + predicted
                             : "<br>label: " + class_and_percent(picture.label, picture.label_confidence) +
                                   "<br>rather: " + predicted));
    }
    return "<div class=\"images\">\n" + out + "</div>\n";
  }

  std::string uncertain() const {
    return "<p>The first of predictions.csv: unlabeled pictures that the model is unsure of, and that stand "
           "for others. Fill in the column <code>label</code> there, and train again with "
           "<code>--labels</code> and <code>--from</code>.</p>\n" +
           doubtful(report_.uncertain);
  }

  std::string label_errors() const {
    return "<p>The first of label_errors.csv: pictures that seem to be of another class than their label, "
           "because that class is more probable here than it is, on average, for its own pictures (confident "
           "learning); it need not be the most probable one. Those that were trained on are judged by a "
           "linear probe that has not seen their label, on features that may have; the list misses errors, "
           "and much of it may be right but rare pictures of their class.</p>\n" +
           doubtful(report_.label_errors);
  }

  const Report& report_;
  Tensor confusion_;
  std::vector<double> errors_;
  std::string links_, body_;
  std::vector<std::string> missing_;
};

}  // namespace detail

/// The report as one HTML page that needs no other file and no network: results, learning curves, confusion
/// matrix with the scores of each class, reliability diagram, wrong images, pictures to look at,
/// configuration. Every text is escaped, and pictures are made smaller. Long runs are thinned
/// (LineChart::max_points), so that the page's size does not grow with the number of rows. Throws c10::Error
/// if class_names does not fit confusion, a class is out of range, or an image is none.
inline std::string render_report(const Report& report) { return detail::ReportPage(report).render(); }

/// render_report into a file, whole or not at all.
inline void write_report(const std::filesystem::path& path, const Report& report) {
  write_file_atomically(path, render_report(report));
}

}  // namespace mixmatch::training
