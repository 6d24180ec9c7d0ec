#include <mixmatch/run/run_directory.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

using mixmatch::training::RunDirectory;

TEST_CASE("a run directory is made once and then opened", "[run_directory]") {
  const TempDir dir;
  const auto path = dir / "runs" / "one";
  {
    const auto run = RunDirectory::create(path);
    CHECK(std::filesystem::is_directory(path));
    CHECK(run.path() == path);
    CHECK(run.config() == path / "config.json");
    CHECK(run.metrics() == path / "metrics.csv");
    CHECK(run.checkpoint() == path / "checkpoint.pt");
    CHECK(run.previous_checkpoint() == path / "checkpoint.previous.pt");
    CHECK(run.summary() == path / "summary.json");
  }
  CHECK_THAT(error_of([&] { RunDirectory::open(path); }),
             contains("holds no run") && contains(path.string()));
  CHECK_THAT(error_of([&] { RunDirectory::resume(path); }), contains("no run to continue"));
  write_file(path / "config.json", "{}\n");
  CHECK(RunDirectory::open(path).path() == path);
  write_file(path / "checkpoint.pt", "x");
  const auto message = error_of([&] { RunDirectory::create(path); });
  CHECK(message == path.string() + " already holds a run: continue that, or choose another directory");
  CHECK(RunDirectory::resume(path).path() == path);
  std::filesystem::remove(path / "config.json");  // only for reading
  CHECK(RunDirectory::resume(path).path() == path);
}

TEST_CASE("what a start left before its first checkpoint is no run", "[run_directory]") {
  const TempDir dir;
  RunDirectory::create(dir.path());
  write_file(dir / "config.json", "{}\n");
  write_file(dir / "split.txt", "x");
  write_file(dir / "metrics.csv", "step,loss\n");
  write_file(dir / "config.json.tmp-12-3", "{");
  write_file(dir / "notes.tmp-2024-05-01", "kept");
  RunDirectory::create(dir.path());
  CHECK_FALSE(std::filesystem::exists(dir / "metrics.csv"));
  CHECK_FALSE(std::filesystem::exists(dir / "config.json.tmp-12-3"));
  CHECK(std::filesystem::exists(dir / "notes.tmp-2024-05-01"));
}

TEST_CASE("remains of another run are refused by name", "[run_directory]") {
  for (const std::string name :
       {"config.json", "split.txt", "checkpoint.pt", "checkpoint.previous.pt", "summary.json",
        "model.safetensors", "report.html", "predictions.csv", "events.out.tfevents.1.host.2"}) {
    const TempDir dir;
    write_file(dir / name, "x");
    CHECK_THAT(error_of([&] { RunDirectory::create(dir.path()); }),
               contains("holds " + name + " of another run"));
    CHECK(read_file(dir / name) == "x");
  }
  const TempDir dir;
  write_file(dir / "metrics.csv", "step,loss\n1,2\n");
  CHECK_THAT(error_of([&] { RunDirectory::create(dir.path()); }),
             contains("holds metrics.csv of another run"));
  CHECK(read_file(dir / "metrics.csv") == "step,loss\n1,2\n");
}

TEST_CASE("a run directory is one process's at a time, and whatever ends that one frees it",
          "[run_directory]") {
  const TempDir dir;
  const auto used = "is in use by process " + std::to_string(::getpid());
  {
    const auto run = RunDirectory::create(dir / "run");
    const auto copy = run;
    CHECK_THAT(error_of([&] { RunDirectory::create(dir / "run"); }), contains(used));
    write_file(dir / "run" / "checkpoint.pt", "x");
    CHECK_THAT(error_of([&] { RunDirectory::resume(dir / "run"); }), contains(used));
    write_file(dir / "run" / "config.json", "{}");
    RunDirectory::open(dir / "run");  // to read
  }
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto run = RunDirectory::resume(dir / "run");
    static_cast<void>(::write(pipe[1], "x", 1) + 0);
    ::pause();
  }
  char byte = 0;
  REQUIRE(::read(pipe[0], &byte, 1) == 1);
  CHECK_THAT(error_of([&] { RunDirectory::resume(dir / "run"); }),
             contains("is in use by process " + std::to_string(child)));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(pipe[0]);
  ::close(pipe[1]);
  RunDirectory::resume(dir / "run");
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
