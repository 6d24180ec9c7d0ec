#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <torch/version.h>
#include <unistd.h>
#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/distributed/c10d_process_group.hpp>
#include <mixmatch/distributed/launch_environment.hpp>
#include <mixmatch/distributed/same_on_all.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/version.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#ifdef MIXMATCH_HAS_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

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

/// Whose failure it is that ends a rank, and who speaks of it.
enum class Failure { own, of_peer, of_peer_silently };

/// The end of a rank that has failed, or whose peer has: says why here and to the others, and leaves without
/// waiting for collectives that nobody joins.
[[noreturn]] inline void end_processes(JoinedProcesses& joined, const std::string& program,
                                       std::string_view what, int status, Failure failure) {
  const int64_t rank = joined.group->rank();
  if (failure != Failure::of_peer_silently) {
    if (joined.error_stream >= 0) {
      ::dup2(joined.error_stream, 2);
    }
    print_message(stderr, "{}: rank {}: {}\n", program, rank, mixmatch::detail::printable(what));
  }
  joined.group->fail(failure == Failure::own ? fmt::format("rank {} failed: {}", rank, what)
                                             : std::string(what));
  joined.remove_scratch();
  std::fflush(nullptr);
  std::_Exit(status);
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

/// What a resumed run needs of rank 0's directory, for a rank that may not see it.
inline void share_run_directory(ProcessGroup& group, const std::filesystem::path& from,
                                const std::filesystem::path& to) {
  const RunDirectory source = RunDirectory::at(from), place = RunDirectory::at(to);
  const std::vector<std::pair<std::filesystem::path, std::filesystem::path>> files{
      {source.checkpoint(), place.checkpoint()}, {source.previous_checkpoint(), place.previous_checkpoint()},
      {source.config(), place.config()},         {source.split(), place.split()},
      {source.labels(), place.labels()},         {source.metrics(), place.metrics()},
      {source.network(), place.network()}};
  for (const auto& [there, here] : files) {
    std::error_code ignored;
    const bool first = group.rank() == 0;
    const bool exists =
        group.broadcast_text(first && std::filesystem::exists(there, ignored) ? "1" : "") == "1";
    if (exists) {
      const std::string bytes = group.broadcast_text(first ? mixmatch::detail::read_whole_file(there) : "");
      if (!first) {
        write_file_atomically(here, bytes);
      }
    }
  }
}

/// Throws unless `mine`, names and values, is on every rank what it is on rank 0: there and on the rank that
/// differs with the first difference, elsewhere silently.
inline void check_same_settings(ProcessGroup& group, const Config& mine) {
  std::string text;
  for (const auto& [name, value] : mine) {
    text += name + '\0' + value + '\0';
  }
  const auto texts = group.gather_texts(text);
  const auto items_of = [](const std::string& all) {
    std::vector<std::string> items;
    for (size_t begin = 0; begin < all.size(); begin = all.find('\0', begin) + 1) {
      items.push_back(all.substr(begin, all.find('\0', begin) - begin));
    }
    return items;
  };
  for (size_t rank = 1; rank < texts.size(); ++rank) {
    if (texts[rank] == texts[0]) {
      continue;
    }
    const auto first = items_of(texts[0]), other = items_of(texts[rank]);
    std::string message = fmt::format("rank {} was started with other options than rank 0", rank);
    for (size_t i = 0; i + 1 < std::min(first.size(), other.size()); i += 2) {
      if (first[i] != other[i] || first[i + 1] != other[i + 1]) {
        message = fmt::format("the processes differ: {} is {} on rank {}, {} on rank 0", other[i],
                              mixmatch::detail::printable_beginning(other[i + 1], 100), rank,
                              mixmatch::detail::printable_beginning(first[i + 1], 100));
        break;
      }
    }
    if (group.rank() != 0 && group.rank() != static_cast<int64_t>(rank)) {
      throw SilentPeerError(message);
    }
    throw PeerError(message);
  }
}

}  // namespace detail

