// Runs Catch2's benchmarks and prints a table of medians for each, the library beside its competitors.
//
// A benchmark's name is "CASE | VARIANT" or "CASE | VARIANT (N streams)": variants of a case stand in one
// row, the first is the library's. N is how many times the case's tensor is read or written; where it is
// given, the first variant's memory bandwidth stands there as a share of the other's.

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using ListenerBase = Catch::EventListenerBase;
inline std::string& report_file(Catch::ConfigData& config) { return config.defaultOutputFilename; }
#else
#define CATCH_CONFIG_RUNNER
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include <catch2/catch.hpp>
using ListenerBase = Catch::TestEventListenerBase;
inline std::string& report_file(Catch::ConfigData& config) { return config.outputFilename; }
#endif

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <mixmatch/run/memory.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "machine.hpp"

namespace {

struct Measured {
  std::string variant;
  double median;  // nanoseconds
  double spread;  // (third quartile - first) / median
  int streams;
};
struct Row {
  std::string name;
  std::vector<Measured> variants;
};

/// Whether the row says how the first variant's bandwidth compares with that of variant `v`.
bool has_bandwidth(const Row& row, size_t v) {
  return row.variants[0].streams > 0 && row.variants[v].streams > 0;
}

std::string readable(double nanoseconds) {
  return nanoseconds < 1e3   ? fmt::format("{:.0f} ns", nanoseconds)
         : nanoseconds < 1e6 ? fmt::format("{:.2f} us", nanoseconds / 1e3)
                             : fmt::format("{:.2f} ms", nanoseconds / 1e6);
}

class TableListener : public ListenerBase {
 public:
  using ListenerBase::ListenerBase;

  void testCaseStarting(const Catch::TestCaseInfo& info) override {
    title_ = info.name;
    rows_.clear();
  }

  void benchmarkEnded(const Catch::BenchmarkStats<>& stats) override {
    const std::string& name = stats.info.name;
    const auto bar = name.find(" | ");
    if (bar == std::string::npos || stats.samples.empty()) {
      return;
    }
    std::vector<double> samples;
    for (const auto& sample : stats.samples) {
      samples.push_back(sample.count());
    }
    std::sort(samples.begin(), samples.end());
    const auto quantile = [&](size_t quarter) { return samples[(samples.size() - 1) * quarter / 4]; };
    Measured measured{name.substr(bar + 3), quantile(2), (quantile(3) - quantile(1)) / quantile(2), 0};
    const auto paren = measured.variant.find(" (");
    if (paren != std::string::npos) {
      measured.streams = std::atoi(measured.variant.c_str() + paren + 2);
    }
    const std::string row = name.substr(0, bar);
    if (rows_.empty() || rows_.back().name != row) {
      rows_.push_back({row, {}});
    }
    rows_.back().variants.push_back(std::move(measured));
  }

  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    if (stats.totals.assertions.failed > 0) {
      fmt::print(stderr, "{} failed; --out FILE writes Catch2's report\n", title_);
      return;
    }
    if (rows_.empty()) {
      return;
    }
    size_t width = 4;
    for (const auto& row : rows_) {
      width = std::max(width, row.name.size());
    }
    fmt::print("\n{}\n{:<{}}", title_, "", width);
    for (size_t v = 0; v < rows_[0].variants.size(); ++v) {
      fmt::print("  {:>26}", rows_[0].variants[v].variant);
      if (v > 0) {
        fmt::print("  ratio{}", has_bandwidth(rows_[0], v) ? "  bandwidth" : "");
      }
    }
    fmt::print("\n");
    std::vector<double> log_sums(rows_[0].variants.size(), 0);
    for (const auto& row : rows_) {
      fmt::print("{:<{}}", row.name, width);
      const Measured& first = row.variants[0];
      for (size_t v = 0; v < row.variants.size(); ++v) {
        const Measured& item = row.variants[v];
        fmt::print("  {:>26}", fmt::format("{} +-{:.0f} %", readable(item.median), item.spread * 50));
        if (v > 0) {
          fmt::print("  {:5.2f}", item.median / first.median);
          if (has_bandwidth(row, v)) {
            fmt::print("  {:7.0f} %", 100 * item.median / first.median * first.streams / item.streams);
          }
        }
        if (v < log_sums.size()) {
          log_sums[v] += std::log(item.median / first.median);
        }
      }
      fmt::print("\n");
    }
    fmt::print("{:<{}}  {:>26}", "geometric mean", width, "");
    for (size_t v = 1; v < log_sums.size(); ++v) {
      fmt::print("  {:>26}  {:5.2f}{}", "", std::exp(log_sums[v] / static_cast<double>(rows_.size())),
                 has_bandwidth(rows_[0], v) ? "           " : "");
    }
    fmt::print("\n");
    std::fflush(stdout);
  }

 private:
  std::string title_;
  std::vector<Row> rows_;
};

}  // namespace

CATCH_REGISTER_LISTENER(TableListener)

int main(int argc, char** argv) {
  // As the library's programs do: otherwise what came before decides which large result is fresh memory.
  mixmatch::training::keep_freed_memory();
  Catch::Session session;
  session.configData().benchmarkSamples = 50;
  session.configData().benchmarkNoAnalysis = true;  // the bootstrap takes longer than the benchmarks
  report_file(session.configData()) = "/dev/null";  // Catch2's own report repeats the tables
  const int bad = session.applyCommandLine(argc, argv);
  if (bad != 0) {
    return bad;
  }
  at::set_num_threads(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  fmt::print(
      "{}; medians of {} samples, half the spread of the middle half; ratio: how many times as long, "
      "bandwidth: the first's as a share\n",
      machine_line(), session.configData().benchmarkSamples);
  return session.run();
}
