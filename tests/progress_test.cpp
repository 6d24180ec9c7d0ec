#include <mixmatch/run/progress.hpp>

#include "catch.hpp"
#include "skip.hpp"
#include "test_util.hpp"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

using mixmatch::training::Progress;

namespace {

/// A stream and what came out of it; a terminal or a plain file.
class Capture {
 public:
  explicit Capture(bool terminal = false, int columns = 200) {
    if (!terminal) {
      stream_ = std::tmpfile();
      return;
    }
    master_ = ::posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    REQUIRE(master_ >= 0);
    REQUIRE(::grantpt(master_) == 0);
    REQUIRE(::unlockpt(master_) == 0);
    struct winsize window {};
    window.ws_col = static_cast<unsigned short>(columns);
    window.ws_row = 24;
    REQUIRE(::ioctl(master_, TIOCSWINSZ, &window) == 0);
    stream_ = std::fopen(::ptsname(master_), "w");
    REQUIRE(stream_ != nullptr);
  }
  ~Capture() {
    std::fclose(stream_);
    if (master_ >= 0) {
      ::close(master_);
    }
  }
  std::FILE* stream() { return stream_; }
  std::string take() {
    std::fflush(stream_);
    std::string text;
    std::array<char, 4096> buffer{};
    if (master_ < 0) {
      std::rewind(stream_);
      while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), stream_)) {
        text.append(buffer.data(), count);
      }
      return text;
    }
    // The kernel passes a terminal's output on a little later: until nothing more comes.
    struct pollfd ready {
      master_, POLLIN, 0
    };
    while (::poll(&ready, 1, /*milliseconds=*/200) > 0) {
      const auto count = ::read(master_, buffer.data(), buffer.size());
      if (count <= 0) {
        break;
      }
      text.append(buffer.data(), static_cast<size_t>(count));
    }
    return text;
  }

 private:
  std::FILE* stream_ = nullptr;
  int master_ = -1;
};

/// Whether a test of a terminal must be left out here: a container or chroot may lack /dev/ptmx or /dev/pts.
bool skip_without_terminals() {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  const int opened = errno;
  const char* name =
      master >= 0 && ::grantpt(master) == 0 && ::unlockpt(master) == 0 ? ::ptsname(master) : nullptr;
  const bool missing = name == nullptr || ::access(name, R_OK | W_OK) != 0;
  if (missing) {
    skip(std::string("no pseudo-terminal: ") + std::strerror(master < 0 ? opened : errno));
  }
  if (master >= 0) {
    ::close(master);
  }
  return missing;
}

}  // namespace

TEST_CASE("DelayedProgress: nothing of what is over in two seconds, then as Progress", "[progress]") {
  Capture out;
  double now = 0;
  const auto clock = [&] { return now; };
  const mixmatch::training::DelayedProgress quick("decoding", 100, "picture", out.stream(), clock);
  for (int64_t done = 1; done <= 100; ++done) {
    now += 0.019;
    quick(done);
  }
  CHECK(out.take().empty());
  now = 0;
  const std::function<void(int64_t)> slow =
      mixmatch::training::DelayedProgress("decoding", 100, "picture", out.stream(), clock);
  for (int64_t done = 1; done <= 100; ++done) {
    now += 0.25;
    slow(done);
  }
  const auto lines = lines_of(out.take());
  REQUIRE(lines.size() == 4);  // after 2, 12 and 22 seconds, and at the end
  CHECK_THAT(lines[0], contains("decoding   8%  8/100"));
  CHECK_THAT(lines[1], contains("decoding  48%  48/100  4.0 pictures/s  ETA 0:13"));
  CHECK_THAT(lines[3], contains("decoding 100%  100/100  4.0 pictures/s  took 0:23"));
}

TEST_CASE("plain lines: the first, one each ten seconds, the last", "[progress]") {
  Capture out;
  double now = 0;
  Progress progress("train", 100, 0, out.stream(), [&] { return now; });
  for (int64_t step = 1; step <= 100; ++step) {
    now += 0.5;
    progress.update(step, "loss " + std::to_string(step));
  }
  progress.finish();
  progress.finish();
  const auto lines = lines_of(out.take());
  REQUIRE(lines.size() == 6);
  CHECK(lines[0] == "train   1%  1/100  2.0 steps/s  ETA 0:50  loss 1");
  CHECK(lines[1] == "train  21%  21/100  2.0 steps/s  ETA 0:40  loss 21");
  CHECK(lines[5] == "train 100%  100/100  2.0 steps/s  took 0:50  loss 100");
  CHECK(progress.seconds_per_step() == Approx(0.5));

  Progress pictures(
      "pictures", 9, 0, out.stream(), [&] { return now; }, "picture");
  now += 0.5;
  pictures.update(2, "");
  CHECK(lines_of(out.take()).back() == "pictures  22%  2/9  4.0 pictures/s  ETA 0:02  ");
}