/// Joins the processes that a launcher has started (launch_environment()), if one has, before anything is
/// read or written, and puts their group into o.processes. It lives until run_program() ends. Each takes the
/// GPU of its number on its machine. Ranks other than 0 print nothing but their last words, and have a
/// temporary directory in o.out's place, which holds what --resume needs of rank 0's. A launcher that starts
/// all of them anew (torchrun --max-restarts) means a run that has a checkpoint to go on.
template <class Options>
void join_processes(Options& o) {
  const auto environment = launch_environment();
  if (!environment.has_value()) {
    return;
  }
#ifdef MIXMATCH_HAS_CUDA
  if (o.device != "cpu" && torch::cuda::is_available()) {
    const auto devices = static_cast<int64_t>(torch::cuda::device_count());
    // A launcher may show each process its own GPU alone.
    const auto own = devices == 1 ? 0 : environment->local_rank;
    TORCH_CHECK(own < devices, "rank ", environment->rank, " is process ", own, " of its machine, which has ",
                devices, " GPUs: start one a GPU, or use --device cpu");
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(own));
  }
#endif
  auto joined = std::make_unique<detail::JoinedProcesses>();
  {
    const detail::QuietErrorStream quiet;  // LibTorch says there what is thrown
    joined->group = C10dProcessGroup::join(
        *environment, ProcessGroupOptions().device(parse_device(o.device)).timeout(o.timeout));
  }
  auto& group = *joined->group;
  detail::joined_processes() = std::move(joined);
  if (group.rank() != 0) {
    detail::silence(*detail::joined_processes());
    group.set_error_stream(detail::joined_processes()->error_stream);
  }
  detail::check_same_settings(group, {{"the version of mixmatch", MIXMATCH_VERSION},
                                      {"the version of LibTorch", TORCH_VERSION},
                                      {"--resume", o.resume ? "on" : "off"}});
  print_message(stdout, "{} processes of {}, this is rank 0\n", group.world_size(), environment->launcher);
  if (o.threads == 0 && environment->local_world_size > 1) {
    o.threads = usual_threads(static_cast<int>(environment->local_world_size));
  }
  std::error_code ignored;
  const bool again =
      environment->restarts > 0 && std::filesystem::exists(RunDirectory::at(o.out).checkpoint(), ignored);
  if (group.broadcast_text(again ? "1" : "") == "1") {
    o.resume = true;
  }
  const std::string out = o.out;
  if (group.rank() != 0) {
    std::string name = (std::filesystem::temp_directory_path() / "mixmatch-rank-XXXXXX").string();
    TORCH_CHECK(::mkdtemp(name.data()) != nullptr, "cannot make a directory in ",
                std::filesystem::temp_directory_path().string());
    detail::joined_processes()->scratch = name;
    o.out = name;
  }
  if (o.resume) {
    detail::share_run_directory(group, out, o.out);
  }
  o.processes = &group;
}

/// Throws unless all processes were started with the same options, as they are by now, and have the same
/// data.
template <class Options>
void check_same_run(const Options& o, const TrainingData& data) {
  if (o.processes == nullptr) {
    return;
  }
  Config settings;
  visit_options(o, [&settings](const OptionText& text, const auto& value, const auto&...) {
    if (text.role != OptionRole::place && std::string_view(text.name) != "threads") {
      settings.emplace_back("--" + std::string(text.name), fmt::format("{}", value));
    }
  });
  settings.emplace_back("the data", "crc32c " + data::data_checksum(data.pool));
  std::vector<Tensor> rows{data.split.labeled, data.split.unlabeled, data.split.validation};
  for (const auto* images : {&data.validation, &data.test}) {
    rows.push_back(images->size() > 0 ? images->labels : at::empty({0}, at::kLong));
  }
  settings.emplace_back("the split", fmt::format("crc32c {:08x}", checksum_of(rows)));
  if (!o.weights.empty() && !o.resume) {
    const uint32_t sum = mixmatch::detail::crc32c(mixmatch::detail::read_whole_file(o.weights));
    settings.emplace_back("what --weights holds", fmt::format("crc32c {:08x}", sum));
  }
  o.processes->meet();  // one may have read its data much sooner
  detail::check_same_settings(*o.processes, settings);
}

}  // namespace mixmatch::training
