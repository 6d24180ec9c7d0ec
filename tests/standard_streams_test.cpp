#include <mixmatch/run/standard_streams.hpp>

#include "catch.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

using mixmatch::training::open_standard_streams;
using mixmatch::training::print_message;
using mixmatch::training::print_result;

namespace {

/// A stream whose reader has left.
std::FILE* broken_pipe() {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  ::close(ends[0]);
  return ::fdopen(ends[1], "w");
}

}  // namespace

TEST_CASE("a message to a stream that fails is lost, and that is all", "[standard_streams]") {
  std::FILE* full = std::fopen("/dev/full", "w");
  print_message(full, "{} lines", 3);
  print_message(full, "again");
  std::fclose(full);
  // SIGPIPE would end the process.
  CHECK(status_of_child([] {
          ::signal(SIGPIPE, SIG_DFL);
          std::FILE* pipe = broken_pipe();
          print_message(pipe, "one");
          print_message(pipe, "two");
          sigset_t pending;
          sigpending(&pending);
          return sigismember(&pending, SIGPIPE);
        }) == 0);
}

TEST_CASE("a result that does not arrive is an error", "[standard_streams]") {
  const auto error_with_stdout = [](int descriptor) {
    std::fflush(stdout);
    const int saved = ::dup(1);
    ::dup2(descriptor, 1);
    const std::string message = error_of([] { print_result("{}", 1.5); });
    ::dup2(saved, 1);
    ::close(saved);
    return message;
  };
  const int full = ::open("/dev/full", O_WRONLY);
  CHECK(error_with_stdout(full) == "cannot write the standard output: No space left on device");
  ::close(full);
  std::FILE* pipe = broken_pipe();
  CHECK(error_with_stdout(::fileno(pipe)) == "cannot write the standard output: Broken pipe");
  std::fclose(pipe);
  const int null = ::open("/dev/null", O_WRONLY);
  CHECK(error_with_stdout(null).empty());
  ::close(null);
}

TEST_CASE("closed descriptors are opened on the null device, where a result still fails",
          "[standard_streams]") {
  const int status = status_of_child([] {
    for (const int descriptor : {0, 1, 2}) {
      ::close(descriptor);
    }
    open_standard_streams();
    struct stat null {
    }, stream{};
    ::stat("/dev/null", &null);
    for (const int descriptor : {0, 1, 2}) {
      if (::fstat(descriptor, &stream) != 0 || stream.st_rdev != null.st_rdev) {
        return 10 + descriptor;
      }
    }
    const int next = ::open("/dev/null", O_RDONLY);
    if (next <= 2) {
      return 20;
    }
    print_message(stderr, "lost");
    return error_of([] { print_result("x"); }) == "cannot write the standard output: Bad file descriptor" ? 0
                                                                                                          : 1;
  });
  CHECK(status == 0);
}

TEST_CASE("descriptors that are open stay as they are", "[standard_streams]") {
  struct stat before {
  }, after{};
  ::fstat(2, &before);
  open_standard_streams();
  ::fstat(2, &after);
  CHECK(before.st_ino == after.st_ino);
}
