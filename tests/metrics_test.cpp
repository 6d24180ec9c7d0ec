#include <mixmatch/training/metrics.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cmath>
#include <limits>

using mixmatch::training::median_of_last;
using mixmatch::training::MetricsCsv;

namespace {
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();
}  // namespace

TEST_CASE("rows are written as they come", "[metrics]") {
  const TempDir dir;
  MetricsCsv metrics(dir / "m.csv", {"step", "loss", "error"});
  CHECK(read_file(dir / "m.csv") == "step,loss,error\n");
  metrics.append({1, 0.1, not_a_number});
  CHECK(read_file(dir / "m.csv") == "step,loss,error\n1,0.1,\n");
  metrics.append({1048576, -1.5e-7, infinity});
  metrics.append({-3, 1e300, 9007199254740992.0});
  CHECK(read_file(dir / "m.csv") ==
        "step,loss,error\n1,0.1,\n1048576,-1.5e-07,inf\n-3,1e+300,9007199254740992\n");
  CHECK(metrics.bytes() == static_cast<int64_t>(read_file(dir / "m.csv").size()));
}

TEST_CASE("numbers read back to the same value", "[metrics]") {
  const TempDir dir;
  MetricsCsv metrics(dir / "m.csv", {"x"});
  const std::vector<double> values = {1.0 / 3, std::nextafter(2.0, 3.0), 5e-324, 123456.789};
  for (const double value : values) {
    metrics.append({value});
  }
  std::istringstream lines(read_file(dir / "m.csv"));
  std::string line;
  std::getline(lines, line);
  for (const double value : values) {
    REQUIRE(std::getline(lines, line));
    CHECK(std::strtod(line.c_str(), nullptr) == value);
  }
}

TEST_CASE("an existing file is continued", "[metrics]") {
  const TempDir dir;
  { MetricsCsv(dir / "m.csv", {"a", "b"}).append({1, 2}); }
  MetricsCsv metrics(dir / "m.csv", {"a", "b"});
  CHECK(metrics.bytes() == 8);
  metrics.append({3, 4});
  CHECK(read_file(dir / "m.csv") == "a,b\n1,2\n3,4\n");
  CHECK_THAT(error_of([&] { MetricsCsv(dir / "m.csv", {"a", "c"}); }), contains("a,c") && contains("m.csv"));
  CHECK_THAT(error_of([&] {
               MetricsCsv(dir / "m.csv", {"a", "b", "and", "many", "more"});
             }),
             contains("other metrics"));
  CHECK(read_file(dir / "m.csv") == "a,b\n1,2\n3,4\n");
}

TEST_CASE("truncate_to drops later rows, a half-written one too", "[metrics]") {
  const TempDir dir;
  int64_t bytes = 0;
  {
    MetricsCsv metrics(dir / "m.csv", {"a"});
    metrics.append({1});
    bytes = metrics.bytes();
    metrics.append({2});
  }
  write_file(dir / "m.csv", read_file(dir / "m.csv") + "3.14");
  MetricsCsv metrics(dir / "m.csv", {"a"});
  metrics.truncate_to(bytes);
  CHECK(metrics.bytes() == bytes);
  metrics.append({5});
  CHECK(read_file(dir / "m.csv") == "a\n1\n5\n");
  CHECK_THAT(error_of([&] { metrics.truncate_to(1000); }),
             contains("run directory was changed") && contains("1000"));
  CHECK_THAT(error_of([&] { metrics.truncate_to(-1); }), contains("run directory was changed"));
  CHECK(read_file(dir / "m.csv") == "a\n1\n5\n");
}

TEST_CASE("bad metrics arguments throw", "[metrics]") {
  const TempDir dir;
  MetricsCsv metrics(dir / "m.csv", {"a", "b"});
  CHECK_THAT(error_of([&] { metrics.append({1}); }), contains("2 values") && contains("got 1"));
  CHECK(read_file(dir / "m.csv") == "a,b\n");
  CHECK_THAT(error_of([&] { MetricsCsv(dir / "n.csv", {}); }), contains("columns must not be empty"));
  CHECK_THAT(error_of([&] { MetricsCsv(dir / "n.csv", {"a,b"}); }), contains("'a,b'"));
  CHECK_FALSE(std::filesystem::exists(dir / "n.csv"));
  CHECK_THAT(error_of([&] { MetricsCsv(dir / "none" / "n.csv", {"a"}); }),
             contains("cannot write") && contains("No such file"));
  CHECK_THAT(error_of([&] { MetricsCsv(dir.path(), {"a"}); }), contains("cannot write"));
  CHECK_THAT(error_of([&] { MetricsCsv("/dev/null", {"a"}); }), contains("not a regular file"));
}

TEST_CASE("median_of_last", "[metrics]") {
  CHECK(median_of_last({3}) == 3);
  CHECK(median_of_last({4, 1}) == 2.5);
  CHECK(median_of_last({9, 1, 5}) == 5);
  CHECK(median_of_last({100, 100, 100, 1, 2, 3}, 3) == 2);
  CHECK(std::isnan(median_of_last({})));
  CHECK(std::isnan(median_of_last({1, 2}, 0)));
  CHECK(std::isnan(median_of_last({1, not_a_number, 2})));
  CHECK(median_of_last({not_a_number, 1, 2, 3}, 3) == 2);
  std::vector<double> many(80, 50.0);  // only the last 20 count
  for (int i = 1; i <= 20; ++i) {
    many.push_back(i);
  }
  CHECK(median_of_last(many) == 10.5);
}
