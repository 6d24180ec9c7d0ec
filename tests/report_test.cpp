#include <mixmatch/report/report.hpp>

#include <limits>

#include "catch.hpp"
#include "sample_report.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

namespace {

constexpr double not_known = std::numeric_limits<double>::quiet_NaN();

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

}  // namespace

TEST_CASE("report: every part is there, and nothing comes from outside") {
  const Report report = sample_report();
  const std::string page = render_report(report);
  for (const std::string id : {"summary", "curves", "confusion", "calibration", "wrong", "configuration"}) {
    CHECK(count_of(page, "<section id=\"" + id + "\">") == 1);
    CHECK(count_of(page, "<a href=\"#" + id + "\">") == 1);
  }
  CHECK(count_of(page, "class=\"missing\"") == 0);
  CHECK(count_of(page, "<figure class=\"chart\">") == 7);
  CHECK(count_of(page, "src=\"data:image/png;base64,iVBORw0KGgo") == 18);
  CHECK(page.find("http") == std::string::npos);
  for (const std::string before : {"\"", ",", " ", ">"}) {  // base64 may say anything
    CHECK(count_of(page, before + "nan") == 0);
  }
  CHECK_THAT(page, contains("<dt>rampup-steps</dt><dd>16384</dd>"));
  CHECK_THAT(page, contains("<div><dt>test error (EMA)</dt><dd>9.31 %</dd>"));
  CHECK_THAT(page, contains("Without values: validation_error."));
}

TEST_CASE("report: names are text, never markup") {
  Report report = sample_report();
  report.metrics.columns[11] = "<script>x";
  report.config.emplace_back("<i>", "'\"&<");
  const std::string page = render_report(report);
  CHECK_THAT(page, contains("<title>MixMatch, 250 labels &lt;seed 1&gt;</title>"));
  CHECK_THAT(page, contains("<h1>MixMatch, 250 labels &lt;seed 1&gt;</h1>"));
  CHECK(page.find("<b>moon") == std::string::npos);
  CHECK(page.find("a<b>&c.png") == std::string::npos);
  CHECK_THAT(page, contains("shapes/<wbr>a&lt;b&gt;&amp;c.png"));
  CHECK_THAT(page, contains("star &amp; &lt;b&gt;moon&lt;/b&gt;"));
  CHECK_THAT(page, contains("&quot;h\xC3\xA9"
                            "art&quot;"));
  CHECK_THAT(page, contains("<dt>&lt;i&gt;</dt><dd>&#39;&quot;&amp;&lt;</dd>"));
  CHECK(count_of(page, "<script>") == 1);
}

TEST_CASE("report: the confusion matrix as a table") {
  Report report;
  report.confusion = torch::tensor({90, 10, 0, 1, 0, 0, 0, 0, 0}, at::kLong).view({3, 3});
  report.class_names = {"cat", "dog", "emu"};
  const std::string page = render_report(report);
  CHECK_THAT(page, contains("101 images, 11 of them in a wrong class: 10.89 %"));
  CHECK_THAT(page, contains("<th scope=\"row\" title=\"cat\">cat</th><td class=\"sum share\" "
                            "style=\"--w:10.0%\">10.00</td><td class=\"sum\">100</td><td class=\"g9\">90</td>"
                            "<td class=\"b4\">10</td><td class=\"zero\">0</td></tr>"));
  CHECK_THAT(
      page, contains("100.00</td><td class=\"sum\">1</td><td class=\"b10\">1</td><td class=\"zero\">0</td>"));
  // A class without an image has no error.
  CHECK_THAT(page, contains("style=\"--w:0.0%\">\xE2\x80\x93</td><td class=\"sum\">0</td>"));
  CHECK_THAT(page, contains("<li>cat taken for dog: 10</li>\n<li>dog taken for cat: 1</li>\n</ol>"));
  report.class_names.clear();
  CHECK_THAT(render_report(report), contains("<li>0 taken for 1: 10</li>"));
}

