#pragma once

#include <c10/util/Exception.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <ctime>

namespace mixmatch::training {

namespace detail {

static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free,
              "a signal handler may touch lock-free atomics only");
inline std::atomic<int> interrupt_signal{0};
inline std::atomic<int64_t> interrupt_time{0};  ///< of the first signal, in nanoseconds; 0 before it
inline std::atomic<bool> interrupt_guard_alive{false};

/// One event may send several signals: `timeout` to the process and to its group, a terminal that goes away
/// the kernel's SIGHUP and the shell's, a service manager SIGTERM and SIGHUP.
inline constexpr int64_t one_event_nanoseconds = 50'000'000;

inline void on_interrupt(int signal_number) {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  const int64_t now = int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  int64_t first = 0;
  if (interrupt_time.compare_exchange_strong(first, now)) {
    interrupt_signal = signal_number;
  } else if (now - first > one_event_nanoseconds) {
    // Asked again: the handler is removed and the signal, blocked until this handler returns, ends the
    // process.
    ::signal(signal_number, SIG_DFL);
    ::raise(signal_number);
  }
}

}  // namespace detail

/// While it lives, Ctrl-C (SIGINT), SIGTERM and SIGHUP set a flag that a training loop asks for between
/// steps, so that it can save and leave. A second signal ends the process at once (several within 50 ms count
/// as one). A SIGHUP that is ignored (nohup) stays ignored. The destructor restores the handlers it found.
/// One at a time: a second guard throws c10::Error.
class InterruptGuard {
 public:
  InterruptGuard() {
    TORCH_CHECK(!detail::interrupt_guard_alive.exchange(true), "InterruptGuard: there is one already");
    detail::interrupt_signal = 0;
    detail::interrupt_time = 0;
    struct sigaction action {};
    action.sa_handler = detail::on_interrupt;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (const int number : signals) {
      sigaddset(&action.sa_mask, number);
    }
    for (size_t i = 0; i < signals.size(); ++i) {
      ::sigaction(signals[i], nullptr, &old_actions_[i]);
      if (signals[i] != SIGHUP || old_actions_[i].sa_handler != SIG_IGN) {
        ::sigaction(signals[i], &action, nullptr);
      }
    }
  }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard() {
    for (size_t i = 0; i < signals.size(); ++i) {
      ::sigaction(signals[i], &old_actions_[i], nullptr);
    }
    detail::interrupt_guard_alive = false;
  }

  bool interrupted() const { return detail::interrupt_signal != 0; }
  /// The first signal that came, or 0 while there was none.
  int signal_number() const { return detail::interrupt_signal; }

 private:
  static constexpr std::array<int, 3> signals{SIGINT, SIGTERM, SIGHUP};
  std::array<struct sigaction, 3> old_actions_{};
};

}  // namespace mixmatch::training
