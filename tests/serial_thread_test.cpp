#include <mixmatch/detail/serial_thread.hpp>

#include <algorithm>
#include <future>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::detail::SerialThread;

// What tasks and caller share is plain memory here: under the thread sanitizer (preset tsan) this shows that run and
// the future order it.
TEST_CASE("SerialThread: tasks run in order on one thread, and see and leave what the caller does") {
  std::vector<int> values;
  std::vector<std::thread::id> threads;
  {
    SerialThread worker;
    for (int i = 0; i < 200; ++i) {
      values.push_back(i);
      auto result = worker.run([&] {
        threads.push_back(std::this_thread::get_id());
        values.back() *= 2;
        return values.back();
      });
      CHECK(result.get() == 2 * i);
      CHECK(values.back() == 2 * i);
    }
  }
  REQUIRE(threads.size() == 200);
  CHECK(std::count(threads.begin(), threads.end(), threads.front()) == 200);
  CHECK(threads.front() != std::this_thread::get_id());
}

TEST_CASE("SerialThread: what a task throws comes with its future, and the next task runs") {
  SerialThread worker;
  auto failed = worker.run([]() -> int { throw std::runtime_error("no batch"); });
  CHECK_THAT(error_of([&] { failed.get(); }), contains("no batch"));
  CHECK(worker.run([] { return 3; }).get() == 3);
}

TEST_CASE("SerialThread: one task waits at most, and the destructor waits for those given") {
  std::promise<void> started, go_on;
  bool first_done = false, second_done = false;
  {
    SerialThread worker;
    auto first = worker.run([&] {
      started.set_value();
      go_on.get_future().wait();
      first_done = true;
    });
    started.get_future().wait();
    auto second = worker.run([&] { second_done = true; });
    CHECK_THAT(error_of([&] { worker.run([] {}); }), contains("a task waits already"));
    go_on.set_value();
  }
  CHECK(first_done);
  CHECK(second_done);
}
