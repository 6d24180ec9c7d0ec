#pragma once

#include <torch/version.h>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/evaluation/guess_collapse.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/run/interrupt.hpp>
#include <mixmatch/run/json.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/metrics_writer.hpp>
#include <mixmatch/run/progress.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/run/tensorboard.hpp>
#include <mixmatch/step/meter.hpp>
#include <mixmatch/version.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// A loss or gradient that is not a finite number: the run cannot go on.
class NonFiniteError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct TrainingRunOptions {
  /// Shown before the progress bar.
  TORCH_ARG(std::string, label) = "training";
  TORCH_ARG(int64_t, steps) = 0;
  /// Steps between evaluations, rows of metrics.csv, checkpoints; the last step has all three. A
  /// `checkpoint_every` of 0 saves at each evaluation, and each minute.
  TORCH_ARG(int64_t, eval_every) = 1024;
  TORCH_ARG(int64_t, log_every) = 50;
  TORCH_ARG(int64_t, checkpoint_every) = 0;
  /// Columns of metrics.csv that evaluations fill, in percent; the last is the one to watch.
  TORCH_ARG(std::vector<std::string>, errors);
  /// What defines the run, for config.json and the checkpoint.
  TORCH_ARG(Config, config);
  /// Names of it that may differ when the run is resumed.
  TORCH_ARG(std::vector<std::string>, changeable);
  /// More for config.json, to which the versions of this library and LibTorch are added: where the data is,
  /// the device.
  TORCH_ARG(Config, surroundings);
  /// The command that continues the run, as a shell takes it: said after an interrupt.
  TORCH_ARG(std::string, resume_command);
  /// The processes that train together, each with a TrainingRun of its own; null: this one. Rank 0's saves
  /// the checkpoints, and a signal to any of them interrupts all after the same step.
  TORCH_ARG(std::add_pointer_t<ProcessGroup>, processes) = nullptr;
};

/// The bookkeeping of one run, for a loop that the caller writes:
///
///     TrainingRun run(RunDirectory::create("runs/first"), options, state.step);
///     state.register_in(run.checkpoint());
///     run.start();                                   // or run.resume(), which loads everything registered
///     while (run.running()) {
///       … one step of the method, ++state.step …
///       run.record(StepMeans::of_step({{"loss", …}, …}));  // throws NonFiniteError
///       if (run.evaluation_due()) {
///         run.record_errors({…});                    // options.errors
///       }
///       run.finish_step();                           // metrics.csv, TensorBoard, checkpoint, progress
///     }
///     if (run.interrupted()) { return run.leave(); }
///
/// Knows no method, model or data set. From its construction to finish(), Ctrl-C, SIGTERM and SIGHUP end the
/// loop between two steps. A resumed run's metrics.csv equals that of a run never stopped. Values by the
/// names guess_class_entropy and guess_confidence are watched: where the guesses collapse (GuessCollapse),
/// one line on stderr says so, once a process.
class TrainingRun {
 public:
  /// `step` counts the optimiser steps done; the caller's loop increments it, `resume` sets it.
  TrainingRun(RunDirectory directory, TrainingRunOptions options, int64_t& step)
      : directory_(std::move(directory)),
        options_(std::move(options)),
        step_{&step, options_.steps()},
        checkpoint_(directory_.checkpoint()) {
    TORCH_CHECK(options_.steps() >= 1, "TrainingRun: steps must be >= 1, got ", options_.steps());
    TORCH_CHECK(options_.eval_every() >= 1, "TrainingRun: eval_every must be >= 1, got ",
                options_.eval_every());
    TORCH_CHECK(options_.log_every() >= 1, "TrainingRun: log_every must be >= 1, got ", options_.log_every());
    TORCH_CHECK(options_.checkpoint_every() >= 0, "TrainingRun: checkpoint_every must be >= 0, got ",
                options_.checkpoint_every());
    checkpoint_.set_config(options_.config());
    checkpoint_.add("step", step_)
        .add("value_sums", sums_)
        .add("value_counts", counts_)
        .add("errors", errors_)
        .add("seconds_per_step", seconds_per_step_);
  }
  TrainingRun(const TrainingRun&) = delete;
  TrainingRun& operator=(const TrainingRun&) = delete;

  /// To add what a step changes to, before start() or resume().
  Checkpoint& checkpoint() { return checkpoint_; }
  const RunDirectory& directory() const { return directory_; }
  /// What config.json holds: the configuration, its surroundings and the libraries' versions.
  Config settings() const {
    Config all = options_.config();
    all.insert(all.end(), options_.surroundings().begin(), options_.surroundings().end());
    all.emplace_back("mixmatch-version", MIXMATCH_VERSION);
    all.emplace_back("libtorch-version", TORCH_VERSION);
    return all;
  }

