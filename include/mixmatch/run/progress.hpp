#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <mixmatch/run/metrics_writer.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// How far a loop has come, for a person: a bar with percent, step rate, time left and a status text. On a
/// terminal one line is redrawn, at most ten times a second; elsewhere plain lines are printed, about one
/// each ten seconds, the first and last step always. Never throws after construction and raises no SIGPIPE: a
/// stream that fails is not a reason to stop training.
class Progress {
 public:
  using Clock = std::function<double()>;  ///< seconds, never decreasing
  static double steady_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  /// `start`: steps done already (a resumed run). Rates count from here on. `unit`: what a step is, in the
  /// singular. Throws unless 0 <= start <= total.
  Progress(std::string label, int64_t total, int64_t start = 0, std::FILE* stream = stderr,
           Clock clock = steady_seconds, std::string unit = "step")
      : label_(std::move(label)),
        unit_(std::move(unit)),
        total_(total),
        start_(start),
        step_(start),
        stream_(stream),
        clock_(std::move(clock)),
        terminal_(::isatty(::fileno(stream)) == 1) {
    TORCH_CHECK(start >= 0 && start <= total, "Progress: start must be between 0 and total = ", total,
                ", got ", start);
    begin_ = last_count_ = last_update_ = clock_();
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { end_bar(); }

  /// `step` steps are done, counted now unless count() said so before. The status is either text, or a
  /// callable that returns it and is called only when it will be seen (so that reading a loss from a device
  /// costs nothing on the other steps).
  void update(int64_t step, std::string_view status) {
    update(step, [status] { return std::string(status); });
  }
  template <class Status>
  requires std::invocable<Status&> && std::convertible_to<std::invoke_result_t<Status&>, std::string>
  void update(int64_t step, Status&& status) {
    count(step);
    const double now = last_update_ = clock_();
    if (!due(now)) {
      return;
    }
    status_ = status();
    last_draw_ = now;
    drawn_step_ = step;
    draw();
  }

  /// `step` steps are done: the time since the last count, or since restart_clock(), is theirs.
  void count(int64_t step) {
    const double now = clock_();
    if (step > step_) {
      const double seconds = (now - last_count_) / static_cast<double>(step - step_);
      durations_.push_back(seconds);
      // Follows the last ten seconds or so.
      const double weight = durations_.size() == 1 ? 1.0 : 1.0 - std::exp(-(now - last_count_) / 10.0);
      recent_ += weight * (seconds - recent_);
      step_ = step;
      last_count_ = now;
    }
  }

  /// What was done since the last count, an evaluation say, is no step's time.
  void restart_clock() { last_count_ = clock_(); }

  /// A line of its own, above the bar.
  void print_line(std::string_view text) {
    print_message(stream_, fmt::format("{}{}\n", bar_open_ ? "\r\033[K" : "", text));
    if (bar_open_) {
      draw();
    }
  }

  /// The last state, then a line break.
  void finish() {
    if (finished_) {
      return;
    }
    finished_ = true;
    if (drawn_step_ != step_) {
      status_.clear();  // that of an earlier step
    }
    if (drawn_step_ != step_ || terminal_) {
      draw();
    }
    end_bar();
  }

  /// Median over the counts. NaN before the first.
  double seconds_per_step() const { return median_of_last(durations_, durations_.size()); }

 private:
  bool due(double now) const {
    const double interval = terminal_ ? 0.1 : 10.0;
    return drawn_step_ < 0 || step_ >= total_ || now - last_draw_ >= interval;
  }

  static std::string format_time(double seconds) {
    if (!(seconds < 1e8)) {
      return "?";
    }
    const auto whole = static_cast<int64_t>(std::llround(std::max(seconds, 0.0)));
    if (whole >= 86400) {
      return fmt::format("{}d {:02}:{:02}", whole / 86400, whole / 3600 % 24, whole / 60 % 60);
    }
    return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                         : fmt::format("{}:{:02}", whole / 60, whole % 60);
  }

  std::string rate() const {
    if (durations_.empty() || recent_ <= 0) {
      return "";
    }
    return recent_ > 1 ? fmt::format("{:.2f} s/{}  ", recent_, unit_)
                       : fmt::format("{:.1f} {}s/s  ", 1 / recent_, unit_);
  }

  std::string time_left() const {
    if (step_ >= total_) {
      return "took " + format_time(last_update_ - begin_);
    }
    if (step_ == start_) {
      return "ETA ?";
    }
    // The mean, not the median: evaluations take their share of the time that is left.
    const double mean = (last_update_ - begin_) / static_cast<double>(step_ - start_);
    return "ETA " + format_time(mean * static_cast<double>(total_ - step_));
  }

  void draw() {
    const double fraction = total_ > 0 ? static_cast<double>(step_) / static_cast<double>(total_) : 1.0;
    const double shown = std::clamp(fraction, 0.0, 1.0);
    // 100 % is said only at the end.
    const auto percent = static_cast<int>(std::floor(shown * 100));
    const std::string numbers =
        fmt::format("{:3}%  {}/{}  {}{}  {}", percent, step_, total_, rate(), time_left(), status_);
    if (!terminal_) {
      print_message(stream_, fmt::format("{} {}\n", label_, numbers));
      return;
    }
    constexpr int cells = 20;
    const int full = static_cast<int>(shown * cells);
    std::string line = fmt::format("{} [{:=<{}}{:<{}}] {}", label_, "", full, "", cells - full, numbers);
    struct winsize window {};
    if (::ioctl(::fileno(stream_), TIOCGWINSZ, &window) == 0 && window.ws_col > 1) {
      cut(line, window.ws_col - 1U);  // a wrapped line could not be redrawn
    }
    print_message(stream_, fmt::format("\r{}\033[K", line));
    bar_open_ = true;
  }

  /// Keeps `columns` characters of UTF-8 text.
  static void cut(std::string& line, size_t columns) {
    size_t characters = 0;
    for (size_t i = 0; i < line.size(); ++i) {
      const bool starts = (static_cast<unsigned char>(line[i]) & 0xC0U) != 0x80U;
      if (starts && characters++ == columns) {
        line.resize(i);
        return;
      }
    }
  }

  void end_bar() {
    if (bar_open_) {
      print_message(stream_, "\n");
      bar_open_ = false;
    }
  }

  std::string label_, unit_;
  int64_t total_;
  int64_t start_;
  int64_t step_;
  std::FILE* stream_;
  Clock clock_;
  bool terminal_;
  double begin_ = 0;
  double last_count_ = 0;
  double last_update_ = 0;
  double last_draw_ = 0;
  double recent_ = 0;
  int64_t drawn_step_ = -1;
  std::vector<double> durations_;
  std::string status_;
  bool bar_open_ = false;
  bool finished_ = false;
};

/// A Progress for what is over at once as a rule: it shows itself after two seconds. To be called with how
/// many of `total` are done; copies are one.
class DelayedProgress {
 public:
  /// As Progress'.
  DelayedProgress(std::string label, int64_t total, std::string unit, std::FILE* stream = stderr,
                  Progress::Clock clock = Progress::steady_seconds)
      : make_([label = std::move(label), total, unit = std::move(unit), stream, clock](int64_t done) {
          return std::make_shared<Progress>(label, total, done, stream, clock, unit);
        }),
        clock_(std::move(clock)),
        begin_(clock_()),
        total_(total),
        shown_(std::make_shared<std::shared_ptr<Progress>>()) {}

  void operator()(int64_t done) const {
    constexpr double patience = 2;  // seconds
    auto& progress = *shown_;
    if (progress == nullptr && done < total_ && clock_() - begin_ >= patience) {
      progress = make_(done);
    }
    if (progress != nullptr) {
      progress->update(done, "");
    }
    if (progress != nullptr && done >= total_) {
      progress->finish();
    }
  }

 private:
  std::function<std::shared_ptr<Progress>(int64_t)> make_;
  Progress::Clock clock_;
  double begin_;
  int64_t total_;
  std::shared_ptr<std::shared_ptr<Progress>> shown_;
};

}  // namespace mixmatch::training
