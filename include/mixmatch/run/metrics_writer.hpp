#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <torch/serialize/archive.h>
#include <mixmatch/io/atomic_file.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// A CSV file of numbers that grows by a row at a time: a header line, then one line a row, handed to the
/// operating system when `append` returns, so that a killed run keeps its rows. The columns may be named as
/// late as the first row.
///
/// As an entry of a Checkpoint it stores its text: after a resume the file holds what the checkpoint saw and
/// no more, whatever became of it in between: rows that the resumed run will write again are cut off, and a
/// file that lost rows (a power cut), was damaged or removed is written anew. The text stands in memory once.
class MetricsCsv {
 public:
  /// Makes the file, or opens an existing one at its end. Throws c10::Error if it cannot be written.
  explicit MetricsCsv(std::filesystem::path path) : MetricsCsv(std::move(path), nullptr) { open_at_end(); }
  /// The same with its header: throws if the file has other columns.
  MetricsCsv(std::filesystem::path path, std::vector<std::string> columns)
      : MetricsCsv(std::move(path), nullptr) {
    static_cast<void>(header_of(columns));
    open_at_end();
    set_columns(std::move(columns));
  }
  /// For a run that is resumed: the file is not touched before load().
  static std::unique_ptr<MetricsCsv> unopened(std::filesystem::path path) {
    return std::unique_ptr<MetricsCsv>(new MetricsCsv(std::move(path), nullptr));
  }
  MetricsCsv(const MetricsCsv&) = delete;
  MetricsCsv& operator=(const MetricsCsv&) = delete;
  ~MetricsCsv() { close(); }

  /// Writes the header, or throws if the file has another.
  void set_columns(std::vector<std::string> columns) {
    const std::string header = header_of(columns);
    if (text_.empty()) {
      write(header);
    }
    TORCH_CHECK(text_.starts_with(header), path_.string(), ": the header is not \"",
                header.substr(0, header.size() - 1), "\"; this file has other metrics");
    columns_ = std::move(columns);
  }

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
    write(line);
  }

  /// The file's content so far.
  const std::string& text() const { return text_; }
  const std::filesystem::path& path() const { return path_; }
  /// Whether load() found another file than the checkpoint counted on, and wrote it anew.
  bool was_restored() const { return restored_; }

  /// The rows are on the disk before a checkpoint counts on them.
  void save(torch::serialize::OutputArchive& archive) const {
    if (::fdatasync(file_) != 0) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    archive.write("text", c10::IValue(text_));
  }
  /// Makes the file what it was at `save`.
  void load(torch::serialize::InputArchive& archive) {
    c10::IValue stored;
    archive.read("text", stored);
    const std::string& text = stored.toStringRef();
    std::error_code none;
    restored_ = !std::filesystem::exists(path_, none);
    if (!restored_) {
      open();
      restored_ = !read().starts_with(text);
    }
    if (restored_) {
      close();
      write_file_atomically(path_, text);
      open();
    } else if (::ftruncate(file_, static_cast<off_t>(text.size())) != 0) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    text_ = text;
  }

 private:
  MetricsCsv(std::filesystem::path path, std::nullptr_t) : path_(std::move(path)) {}

  static std::string header_of(const std::vector<std::string>& columns) {
    TORCH_CHECK(!columns.empty(), "MetricsCsv: columns must not be empty");
    std::string line;
    for (const auto& column : columns) {
      TORCH_CHECK(
          !column.empty() && column.find_first_of(",\"\r\n") == std::string::npos,
          "MetricsCsv: a column name must be non-empty and without comma, quote and line break, got '",
          column, "'");
      line += (line.empty() ? "" : ",") + column;
    }
    return line + '\n';
  }

  static std::string cell(double value) {
    return std::isnan(value) ? "" : fmt::format("{}", value + 0.0);  // which makes 0 of -0
  }

  void open() {
    close();
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    if (file_ < 0) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    struct stat status {};
    if (::fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) {
      close();
      TORCH_CHECK(false, "cannot write ", path_.string(), ": not a regular file");
    }
  }

  void open_at_end() {
    open();
    text_ = read();
    // A row that was being written is none.
    text_.resize(text_.rfind('\n') + 1);
    if (::ftruncate(file_, static_cast<off_t>(text_.size())) != 0) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    mixmatch::detail::sync_directory_of(path_);
  }

  void close() {
    if (file_ >= 0) {
      ::close(std::exchange(file_, -1));
    }
  }

  std::string read() const {
    std::string text;
    std::array<char, 65536> block;
    for (ssize_t count = 0;
         (count = ::pread(file_, block.data(), block.size(), static_cast<off_t>(text.size()))) != 0;) {
      TORCH_CHECK(count > 0 || errno == EINTR, "cannot read ", path_.string(), ": ", std::strerror(errno));
      text.append(block.data(), count > 0 ? static_cast<size_t>(count) : 0);
    }
    return text;
  }

  void write(const std::string& lines) {
    if (!mixmatch::detail::write_all(file_, lines)) {
      const int error = errno;
      static_cast<void>(::ftruncate(file_, static_cast<off_t>(text_.size())));  // no half row
      mixmatch::detail::throw_cannot_write(path_, error);
    }
    text_ += lines;
  }

  std::filesystem::path path_;
  std::vector<std::string> columns_;
  std::string text_;
  int file_ = -1;
  bool restored_ = false;
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
