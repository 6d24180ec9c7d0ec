// The compare program from outside: tables, grouping over seeds, unfinished runs, its page, refusals.

#include <mixmatch/run/json.hpp>

#include <sstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

namespace fs = std::filesystem;

namespace {

using mixmatch::training::JsonObject;

/// A run directory as cifar10 leaves it; a run without errors is not finished.
std::string make_run(const fs::path& path, const std::string& seed, const std::string& labels,
                     const std::vector<double>& errors = {}, const std::string& alpha = "0.75") {
  fs::create_directories(path);
  write_file(path / "config.json", JsonObject()
                                       .set("method", "mixmatch")
                                       .set("labels", labels)
                                       .set("steps", "300")
                                       .set("seed", seed)
                                       .set("alpha", alpha)
                                       .str());
  write_file(
      path / "metrics.csv",
      "step,loss,test_error,ema_test_error\n50,2,,\n100,1.5,60.5,50.25\n200,1.25,40.125,30\n250,1.2,,\n");
  if (!errors.empty()) {
    write_file(path / "summary.json", JsonObject()
                                          .set("method", "mixmatch")
                                          .set("steps", 300)
                                          .set("test_error", errors[0])
                                          .set("ema_test_error", errors[1])
                                          .set("median_last20_test_error", errors[2])
                                          .set("seconds_per_step", 0.0671)
                                          .str());
  }
  return path.string();
}

/// The words of each line.
std::vector<std::vector<std::string>> words_of(const std::string& text) {
  std::vector<std::vector<std::string>> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    lines.emplace_back();
    for (std::string word; words >> word;) {
      lines.back().push_back(word);
    }
  }
  return lines;
}

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("compare: runs side by side, mean and sample standard deviation over seeds") {
  const TempDir dir;
  const auto a = make_run(dir / "a", "1", "250", {12, 10, 11}),
             b = make_run(dir / "b", "2", "250", {14, 13, 11}),
             c = make_run(dir / "c", "3", "250", {16, 10, 11}),
             d = make_run(dir / "d", "1", "4000", {7, 6.5, 6.25});
  const auto finished = run({MIXMATCH_COMPARE, a, b, c, d});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const auto lines = words_of(finished.out);
  REQUIRE(lines.size() == 10);
  CHECK(lines[0] == Words{"run", "method", "seed", "labels", "steps", "test_error", "ema_test_error",
                          "median_last20_test_error", "seconds_per_step"});
  CHECK(lines[1] == Words{a, "mixmatch", "1", "250", "300", "12.00", "10.00", "11.00", "0.0671"});
  CHECK(lines[4] == Words{d, "mixmatch", "1", "4000", "300", "7.00", "6.50", "6.25", "0.0671"});
  CHECK(lines[7] == Words{"method", "labels", "steps", "seeds", "test_error", "ema_test_error",
                          "median_last20_test_error"});
  // 12, 14, 16: deviation 2; 10, 13, 10: mean 11, deviation sqrt(3).
  CHECK(lines[8] == Words{"mixmatch", "250", "300", "1,", "2,", "3", "14.00", "\u00B1", "2.00", "11.00",
                          "\u00B1", "1.73", "11.00", "\u00B1", "0.00"});
  CHECK(lines[9] == Words{"mixmatch", "4000", "300", "1", "7.00", "6.50", "6.25"});
}

TEST_CASE("compare: runs that differ in more than the seed are told apart, and by what") {
  const TempDir dir;
  const auto a = make_run(dir / "a", "1", "250", {12, 10, 11}),
             b = make_run(dir / "b", "2", "250", {14, 13, 11}, "0.5");
  const auto finished = run({MIXMATCH_COMPARE, a, b});
  REQUIRE(finished.status == 0);
  const auto lines = words_of(finished.out);
  REQUIRE(lines.size() == 8);
  CHECK(lines[0][4] == "alpha");
  CHECK(lines[1][4] == "0.75");
  CHECK(lines[6] == Words{"mixmatch", "250", "0.75", "300", "1", "12.00", "10.00", "11.00"});
  CHECK(lines[7] == Words{"mixmatch", "250", "0.5", "300", "2", "14.00", "13.00", "11.00"});
}