  /// Begins a new run: its first files. Throws where the disk has no room for its checkpoints.
  void start() {
    write_config();
    metrics_ = std::make_unique<MetricsCsv>(directory_.metrics());
    checkpoint_.add("metrics", *metrics_);
    check_free_space(3 * checkpoint_.size());  // two are kept while the next is written; the rest is smaller
    save();
    begin();
  }

  /// Goes on where the run directory's last checkpoint stands, or the previous one where the last is damaged,
  /// which a message on stderr says. Throws, changing nothing, if it does not fit what is registered or the
  /// configuration (see find_changed_setting), or has done more than `steps`. metrics.csv is made what it was
  /// then.
  void resume() {
    metrics_ = MetricsCsv::unopened(directory_.metrics());
    checkpoint_.add("metrics", *metrics_);
    const std::string damaged = checkpoint_.load([this](const Config& stored) {
      const auto changed = find_changed_setting(stored, options_.config(), options_.changeable());
      TORCH_CHECK(!changed.has_value(), directory_.path().string(), ": ", changed->name, " is ", changed->now,
                  " now, but the run was started with ", changed->stored);
    });
    last_good_ = damaged.empty() ? directory_.checkpoint() : directory_.previous_checkpoint();
    if (!damaged.empty()) {
      print_message(stderr, "{}; going on from {} of step {}\n", damaged,
                    directory_.previous_checkpoint().string(), *step_.value);
    }
    if (metrics_->was_restored()) {
      print_message(stderr, "{} lacked rows or was changed: restored from the checkpoint of step {}\n",
                    directory_.metrics().string(), *step_.value);
    }
    saved_step_ = *step_.value;
    std::error_code unknown;
    const auto size = std::filesystem::file_size(last_good_, unknown);
    check_free_space(unknown ? 0 : size);
    write_config();
    begin();
  }

  /// Whether there are steps to do and no one has asked to stop.
  bool running() {
    if (options_.processes() != nullptr) {  // all of them hear of a signal here, and stop together
      signal_of_any_ = static_cast<int>(
          options_.processes()->max_of(interrupt_.has_value() ? interrupt_->signal_number() : 0));
    }
    return *step_.value < options_.steps() && !interrupted();
  }
  bool interrupted() const { return signal_number() != 0; }

  /// The exit status of a program that a signal ends: 128 and the signal's number, 130 after Ctrl-C.
  int interrupt_status() const { return 128 + signal_number(); }

  /// Steps until something is due: a row of metrics.csv, an evaluation, a checkpoint, the end.
  int64_t steps_until_due() const {
    int64_t next = options_.steps();
    for (const int64_t every : {options_.log_every(), options_.eval_every(), options_.checkpoint_every()}) {
      if (every > 0) {
        next = std::min(next, (*step_.value / every + 1) * every);
      }
    }
    return next - *step_.value;
  }

  /// The numbers of the steps just done, by name: the columns of metrics.csv, of which a row holds the means
  /// over all steps since the row before it. The first is the loss: where it, or a gradient, was not finite,
  /// throws NonFiniteError with the step and the last good checkpoint's name. The names are the same at each
  /// call.
  void record(const StepMeans& means) {
    TORCH_CHECK(!means.names.empty() && means.values.size() == means.names.size() &&
                    means.counts.size() == means.names.size(),
                "TrainingRun: record: expected a value and a count for each of ", means.names.size(),
                " names, at least one, got ", means.values.size(), " and ", means.counts.size());
    progress_->count(*step_.value);
    if (const auto problem = means.problem(); !problem.empty()) {
      progress_->finish();
      std::string text = fmt::format("{} at step {}", problem, *step_.value);
      if (saves()) {  // the others' directory is none that anybody knows
        text += fmt::format("; the last good checkpoint is {} of step {}", last_good_.string(), saved_step_);
      }
      throw NonFiniteError(text);
    }
    name_values(means.names);
    for (size_t i = 0; i < means.values.size(); ++i) {
      if (means.counts[i] > 0) {
        sums_[i] += means.counts[i] * means.values[i];
        counts_[i] += means.counts[i];
      }
    }
    latest_ = means.values;
    new_errors_.assign(options_.errors().size(), std::numeric_limits<double>::quiet_NaN());
  }

  bool evaluation_due() const {
    return *step_.value % options_.eval_every() == 0 || *step_.value == options_.steps();
  }

