#include <mixmatch/report/line_chart.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

namespace {

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

/// The texts of attribute `name` in elements `tag`.
std::vector<std::string> attributes(const std::string& html, const std::string& tag,
                                    const std::string& name) {
  std::vector<std::string> values;
  for (size_t at = html.find("<" + tag + " "); at != std::string::npos;
       at = html.find("<" + tag + " ", at + 1)) {
    const std::string element = html.substr(at, html.find('>', at) - at);
    const size_t begin = element.find(" " + name + "=\"");
    if (begin != std::string::npos) {
      const size_t first = begin + name.size() + 3;
      values.push_back(element.substr(first, element.find('"', first) - first));
    }
  }
  return values;
}

std::vector<double> numbers(const std::string& text) {
  std::vector<double> list;
  std::string spaced = text;
  std::replace(spaced.begin(), spaced.end(), ',', ' ');
  std::istringstream in(spaced);
  for (double value; in >> value;) {
    list.push_back(value);
  }
  return list;
}

/// What the <text> elements say.
std::vector<std::string> texts(const std::string& html) {
  std::vector<std::string> list;
  for (size_t at = html.find("<text "); at != std::string::npos; at = html.find("<text ", at + 1)) {
    const size_t first = html.find('>', at) + 1;
    list.push_back(html.substr(first, html.find('<', first) - first));
  }
  return list;
}

bool has(const std::vector<std::string>& list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

}  // namespace

TEST_CASE("line chart: points lie where their numbers say, marks too") {
  LineChart chart{"Error <1>", "step & more", "percent", {}};
  chart.curves = {{"raw \"a\"", {0, 50, 100}, {80, 40, 0}}};
  const std::string html = render_line_chart(chart);
  const auto points = numbers(attributes(html, "polyline", "points").at(0));
  REQUIRE(points.size() == 6);
  // Equal steps in x and in y, rising x, falling y; SVG's y points down.
  CHECK(points[2] - points[0] == Approx(points[4] - points[2]));
  CHECK(points[2] > points[0]);
  CHECK(points[3] - points[1] == Approx(points[5] - points[3]));
  CHECK(points[3] > points[1]);
  CHECK(attributes(html, "polyline", "data-x").at(0) == "0 50 100");
  CHECK(attributes(html, "polyline", "data-y").at(0) == "80 40 0");
  CHECK(attributes(html, "circle", "cx").size() == 3);
  for (const std::string label : {"0", "20", "40", "60", "80", "100", "percent", "step &amp; more"}) {
    INFO(label);
    CHECK(has(texts(html), label));
  }
  CHECK_THAT(html, contains("<figcaption>Error &lt;1&gt;</figcaption>"));
  CHECK_THAT(html, contains("raw &quot;a&quot;"));
  CHECK_THAT(html, contains("last values, step &amp; more 100"));
  CHECK_THAT(html, contains("<output>0</output>"));
}

TEST_CASE("line chart: gaps are bridged, a curve without values says so, no curve is no chart") {
  LineChart chart{"t", "x", "y", {}};
  chart.curves = {{"sparse", {1, 2, 3, 4}, {nan_value, 5, std::numeric_limits<double>::infinity(), 7}},
                  {"empty", {1, 2}, {nan_value, nan_value}}};
  const std::string html = render_line_chart(chart);
  CHECK(attributes(html, "polyline", "data-x") == std::vector<std::string>{"2 4"});
  CHECK_THAT(html, contains("<span>empty</span><i class=\"muted\">no values</i>"));
  CHECK(html.find("nan") == std::string::npos);
  CHECK(html.find("inf") == std::string::npos);
  chart.curves.erase(chart.curves.begin());
  CHECK(render_line_chart(chart) == "");
  chart.curves = {{"bad", {1, 2}, {1}}};
  CHECK_THAT(error_of([&] { render_line_chart(chart); }), contains("curve \"bad\" has 2 x and 1 y"));
}

TEST_CASE("line chart: every coordinate is finite and inside, whatever the numbers") {
  const std::vector<std::vector<double>> ranges = {
      {0},
      {5},
      {-5},
      {1e-300},
      {1e99, -1e99},
      {1, 1 + 1e-15},
      {-3, -1, -2},
      {0.002, 0.002},
      {1e-9, 2e-9},
      {1e6, 1048576},
      {-1e-5, 1e5},
      {0, 5e-324},
      {99.999, 100.001},
      {1e300, 1},
  };
  for (const auto& y : ranges) {
    for (const bool logarithmic : {false, true}) {
      LineChart chart{"t", "x", "y", {}};
      chart.logarithmic = logarithmic;
      std::vector<double> x;
      for (size_t i = 0; i < y.size(); ++i) {
        x.push_back(static_cast<double>(i * 1000));
      }
      chart.curves = {{"c", x, y}, {"swapped", y, x}};
      const std::string html = render_line_chart(chart);
      INFO(fmt::format("{} {}", y[0], logarithmic));
      const auto check = [&](const std::string& tag, const std::string& name, double limit) {
        for (const auto& value : attributes(html, tag, name)) {
          for (const double number : numbers(value)) {
            CHECK((std::isfinite(number) && number >= 0 && number <= limit));
          }
        }
      };
      check("circle", "cx", 420);
      check("circle", "cy", 264);
      check("text", "x", 420);
      check("text", "y", 264);
      CHECK(html.find("nan") == std::string::npos);
      CHECK(html.find("\"inf") == std::string::npos);
      const auto labels = texts(html);
      CHECK((labels.empty() || labels.size() < 40));
    }
  }
}

TEST_CASE("line chart: a logarithmic axis has equal factors at equal distances, and no place for 0") {
  LineChart chart{"t", "x", "loss", {{"a", {1, 2, 3, 4}, {0.01, 0.1, 1, 0}}}};
  chart.logarithmic = true;
  const std::string html = render_line_chart(chart);
  const auto points = numbers(attributes(html, "polyline", "points").at(0));
  REQUIRE(points.size() == 6);
  CHECK(points[1] - points[3] == Approx(points[3] - points[5]).margin(0.11));
  for (const std::string label : {"0.01", "0.1", "1", "loss (log scale)"}) {
    CHECK(has(texts(html), label));
  }
}

TEST_CASE("line chart: long curves are thinned, peaks and ends stay") {
  Curve curve{"c", {}, {}};
  for (int i = 0; i < 20000; ++i) {
    curve.x.push_back(i);
    curve.y.push_back(std::sin(i * 0.7) * 0.1 + 1);
  }
  curve.y[12345] = 9;
  curve.y[777] = -4;
  LineChart chart{"t", "x", "y", {curve}};
  const std::string html = render_line_chart(chart);
  const auto y = numbers(attributes(html, "polyline", "data-y").at(0));
  const auto x = numbers(attributes(html, "polyline", "data-x").at(0));
  CHECK(y.size() <= 600);
  CHECK(y.size() > 300);
  CHECK(*std::max_element(y.begin(), y.end()) == 9);
  CHECK(*std::min_element(y.begin(), y.end()) == -4);
  CHECK(x.front() == 0);
  CHECK(x.back() == 19999);
  CHECK(std::is_sorted(x.begin(), x.end()));
  CHECK(attributes(html, "circle", "cx").size() == 1);  // the last point
  chart.max_points = 20000;
  CHECK(numbers(attributes(render_line_chart(chart), "polyline", "data-y").at(0)).size() == 20000);
}

TEST_CASE("line chart: marks read well, and curves beyond eight have other dashes") {
  const auto labels = [](double low, double high) {
    std::vector<std::string> list;
    const auto axis = mixmatch::training::detail::linear_axis(low, high, 5, false);
    for (const double tick : axis.ticks) {
      list.push_back(mixmatch::training::detail::tick_label(tick, axis));
    }
    return list;
  };
  using Labels = std::vector<std::string>;
  CHECK(labels(1, 1048576) == Labels{"0", "200k", "400k", "600k", "800k", "1M"});
  CHECK(labels(0, 20000) == Labels{"0", "5k", "10k", "15k", "20k"});
  CHECK(labels(0, 1) == Labels{"0", "0.2", "0.4", "0.6", "0.8", "1"});
  CHECK(labels(-1, 1) == Labels{"-1", "-0.5", "0", "0.5", "1"});
  CHECK(labels(0.00211, 0.0024) == Labels{"0.00215", "0.0022", "0.00225", "0.0023", "0.00235", "0.0024"});
  LineChart chart{"t", "x", "y", {}};
  for (int i = 0; i < 10; ++i) {
    chart.curves.push_back({std::to_string(i), {0, 1}, {0, 1.0 * i}});
  }
  const auto styles = attributes(render_line_chart(chart), "polyline", "class");
  CHECK(styles[0] == "s0 d0");
  CHECK(styles[7] == "s7 d0");
  CHECK(styles[8] == "s0 d1");
}
