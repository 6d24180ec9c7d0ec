#pragma once

// The ranks of a ProcessGroup as threads of one process.

#include <c10/util/Exception.h>
#include <mixmatch/distributed/process_group.hpp>

#include <barrier>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

class ThreadGroup : public mixmatch::training::ProcessGroup {
 public:
  using Tensor = torch::Tensor;

  struct Shared {
    explicit Shared(int64_t world_size) : places(static_cast<size_t>(world_size)), barrier(world_size) {}
    std::vector<Tensor> places;
    std::barrier<> barrier;
  };

  ThreadGroup(std::shared_ptr<Shared> shared, int64_t rank) : shared_(std::move(shared)), rank_(rank) {}

  int64_t rank() const override { return rank_; }
  int64_t world_size() const override { return static_cast<int64_t>(shared_->places.size()); }

  std::unique_ptr<Work> start_sum(Tensor tensor) override {
    ++collectives;
    Tensor sum = gather(tensor).sum(0);
    struct Copy : Work {
      Tensor to, from;
      void wait() override { to.copy_(from); }
    };
    auto work = std::make_unique<Copy>();
    work->to = tensor.detach();
    work->from = sum;
    return work;
  }
  Tensor gather(const Tensor& tensor) override {
    shared_->places[static_cast<size_t>(rank_)] = tensor;
    shared_->barrier.arrive_and_wait();
    Tensor all = at::stack(shared_->places);
    shared_->barrier.arrive_and_wait();
    return all;
  }
  void broadcast_(Tensor tensor) override { tensor.copy_(gather(tensor)[0]); }
  bool capturable(torch::Device) const override { return false; }

  int64_t collectives = 0;

 private:
  std::shared_ptr<Shared> shared_;
  int64_t rank_;
};

/// In the place of CHECK on another thread than the test's, which Catch2 does not support.
#define CHECK_ON_RANK(...)                                                \
  do {                                                                    \
    if (!(__VA_ARGS__)) {                                                 \
      throw std::runtime_error("does not hold on a rank: " #__VA_ARGS__); \
    }                                                                     \
  } while (false)

/// What f() throws says; "" where it does not throw.
template <class F>
std::string thrown_by(const F& f) {
  try {
    f();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

/// make(rank) is a group for each rank, and body(group) runs on a thread for each.
template <class Make, class Body>
void on_threads(int64_t ranks, const Make& make, const Body& body) {
  std::vector<std::exception_ptr> thrown(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        const auto group = make(rank);
        body(*group);
      } catch (...) {
        thrown[static_cast<size_t>(rank)] = std::current_exception();
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  for (const auto& error : thrown) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
}

/// body(group) on a thread for each rank. What one throws, the call throws; the others must then not wait for
/// it.
inline void on_ranks(int64_t world_size, const std::function<void(ThreadGroup&)>& body) {
  const auto shared = std::make_shared<ThreadGroup::Shared>(world_size);
  on_threads(
      world_size, [&](int64_t rank) { return std::make_unique<ThreadGroup>(shared, rank); },
      [&](ThreadGroup& group) {
        try {
          body(group);
        } catch (...) {
          shared->barrier.arrive_and_drop();
          throw;
        }
      });
}