TEST_CASE("slow steps, long times and a resumed start", "[progress]") {
  Capture out;
  double now = 1000;
  Progress progress("p", 100000, 50000, out.stream(), [&] { return now; });
  CHECK(std::isnan(progress.seconds_per_step()));
  now += 8;
  progress.update(50004, "x");
  CHECK(lines_of(out.take()).back() == "p  50%  50004/100000  2.00 s/step  ETA 1d 03:46  x");
  CHECK(progress.seconds_per_step() == 2);
}

TEST_CASE("what is done between two steps is in no rate", "[progress]") {
  Capture out;
  double now = 0;
  Progress progress("p", 100, 0, out.stream(), [&] { return now; });
  for (int64_t step = 1; step <= 40; ++step) {
    now += 0.5;
    progress.count(step);
    now += step == 40 ? 100 : 0;  // an evaluation
    progress.update(step, "x");
    progress.restart_clock();
  }
  CHECK(lines_of(out.take()).back() == "p  40%  40/100  2.0 steps/s  ETA 3:00  x");
  now += 0.5;
  progress.count(41);
  now += 20;
  progress.update(41, "x");
  CHECK(lines_of(out.take()).back() == "p  41%  41/100  2.0 steps/s  ETA 3:22  x");
  CHECK(progress.seconds_per_step() == 0.5);
}

TEST_CASE("the last line shows no status of an earlier step", "[progress]") {
  Capture out;
  double now = 0;
  Progress progress("p", 100, 0, out.stream(), [&] { return now; });
  progress.update(1, "loss 1");
  progress.update(2, "loss 2");  // not due
  progress.finish();
  CHECK_THAT(lines_of(out.take()).back(), contains("2/100") && !contains("loss"));
}

TEST_CASE("the median step time ignores an evaluation", "[progress]") {
  Capture out;
  double now = 0;
  Progress progress("p", 10, 0, out.stream(), [&] { return now; });
  for (int64_t step = 1; step <= 9; ++step) {
    now += step == 5 ? 60 : 0.25;
    progress.update(step, "");
  }
  CHECK(progress.seconds_per_step() == 0.25);
}

TEST_CASE("the status is made only when it is shown", "[progress]") {
  Capture out;
  double now = 0;
  Progress progress("p", 1000, 0, out.stream(), [&] { return now; });
  int made = 0;
  for (int64_t step = 1; step <= 999; ++step) {
    now += 0.1;
    progress.update(step, [&] { return std::to_string(++made); });
  }
  CHECK(made == static_cast<int>(lines_of(out.take()).size()));
  CHECK(made == 10);
}

TEST_CASE("finish shows the state of an unfinished run", "[progress]") {
  Capture out;
  double now = 0;
  Progress progress("p", 10, 0, out.stream(), [&] { return now; });
  for (int64_t step = 1; step <= 4; ++step) {
    now += 1;
    progress.update(step, "s");
  }
  progress.finish();
  const auto lines = lines_of(out.take());
  REQUIRE(lines.size() == 2);
  CHECK_THAT(lines[1], contains("4/10"));
}

TEST_CASE("print_line on a plain stream is a line", "[progress]") {
  Capture out;
  Progress progress("p", 10, 0, out.stream());
  progress.print_line("hello");
  CHECK(out.take() == "hello\n");
}

TEST_CASE("on a terminal one line is redrawn at most ten times a second", "[progress]") {
  if (skip_without_terminals()) {
    return;
  }
  Capture out(/*terminal=*/true);
  double now = 0;
  {
    Progress progress("train", 1000, 0, out.stream(), [&] { return now; });
    for (int64_t step = 1; step <= 500; ++step) {
      now += 0.01;
      progress.update(step, "loss");
    }
    const auto text = out.take();
    const auto drawn = std::count(text.begin(), text.end(), '\r');
    CHECK(drawn >= 40);
    CHECK(drawn <= 51);
    CHECK(text.find('\n') == std::string::npos);
    CHECK_THAT(text, contains("[=========           ]") && contains("ETA 0:05"));
    progress.print_line("note");
    const auto line = out.take();
    CHECK(line.rfind("\r\033[Knote\r\n\rtrain [", 0) == 0);  // the terminal adds \r to \n
  }
  CHECK(out.take() == "\r\n");  // the destructor ends the line
}

TEST_CASE("the bar fits the terminal's width", "[progress]") {
  if (skip_without_terminals()) {
    return;
  }
  Capture out(/*terminal=*/true, 40);
  Progress progress("train", 1000, 0, out.stream());
  progress.update(1, std::string(200, 'x'));
  auto text = out.take();
  const auto escape = text.find('\033');
  REQUIRE(escape != std::string::npos);
  CHECK(text.substr(1, escape - 1).size() == 39);
}

TEST_CASE("Progress names what does not fit", "[progress]") {
  CHECK_THAT(error_of([] { Progress("p", 10, 11); }), contains("total = 10, got 11"));
  CHECK_THAT(error_of([] { Progress("p", 10, -1); }), contains("got -1"));
}
