#include <mixmatch/training/run_directory.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <sys/stat.h>
#include <unistd.h>

using mixmatch::write_file_atomically;
using mixmatch::training::RunDirectory;

TEST_CASE("a run directory is made once and then opened", "[run_directory]") {
  const TempDir dir;
  const auto path = dir / "runs" / "one";
  const auto run = RunDirectory::create(path);
  CHECK(std::filesystem::is_directory(path));
  CHECK(std::filesystem::is_empty(path));
  CHECK(run.path() == path);
  CHECK(run.config() == path / "config.json");
  CHECK(run.metrics() == path / "metrics.csv");
  CHECK(run.checkpoint() == path / "checkpoint.pt");
  CHECK(run.summary() == path / "summary.json");
  RunDirectory::create(path);  // still without a run
  CHECK_THAT(error_of([&] { RunDirectory::open(path); }),
             contains("holds no run") && contains(path.string()));
  write_file_atomically(run.config(), "{}\n");
  const auto message = error_of([&] { RunDirectory::create(path); });
  CHECK_THAT(message, contains("already holds a run") && contains("--resume") && contains("--out"));
  CHECK(RunDirectory::open(path).path() == path);
}

TEST_CASE("impossible run directories are refused", "[run_directory]") {
  const TempDir dir;
  write_file(dir / "file", "x");
  CHECK_THAT(error_of([&] { RunDirectory::create(dir / "file"); }),
             contains("cannot create the run directory"));
  CHECK_THAT(error_of([&] { RunDirectory::create(dir / "file" / "sub"); }),
             contains("cannot create the run directory"));
  CHECK_THAT(error_of([&] { RunDirectory::create("/proc/mixmatch-run"); }), contains("/proc/mixmatch-run"));
  CHECK_THAT(error_of([] { RunDirectory::create(""); }), contains("empty"));
  CHECK_THAT(error_of([&] { RunDirectory::open(dir / "none"); }),
             contains("no run directory") && contains("none"));
  CHECK_THAT(error_of([&] { RunDirectory::open(dir / "file"); }), contains("no run directory"));
}

TEST_CASE("a directory without write permission is refused", "[run_directory]") {
  if (::geteuid() == 0) {
    return;  // permissions do not bind root
  }
  const TempDir dir;
  ::chmod(dir.path().c_str(), 0555);
  CHECK_THAT(error_of([&] { RunDirectory::create(dir.path()); }), contains("Permission denied"));
  ::chmod(dir.path().c_str(), 0755);
}