TEST_CASE("report: precision, recall and F1 of each class") {
  Report report;
  report.confusion = torch::tensor({90, 10, 0, 30, 20, 0, 0, 0, 0}, at::kLong).view({3, 3});
  report.class_names = {"cat", "<dog>", "emu"};
  const std::string page = render_report(report);
  CHECK_THAT(page, contains("the mean recall of the classes that have images: 65.00 %."));
  CHECK_THAT(page, contains("<td>cat</td><td class=\"number\">100</td><td class=\"number\">120</td><td "
                            "class=\"number\">75.00</td><td class=\"number\">90.00</td><td "
                            "class=\"number\">81.82</td>"));
  CHECK_THAT(page, contains("<td>&lt;dog&gt;</td><td class=\"number\">50</td><td class=\"number\">30</td>"));
  // A class without images that is never predicted has dashes.
  CHECK_THAT(page, contains("<td>emu</td><td class=\"number\">0</td><td class=\"number\">0</td><td "
                            "class=\"number\">-</td><td class=\"number\">-</td><td class=\"number\">-</td>"));
  report.class_names.clear();
  CHECK_THAT(render_report(report), contains(">0</td><td class=\"number\">100</td>"));
}

TEST_CASE("report: the reliability diagram") {
  Report report;
  report.reliability = {{0, .5, 0, not_known, not_known}, {.5, .75, 30, .7, .5}, {.75, 1, 10, .9, 1}};
  const std::string page = render_report(report);
  CHECK_THAT(page, contains("40 images in 3 bins by confidence."));
  CHECK_THAT(page, contains("30 up to 0.75, 10 up to 1.00."));
  CHECK_THAT(page, contains("as predicted, calibration error 17.50 %"));
  CHECK_THAT(page, contains("data-x=\"0.7 0.9\" data-y=\"0.5 1\""));
  CHECK_THAT(page, contains("data-x=\"0 1\" data-y=\"0 1\""));
  CHECK(page.find("at temperature") == std::string::npos);
  report.reliability_scaled = {{.5, .75, 40, .625, .625}};
  CHECK(render_report(report).find("at temperature") == std::string::npos);  // that is 1 still
  report.temperature = 1.5;
  CHECK_THAT(render_report(report), contains("at temperature 1.500, calibration error 0.00 %"));
  for (auto& bin : report.reliability) {
    bin.rows = 0;
  }
  CHECK(count_of(render_report(report), "<section") == 0);
}

TEST_CASE("report: parts without data are left out, and named") {
  const std::string nothing = render_report(Report());
  CHECK(count_of(nothing, "<section") == 0);
  CHECK_THAT(nothing,
             contains("Not in this report: summary numbers, learning curves (no metrics), a confusion matrix "
                      "(no labels known), calibration (no labels known), wrongly classified images, the "
                      "configuration."));
  CHECK_THAT(nothing, contains("<title>Training run</title>"));
  Report report;
  report.title = "";
  report.config = {{"a", "b"}};
  report.confusion = torch::zeros({3, 3}, at::kLong);
  report.metrics.columns = {"step", "loss"};
  report.metrics.rows = {{1, std::numeric_limits<double>::quiet_NaN()}};
  const std::string page = render_report(report);
  CHECK(count_of(page, "<section") == 1);
  CHECK_THAT(
      page,
      contains("Not in this report: summary numbers, learning curves (no metrics), a confusion matrix"));
  CHECK_THAT(page, contains("<title>Training run</title>"));
}

TEST_CASE("report: pictures worth a label and suspected label errors, with names to copy") {
  Report report;
  report.class_names = {"cat", "<dog>"};
  report.uncertain = {{torch::zeros({3, 16, 16}, torch::kByte), "unlabeled/a <b>.png", 1, .51, -1}};
  report.label_errors = {{torch::zeros({3, 16, 16}, torch::kByte), "labeled/cat/1.png", 1, .187, 0, .25}};
  const std::string page = render_report(report);
  CHECK(count_of(page, "<section id=\"uncertain\">") == 1);
  CHECK(count_of(page, "<section id=\"label-errors\">") == 1);
  CHECK_THAT(page, contains("<code>unlabeled/<wbr>a &lt;b&gt;.png</code><br>predicted: <b>&lt;dog&gt;</b>, "
                            "51.0&nbsp;%<"));
  // The class that a label is doubted for may be less probable than the label's: it is not what is predicted.
  CHECK_THAT(page, contains("<code>labeled/<wbr>cat/<wbr>1.png</code><br>label: <b>cat</b>, "
                            "25.0&nbsp;%<br>rather: <b>&lt;dog&gt;</b>, 18.7&nbsp;%<"));
  report.label_errors[0].predicted = 2;
  CHECK_THAT(error_of([&] { render_report(report); }),
             contains("a picture's class must be in [0, 2), got 2"));
}

