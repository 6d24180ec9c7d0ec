#include <mixmatch/run/metrics_writer.hpp>

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
  CHECK(metrics.text() == read_file(dir / "m.csv"));
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
  CHECK(metrics.text() == "a,b\n1,2\n");
  metrics.append({3, 4});
  CHECK(read_file(dir / "m.csv") == "a,b\n1,2\n3,4\n");
  CHECK_THAT(error_of([&] { MetricsCsv(dir / "m.csv", {"a", "c"}); }), contains("a,c") && contains("m.csv"));
  CHECK_THAT(error_of([&] {
               MetricsCsv(dir / "m.csv", {"a", "b", "and", "many", "more"});
             }),
             contains("other metrics"));
  CHECK(read_file(dir / "m.csv") == "a,b\n1,2\n3,4\n");
}

TEST_CASE("a half-written row at the end is cut off", "[metrics]") {
  const TempDir dir;
  write_file(dir / "m.csv", "a\n1\n3.14");
  MetricsCsv metrics(dir / "m.csv", {"a"});
  CHECK(metrics.text() == "a\n1\n");
  metrics.append({5});
  CHECK(read_file(dir / "m.csv") == "a\n1\n5\n");
  CHECK(metrics.text() == read_file(dir / "m.csv"));
}

TEST_CASE("a resumed run's metrics are what its checkpoint counts on, whatever became of the file",
          "[metrics]") {
  const TempDir dir;
  const auto path = dir / "m.csv";
  torch::serialize::OutputArchive saved;
  {
    MetricsCsv metrics(path, {"a"});
    metrics.append({1});
    metrics.append({2});
    metrics.save(saved);
    metrics.append({3});
  }
  std::string bytes;
  saved.save_to([&bytes](const void* data, size_t size) {
    bytes.append(static_cast<const char*>(data), size);
    return size;
  });
  const auto resume = [&](const std::vector<std::string>& columns) {
    const auto metrics = MetricsCsv::unopened(path);
    torch::serialize::InputArchive archive;
    archive.load_from(bytes.data(), bytes.size());
    metrics->load(archive);
    metrics->set_columns(columns);
    const bool restored = metrics->was_restored();
    metrics->append({9});
    return restored;
  };
  CHECK_FALSE(resume({"a"}));  // later rows are cut off
  CHECK(read_file(path) == "a\n1\n2\n9\n");
  // A power cut that lost rows, all of them, the header; a damaged row; a removed file.
  for (const std::string left : {"a\n1\n", "a\n1\n2", "a\n", "", "a\n1\nx\n3\n", "b\n1\n2\n"}) {
    write_file(path, left);
    CHECK(resume({"a"}));
    CHECK(read_file(path) == "a\n1\n2\n9\n");
  }
  std::filesystem::remove(path);
  CHECK(resume({"a"}));
  CHECK(read_file(path) == "a\n1\n2\n9\n");
  CHECK_THAT(error_of([&] { resume({"b"}); }), contains("the header is not \"b\"; this file has other"));
  CHECK(read_file(path) == "a\n1\n2\n");
}

TEST_CASE("metrics whose columns are known with the first row", "[metrics]") {
  const TempDir dir;
  {
    MetricsCsv metrics(dir / "m.csv");
    CHECK(read_file(dir / "m.csv").empty());
    CHECK_THAT(error_of([&] { metrics.append({1}); }), contains("0 values, got 1"));
    metrics.set_columns({"step", "loss"});
    metrics.append({1, 2});
  }
  MetricsCsv again(dir / "m.csv");
  CHECK_THAT(error_of([&] { again.set_columns({"step", "mask_rate"}); }), contains("other metrics"));
  again.set_columns({"step", "loss"});
  again.append({2, 3});
  CHECK(read_file(dir / "m.csv") == "step,loss\n1,2\n2,3\n");
}

TEST_CASE("bad metrics arguments throw", "[metrics]") {
  const TempDir dir;
  MetricsCsv metrics(dir / "m.csv", {"a", "b"});
  CHECK_THAT(error_of([&] { metrics.append({1}); }), contains("2 values") && contains("got 1"));
  CHECK(read_file(dir / "m.csv") == "a,b\n");
  CHECK_THAT(error_of([&] { MetricsCsv(dir / "n.csv", std::vector<std::string>()); }),
             contains("columns must not be empty"));
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
