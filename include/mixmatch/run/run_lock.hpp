#pragma once

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <mixmatch/io/atomic_file.hpp>

#include <array>
#include <cerrno>
#include <filesystem>
#include <string>
#include <string_view>

namespace mixmatch::training {

/// Keeps every other process out of a directory for as long as it lives: an flock() on DIR/.lock, which the
/// operating system releases however this process ends. The file stays, with the number of the process that
/// held it last.
///
/// Throws c10::Error "DIR is in use by process N", or "cannot write DIR/.lock: REASON". On a file system
/// without locks there is none.
class RunLock {
 public:
  explicit RunLock(const std::filesystem::path& directory) {
    const auto path = directory / ".lock";
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) {
      mixmatch::detail::throw_cannot_write(path, errno);
    }
    try {
      take(directory, path);
    } catch (...) {
      ::close(file_);
      throw;
    }
  }
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock() { ::close(file_); }

 private:
  void take(const std::filesystem::path& directory, const std::filesystem::path& path) {
    int result = 0;
    do {
      result = ::flock(file_, LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
      TORCH_CHECK(errno != EWOULDBLOCK, directory.string(), " is in use by ", holder());
      return;  // ENOLCK, ENOSYS, EOPNOTSUPP
    }
    const std::string process = std::to_string(::getpid()) + "\n";
    if (::ftruncate(file_, 0) != 0 || !mixmatch::detail::write_all(file_, process)) {
      mixmatch::detail::throw_cannot_write(path, errno);
    }
  }

  std::string holder() const {
    std::array<char, 32> text{};
    const auto count = ::pread(file_, text.data(), text.size(), 0);
    const std::string_view number(text.data(), count > 0 ? static_cast<size_t>(count) : 0);
    const size_t digits = number.find_first_not_of("0123456789");
    return digits == 0 || number.empty() ? "another process"
                                         : "process " + std::string(number.substr(0, digits));
  }

  int file_ = -1;
};

}  // namespace mixmatch::training
