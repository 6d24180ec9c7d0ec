#include <mixmatch/report/metrics_charts.hpp>

#include <string>
#include <vector>

#include "catch.hpp"
#include "sample_report.hpp"

using namespace mixmatch::training;

namespace {

std::vector<std::string> titles(const std::vector<LineChart>& charts) {
  std::vector<std::string> list;
  for (const auto& chart : charts) {
    list.push_back(chart.title);
  }
  return list;
}

}  // namespace

TEST_CASE("metrics_charts: columns by name") {
  const auto charts = metrics_charts(sample_metrics(400));
  CHECK(titles(charts) == std::vector<std::string>{"Loss", "Error", "Weight of the unlabeled loss",
                                                   "Guessed labels", "Entropy of guessed labels",
                                                   "learning_rate"});
  CHECK(charts[0].logarithmic);
  REQUIRE(charts[0].curves.size() == 3);
  CHECK(charts[0].curves[2].name == "unlabeled");
  REQUIRE(charts[1].curves.size() == 2);  // no validation error was measured
  CHECK(charts[1].curves[1].name == "test, EMA");
  CHECK_FALSE(charts[1].logarithmic);
  CHECK(charts[0].x_label == "step");
  CHECK(charts[0].curves[0].x[1] == 100);

  // Supervised: the unlabeled loss is 0 throughout. No step column; an error and a loss of one's own.
  MetricsTable table;
  table.columns = {"loss", "loss_unlabeled", "loss_rotation", "train_error", "speed"};
  table.rows = {{2, 0, 1, 50, 9}, {1, 0, 0.5, 40, 9}};
  const auto others = metrics_charts(table);
  CHECK(titles(others) == std::vector<std::string>{"Loss", "Error", "speed"});
  CHECK_FALSE(others[0].logarithmic);
  REQUIRE(others[0].curves.size() == 2);
  CHECK(others[0].curves[1].name == "loss_rotation");
  CHECK(others[1].curves[0].name == "train_error");
  CHECK(others[0].x_label == "row");
  CHECK(others[0].curves[0].x == std::vector<double>{1, 2});
  CHECK(metrics_charts(MetricsTable()).empty());
}
