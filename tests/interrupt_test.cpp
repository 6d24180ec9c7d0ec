#include <mixmatch/training/interrupt.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <sys/wait.h>
#include <unistd.h>

using mixmatch::training::InterruptGuard;

namespace {

int user_signals = 0;
void user_handler(int) { ++user_signals; }

/// How a child process that runs `body` ends, as waitpid reports it.
template <class F>
int status_of_child(F&& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

}  // namespace

TEST_CASE("a signal sets the flag", "[interrupt]") {
  for (const int number : {SIGINT, SIGTERM}) {
    const InterruptGuard guard;
    CHECK_FALSE(guard.interrupted());
    CHECK(guard.signal_number() == 0);
    ::raise(number);
    CHECK(guard.interrupted());
    CHECK(guard.signal_number() == number);
  }
  const InterruptGuard fresh;
  CHECK_FALSE(fresh.interrupted());
}

TEST_CASE("a second Ctrl-C ends the process", "[interrupt]") {
  const auto twice = [](int first, int second) {
    return status_of_child([=] {
      const InterruptGuard guard;
      ::raise(first);
      ::raise(second);
    });
  };
  int status = twice(SIGINT, SIGINT);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGINT));
  status = twice(SIGTERM, SIGINT);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGINT));
  status = twice(SIGTERM, SIGTERM);  // a scheduler may repeat itself
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

TEST_CASE("the handlers from before come back", "[interrupt]") {
  const auto old = ::signal(SIGINT, user_handler);
  user_signals = 0;
  {
    const InterruptGuard guard;
    ::raise(SIGINT);
    CHECK(user_signals == 0);
  }
  ::raise(SIGINT);
  CHECK(user_signals == 1);
  ::signal(SIGINT, old);
}

TEST_CASE("there is one guard at a time", "[interrupt]") {
  {
    const InterruptGuard guard;
    CHECK_THAT(error_of([] { InterruptGuard(); }), contains("InterruptGuard"));
    ::raise(SIGTERM);
    CHECK(guard.interrupted());
  }
  CHECK(error_of([] { InterruptGuard(); }).empty());
}
