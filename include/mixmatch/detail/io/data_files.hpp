#pragma once

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <unistd.h>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

// What the loaders of published data sets have in common: where their files lie and what may be wrong with
// them. `loader` is the function's name, with which each error begins.

namespace mixmatch::detail {

/// Whether something of that name is there; throws if that cannot be found out (no permission for a folder).
inline bool data_file_exists(const char* loader, const std::filesystem::path& path) {
  std::error_code error;
  const bool exists = std::filesystem::exists(std::filesystem::status(path, error));
  TORCH_CHECK(exists || !error || error == std::errc::no_such_file_or_directory ||
                  error == std::errc::not_a_directory,
              loader, ": cannot read ", printable(path), ": ", error.message());
  return exists;
}

/// `dir` or `dir`/`folder`, whichever holds one of the files. `advice` says where to get them.
inline std::filesystem::path find_data_files(const char* loader, const std::filesystem::path& dir,
                                             const std::string& folder, const std::vector<std::string>& files,
                                             const std::string& advice) {
  for (const auto& place : {dir, dir / folder}) {
    for (const auto& file : files) {
      if (data_file_exists(loader, place / file)) {
        return place;
      }
    }
  }
  TORCH_CHECK(false, loader, ": no ", files.front(), " in ", printable(dir), " or ", printable(dir / folder),
              "; ", advice);
}

/// The number of whole records in the file, at least one. `kind` names what the file should be.
inline int64_t count_records(const char* loader, const std::filesystem::path& path, int64_t record_bytes,
                             const char* kind) {
  TORCH_CHECK(data_file_exists(loader, path), loader, ": ", printable(path),
              " is missing, though other files of the set are there; unpack the archive again");
  std::error_code error;
  TORCH_CHECK(std::filesystem::is_regular_file(path, error), loader, ": ", printable(path),
              " is not a regular file");
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, error));
  TORCH_CHECK(!error, loader, ": cannot read ", printable(path), ": ", error.message());
  TORCH_CHECK(size > 0, loader, ": ", printable(path), " is empty");
  TORCH_CHECK(size % record_bytes == 0, loader, ": ", printable(path), " has ", size,
              " bytes, which is no multiple of a record's ", record_bytes, ": it is cut short, or not ",
              kind);
  return size / record_bytes;
}

/// A file open for reading, closed at the end; throws "LOADER: cannot read PATH: REASON".
class InputFile {
 public:
  InputFile(const char* loader, std::filesystem::path path)
      : loader_(loader), path_(std::move(path)), file_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (file_ < 0) {
      fail(std::strerror(errno));
    }
  }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile() { ::close(file_); }

  int descriptor() const { return file_; }

  /// Copies `count` bytes from `offset` on; 0, errno, or -1 where the file ends early. Any number of threads.
  int read_at(int64_t offset, int64_t count, uint8_t* out) const {
    while (count > 0) {
      const auto got = ::pread(file_, out, static_cast<size_t>(count), offset);
      if (got < 0 && errno == EINTR) {
        continue;
      }
      if (got <= 0) {
        return got < 0 ? errno : -1;
      }
      out += got;
      offset += got;
      count -= got;
    }
    return 0;
  }

  /// The next `count` bytes.
  void read(uint8_t* out, int64_t count) {
    if (const int error = read_at(position_, count, out); error != 0) {
      fail(error > 0 ? std::strerror(error) : "it ended early");
    }
    position_ += count;
  }

  /// Makes read() go on there.
  void skip_to(int64_t position) { position_ = position; }

  [[noreturn]] void fail(const char* reason) const {
    TORCH_CHECK(false, loader_, ": cannot read ", printable(path_), ": ", reason);
  }

 private:
  const char* loader_;
  std::filesystem::path path_;
  int file_;
  int64_t position_ = 0;  // of read()
};

/// The file's lines without blanks at their ends, and without empty lines at the file's end.
inline std::vector<std::string> read_lines(const char* loader, const std::filesystem::path& path) {
  std::error_code error;
  TORCH_CHECK(std::filesystem::is_regular_file(path, error), loader, ": ", printable(path),
              " is not a regular file");
  InputFile file(loader, path);
  const auto size = std::filesystem::file_size(path, error);
  TORCH_CHECK(!error, loader, ": cannot read ", printable(path), ": ", error.message());
  std::string text(size, '\0');
  file.read(reinterpret_cast<uint8_t*>(text.data()), static_cast<int64_t>(size));
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    line.erase(line.find_last_not_of(" \t\r") + 1);
    lines.push_back(std::move(line));
    begin = end + 1;
  }
  while (!lines.empty() && lines.back().empty()) {
    lines.pop_back();
  }
  return lines;
}

/// The class names in the file, one a line, or the standard ones where there is no such file.
inline std::vector<std::string> read_class_names(const char* loader, const std::filesystem::path& path,
                                                 std::vector<std::string> standard) {
  if (!data_file_exists(loader, path)) {
    return standard;
  }
  auto names = read_lines(loader, path);
  std::erase(names, "");
  TORCH_CHECK(names.size() == standard.size(), loader, ": ", printable(path), " must hold ", standard.size(),
              " class names, one a line, got ", names.size());
  for (const auto& name : names) {  // they go into files of text that are UTF-8
    TORCH_CHECK(is_utf8(name), loader, ": ", printable(path), " has the class name \"",
                printable_beginning(name, 80), "\", which is not UTF-8");
  }
  return names;
}

}  // namespace mixmatch::detail
