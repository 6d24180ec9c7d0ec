#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/metrics_writer.hpp>

#include <cmath>
#include <limits>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::training::MetricsCsv;
using mixmatch::training::read_metrics;

TEST_CASE("read_metrics: what MetricsCsv wrote") {
  const TempDir dir;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::vector<double>> rows = {{50, 0.1, nan},
                                                 {1048576, -1.5e-7, 9.25},
                                                 {-3, infinity, -infinity},
                                                 {nan, nan, nan},
                                                 {0, 1e300, 5e-324}};
  {
    MetricsCsv metrics(dir / "m.csv", {"step", "loss", "ema_test_error"});
    for (const auto& row : rows) {
      metrics.append(row);
    }
  }
  const auto table = read_metrics(dir / "m.csv");
  CHECK(table.columns == std::vector<std::string>{"step", "loss", "ema_test_error"});
  REQUIRE(table.rows.size() == rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = 0; j < 3; ++j) {
      CHECK((table.rows[i][j] == rows[i][j] || (std::isnan(table.rows[i][j]) && std::isnan(rows[i][j]))));
    }
  }
  CHECK(table.column("loss")[1] == -1.5e-7);
  CHECK(table.column("loss").size() == rows.size());
  CHECK(table.column("none").empty());
}

TEST_CASE("read_metrics: no rows yet, and a row that is being written") {
  const TempDir dir;
  write_file(dir / "m.csv", "a,b\n");
  CHECK(read_metrics(dir / "m.csv").rows.empty());
  write_file(dir / "m.csv", "a,b\n1,2\n3,4");
  CHECK(read_metrics(dir / "m.csv").rows == std::vector<std::vector<double>>{{1, 2}});
}

TEST_CASE("read_metrics: no byte of the file reaches a message raw") {
  const TempDir dir;
  write_file(dir / "m.csv", "a\x1b[2J,b\n0\xff,1\n");
  CHECK_THAT(error_of([&] { read_metrics(dir / "m.csv"); }),
             contains("line 2: a\\x1b[2J must be a number or nothing, got \"0\\xff\""));
  write_file(dir / "m.csv", "a\n" + std::string(100000, 'x') + "\n");
  CHECK(error_of([&] { read_metrics(dir / "m.csv"); }).size() < 400);
}

TEST_CASE("read_metrics: one line for what is wrong") {
  const TempDir dir;
  const auto error = [&](const std::string& text) {
    write_file(dir / "m.csv", text);
    const auto message = error_of([&] { read_metrics(dir / "m.csv"); });
    CHECK(message.find('\n') == std::string::npos);
    CHECK_THAT(message, contains((dir / "m.csv").string()));
    return message;
  };
  CHECK_THAT(error(""), contains("has no header line"));
  CHECK_THAT(error("step,loss"), contains("has no header line"));
  CHECK_THAT(error("step,,loss\n"), contains("line 1: a column has no name"));
  CHECK_THAT(error("\n"), contains("line 1: a column has no name"));
  CHECK_THAT(error("step,loss,step\n"), contains("line 1: column \"step\" is there twice"));
  CHECK_THAT(error("step,loss\n1,2\n1\n"), contains("line 3: expected 2 cells, got 1"));
  CHECK_THAT(error("step,loss\n1,2,3\n"), contains("line 2: expected 2 cells, got 3"));
  CHECK_THAT(error("step,loss\n\n"), contains("line 2: expected 2 cells, got 1"));
  CHECK_THAT(error("step,loss\n1,two\n"), contains("line 2: loss must be a number or nothing, got \"two\""));
  CHECK_THAT(error("step,loss\n1,2x\n"), contains("got \"2x\""));
  CHECK_THAT(error("step,loss\n1, 2\n"), contains("got \" 2\""));
  CHECK_THAT(error("step,loss\n1,1e999\n"), contains("got \"1e999\""));
  CHECK_THAT(error_of([&] { read_metrics(dir / "none.csv"); }),
             contains("cannot read " + (dir / "none.csv").string() + ": No such file"));
  CHECK_THAT(error_of([&] { read_metrics(dir.path()); }), contains("it is a directory"));
}