  /// The errors of an evaluation, in percent; NaN where there is none.
  void record_errors(const std::vector<double>& errors) {
    TORCH_CHECK(errors.size() == options_.errors().size(), "TrainingRun: record_errors: expected ",
                options_.errors().size(), " values, got ", errors.size());
    new_errors_ = errors;
    errors_.insert(errors_.end(), errors.begin(), errors.end());
    for (size_t i = 0; i < errors.size(); ++i) {
      if (!std::isnan(errors[i])) {
        board_->scalar("error/" + options_.errors()[i], errors[i], *step_.value);
      }
    }
  }

  /// Ends a step: writes what is due.
  void finish_step() {
    if (evaluation_due() || *step_.value % options_.log_every() == 0) {
      write_row();
    }
    progress_->update(*step_.value, [this] { return status(); });
    const bool minute_over = std::chrono::steady_clock::now() - saved_at_ > std::chrono::minutes(1);
    const bool due = options_.checkpoint_every() > 0 ? *step_.value % options_.checkpoint_every() == 0
                                                     : evaluation_due() || minute_over;
    if (due || *step_.value == options_.steps()) {
      save();
    }
    progress_->restart_clock();
  }

  void save() {
    seconds_per_step_ = seconds_per_step();
    if (saves()) {
      checkpoint_.save();
    }
    last_good_ = directory_.checkpoint();
    saved_step_ = *step_.value;
    saved_at_ = std::chrono::steady_clock::now();
  }

  /// Ends the progress display; nothing more will be recorded. What follows, a last evaluation or a report,
  /// can still ask interrupted().
  void finish_steps() {
    progress_->finish();
    stepping_ = false;
  }

  /// Says "warning at step N: TEXT" on the standard error, in a line of its own beside the progress display.
  void warn(const std::string& text) {
    progress_->print_line(fmt::format("warning at step {}: {}", *step_.value, text));
  }

  /// The end: the signals end the program again, as before.
  void finish() {
    finish_steps();
    interrupt_.reset();
  }

  /// Saves an interrupted run and says how it goes on; returns interrupt_status().
  int leave() {
    save();  // before a word is said: the terminal may be gone
    const int status = interrupt_status();
    finish();
    const auto& command = options_.resume_command();
    const bool one = options_.processes() == nullptr || options_.processes()->world_size() == 1;
    print_message(stderr, "interrupted at step {}{}{}\n", *step_.value,
                  command.empty() ? ""
                  : one           ? "; go on with: "
                                  : "; go on, started by the same launcher, with: ",
                  command);
    return status;
  }

  /// The rows of metrics.csv so far, those before a resume included.
  MetricsTable metrics() const { return parse_metrics(metrics_->text(), directory_.metrics().string()); }

  /// One column of the evaluations so far, those before a resume included.
  std::vector<double> errors(const std::string& column) const {
    const auto& names = options_.errors();
    const auto found = std::find(names.begin(), names.end(), column);
    TORCH_CHECK(found != names.end(), "TrainingRun: errors: no column '", column, "'");
    std::vector<double> values;
    for (auto i = static_cast<size_t>(found - names.begin()); i < errors_.size(); i += names.size()) {
      values.push_back(errors_[i]);
    }
    return values;
  }

  /// Median of the steps of this process, or, if it has done none, of the one that saved the checkpoint.
  double seconds_per_step() const {
    const double seconds =
        progress_.has_value() ? progress_->seconds_per_step() : std::numeric_limits<double>::quiet_NaN();
    return std::isnan(seconds) ? seconds_per_step_ : seconds;
  }

  /// For images and texts of the caller's; between start() or resume() and the end.
  TensorBoardWriter& board() { return *board_; }

 private:
  /// Loaded before everything else, so that a run that has gone too far is refused with nothing changed.
  struct StepCounter {
    int64_t* value;
    int64_t limit;
    void save(torch::serialize::OutputArchive& archive) const { archive.write("value", c10::IValue(*value)); }
    void load(torch::serialize::InputArchive& archive) {
      c10::IValue stored;
      archive.read("value", stored);
      TORCH_CHECK(stored.toInt() <= limit, "the run has done ", stored.toInt(),
                  " steps already, more than the ", limit, " asked for");
      *value = stored.toInt();
    }
  };

  /// The first signal that came, 0 before it; of several processes, as long as they take steps, the one that
  /// they have agreed on.
  int signal_number() const {
    if (options_.processes() != nullptr && (stepping_ || signal_of_any_ != 0)) {
      return signal_of_any_;
    }
    return interrupt_.has_value() ? interrupt_->signal_number() : 0;
  }

  /// Of several processes rank 0 does.
  bool saves() const { return options_.processes() == nullptr || options_.processes()->rank() == 0; }

