#pragma once

#include <mixmatch/atomic_file.hpp>

#include <filesystem>
#include <system_error>
#include <utility>

namespace mixmatch::training {

/// Where one training run keeps its files: config.json, split.txt, metrics.csv, checkpoint.pt and
/// TensorBoard's events, and at the end summary.json, confusion.csv, report.html and model.safetensors. A
/// directory holds a run as soon as it holds a config.json.
class RunDirectory {
 public:
  /// Makes the directory (and its parents) for a new run. Throws c10::Error if it holds a run, or cannot be
  /// made or written into.
  static RunDirectory create(std::filesystem::path path) {
    TORCH_CHECK(!path.empty(), "the run directory's name is empty");
    RunDirectory run(std::move(path));
    std::error_code error;
    TORCH_CHECK(!std::filesystem::exists(run.config(), error), run.path_.string(),
                " already holds a run: continue it with --resume, or choose another --out");
    std::filesystem::create_directories(run.path_, error);
    TORCH_CHECK(!error, "cannot create the run directory ", run.path_.string(), ": ", error.message());
    TORCH_CHECK(std::filesystem::is_directory(run.path_, error), "cannot create the run directory ",
                run.path_.string(), ": a file of that name exists");
    // Permission bits say too little (read-only mounts, full disks): try.
    const auto probe = run.path_ / ".writable";
    write_file_atomically(probe, "");
    std::filesystem::remove(probe, error);
    return run;
  }

  /// An existing run, to continue or evaluate it. Throws c10::Error if there is none.
  static RunDirectory open(std::filesystem::path path) {
    RunDirectory run(std::move(path));
    std::error_code error;
    TORCH_CHECK(std::filesystem::is_directory(run.path_, error), "no run directory ", run.path_.string());
    TORCH_CHECK(std::filesystem::exists(run.config(), error), run.path_.string(),
                " holds no run: it has no config.json");
    return run;
  }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.json"; }
  std::filesystem::path metrics() const { return path_ / "metrics.csv"; }
  std::filesystem::path checkpoint() const { return path_ / "checkpoint.pt"; }
  std::filesystem::path summary() const { return path_ / "summary.json"; }
  std::filesystem::path split() const { return path_ / "split.txt"; }
  std::filesystem::path report() const { return path_ / "report.html"; }
  std::filesystem::path confusion() const { return path_ / "confusion.csv"; }
  std::filesystem::path predictions() const { return path_ / "predictions.csv"; }
  std::filesystem::path weights() const { return path_ / "model.safetensors"; }

 private:
  explicit RunDirectory(std::filesystem::path path)
      : path_(path.has_filename() ? std::move(path) : path.parent_path()) {}

  std::filesystem::path path_;
};

}  // namespace mixmatch::training
