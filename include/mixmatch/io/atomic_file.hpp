#pragma once

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

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

/// Makes the names in the file's directory survive a power cut. A file system that cannot sync a directory
/// still has whole files.
inline void sync_directory_of(const std::filesystem::path& path) {
  const auto parent = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    static_cast<void>(::fsync(directory));
    ::close(directory);
  }
}

/// The path with its symbolic links followed, also where the last one leads to nothing yet. Empty if it leads
/// through /proc, whose links stand for open files rather than for names (/dev/stdout), or round in circles.
inline std::filesystem::path follow_links(std::filesystem::path path) {
  std::error_code error;
  for (int links = 0; links < 40; ++links) {
    const auto parent = std::filesystem::canonical(
        path.has_parent_path() ? path.parent_path() : std::filesystem::path("."), error);
    if (!error && parent.string().starts_with("/proc/")) {
      return {};
    }
    const auto target = std::filesystem::read_symlink(path, error);
    if (error) {
      return path;
    }
    path = target.is_absolute() ? target : path.parent_path() / target;
  }
  return {};
}

/// Into a device or pipe: there is nothing to replace.
inline void write_special_file(const std::filesystem::path& path, std::string_view bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file < 0) {
    throw_cannot_write(path, errno);
  }
  const bool written = write_all(file, bytes);
  const int error = errno;
  if (::close(file) != 0 || !written) {
    throw_cannot_write(path, written ? errno : error);
  }
}

}  // namespace detail

/// Replaces the file by `bytes`, or leaves it as it was: the bytes go to a temporary file in the same
/// directory (PATH.tmp-PROCESS-NUMBER), onto the disk, and then take the name in one step, so that neither a
/// crash nor a full disk leaves a part of a file behind. A symbolic link stays one: the file that it leads to
/// is replaced, and keeps its permissions. What is no regular file, a device or pipe, is never replaced but
/// written into. Throws c10::Error "cannot write PATH: REASON" and removes the temporary file.
inline void write_file_atomically(const std::filesystem::path& path, std::string_view bytes) {
  struct stat status {};
  const bool exists = ::stat(path.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) {
    detail::throw_cannot_write(path, EISDIR);
  }
  const auto target = detail::follow_links(path);
  if (target.empty() || (exists && !S_ISREG(status.st_mode))) {
    detail::write_special_file(path, bytes);
    return;
  }
  static std::atomic<unsigned> counter{0};
  const std::string temporary =
      target.string() + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter.fetch_add(1));
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) {
    detail::throw_cannot_write(path, errno);
  }
  int error = 0;
  if (exists) {
    static_cast<void>(::fchmod(file, status.st_mode & 07777U));
  }
  if (!detail::write_all(file, bytes) || ::fsync(file) != 0) {
    error = errno;
  }
  if (::close(file) != 0 && error == 0) {
    error = errno;
  }
  if (error == 0 && ::rename(temporary.c_str(), target.c_str()) != 0) {
    error = errno;
  }
  if (error != 0) {
    ::unlink(temporary.c_str());
    detail::throw_cannot_write(path, error);
  }
  detail::sync_directory_of(target);
}

}  // namespace mixmatch
