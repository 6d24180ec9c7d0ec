// What may happen around a program that trains: streams that fail, a second program, signals, damaged files.

#include <mixmatch/detail/io/shell_quote.hpp>

#include <signal.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "program_util.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

namespace fs = std::filesystem;

namespace {

std::string shell_line(const std::vector<std::string>& arguments) {
  std::string line;
  for (const auto& argument : arguments) {
    line += mixmatch::detail::shell_quote(argument) + " ";
  }
  return line;
}

/// With the shell's redirections after it; the status is the program's.
Finished run_in_shell(const std::vector<std::string>& arguments, const std::string& redirections) {
  return ::run({"/bin/sh", "-c", "exec " + shell_line(arguments) + redirections});
}

std::vector<std::string> cifar10(const fs::path& out, const std::vector<std::string>& more = {}) {
  return short_run(MIXMATCH_CIFAR10, cifar10_dir(), out, more);
}

/// metrics.csv of a run that nothing happened to.
const std::string& undisturbed() {
  static const std::string metrics = [] {
    TempDir dir;
    REQUIRE(::run(cifar10(dir / "run")).status == 0);
    return read_file(dir / "run" / "metrics.csv");
  }();
  return metrics;
}

}  // namespace

TEST_CASE("cifar10: a stream that fails does not end the run, and gets nothing into its files") {
  for (const std::string redirections :
       {"2>/dev/full", ">/dev/full 2>&1", "2>&-", "<&- >&- 2>&-", "2>&1 | head -n 1 >/dev/null"}) {
    TempDir dir;
    const auto arguments = cifar10(dir / "run");
    const auto finished = redirections.find('|') == std::string::npos
                              ? run_in_shell(arguments, redirections)
                              : run({"/bin/sh", "-c",
                                     "{ " + shell_line(arguments) + "; echo $? >'" +
                                         (dir / "status").string() + "'; } " + redirections});
    INFO(redirections << ": " << finished.err);
    CHECK(finished.status == 0);
    CHECK((!fs::exists(dir / "status") || read_file(dir / "status") == "0\n"));
    CHECK(read_file(dir / "run" / "metrics.csv") == undisturbed());
    CHECK(fs::exists(dir / "run" / "summary.json"));
    CHECK(fs::exists(dir / "run" / "report.html"));
  }
}

TEST_CASE("programs: a result that cannot be written exits 2 with the reason") {
  TempDir dir;
  REQUIRE(run(cifar10(dir / "run", {"--steps", "1"})).status == 0);
  const std::string out = (dir / "run").string();
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{MIXMATCH_CIFAR10, "--data", cifar10_dir().string(), "--eval", out},
        std::vector<std::string>{MIXMATCH_COMPARE, out}}) {
    check_refused(run_in_shell(arguments, ">/dev/full"),
                  "cannot write the standard output: No space left on device");
    check_refused(run_in_shell(arguments, ">&-"), "cannot write the standard output: Bad file descriptor");
  }
}

TEST_CASE("cifar10: a second program in the run directory is refused, and the first goes on") {
  TempDir dir;
  Subprocess first(cifar10(dir / "run", {"--steps", "100000"}));
  const fs::path metrics = dir / "run" / "metrics.csv";
  REQUIRE(first.wait_until([&] { return lines_of(read_file(metrics)).size() >= 3; }));
  const std::vector<std::string> resume{MIXMATCH_CIFAR10,       "--data",  cifar10_dir().string(), "--out",
                                        (dir / "run").string(), "--resume"};
  check_refused(run(resume), "is in use by process ");
  check_refused(run(cifar10(dir / "run")), "is in use by process ");
  first.send(SIGKILL);
  first.wait();
  // Any death frees it: now the steps are what is wrong.
  check_refused(run(with(resume, {"--steps", "1"})), "steps already");
}

TEST_CASE("cifar10: SIGTERM and SIGHUP save, and the hint's command goes on") {
  for (const auto& [number, status] : {std::pair(SIGTERM, 143), std::pair(SIGHUP, 129)}) {
    TempDir dir;
    const fs::path out = dir / "a 'run'";
    std::string hint;
    {
      Subprocess program(
          cifar10(out, {"--steps", "100000", "--checkpoint-every", "100000", "--recalibrate", "7"}));
      REQUIRE(program.wait_until([&] { return lines_of(read_file(out / "metrics.csv")).size() >= 3; }));
      program.send(number);
      const auto stopped = program.wait();
      INFO(stopped.err);
      CHECK(stopped.status == status);
      const std::string mark = "go on with: ";
      const size_t at = stopped.err.find(mark);
      REQUIRE(at != std::string::npos);
      hint = stopped.err.substr(at + mark.size());
    }
    const auto done = lines_of(read_file(out / "metrics.csv")).size() - 1;
    CHECK_THAT(hint, contains(" --checkpoint-every 100000 --recalibrate 7"));
    hint.erase(hint.find_last_not_of('\n') + 1);
    const auto resumed =
        run({"/bin/sh", "-c", hint + " --steps " + std::to_string(std::max<size_t>(12, done + 2))});
    INFO(hint << ": " << resumed.err);
    CHECK(resumed.status == 0);
    const std::string all = undisturbed();
    CHECK(read_file(out / "metrics.csv").starts_with(all));
  }
}

TEST_CASE("cifar10: a damaged last checkpoint costs the steps since the one before it, and a line says so") {
  TempDir dir;
  REQUIRE(run(cifar10(dir / "run", {"--steps", "6"})).status == 0);
  std::string bytes = read_file(dir / "run" / "checkpoint.pt");
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_file(dir / "run" / "checkpoint.pt", bytes);
  write_file(dir / "run" / "checkpoint.pt.tmp-1-7", "half");
  fs::remove(dir / "run" / "config.json");  // the checkpoint has it too
  fs::remove(dir / "run" / "metrics.csv");
  const auto resumed = run({MIXMATCH_CIFAR10, "--data", cifar10_dir().string(), "--out",
                            (dir / "run").string(), "--resume", "--steps", "12"});
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  CHECK_THAT(resumed.err, contains("checkpoint.pt is corrupt: its checksum does not match; going on from ") &&
                              contains("checkpoint.previous.pt of step 3"));
  // The first run's last evaluation, at step 6, is not one of the longer run's.
  CHECK(lines_of(read_file(dir / "run" / "metrics.csv")).size() == 13);
  CHECK_FALSE(fs::exists(dir / "run" / "checkpoint.pt.tmp-1-7"));
}

TEST_CASE("cifar10: a class name that the model's file could not hold is refused before training") {
  TempDir dir;
  fs::copy(cifar10_dir(), dir / "data");
  write_file(dir / "data" / "batches.meta.txt", "a\nb\nc\nd\n\xE9t\xE9\nf\ng\nh\ni\nj\n");
  check_refused(run(short_run(MIXMATCH_CIFAR10, dir / "data", dir / "run")),
                "the class name \"\\xe9t\\xe9\", which is not UTF-8");
  CHECK_FALSE(fs::exists(dir / "run"));
}

TEST_CASE("cifar10: remains of another run are not written over") {
  TempDir dir;
  REQUIRE(run(cifar10(dir / "run", {"--steps", "2"})).status == 0);
  fs::remove(dir / "run" / "config.json");
  const std::string metrics = read_file(dir / "run" / "metrics.csv");
  check_refused(run(cifar10(dir / "run")), "holds checkpoint.previous.pt of another run");
  CHECK(read_file(dir / "run" / "metrics.csv") == metrics);
  check_refused(run(cifar10("/dev/null")), "cannot create the run directory /dev/null");
}
