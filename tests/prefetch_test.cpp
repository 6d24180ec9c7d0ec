#include <mixmatch/step/prefetch.hpp>

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::training::Prefetch;

TEST_CASE("Prefetch: batches by their step's number, in order or not, ahead or not") {
  for (const bool ahead : {true, false}) {
    std::atomic<int> calls{0};
    Prefetch<int64_t> batches(
        [&](int64_t step) {
          ++calls;
          return 10 * step;
        },
        ahead);
    for (int64_t step = 0; step < 50; ++step) {
      CHECK(batches(step) == 10 * step);
    }
    CHECK(batches(7) == 70);  // a resumed run
    CHECK(batches(8) == 80);
    CHECK(batches(8) == 80);
    CHECK(batches(100) == 1000);
    if (!ahead) {
      CHECK(calls == 54);
    }
  }
}

TEST_CASE("Prefetch: the next batch is made on another thread, one thread wide, without gradients") {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  std::atomic<int> wide{0}, recording{0};
  std::vector<std::thread::id> threads;
  {
    Prefetch<int> batches([&](int64_t) {
      threads.push_back(std::this_thread::get_id());
      if (std::this_thread::get_id() != threads.front()) {
        wide = std::max(wide.load(), at::get_num_threads());
      }
      recording += torch::GradMode::is_enabled() ? 1 : 0;
      return 0;
    });
    for (int64_t step = 0; step < 5; ++step) {
      batches(step);
    }
  }
  CHECK(threads.size() == 6);
  CHECK(threads[0] == std::this_thread::get_id());
  CHECK(std::count(threads.begin(), threads.end(), threads[0]) == 1);
  CHECK(wide == 1);
  CHECK(recording == 0);
  CHECK(at::get_num_threads() == 2);  // the step's own number is left alone
  CHECK(torch::GradMode::is_enabled());
  at::set_num_threads(before);
}

TEST_CASE("Prefetch: what goes wrong is told by the call for that step") {
  Prefetch<int> batches([](int64_t step) -> int {
    if (step == 2) {
      throw std::runtime_error("image 17 cannot be read");
    }
    return static_cast<int>(step);
  });
  CHECK(batches(0) == 0);
  CHECK(batches(1) == 1);
  CHECK_THAT(error_of([&] { batches(2); }), contains("image 17 cannot be read"));
  CHECK(batches(1) == 1);
  CHECK(batches(5) == 5);  // the one that failed ahead of time is forgotten
}

TEST_CASE("Prefetch: gone while a batch is being made, or before the first") {
  {
    Prefetch<int> unused([](int64_t) { return 1; });
  }
  std::atomic<bool> done{false};
  {
    Prefetch<int> batches([&](int64_t step) {
      if (step == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        done = true;
      }
      return 1;
    });
    batches(0);
  }
  CHECK(done);
}
