#include <mixmatch/run/json.hpp>
#include <mixmatch/run/run_record.hpp>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

TEST_CASE("read_run: a finished run, and one that is not") {
  const TempDir dir;
  write_file(dir / "config.json",
             JsonObject().set("method", "mixmatch").set("seed", "3").set("data", "a\"b").str());
  write_file(dir / "metrics.csv", "step,loss\n50,0.5\n100,0.25\n");
  const auto running = read_run(dir.path());
  CHECK_FALSE(running.finished);
  CHECK(running.path == dir.path());
  CHECK(running.config == Config{{"method", "mixmatch"}, {"seed", "3"}, {"data", "a\"b"}});
  CHECK(running.summary.empty());
  CHECK(running.metrics.column("loss") == std::vector<double>{0.5, 0.25});
  REQUIRE(find_setting(running.config, "seed") != nullptr);
  CHECK(*find_setting(running.config, "seed") == "3");
  CHECK(find_setting(running.config, "sed") == nullptr);

  write_file(
      dir / "summary.json",
      JsonObject().set("steps", 100).set("test_error", 12.25).set("median", 0.0 / 0.0).set("ok", true).str());
  const auto finished = read_run(dir.path());
  CHECK(finished.finished);
  CHECK(finished.summary ==
        Config{{"steps", "100"}, {"test_error", "12.25"}, {"median", "null"}, {"ok", "true"}});
  std::filesystem::remove(dir / "metrics.csv");
  CHECK(read_run(dir.path()).metrics.rows.empty());
}

TEST_CASE("read_run names the file that is missing or broken") {
  const TempDir dir;
  const auto error = [&] {
    const auto message = error_of([&] { read_run(dir.path()); });
    CHECK(message.find('\n') == std::string::npos);
    return message;
  };
  CHECK_THAT(error_of([&] { read_run(dir / "none"); }),
             contains("no run directory " + (dir / "none").string()));
  CHECK_THAT(error(), contains("holds no run: it has neither config.json nor checkpoint.pt"));
  write_file(dir / "config.json", "{}");
  CHECK_THAT(error(), contains("cannot read " + (dir / "metrics.csv").string()));
  write_file(dir / "metrics.csv", "step\n");
  CHECK(read_run(dir.path()).metrics.columns.size() == 1);
  write_file(dir / "config.json", "{\"a\": 1,\n}");
  CHECK_THAT(error(), contains((dir / "config.json").string() + ": JSON line 2 column 1: expected a name"));
  write_file(dir / "config.json", "[]");
  CHECK_THAT(error(), contains("config.json: JSON line 1 column 1: expected an object"));
  write_file(dir / "config.json", "{\"a\": [1]}");
  CHECK_THAT(error(), contains("\"a\" must be a text, number or boolean, got an array"));
  write_file(dir / "config.json", "{\"a\": {}}");
  CHECK_THAT(error(), contains("got an object"));
  write_file(dir / "config.json", "{\"a\": 1, \"b\": 2, \"a\": 3}");
  CHECK_THAT(error(), contains("config.json: \"a\" comes twice"));
  write_file(dir / "config.json", "{\"a\": tru}");
  CHECK_THAT(error(), contains("expected a value"));
  write_file(dir / "config.json", "{}");
  write_file(dir / "summary.json", "{\"steps\": 1");
  CHECK_THAT(error(), contains("summary.json: JSON line 1 column 12"));
}