TEST_CASE("compare: an unfinished run is listed from its metrics, marked, and in no mean") {
  const TempDir dir;
  const auto a = make_run(dir / "a", "1", "250", {12, 10, 11}), b = make_run(dir / "b", "2", "250");
  const auto finished = run({MIXMATCH_COMPARE, a, b});
  REQUIRE(finished.status == 0);
  const auto lines = words_of(finished.out);
  REQUIRE(lines.size() == 7);
  CHECK(lines[2] ==
        Words{b, "mixmatch", "2", "250", "250", "of", "300,", "unfinished", "40.12", "30.00", "40.12", "-"});
  CHECK(lines[6] == Words{"mixmatch", "250", "300", "1", "12.00", "10.00", "11.00"});
  write_file(dir / "b" / "metrics.csv", "step,loss,test_error,ema_test_error\n");
  const auto fresh = run({MIXMATCH_COMPARE, b});
  CHECK(fresh.status == 0);
  CHECK(words_of(fresh.out).at(1) ==
        Words{b, "mixmatch", "2", "250", "0", "of", "300,", "unfinished", "-", "-", "-", "-"});
  CHECK(words_of(fresh.out).size() == 2);
}

TEST_CASE("compare: --out draws the error curves of all runs on one page") {
  const TempDir dir;
  const auto a = make_run(dir / "a<1>", "1", "250", {12, 10, 11}), b = make_run(dir / "b", "2", "250");
  const auto out = dir / "compare.html";
  const auto finished = run({MIXMATCH_COMPARE, a, b, "--out", out.string()});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const std::string page = read_file(out);
  CHECK(page.rfind("<!DOCTYPE html>", 0) == 0);
  CHECK_THAT(page, contains("a&lt;1&gt;</td>"));
  CHECK(page.find("a<1>") == std::string::npos);
  CHECK_THAT(page, contains("<figcaption>Test error, EMA weights</figcaption>"));
  CHECK_THAT(page, contains("data-x=\"100 200\" data-y=\"50.25 30\""));
  CHECK_THAT(page, contains("data-x=\"100 200\" data-y=\"60.5 40.125\""));
  CHECK(page.find("Validation error") == std::string::npos);
  CHECK_THAT(page, contains("unfinished"));
}

TEST_CASE("compare: what cannot be read exits 2 with one line and writes nothing") {
  const TempDir dir;
  const auto a = make_run(dir / "a", "1", "250", {12, 10, 11});
  const auto out = (dir / "compare.html").string();
  const auto compare = [&](const std::string& path) {
    return run({MIXMATCH_COMPARE, a, path, "--out", out});
  };
  check_refused(run({MIXMATCH_COMPARE}), "RUNDIR");
  check_refused(compare((dir / "none").string()), "no run directory " + (dir / "none").string());
  check_refused(compare(dir.path().string()), "holds no run");
  check_refused(compare(a), "is given twice");
  check_refused(compare((dir / "a" / ".").string()), "is given twice");
  const auto b = make_run(dir / "b", "2", "250", {12, 10, 11});
  write_file(dir / "b" / "summary.json", "{\"steps\": 300");
  check_refused(compare(b), "summary.json: JSON line 1 column 14: expected ',' or '}'");
  write_file(dir / "b" / "summary.json", "{\"steps\": 300}");
  check_refused(compare(b), "summary.json has no \"test_error\"");
  write_file(dir / "b" / "summary.json", "{\"steps\": \"many\"}");
  check_refused(compare(b), "\"steps\" must be a number, got \"many\"");
  fs::remove(dir / "b" / "summary.json");
  write_file(dir / "b" / "metrics.csv", "step,loss\n1,x\n");
  check_refused(compare(b), "metrics.csv line 2: loss must be a number or nothing, got \"x\"");
  write_file(dir / "b" / "config.json", "nothing");
  check_refused(compare(b), "config.json: JSON line 1 column 1");
  CHECK_FALSE(fs::exists(out));
  check_refused(run({MIXMATCH_COMPARE, a, "--no-such-option"}), "--no-such-option");
}

