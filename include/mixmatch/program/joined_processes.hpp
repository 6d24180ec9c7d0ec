#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/distributed/c10d_process_group.hpp>
#include <mixmatch/distributed/launch_environment.hpp>
#include <mixmatch/distributed/peer_watch.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace mixmatch::training {

namespace detail {

/// The group that this program's process has joined, with what ranks other than 0 have in the place of a
/// terminal and a run directory.
struct JoinedProcesses {
  std::shared_ptr<C10dProcessGroup> group;
  int error_stream = -1;          // where the last words of ranks other than 0 go
  std::filesystem::path scratch;  // their run directory

  ~JoinedProcesses() { remove_scratch(); }

  void remove_scratch() const {
    if (!scratch.empty()) {
      std::error_code ignored;
      std::filesystem::remove_all(scratch, ignored);
    }
  }
};

inline std::unique_ptr<JoinedProcesses>& joined_processes() {
  static std::unique_ptr<JoinedProcesses> joined;
  return joined;
}

/// Whether rank 0 does all there is to do, and the others are gone (left_to_rank_0()).
inline bool& others_are_gone() {
  static bool gone = false;
  return gone;
}

/// While it lives, nothing is written to the standard error.
class QuietErrorStream {
 public:
  QuietErrorStream() : before_(::dup(2)), nowhere_(::open("/dev/null", O_WRONLY)) { ::dup2(nowhere_, 2); }
  QuietErrorStream(const QuietErrorStream&) = delete;
  QuietErrorStream& operator=(const QuietErrorStream&) = delete;
  ~QuietErrorStream() {
    ::dup2(before_, 2);
    ::close(before_);
    ::close(nowhere_);
  }

 private:
  int before_, nowhere_;
};

/// Rank 0 speaks for all.
inline void silence(JoinedProcesses& joined) {
  std::fflush(stdout);
  std::fflush(stderr);
  joined.error_stream = ::dup(2);
  const int nowhere = ::open("/dev/null", O_WRONLY);
  ::dup2(nowhere, 1);
  ::dup2(nowhere, 2);
  ::close(nowhere);
}

/// Joins the group, which then lives until run_program() ends; ranks other than 0 print nothing from there on
/// but their last words.
inline C10dProcessGroup& join_group(const LaunchEnvironment& environment,
                                    const ProcessGroupOptions& options) {
  auto joined = std::make_unique<JoinedProcesses>();
  {
    const QuietErrorStream quiet;  // LibTorch says there what is thrown
    joined->group = C10dProcessGroup::join(environment, options);
  }
  joined_processes() = std::move(joined);
  auto& group = *joined_processes()->group;
  if (group.rank() != 0) {
    silence(*joined_processes());
    group.set_error_stream(joined_processes()->error_stream);
  }
  return group;
}

/// For a program that fails before it has joined the others, as it does of bad options: joins them, who fail
/// of the same as a rule, so that one speaks for all. Does nothing where there are no others, or they do not
/// come within ten seconds.
inline void join_to_fail() noexcept {
  try {
    const auto environment = launch_environment();
    if (environment.has_value() && environment->world_size > 1 && !others_are_gone()) {
      join_group(*environment, ProcessGroupOptions().timeout(10));
    }
  } catch (const std::exception&) {  // what it fails of is said without them
  }
}

/// Whose failure it is that ends a rank, and who speaks of it.
enum class Failure { own, of_peer, of_peer_silently };

/// The end of a rank that has failed, or whose peer has: says why here and to the others, and leaves without
/// waiting for collectives that nobody joins. Of what all fail of alike rank 0 speaks.
[[noreturn]] inline void end_processes(JoinedProcesses& joined, const std::string& program,
                                       std::string_view what, int status, Failure failure) {
  const int64_t rank = joined.group->rank();
  const std::string text(what);
  const bool silently = failure == Failure::of_peer_silently ||
                        (failure == Failure::own && rank != 0 && joined.group->is_said_by_rank_0(text));
  if (!silently) {
    if (joined.error_stream >= 0) {
      ::dup2(joined.error_stream, 2);
    }
    print_message(stderr, "{}: rank {}: {}\n", program, rank, mixmatch::detail::printable(text));
  }
  joined.group->fail(failure == Failure::own ? PeerWatch::failure_of(rank, text) : text);
  joined.remove_scratch();
  std::fflush(nullptr);
  std::_Exit(status);
}

}  // namespace detail

/// For what one process does alone, such as an evaluation, in a program that a launcher may start several
/// times: whether this is a rank other than 0, which has nothing to do.
inline bool left_to_rank_0() {
  const auto environment = launch_environment();
  if (!environment.has_value() || environment->world_size == 1) {
    return false;
  }
  detail::others_are_gone() = true;
  return environment->rank != 0;
}

}  // namespace mixmatch::training
