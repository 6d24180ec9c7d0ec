#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <mixmatch/report/html.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Points (x[i], y[i]) that a line joins in their order, x rising. Points with a number that is not finite
/// are left out, and the line goes on to the next.
struct Curve {
  std::string name;
  std::vector<double> x, y;
};

struct LineChart {
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
  bool logarithmic = false;  ///< y axis; points with y <= 0 are left out
  /// A curve of more points is thinned: of each stretch of its rows only the first, those of the lowest and
  /// the highest y, and the last are drawn, so that no peak is lost.
  size_t max_points = 600;
};

namespace detail {

/// Finite points alone, thinned as LineChart says.
inline Curve drawable_curve(const Curve& curve, bool logarithmic, size_t max_points) {
  TORCH_CHECK(curve.x.size() == curve.y.size(), "line chart: curve \"", curve.name, "\" has ", curve.x.size(),
              " x and ", curve.y.size(), " y");
  constexpr double huge = 1e100,
                   tiny = 1e-100;  // beyond what is measured; differences and powers stay finite
  Curve all{curve.name, {}, {}};
  for (size_t i = 0; i < curve.x.size(); ++i) {
    if (std::abs(curve.x[i]) < huge && std::abs(curve.y[i]) < huge && (!logarithmic || curve.y[i] > tiny)) {
      all.x.push_back(curve.x[i]);
      all.y.push_back(curve.y[i]);
    }
  }
  const size_t count = all.x.size();
  if (count <= max_points) {
    return all;
  }
  Curve thin{curve.name, {}, {}};
  const size_t stretches = std::max<size_t>(1, max_points / 4);
  for (size_t s = 0; s < stretches; ++s) {
    const size_t begin = count * s / stretches, end = count * (s + 1) / stretches;
    const auto from = all.y.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto to = all.y.begin() + static_cast<std::ptrdiff_t>(end);
    std::vector<size_t> rows{begin, static_cast<size_t>(std::min_element(from, to) - all.y.begin()),
                             static_cast<size_t>(std::max_element(from, to) - all.y.begin()), end - 1};
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    for (const size_t row : rows) {
      thin.x.push_back(all.x[row]);
      thin.y.push_back(all.y[row]);
    }
  }
  return thin;
}

/// An axis from `low` to `high` with marks at `ticks`.
struct Axis {
  double low, high;
  std::vector<double> ticks;
  bool logarithmic = false;

