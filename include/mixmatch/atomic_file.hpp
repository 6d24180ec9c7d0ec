#pragma once

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>

namespace mixmatch {

namespace detail {

[[noreturn]] inline void throw_cannot_write(const std::filesystem::path& path, int error) {
  TORCH_CHECK(false, "cannot write ", path.string(), ": ", std::strerror(error));
}

inline bool write_all(int file, std::string_view bytes) {
  while (!bytes.empty()) {
    const auto written = ::write(file, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace detail

/// Replaces the file by `bytes`, or leaves it as it was: the bytes go to a temporary file in the same
/// directory, onto the disk, and then take the name in one step, so that neither a crash nor a full disk
/// leaves a part of a file behind. Throws c10::Error "cannot write PATH: REASON" and removes the temporary
/// file.
inline void write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  static std::atomic<unsigned> counter{0};
  const std::string temporary =
      path.string() + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter.fetch_add(1));
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) {
    detail::throw_cannot_write(path, errno);
  }
  int error = 0;
  if (!detail::write_all(file, bytes) || ::fsync(file) != 0) {
    error = errno;
  }
  if (::close(file) != 0 && error == 0) {
    error = errno;
  }
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) {
    error = errno;
  }
  if (error != 0) {
    ::unlink(temporary.c_str());
    detail::throw_cannot_write(path, error);
  }
  // The new name must survive a power cut too; a file system that cannot sync a directory still has the whole
  // file.
  const auto parent = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    static_cast<void>(::fsync(directory));
    ::close(directory);
  }
}

}  // namespace mixmatch
