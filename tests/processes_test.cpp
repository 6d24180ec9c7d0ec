#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

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
                      "--out",
                      out.string()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// All ranks of a run; new ones with synchronised batch norm. `own(rank)`: a rank's further arguments.
template <class Own>
std::vector<std::unique_ptr<Subprocess>> start_ranks(int ranks, Arguments arguments, const Own& own) {
  if (has_option(arguments, "--steps")) {
    arguments = with(arguments, {"--sync-batch-norm", "--timeout", "20"});
  }
  return start_processes(ranks, arguments, own);
}
std::vector<std::unique_ptr<Subprocess>> start_ranks(int ranks, const Arguments& arguments) {
  return start_ranks(ranks, arguments, [](int) { return Arguments(); });
}

/// One line of an error on rank `speaker`, and the same status without a word on the others.
void check_said_once(const std::vector<Finished>& ranks, int status, const std::string& line,
                     size_t speaker = 0) {
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    INFO("rank " << rank << ": " << ranks[rank].err);
    CHECK(ranks[rank].status == status);
    CHECK(lines_of(ranks[rank].err).size() == (rank == speaker ? 1 : 0));
  }
  CHECK_THAT(ranks[speaker].err, contains(line));
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
  CHECK_THAT(finished[0].err,
             contains("; go on, started by the same launcher, with: ") && contains(" --timeout 20"));
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

  check_said_once(wait_for(start_ranks(3, shapes_run(dir / "b"))), 2,
                  "train: rank 0: --batch must be a multiple of the 3 processes, got 8");
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

TEST_CASE("what fails on all ranks alike is said once, with the status that it has in one process") {
  const TempDir dir;
  const auto of_two = [](const Arguments& arguments) { return wait_for(start_ranks(2, arguments)); };
  check_said_once(
      of_two({MIXMATCH_CIFAR10, "--data", (dir / "missing").string(), "--out", (dir / "a").string()}), 2,
      "cifar10: rank 0: load_cifar10: no data_batch_1.bin in " + (dir / "missing").string());
  check_said_once(of_two({MIXMATCH_TRAIN, "--nonsense"}), 2, "train: rank 0: ");
  // The checkpoint that is named is one that is there.
  const auto diverged = of_two(with(shapes_run(dir / "b"), {"--lr", "1e30", "--weight-decay", "0"}));
  CHECK_THAT(diverged[0].err, contains("the last good checkpoint is " +
                                       (dir / "b" / "checkpoint.pt").string() + " of step 0"));
  CHECK(diverged[0].status == 1);  // beside the progress display
  CHECK((diverged[1].status == 1 && diverged[1].err.empty()));

  // Of one rank alone.
  const auto one = wait_for(start_ranks(
      2, shapes_run(dir / "c"), [](int rank) { return rank == 1 ? Arguments{"--nonsense"} : Arguments(); }));
  check_refused(one[0], "train: rank 0: rank 1 failed: ");
  check_refused(one[1], "train: rank 1: ");
  CHECK_THAT(one[1].err, contains("--nonsense"));
}

TEST_CASE("options of several processes are refused in one that no launcher has started") {
  const TempDir dir;
  for (const Arguments& option : {Arguments{"--timeout", "5"}, Arguments{"--check-replicas", "5"},
                                  Arguments{"--ranks", "separate"}, Arguments{"--sync-batch-norm"}}) {
    check_refused(run(with(shapes_run(dir / "run"), option)), option[0]);
    check_refused(run(with(shapes_run(dir / "run"), option)),
                  " has no effect in one process that no launcher (torchrun, mpirun, srun) has started");
  }
  const Arguments all{"--steps", "2",        "--timeout",        "5", "--check-replicas", "5",
                      "--ranks", "separate", "--sync-batch-norm"};
  const auto only =
      start_rank(0, 1, "127.0.0.1", next_port(), with(shapes_run(dir / "torchrun"), all))->wait();
  INFO(only.err);
  CHECK(only.status == 0);
  Arguments mpirun{"/usr/bin/env", "OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=1"};
  CHECK(run(with(mpirun, with(shapes_run(dir / "mpirun"), all))).status == 0);
  check_said_once(wait_for(start_ranks(2, shapes_run(dir / "frozen", {"--freeze-statistics", "true"}))), 2,
                  "--sync-batch-norm true has no effect with --freeze-statistics");
}

TEST_CASE("what does not train is done by rank 0 alone") {
  for (const Arguments& arguments : {Arguments{MIXMATCH_TRAIN, "--eval", undisturbed_run().string()},
                                     Arguments{MIXMATCH_COMPARE, undisturbed_run().string()}}) {
    const auto ranks = run_ranks(2, arguments);
    CHECK(ranks[0].out == run(arguments).out);
    CHECK((ranks[1].out.empty() && ranks[1].err.empty()));
  }
}

TEST_CASE("a port that is taken and a master that is not reached: one line within the timeout") {
  const TempDir dir;
  const auto run_as = with(shapes_run(dir / "run"), {"--timeout", "2"});
  const auto began = std::chrono::steady_clock::now();
  {
    const int port = next_port(), listener = ::socket(AF_INET, SOCK_STREAM, 0);  // no store of c10d's
    sockaddr_in here{};
    here.sin_family = AF_INET;
    here.sin_port = htons(static_cast<uint16_t>(port));
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(listener, reinterpret_cast<const sockaddr*>(&here), sizeof here) == 0);
    REQUIRE(::listen(listener, 8) == 0);
    std::vector<std::unique_ptr<Subprocess>> ranks;
    for (int rank = 0; rank < 2; ++rank) {
      ranks.push_back(start_rank(rank, 2, "127.0.0.1", port, run_as));
    }
    const auto finished = wait_for(ranks);
    const std::string place = "127.0.0.1:" + std::to_string(port);
    check_refused(finished[0], "train: rank 0 cannot listen at " + place +
                                   ": Address already in use; choose another MASTER_PORT");
    check_refused(finished[1], "train: rank 1 cannot reach rank 0 at " + place + ": ");
    ::close(listener);
  }
  const int closed = next_port();
  check_refused(start_rank(1, 2, "127.0.0.1", closed, run_as)->wait(),
                "train: rank 1 cannot reach rank 0 at 127.0.0.1:" + std::to_string(closed) + ": ");
  check_refused(start_rank(0, 2, "127.0.0.1", next_port(), run_as)->wait(),
                "rank 1 of 2 did not come within 2 s");
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(3 * (2 + 8)));
  CHECK(!std::filesystem::exists(dir / "run"));
}

#else

TEST_CASE("programs in several processes") {
  skip("no Gloo headers (libgloo-dev), or a LibTorch without Gloo");
}

#endif