  /// Where on the axis a value is, 0 at its low and 1 at its high end.
  double place(double value) const {
    return logarithmic ? std::log10(value / low) / std::log10(high / low) : (value - low) / (high - low);
  }
};

/// The largest of 1, 2, 5 times a power of ten that is <= value.
inline double round_down_125(double value) {
  const double power = std::pow(10.0, std::floor(std::log10(value)));
  const double mantissa = value / power;
  constexpr double slack = 1 - 1e-9;
  return power * (mantissa >= 10 * slack ? 10 : mantissa >= 5 * slack ? 5 : mantissa >= 2 * slack ? 2 : 1);
}

inline double next_125(double value) {
  const double power = std::pow(10.0, std::floor(std::log10(value * (1 + 1e-9))));
  const double mantissa = value / power;
  return power * (mantissa < 1.5 ? 2 : mantissa < 3 ? 5 : 10);
}

/// A linear axis over [low, high] with about `count` marks; `whole_steps` moves its ends out to marks.
inline Axis linear_axis(double low, double high, int count, bool whole_steps) {
  if (high - low <= 1e-9 * std::max(std::abs(low), std::abs(high))) {  // one value: give it room
    const double value = low;
    low = value > 0 ? 0 : value < 0 ? 2 * value : 0;
    high = value > 0 ? 2 * value : value < 0 ? 0 : 1;
  } else if (low > 0 && low < high / 2) {
    low = 0;
  }
  const double rough = (high - low) / count;
  const double below = round_down_125(rough);
  const double step = rough > below * 1.25 ? next_125(below) : below;
  Axis axis{low, high, {}};
  const double first = whole_steps ? std::floor(low / step + 1e-9) : std::ceil(low / step - 1e-9);
  const double last = whole_steps ? std::ceil(high / step - 1e-9) : std::floor(high / step + 1e-9);
  for (double k = first; k <= last; ++k) {
    axis.ticks.push_back(k * step + 0.0);  // + 0 makes -0 a 0
  }
  if (whole_steps) {
    axis.low = first * step;
    axis.high = last * step;
  }
  return axis;
}

inline Axis logarithmic_axis(double low, double high) {
  Axis axis{round_down_125(low), round_down_125(low), {}, true};
  while (axis.high < high * (1 - 1e-9) || axis.high == axis.low) {
    axis.high = next_125(axis.high);
  }
  const double decades = std::log10(axis.high / axis.low);
  if (decades <= 3) {
    for (double tick = axis.low; tick <= axis.high * (1 + 1e-9); tick = next_125(tick)) {
      axis.ticks.push_back(tick);
    }
    return axis;
  }
  const double stride = std::ceil(decades / 6);
  for (double power = std::ceil(std::log10(axis.low) - 1e-9);
       power <= std::floor(std::log10(axis.high) + 1e-9); power += stride) {
    axis.ticks.push_back(std::pow(10.0, power));
  }
  return axis;
}

/// 250000 as 250k where the axis is long, else as few digits as tell the marks apart.
inline std::string tick_label(double value, const Axis& axis) {
  const double reach = std::max(std::abs(axis.low), std::abs(axis.high));
  if (value != 0 && std::abs(value) < 1e-9 * reach && !axis.logarithmic) {
    value = 0;
  }
  if (reach >= 1e4 && reach < 1e9 && std::abs(value) >= 1e6) {
    return fmt::format("{:.6g}M", value / 1e6);
  }
  if (reach >= 1e4 && reach < 1e9 && std::abs(value) >= 1e3) {
    return fmt::format("{:.6g}k", value / 1e3);
  }
  return fmt::format("{:.6g}", value);
}

inline std::string coordinate(double value) {
  std::string text = fmt::format("{:.1f}", value);
  if (text.ends_with(".0")) {
    text.resize(text.size() - 2);
  }
  return text;
}

inline std::string join(const std::vector<std::string>& parts, const char* separator) {
  std::string out;
  for (const auto& part : parts) {
    out += out.empty() ? part : separator + part;
  }
  return out;
}

}  // namespace detail

