#include <mixmatch/training/interrupt.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <utility>

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
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
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

TEST_CASE("a second signal ends the process, unless it is of the same event", "[interrupt]") {
  const auto twice = [](int first, int second, int milliseconds) {
    return status_of_child([=] {
      const InterruptGuard guard;
      ::raise(first);
      ::usleep(static_cast<unsigned>(milliseconds) * 1000);
      ::raise(second);
    });
  };
  for (const auto& [first, second] : {std::pair(SIGINT, SIGINT), std::pair(SIGTERM, SIGINT),
                                      std::pair(SIGTERM, SIGTERM), std::pair(SIGHUP, SIGTERM)}) {
    const int status = twice(first, second, 60);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == second));
  }
  // A terminal that goes away: from the kernel, and from the shell.
  const int status = twice(SIGHUP, SIGHUP, 0);
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

TEST_CASE("a SIGHUP that is ignored stays ignored", "[interrupt]") {
  const int status = status_of_child([] {
    ::signal(SIGHUP, SIG_IGN);  // as nohup does
    const InterruptGuard guard;
    ::raise(SIGHUP);
    ::_exit(guard.interrupted() ? 1 : 0);
  });
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
