#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace mixmatch::detail {

/// Makes LibTorch compute on this thread alone when it is called from it. at::set_num_threads would change
/// the number for the whole process; OpenMP's own call is for the calling thread, and reaches the runtime
/// that LibTorch brought without our being compiled for OpenMP. Where there is none, nothing changes.
inline void compute_on_this_thread_alone() {
  at::get_num_threads();  // LibTorch sets a new thread's number at its first question, and not again
  if (auto* set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) {
    set(1);
  }
}

/// A thread that carries out one task after the other, from its first task until it is destroyed; at most one
/// waits.
class SerialThread {
 public:
  SerialThread() = default;
  SerialThread(const SerialThread&) = delete;
  SerialThread& operator=(const SerialThread&) = delete;
  ~SerialThread() {
    if (thread_.joinable()) {
      {
        const std::lock_guard lock(mutex_);
        stop_ = true;
      }
      wake_.notify_one();
      thread_.join();
    }
  }

  /// The result of f(), or what it throws, by a future.
  template <class F>
  auto run(F f) {
    auto task = std::make_shared<std::packaged_task<decltype(f())()>>(std::move(f));
    auto result = task->get_future();
    if (!thread_.joinable()) {
      thread_ = std::thread([this] { work(); });
    }
    {
      const std::lock_guard lock(mutex_);
      TORCH_CHECK(task_ == nullptr, "SerialThread: a task waits already");
      task_ = [task] { (*task)(); };
    }
    wake_.notify_one();
    return result;
  }

 private:
  void work() {
    compute_on_this_thread_alone();
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || task_ != nullptr; });
      if (task_ == nullptr) {
        return;
      }
      const auto task = std::exchange(task_, nullptr);
      lock.unlock();
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::function<void()> task_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace mixmatch::detail