/// A chart for html_page: an HTML figure with its title, the curves as inline SVG with axes, marks and grid,
/// and a legend that says each curve's last value. A curve of up to 80 points shows each as a dot, a longer
/// one its last. Colours repeat after eight curves, with other dashes. A curve without a drawable point
/// stands in the legend as "no values"; "" if no curve has one. Throws if a curve's x and y differ in length.
inline std::string render_line_chart(const LineChart& chart) {
  constexpr double left = 50, right = 402, top = 32, bottom = 226;
  constexpr size_t max_dots = 80;
  std::vector<Curve> curves;
  double low_x = std::numeric_limits<double>::infinity(), high_x = -low_x, low_y = low_x, high_y = -low_x;
  for (const auto& curve : chart.curves) {
    curves.push_back(detail::drawable_curve(curve, chart.logarithmic, chart.max_points));
    for (size_t i = 0; i < curves.back().x.size(); ++i) {
      low_x = std::min(low_x, curves.back().x[i]);
      high_x = std::max(high_x, curves.back().x[i]);
      low_y = std::min(low_y, curves.back().y[i]);
      high_y = std::max(high_y, curves.back().y[i]);
    }
  }
  if (low_x > high_x) {
    return "";
  }
  const detail::Axis x_axis = detail::linear_axis(low_x, high_x, 5, /*whole_steps=*/false);
  const detail::Axis y_axis = chart.logarithmic ? detail::logarithmic_axis(low_y, high_y)
                                                : detail::linear_axis(low_y, high_y, 5, true);
  const auto at_x = [&](double x) { return detail::coordinate(left + (right - left) * x_axis.place(x)); };
  const auto at_y = [&](double y) { return detail::coordinate(bottom - (bottom - top) * y_axis.place(y)); };

  std::string svg =
      fmt::format("<svg class=\"plot\" viewBox=\"0 0 420 264\" role=\"img\" aria-label=\"{}\">\n",
                  escape_html(chart.title));
  for (const double tick : y_axis.ticks) {
    const std::string y = at_y(tick);
    svg += fmt::format("<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>", left, right, y, y);
    svg += fmt::format("<text x=\"{}\" y=\"{}\" dy=\".32em\" text-anchor=\"end\">{}</text>\n", left - 6, y,
                       detail::tick_label(tick, y_axis));
  }
  for (const double tick : x_axis.ticks) {
    const std::string x = at_x(tick);
    svg += fmt::format("<line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>", x, x, bottom,
                       bottom + 4);
    svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", x, bottom + 17,
                       detail::tick_label(tick, x_axis));
  }
  svg += fmt::format("<line class=\"axis\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n", left, right, bottom,
                     bottom);
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>", (left + right) / 2,
                     bottom + 34, escape_html(chart.x_label));
  svg += fmt::format("<text x=\"4\" y=\"13\">{}{}</text>\n", escape_html(chart.y_label),
                     chart.logarithmic ? " (log scale)" : "");
  svg += fmt::format("<line class=\"cross\" x1=\"{}\" x2=\"{}\" y1=\"{}\" y2=\"{}\"/>\n", left, left, top,
                     bottom);

  std::string legend;
  double last_x = low_x;
  for (size_t c = 0; c < curves.size(); ++c) {
    const Curve& curve = curves[c];
    const std::string style = fmt::format("s{} d{}", c % 8, c / 8 % 3);
    legend += fmt::format(
        "<li class=\"{}\"><svg viewBox=\"0 0 24 10\" aria-hidden=\"true\"><line x1=\"0\" x2=\"24\" y1=\"5\" "
        "y2=\"5\"/></svg><span>{}</span>",
        style, escape_html(curve.name));
    if (curve.x.empty()) {
      legend += "<i class=\"muted\">no values</i></li>\n";
      continue;
    }
    std::vector<std::string> points, xs, ys;
    for (size_t i = 0; i < curve.x.size(); ++i) {
      points.push_back(at_x(curve.x[i]) + "," + at_y(curve.y[i]));
      xs.push_back(fmt::format("{:.10g}", curve.x[i]));
      ys.push_back(fmt::format("{:.5g}", curve.y[i]));
    }
    svg += fmt::format("<polyline class=\"{}\" points=\"{}\" data-x=\"{}\" data-y=\"{}\"/>\n", style,
                       detail::join(points, " "), detail::join(xs, " "), detail::join(ys, " "));
    const bool dots = curve.x.size() <= max_dots;
    for (size_t i = dots ? 0 : curve.x.size() - 1; i < curve.x.size(); ++i) {
      svg += fmt::format("<circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"2.5\"/>", style, at_x(curve.x[i]),
                         at_y(curve.y[i]));
    }
    svg += '\n';
    legend += fmt::format("<output>{}</output></li>\n", ys.back());
    last_x = std::max(last_x, curve.x.back());
  }
  return fmt::format(
      "<figure class=\"chart\">\n<figcaption>{}</figcaption>\n{}</svg>\n<p class=\"at\" data-x=\"{}\">last "
      "values, {} {:.10g}</p>\n<ul class=\"legend\">\n{}</ul>\n</figure>\n",
      escape_html(chart.title), svg, escape_html(chart.x_label), escape_html(chart.x_label), last_x, legend);
}

}  // namespace mixmatch::training
