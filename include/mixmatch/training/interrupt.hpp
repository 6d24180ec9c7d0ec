#pragma once

#include <c10/util/Exception.h>
#include <signal.h>

#include <atomic>

namespace mixmatch::training {

namespace detail {

static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may touch lock-free atomics only");
inline std::atomic<int> interrupt_signal{0};
inline std::atomic<bool> interrupt_guard_alive{false};

inline void on_interrupt(int signal_number) {
  const int earlier = interrupt_signal.exchange(signal_number);
  if (earlier != 0 && signal_number == SIGINT) {
    // Asked twice: the handler is removed and the signal, blocked until this handler returns, ends the
    // process.
    ::signal(SIGINT, SIG_DFL);
    ::raise(SIGINT);
  }
}

}  // namespace detail

/// While it lives, Ctrl-C (SIGINT) and SIGTERM set a flag that a training loop asks for between steps, so
/// that it can save and leave. A Ctrl-C after that ends the process at once. The destructor restores the
/// handlers it found. One at a time: a second guard throws c10::Error.
class InterruptGuard {
 public:
  InterruptGuard() {
    TORCH_CHECK(!detail::interrupt_guard_alive.exchange(true), "InterruptGuard: there is one already");
    detail::interrupt_signal = 0;
    struct sigaction action {};
    action.sa_handler = detail::on_interrupt;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGINT, &action, &old_interrupt_);
    ::sigaction(SIGTERM, &action, &old_terminate_);
  }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard() {
    ::sigaction(SIGINT, &old_interrupt_, nullptr);
    ::sigaction(SIGTERM, &old_terminate_, nullptr);
    detail::interrupt_guard_alive = false;
  }

  bool interrupted() const { return detail::interrupt_signal != 0; }
  /// SIGINT, SIGTERM, or 0 while there was none.
  int signal_number() const { return detail::interrupt_signal; }

 private:
  struct sigaction old_interrupt_ {};
  struct sigaction old_terminate_ {};
};

}  // namespace mixmatch::training