TEST_CASE("report: pictures of photographs' size become small, in proportion") {
  Report report;
  torch::manual_seed(1);
  for (int i = 0; i < 24; ++i) {
    report.uncertain.push_back({torch::randint(256, {3, 384, 512}, torch::kByte), "x.png", 0, .5, -1});
    report.wrong_examples.push_back({torch::randint(256, {3, 512, 4}, torch::kByte), 0, 1, .5, ""});
  }
  const std::string page = render_report(report);
  CHECK(count_of(page, "width=\"128\" height=\"96\"") == 24);
  CHECK(count_of(page, "width=\"1\" height=\"128\"") == 24);
  CHECK(count_of(page, "<img class=\"small\"") == 0);  // they are not shown as squares of pixels
  // Noise does not shrink: what a page can be.
  CHECK(page.size() < 24 * (4 * 128 * 96 + 2000) + 100000);
  report.uncertain = {{torch::full({1, 300, 300}, .5), "x.png", 0, .5, -1}};
  CHECK_THAT(render_report(report), contains("width=\"128\" height=\"128\""));
}

TEST_CASE("report: a page of moderate size for long runs and many classes") {
  CHECK(render_report(sample_report(20480)).size() < 400000);
  const std::string hundred = render_report(sample_report_100());
  CHECK(hundred.size() < 600000);
  CHECK(count_of(hundred, "<th scope=\"row\"") == 100);
  CHECK_THAT(render_report(sample_report(20480)),
             contains("From 20,480 rows of metrics. Curves of more than 600 points"));
}

TEST_CASE("wrong_examples: image, classes and confidence of the most confident errors") {
  mixmatch::data::ImageDataset dataset{torch::arange(4 * 12, torch::kByte).view({4, 3, 2, 2}),
                                       torch::tensor({0, 1, 1, 0}, at::kLong),
                                       {"a", "b"}};
  const auto probabilities = torch::tensor({0.9, 0.1, 0.75, 0.25, 0.875, 0.125, 0.5, 0.5}).view({4, 2});
  const auto examples = wrong_examples(dataset, probabilities, 5);
  REQUIRE(examples.size() == 2);
  CHECK(torch::equal(examples[0].image, dataset.images[2]));
  CHECK(examples[0].truth == 1);
  CHECK(examples[0].predicted == 0);
  CHECK(examples[0].confidence == 0.875);
  CHECK(examples[1].confidence == 0.75);
  Report report;
  report.wrong_examples = examples;
  report.class_names = dataset.class_names;
  CHECK_THAT(render_report(report),
             contains("true: <b>b</b><br>predicted: <b>a</b>, 87.5&nbsp;%</figcaption>"));
}

TEST_CASE("report: grey and floating-point images, and what does not fit") {
  Report report;
  report.wrong_examples.resize(1);
  CHECK_THAT(error_of([&] { render_report(report); }), contains("image must be [C, H, W], got undefined"));
  report.wrong_examples[0].image = torch::zeros({2, 2});
  CHECK_THAT(error_of([&] { render_report(report); }), contains("image must be [C, H, W], got [2, 2]"));
  report.wrong_examples[0].image = torch::zeros({1, 5, 7});
  CHECK_THAT(render_report(report), contains("width=\"7\" height=\"5\""));
  report.class_names = {"a"};
  report.wrong_examples[0].predicted = 1;
  CHECK_THAT(error_of([&] { render_report(report); }), contains("class must be in [0, 1), got 1"));
  report.confusion = torch::ones({2, 2}, at::kLong);
  CHECK_THAT(error_of([&] { render_report(report); }),
             contains("class_names must hold one name a class of confusion, 2, got 1"));
  report.confusion = torch::ones({2, 2});
  CHECK_THAT(error_of([&] { render_report(report); }), contains("confusion must be int64 [L, L]"));
}

TEST_CASE("write_report: the file is the page, or stays as it was") {
  const TempDir dir;
  Report report;
  report.config = {{"a", "b"}};
  write_report(dir / "report.html", report);
  CHECK(read_file(dir / "report.html") == render_report(report));
  const std::string before = read_file(dir / "report.html");
  report.confusion = torch::ones({2, 2});
  CHECK_FALSE(error_of([&] { write_report(dir / "report.html", report); }).empty());
  CHECK(read_file(dir / "report.html") == before);
  CHECK_THAT(error_of([&] { write_report(dir / "none" / "report.html", Report()); }),
             contains("cannot write"));
}
