#pragma once

#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/run/run_lock.hpp>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Where one training run keeps its files: config.json, split.txt, labels.csv, metrics.csv, checkpoint.pt
/// with checkpoint.previous.pt and TensorBoard's events, and at the end summary.json, confusion.csv,
/// report.html, predictions.csv, label_errors.csv and model.safetensors.
///
/// Made by create() or resume() it is locked (see RunLock) for as long as the object or a copy of it lives,
/// so that no other process writes there, and files that a killed process left half-written (*.tmp-*) are
/// removed.
class RunDirectory {
 public:
  /// Makes the directory (and its parents) for a new run. Throws c10::Error if it holds a run or a part of
  /// one, is in use by another process, or cannot be made or written into. What a start left that was cut
  /// short before its first checkpoint is no run.
  static RunDirectory create(std::filesystem::path path) {
    TORCH_CHECK(!path.empty(), "the run directory's name is empty");
    RunDirectory run(std::move(path));
    std::error_code error;
    std::filesystem::create_directories(run.path_, error);
    TORCH_CHECK(!error, "cannot create the run directory ", run.path_.string(), ": ", error.message());
    TORCH_CHECK(std::filesystem::is_directory(run.path_, error), "cannot create the run directory ",
                run.path_.string(), ": a file of that name exists");
    // Whether a run was begun here: what it left before its first checkpoint may be written over, no one
    // else's.
    const bool begun = exists(run.path_ / ".lock");
    run.lock();
    TORCH_CHECK(!run.has_checkpoint() || !exists(run.config()), run.path_.string(),
                " already holds a run: continue that, or choose another directory");
    for (const auto& name : run.file_names()) {
      const bool early = name == "config.json" || name == "split.txt" || name == "labels.csv" || name == "network.pt" ||
                         (name == "metrics.csv" && !has_rows(run.metrics()));
      TORCH_CHECK(!is_of_a_run(name) || (early && begun), run.path_.string(), " holds ", name,
                  " of another run: choose another directory, or remove what is in this one");
    }
    std::filesystem::remove(run.metrics(), error);
    return run;
  }

  /// An existing run, to read or evaluate. Throws c10::Error if there is none.
  static RunDirectory open(std::filesystem::path path) {
    RunDirectory run = existing(std::move(path));
    TORCH_CHECK(exists(run.config()) || run.has_checkpoint() || exists(run.weights()), run.path_.string(),
                " holds no run: it has neither config.json nor checkpoint.pt");
    return run;
  }

  /// An existing run, to continue: it has a checkpoint. Throws c10::Error if there is none, or it is in use
  /// by another process.
  static RunDirectory resume(std::filesystem::path path) {
    RunDirectory run = existing(std::move(path));
    TORCH_CHECK(run.has_checkpoint(), run.path_.string(),
                " holds no run to continue: it has no checkpoint.pt");
    run.lock();
    return run;
  }

  /// The names of the files of a run at that place, whether there is one or not.
  static RunDirectory at(std::filesystem::path path) { return RunDirectory(std::move(path)); }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.json"; }
  std::filesystem::path metrics() const { return path_ / "metrics.csv"; }
  std::filesystem::path checkpoint() const { return path_ / "checkpoint.pt"; }
  std::filesystem::path previous_checkpoint() const { return path_ / "checkpoint.previous.pt"; }
  std::filesystem::path summary() const { return path_ / "summary.json"; }
  std::filesystem::path split() const { return path_ / "split.txt"; }
  /// The labels of a folder's pictures, where not the folder alone gives them.
  std::filesystem::path labels() const { return path_ / "labels.csv"; }
  std::filesystem::path report() const { return path_ / "report.html"; }
  std::filesystem::path confusion() const { return path_ / "confusion.csv"; }
  std::filesystem::path predictions() const { return path_ / "predictions.csv"; }
  std::filesystem::path label_errors() const { return path_ / "label_errors.csv"; }
  std::filesystem::path weights() const { return path_ / "model.safetensors"; }
  /// The TorchScript network of a run that trains one.
  std::filesystem::path network() const { return path_ / "network.pt"; }

 private:
  explicit RunDirectory(std::filesystem::path path)
      : path_(path.has_filename() ? std::move(path) : path.parent_path()) {}

  static RunDirectory existing(std::filesystem::path path) {
    RunDirectory run(std::move(path));
    std::error_code error;
    TORCH_CHECK(std::filesystem::is_directory(run.path_, error), "no run directory ", run.path_.string());
    return run;
  }

  static bool exists(const std::filesystem::path& path) {
    std::error_code no_error;
    return std::filesystem::exists(path, no_error);
  }

  bool has_checkpoint() const { return exists(checkpoint()) || exists(previous_checkpoint()); }

  /// Whether a run writes a file of that name.
  static bool is_of_a_run(std::string_view name) {
    constexpr std::array<std::string_view, 13> names{
        "config.json",     "split.txt",        "labels.csv",
        "metrics.csv",     "checkpoint.pt",    "checkpoint.previous.pt",
        "summary.json",    "report.html",      "confusion.csv",
        "predictions.csv", "label_errors.csv", "model.safetensors",
        "network.pt"};
    return std::find(names.begin(), names.end(), name) != names.end() ||
           name.starts_with("events.out.tfevents.");
  }

  static bool has_rows(const std::filesystem::path& metrics) {
    std::ifstream in(metrics);
    std::string line;
    return std::getline(in, line) && std::getline(in, line);
  }

  std::vector<std::string> file_names() const {
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator it(path_, error), end; !error && it != end;
         it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    TORCH_CHECK(!error, "cannot read the run directory ", path_.string(), ": ", error.message());
    std::sort(names.begin(), names.end());
    return names;
  }

  /// Takes the lock, which also shows that the directory can be written into, and then removes the temporary
  /// files of write_file_atomically: whoever made them is gone.
  void lock() {
    lock_ = std::make_shared<RunLock>(path_);
    for (const auto& name : file_names()) {
      const size_t mark = name.rfind(".tmp-");
      if (mark == std::string::npos || !is_of_a_run(std::string_view(name).substr(0, mark))) {
        continue;
      }
      const auto number = std::string_view(name).substr(mark + 5);
      if (number.find_first_not_of("0123456789-") == std::string_view::npos &&
          number.find('-') != number.npos) {
        std::error_code ignored;
        std::filesystem::remove(path_ / name, ignored);
      }
    }
  }

  std::filesystem::path path_;
  std::shared_ptr<RunLock> lock_;
};

}  // namespace mixmatch::training
