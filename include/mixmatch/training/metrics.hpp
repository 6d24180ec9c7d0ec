#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <torch/serialize/archive.h>
#include <mixmatch/atomic_file.hpp>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// A CSV file of numbers that grows by a row at a time: a header line, then one line a row, handed to the
/// operating system when `append` returns, so that a killed run keeps its rows.
///
/// As an entry of a Checkpoint it stores its length: after a resume the file ends where the checkpoint saw
/// it, and rows that the resumed run will write again are not there twice.
class MetricsCsv {
 public:
  /// Makes the file with its header, or opens an existing one of the same columns at its end. Throws
  /// c10::Error if the file cannot be written or has other columns.
  MetricsCsv(std::filesystem::path path, std::vector<std::string> columns)
      : path_(std::move(path)), columns_(std::move(columns)) {
    TORCH_CHECK(!columns_.empty(), "MetricsCsv: columns must not be empty");
    std::string header;
    for (const auto& column : columns_) {
      TORCH_CHECK(
          !column.empty() && column.find_first_of(",\"\r\n") == std::string::npos,
          "MetricsCsv: a column name must be non-empty and without comma, quote and line break, got '",
          column, "'");
      header += (header.empty() ? "" : ",") + column;
    }
    header += '\n';
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    try {
      open_at_end(header);
    } catch (...) {
      ::close(file_);
      throw;
    }
  }
  MetricsCsv(const MetricsCsv&) = delete;
  MetricsCsv& operator=(const MetricsCsv&) = delete;
  ~MetricsCsv() { ::close(file_); }

  /// Adds a row. Whole numbers are written without a fraction, NaN as an empty cell, all else with the fewest
  /// digits that read back to the same value. Throws if the row's length is not that of the columns, or the
  /// disk is full.
  void append(const std::vector<double>& row) {
    TORCH_CHECK(row.size() == columns_.size(), "MetricsCsv: append: a row must have ", columns_.size(),
                " values, got ", row.size());
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += (i == 0 ? "" : ",") + cell(row[i]);
    }
    line += '\n';
    if (!mixmatch::detail::write_all(file_, line)) {
      const int error = errno;
      static_cast<void>(::ftruncate(file_, bytes_));  // no half row
      mixmatch::detail::throw_cannot_write(path_, error);
    }
    bytes_ += static_cast<int64_t>(line.size());
  }

  /// The file's length so far.
  int64_t bytes() const { return bytes_; }
  const std::filesystem::path& path() const { return path_; }
  const std::vector<std::string>& columns() const { return columns_; }

  /// Drops what lies beyond `bytes`, a value that `bytes()` once returned. Throws if the file is shorter than
  /// that.
  void truncate_to(int64_t bytes) {
    TORCH_CHECK(bytes >= 0 && bytes <= bytes_, path_.string(), " has ", bytes_, " bytes, but ", bytes,
                " were written before the checkpoint: the run directory was changed");
    if (::ftruncate(file_, bytes) != 0) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    bytes_ = bytes;
  }

  void save(torch::serialize::OutputArchive& archive) const { archive.write("bytes", c10::IValue(bytes_)); }
  /// Cuts the file back to the length it had at `save`.
  void load(torch::serialize::InputArchive& archive) {
    c10::IValue bytes;
    archive.read("bytes", bytes);
    truncate_to(bytes.toInt());
  }

 private:
  static std::string cell(double value) {
    if (std::isnan(value)) {
      return "";
    }
    constexpr double exact_integers = 9007199254740992.0;  // 2^53
    if (std::abs(value) <= exact_integers && value == std::trunc(value)) {
      return fmt::format("{}", static_cast<int64_t>(value));
    }
    return fmt::format("{}", value);
  }

  void open_at_end(const std::string& header) {
    struct stat status {};
    if (::fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) {
      TORCH_CHECK(false, "cannot write ", path_.string(), ": not a regular file");
    }
    bytes_ = static_cast<int64_t>(status.st_size);
    if (bytes_ == 0) {
      if (!mixmatch::detail::write_all(file_, header)) {
        const int error = errno;
        static_cast<void>(::ftruncate(file_, 0));
        mixmatch::detail::throw_cannot_write(path_, error);
      }
      bytes_ = static_cast<int64_t>(header.size());
      return;
    }
    std::string found(header.size(), '\0');
    const auto count = ::pread(file_, found.data(), found.size(), 0);
    TORCH_CHECK(count == static_cast<ssize_t>(header.size()) && found == header, path_.string(),
                ": the header is not \"", header.substr(0, header.size() - 1),
                "\"; this file has other metrics");
  }

  std::filesystem::path path_;
  std::vector<std::string> columns_;
  int file_ = -1;
  int64_t bytes_ = 0;
};

/// Median of the last `n` values (all, if there are fewer; the mean of the middle two for an even count). NaN
/// for none. The papers report it over the last 20 evaluations.
inline double median_of_last(const std::vector<double>& values, size_t n = 20) {
  const size_t count = std::min(n, values.size());
  if (count == 0) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  std::vector<double> last(values.end() - static_cast<std::ptrdiff_t>(count), values.end());
  // NaN has no place in an order: one among them makes the median unknown.
  if (std::any_of(last.begin(), last.end(), [](double value) { return std::isnan(value); })) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  std::sort(last.begin(), last.end());
  return count % 2 == 1 ? last[count / 2] : (last[count / 2 - 1] + last[count / 2]) / 2;
}

}  // namespace mixmatch::training