TEST_CASE("compare: runs that have only validation errors show them, and their means") {
  const TempDir dir;
  const auto make = [&](const std::string& name, const std::string& seed, const std::string& error) {
    const auto path = make_run(dir / name, seed, "250");
    write_file(dir / name / "metrics.csv",
               "step,loss,validation_error,test_error,ema_test_error\n100,2,50,,\n200,1," + error + ",,\n");
    if (!error.empty()) {
      write_file(dir / name / "summary.json",
                 "{\"steps\": 300, \"test_error\": null, \"ema_test_error\": null, "
                 "\"median_last20_test_error\": null, \"validation_error\": " +
                     error + ", \"seconds_per_step\": 0.5}");
    }
    return path;
  };
  const auto a = make("a", "1", "12.5"), b = make("b", "2", "15.5"), c = make("c", "3", "");
  const auto finished = run({MIXMATCH_COMPARE, a, b, c});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const auto lines = words_of(finished.out);
  REQUIRE(lines.size() == 8);
  CHECK(lines[0] == Words{"run", "method", "seed", "labels", "steps", "test_error", "ema_test_error",
                          "median_last20_test_error", "validation_error", "seconds_per_step"});
  CHECK(lines[1] == Words{a, "mixmatch", "1", "250", "300", "-", "-", "-", "12.50", "0.5000"});
  CHECK(lines[3] ==
        Words{c, "mixmatch", "3", "250", "200", "of", "300,", "unfinished", "-", "-", "-", "50.00", "-"});
  CHECK(lines[6].back() == "validation_error");
  CHECK(lines[7] == Words{"mixmatch", "250", "300", "1,", "2", "-", "-", "-", "14.00", "\u00B1", "2.12"});
  // Beside a run with test errors, all errors are there.
  const auto d = make_run(dir / "d", "4", "250", {12, 10, 11});
  const auto both = words_of(run({MIXMATCH_COMPARE, a, d}).out);
  CHECK(both.at(1) == Words{a, "mixmatch", "1", "250", "300", "-", "-", "-", "12.50", "0.5000"});
  CHECK(both.at(2) == Words{d, "mixmatch", "4", "250", "300", "12.00", "10.00", "11.00", "-", "0.0671"});
  // A mean is of the runs that have the error.
  CHECK(both.at(6) == Words{"mixmatch", "250", "300", "1,", "4", "12.00", "10.00", "11.00", "12.50"});
}

TEST_CASE(
    "compare: a finished run that goes on to more steps is unfinished, and in no mean until it is there") {
  const TempDir dir;
  const auto a = make_run(dir / "a", "1", "250", {12, 10, 11}),
             b = make_run(dir / "b", "2", "250", {7, 7, 7});
  // b's summary is of 300 steps, its configuration asks for 300 as a's does; now it is to do 600.
  std::string config = read_file(dir / "b" / "config.json");
  config.replace(config.find("\"300\""), 5, "\"600\"");
  write_file(dir / "b" / "config.json", config);
  const auto lines = words_of(run({MIXMATCH_COMPARE, a, b}).out);
  REQUIRE(lines.size() == 7);
  CHECK(lines[2] ==
        Words{b, "mixmatch", "2", "250", "250", "of", "600,", "unfinished", "40.12", "30.00", "40.12", "-"});
  CHECK(lines[6] == Words{"mixmatch", "250", "300", "1", "12.00", "10.00", "11.00"});
}

TEST_CASE("compare: runs of other versions are one group, and told apart in the table of runs") {
  const TempDir dir;
  const auto a = make_run(dir / "a", "1", "250", {12, 10, 11}),
             b = make_run(dir / "b", "2", "250", {14, 13, 11});
  std::string config = read_file(dir / "b" / "config.json");
  config.replace(config.rfind("\n}"), 2, ",\n  \"mixmatch-version\": \"0.1.0\"\n}");
  write_file(dir / "b" / "config.json", config);
  const auto lines = words_of(run({MIXMATCH_COMPARE, a, b}).out);
  REQUIRE(lines.size() == 7);
  CHECK(lines[0][4] == "mixmatch-version");
  CHECK(lines[1][4] == "-");
  CHECK(lines[2][4] == "0.1.0");
  CHECK(lines[6] == Words{"mixmatch", "250", "300", "1,", "2", "13.00", "\u00B1", "1.41", "11.50", "\u00B1",
                          "2.12", "11.00", "\u00B1", "0.00"});
}
