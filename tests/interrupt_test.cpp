#include <mixmatch/run/interrupt.hpp>

#include "catch.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

#include <unistd.h>

#include <utility>

using mixmatch::training::InterruptGuard;

namespace {

int user_signals = 0;
void user_handler(int) { ++user_signals; }

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
      return 0;
    });
  };
  for (const auto& [first, second] : {std::pair(SIGINT, SIGINT), std::pair(SIGTERM, SIGINT),
                                      std::pair(SIGTERM, SIGTERM), std::pair(SIGHUP, SIGTERM)}) {
    CHECK(twice(first, second, 60) == -second);
  }
  // A terminal that goes away: from the kernel, and from the shell.
  CHECK(twice(SIGHUP, SIGHUP, 0) == 0);
}

TEST_CASE("a SIGHUP that is ignored stays ignored", "[interrupt]") {
  CHECK(status_of_child([] {
          ::signal(SIGHUP, SIG_IGN);  // as nohup does
          const InterruptGuard guard;
          ::raise(SIGHUP);
          return guard.interrupted() ? 1 : 0;
        }) == 0);
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
