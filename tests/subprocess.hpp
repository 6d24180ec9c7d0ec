#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

/// What a program printed, and its exit status; -N if signal N ended it.
struct Finished {
  int status;
  std::string out, err;
};

/// A program that runs beside the test.
class Subprocess {
 public:
  explicit Subprocess(std::vector<std::string> arguments) {
    const std::string out = (files_ / "out").string(), err = (files_ / "err").string();
    std::vector<char*> argv;
    for (auto& argument : arguments) {
      argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    child_ = ::fork();
    if (child_ == 0) {
      for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {  // whatever started the tests
        ::signal(number, SIG_DFL);
      }
      const int to_out = ::open(out.c_str(), O_WRONLY | O_CREAT, 0666);
      const int to_err = ::open(err.c_str(), O_WRONLY | O_CREAT, 0666);
      ::dup2(to_out, 1);
      ::dup2(to_err, 2);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    if (child_ < 0) {
      throw std::runtime_error("cannot fork");
    }
  }
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;
  ~Subprocess() {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
  }

  void send(int signal_number) const { ::kill(child_, signal_number); }

  /// Waits until the condition holds; false if the program ended or a minute went by before.
  template <class Condition>
  bool wait_until(Condition&& condition) {
    for (int i = 0; i < 6000; ++i) {
      if (condition()) {
        return true;
      }
      siginfo_t info{};
      if (::waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
          info.si_pid == child_) {
        return condition();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  Finished wait() {
    int status = 0;
    ::waitpid(child_, &status, 0);
    child_ = -1;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), read_file(files_ / "out"),
            read_file(files_ / "err")};
  }

 private:
  TempDir files_;
  pid_t child_ = -1;
};

/// Runs `body` in a child process; returns what it returns, or -N if signal N ended it.
template <class F>
int status_of_child(F&& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(body());
  }
  int status = 0;
  if (::waitpid(child, &status, 0) != child) {
    throw std::runtime_error("no child process");
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

inline Finished run(std::vector<std::string> arguments) { return Subprocess(std::move(arguments)).wait(); }

/// Exit status 2 and one line on stderr that says so.
inline void check_refused(const Finished& finished, const std::string& message) {
  INFO(finished.err);
  CHECK(finished.status == 2);
  CHECK(lines_of(finished.err).size() == 1);
  CHECK_THAT(finished.err, contains(message));
}