  /// At the first record().
  void name_values(const std::vector<std::string>& names) {
    if (names_.empty()) {
      std::vector<std::string> columns{"step"};
      columns.insert(columns.end(), names.begin(), names.end());
      columns.insert(columns.end(), options_.errors().begin(), options_.errors().end());
      metrics_->set_columns(std::move(columns));
      names_ = names;
      sums_.resize(names.size());  // empty, or those of the checkpoint
      counts_.resize(names.size());
    }
    TORCH_CHECK(names == names_, "TrainingRun: record: the names are not those of the steps before");
  }

  void write_config() const {
    JsonObject config;
    for (const auto& [name, value] : settings()) {
      config.set(name, value);
    }
    write_file_atomically(directory_.config(), config.str());
  }

  void check_free_space(size_t needed) const {
    if (!saves()) {
      return;
    }
    std::error_code error;
    const auto space = std::filesystem::space(directory_.path(), error);
    constexpr double megabyte = 1e6;
    TORCH_CHECK(error || space.available >= needed, directory_.path().string(), ": the run needs ",
                std::ceil(static_cast<double>(needed) / megabyte),
                " MB for its checkpoints, but its disk has only ",
                std::floor(static_cast<double>(space.available) / megabyte), " MB");
  }

  void begin() {
    std::string table = "| option | value |\n|---|---|\n";
    for (const auto& [name, value] : options_.config()) {
      table += fmt::format("| {} | {} |\n", name, value);
    }
    board_.emplace(directory_.path(), *step_.value);
    board_->text("configuration", table, *step_.value);
    saved_at_ = std::chrono::steady_clock::now();
    progress_.emplace(options_.label(), options_.steps(), *step_.value);
  }

  void write_row() {
    std::vector<double> row{static_cast<double>(*step_.value)};
    for (size_t i = 0; i < sums_.size(); ++i) {
      const double mean = sums_[i] / counts_[i];  // NaN without values
      row.push_back(mean);
      if (!std::isnan(mean)) {
        board_->scalar(names_[i], mean, *step_.value);
      }
    }
    watch_guesses(row);
    row.insert(row.end(), new_errors_.begin(), new_errors_.end());
    metrics_->append(row);
    board_->flush();
    sums_.assign(sums_.size(), 0);
    counts_.assign(counts_.size(), 0);
  }

  /// `row`: a number of each name, behind the step.
  void watch_guesses(const std::vector<double>& row) {
    const auto value = [&](std::string_view name) {
      const auto found = std::find(names_.begin(), names_.end(), name);
      return found == names_.end() ? std::numeric_limits<double>::quiet_NaN()
                                   : row[static_cast<size_t>(found - names_.begin()) + 1];
    };
    if (guesses_.add(value("guess_class_entropy"), value("guess_confidence"))) {
      warn(
          fmt::format("the guessed labels run together into few classes: the entropy of their classes fell "
                      "from {:.2f} to {:.2f} while their confidence rose from {:.2f} to {:.2f}; a smaller "
                      "--lambda-u or a longer --rampup-steps may help",
                      guesses_.highest().class_entropy, guesses_.now().class_entropy,
                      guesses_.highest().confidence, guesses_.now().confidence));
    }
  }

  std::string status() const {
    std::string text;
    for (size_t i = 0; i < std::min<size_t>(latest_.size(), 3); ++i) {
      if (std::isnan(latest_[i])) {
        continue;
      }
      std::string_view name = names_[i];
      if (i > 0 && name.starts_with("loss_")) {
        name.remove_prefix(5);
      }
      text += fmt::format("{}{} {:.4g}", text.empty() ? "" : ", ", name, latest_[i]);
    }
    // The last column with a value: a set without test images has a validation error at most.
    for (size_t i = 0; i < options_.errors().size() && i < errors_.size(); ++i) {
      const double error = errors_[errors_.size() - 1 - i];
      if (!std::isnan(error)) {
        return text + fmt::format(", error {:.2f} %", error);
      }
    }
    return text;
  }

  RunDirectory directory_;
  TrainingRunOptions options_;
  StepCounter step_;
  Checkpoint checkpoint_;
  std::unique_ptr<MetricsCsv> metrics_;
  std::optional<TensorBoardWriter> board_;
  std::optional<InterruptGuard> interrupt_{std::in_place};
  int signal_of_any_ = 0;
  bool stepping_ = true;
  std::optional<Progress> progress_;
  std::vector<std::string> names_;  // of the values of a step
  // Of the row of metrics.csv that is being filled:
  std::vector<double> sums_, counts_, latest_, new_errors_;
  GuessCollapse guesses_;
  std::vector<double> errors_;  // of all evaluations, one after the other
  double seconds_per_step_ = std::numeric_limits<double>::quiet_NaN();
  int64_t saved_step_ = 0;
  std::filesystem::path last_good_;  // the checkpoint of saved_step_
  std::chrono::steady_clock::time_point saved_at_;
};

}  // namespace mixmatch::training
