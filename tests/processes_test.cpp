#include "program_util.hpp"
#include "rank_processes.hpp"
#include "skip.hpp"

#include <mixmatch/run/metrics_table.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

// The programs in several processes, over Gloo on this machine.

namespace {

#ifdef MIXMATCH_HAS_GLOO

using Arguments = std::vector<std::string>;

Arguments shapes_run(const std::filesystem::path& out, const Arguments& more = {}) {
  Arguments arguments{MIXMATCH_TRAIN,
                      "--dataset",
                      "shapes",
                      "--threads",
                      "1",
                      "--precision",
                      "fp32",
                      "--batch",
                      "8",
                      "--steps",
                      "20",
                      "--log-every",
                      "5",
                      "--eval-every",
                      "20",
                      "--recalibrate",
                      "0",
                      "--timeout",
                      "20",
                      "--out",
                      out.string()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// `own(rank)`: a rank's further arguments.
template <class Own>
std::vector<std::unique_ptr<Subprocess>> start_ranks(int ranks, Arguments arguments, const Own& own) {
  if (std::find(arguments.begin(), arguments.end(), "--resume") == arguments.end()) {
    arguments.emplace_back("--sync-batch-norm");
  }
  return start_processes(ranks, arguments, own);
}
std::vector<std::unique_ptr<Subprocess>> start_ranks(int ranks, const Arguments& arguments) {
  return start_ranks(ranks, arguments, [](int) { return Arguments(); });
}

std::vector<Finished> wait_for(const std::vector<std::unique_ptr<Subprocess>>& processes) {
  std::vector<Finished> finished;
  for (const auto& process : processes) {
    finished.push_back(process->wait());
  }
  return finished;
}

std::vector<Finished> run_ranks(int ranks, const Arguments& arguments) {
  auto finished = wait_for(start_ranks(ranks, arguments));
  for (const auto& rank : finished) {
    INFO(rank.err);
    CHECK(rank.status == 0);
  }
  return finished;
}

/// Two ranks' whole run, made once.
const std::filesystem::path& undisturbed_run() {
  static const TempDir dir;
  static const std::filesystem::path run = [] {
    run_ranks(2, shapes_run(dir / "whole"));
    return dir / "whole";
  }();
  return run;
}

void check_close_metrics(const std::string& found, const std::string& expected, double tolerance) {
  const auto a = mixmatch::training::parse_metrics(found, "found"),
             b = mixmatch::training::parse_metrics(expected, "expected");
  REQUIRE(a.column("loss").size() == b.column("loss").size());
  for (const char* name : {"loss", "loss_labeled", "lambda_u", "guess_confidence"}) {
    const auto x = a.column(name), y = b.column(name);
    for (size_t i = 0; i < x.size(); ++i) {
      INFO(name << " in row " << i);
      CHECK(x[i] == Approx(y[i]).epsilon(tolerance));
    }
  }
}

/// After step 5, in time to be stopped before the end.
bool has_steps(const std::filesystem::path& run) {
  return lines_of(read_file(run / "metrics.csv")).size() >= 2;
}

#endif

}  // namespace

#ifdef MIXMATCH_HAS_GLOO

TEST_CASE("programs in two and four processes take the steps of one") {
  const TempDir dir;
  CHECK(run(shapes_run(dir / "one")).status == 0);
  const std::string expected = read_file(dir / "one" / "metrics.csv");
  for (const int ranks : {2, 4}) {
    const auto out = dir / std::to_string(ranks);
    const auto finished = run_ranks(ranks, shapes_run(out, {"--check-replicas", "1"}));
    check_close_metrics(read_file(out / "metrics.csv"), expected, 1e-2);
    CHECK_THAT(finished[0].out, contains(std::to_string(ranks) + " processes of torchrun"));
    for (int rank = 1; rank < ranks; ++rank) {
      CHECK((finished[static_cast<size_t>(rank)].out.empty() &&
             finished[static_cast<size_t>(rank)].err.empty()));
    }
  }
}

TEST_CASE("a rank that is killed ends the others; the run goes on with two ranks or one") {
  const TempDir dir;
  const auto& whole = undisturbed_run();
  for (const int victim : {0, 1}) {
    const auto out = dir / ("killed" + std::to_string(victim));
    const auto arguments = shapes_run(out, {"--checkpoint-every", "5"});
    auto processes = start_ranks(2, arguments);
    CHECK(processes[0]->wait_until([&] { return has_steps(out); }));
    processes[static_cast<size_t>(victim)]->send(SIGKILL);
    const auto began = std::chrono::steady_clock::now();
    const auto finished = wait_for(processes);
    CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(40));
    const auto& survivor = finished[static_cast<size_t>(1 - victim)];
    CHECK(survivor.status == 2);
    CHECK_THAT(survivor.err,
               contains("train: rank " + std::to_string(1 - victim) + ": rank " + std::to_string(victim)));
    const auto resume = Arguments{MIXMATCH_TRAIN, "--out", out.string(), "--resume", "--dataset", "shapes"};
    if (victim == 0) {
      run_ranks(2, resume);
      CHECK(read_file(out / "metrics.csv") == read_file(whole / "metrics.csv"));
      CHECK(read_file(out / "model.safetensors") == read_file(whole / "model.safetensors"));
    } else {
      CHECK(run(resume).status == 0);
      check_close_metrics(read_file(out / "metrics.csv"), read_file(whole / "metrics.csv"), 2e-2);
    }
  }
}

TEST_CASE("SIGTERM to one rank saves one checkpoint and ends all") {
  const TempDir dir;
  const auto out = dir / "stopped";
  auto processes = start_ranks(2, shapes_run(out));
  CHECK(processes[0]->wait_until([&] { return has_steps(out); }));
  processes[1]->send(SIGTERM);
  const auto finished = wait_for(processes);
  CHECK(finished[0].status == 128 + SIGTERM);
  CHECK(finished[1].status == 128 + SIGTERM);
  CHECK_THAT(finished[0].err, contains("interrupted at step"));
  CHECK(finished[1].err.empty());
  run_ranks(2, {MIXMATCH_TRAIN, "--out", out.string(), "--resume", "--dataset", "shapes"});
  CHECK(read_file(out / "metrics.csv") == read_file(undisturbed_run() / "metrics.csv"));
}

TEST_CASE("processes that differ, or cannot share a batch, are refused") {
  const TempDir dir;
  const auto differ = wait_for(start_ranks(3, shapes_run(dir / "a", {"--batch", "9"}), [](int rank) {
    return rank == 1 ? Arguments{"--lr", "0.001"} : Arguments();
  }));
  check_refused(differ[0], "train: rank 0: the processes differ: --lr is 0.001 on rank 1, 0.002 on rank 0");
  check_refused(differ[1], "train: rank 1: the processes differ");
  CHECK((differ[2].status == 2 && differ[2].err.empty()));
  CHECK(!std::filesystem::exists(dir / "a"));

  const auto uneven = wait_for(start_ranks(3, shapes_run(dir / "b")));
  check_refused(uneven[0], "train: rank 0: --batch must be a multiple of the 3 processes, got 8");
  CHECK((uneven[1].status == 2 && uneven[1].err.empty()));
  CHECK(!std::filesystem::exists(dir / "b"));

  const auto other = wait_for(start_ranks(2, shapes_run(dir / "c"), [](int rank) {
    return rank == 1 ? Arguments{"--seed", "2"} : Arguments();
  }));
  check_refused(other[0], "the processes differ: --seed is 2 on rank 1, 1 on rank 0");
}

TEST_CASE("what one rank cannot do is said by all") {
  const TempDir dir;
  write_file(dir / "metrics.csv", "step\n1\n2\n");
  const auto finished = wait_for(start_ranks(2, shapes_run(dir.path())));
  check_refused(finished[0], "holds metrics.csv of another run");
  check_refused(finished[1], "train: rank 1: rank 0 failed: ");
  CHECK_THAT(finished[1].err, contains("holds metrics.csv of another run"));
}

#else

TEST_CASE("programs in several processes") {
  skip("no Gloo headers (libgloo-dev), or a LibTorch without Gloo");
}

#endif
