#pragma once

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>

namespace mixmatch::training {

namespace detail {

/// While it lives, this thread's writes to a closed pipe fail with EPIPE and raise no SIGPIPE, whatever the
/// program does about that signal elsewhere.
class NoBrokenPipeSignal {
 public:
  NoBrokenPipeSignal() {
    sigset_t pending;
    sigemptyset(&broken_pipe_);
    sigaddset(&broken_pipe_, SIGPIPE);
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    ::pthread_sigmask(SIG_BLOCK, &broken_pipe_, &old_mask_);
  }
  NoBrokenPipeSignal(const NoBrokenPipeSignal&) = delete;
  NoBrokenPipeSignal& operator=(const NoBrokenPipeSignal&) = delete;
  ~NoBrokenPipeSignal() {
    if (!was_pending_) {
      const timespec no_wait{};
      while (::sigtimedwait(&broken_pipe_, nullptr, &no_wait) < 0 && errno == EINTR) {
      }
    }
    ::pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
  }

 private:
  sigset_t broken_pipe_{}, old_mask_{};
  bool was_pending_ = false;
};

/// Writes and flushes; 0, or the errno of the failure.
inline int write_stream(std::FILE* stream, std::string_view text) noexcept {
  const NoBrokenPipeSignal quiet;
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stream) == text.size();
  const bool flushed = std::fflush(stream) == 0;
  const int error = written && flushed ? 0 : errno != 0 ? errno : EIO;
  std::clearerr(stream);
  return error;
}

}  // namespace detail

/// Text for whoever watches: progress, a warning, where the results are. Flushed, so that a log has its lines
/// in their order. Never throws and raises no signal: a terminal that went away, a full disk under a log or a
/// reader that left is no reason to stop training.
inline void print_message(std::FILE* stream, std::string_view text) noexcept {
  static_cast<void>(detail::write_stream(stream, text));
}
template <class First, class... Rest>
void print_message(std::FILE* stream, fmt::format_string<First, Rest...> format, First&& first,
                   Rest&&... rest) {
  print_message(stream, fmt::format(format, std::forward<First>(first), std::forward<Rest>(rest)...));
}

/// What a program was asked for, on the standard output. Throws c10::Error "cannot write the standard output:
/// REASON" unless all of it got there.
inline void print_result(std::string_view text) {
  const int error = detail::write_stream(stdout, text);
  TORCH_CHECK(error == 0, "cannot write the standard output: ", std::strerror(error));
}
template <class First, class... Rest>
void print_result(fmt::format_string<First, Rest...> format, First&& first, Rest&&... rest) {
  print_result(fmt::format(format, std::forward<First>(first), std::forward<Rest>(rest)...));
}

/// Opens those of the descriptors 0, 1 and 2 that are closed, so that no file of the program's gets their
/// number and messages with it. What is written there fails as before: only where it went is safe now. To be
/// called first in main().
inline void open_standard_streams() {
  for (int descriptor = 0; descriptor <= 2; ++descriptor) {
    if (::fcntl(descriptor, F_GETFD) < 0 && errno == EBADF) {
      // The lowest free descriptor is this one. Opened the wrong way round, so that its use is an error.
      static_cast<void>(::open("/dev/null", descriptor == 0 ? O_WRONLY : O_RDONLY));
    }
  }
}

}  // namespace mixmatch::training
