#pragma once

#include <c10/util/Logging.h>
#include <torch/version.h>
#include <unistd.h>
#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/distributed/c10d_process_group.hpp>
#include <mixmatch/distributed/launch_environment.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/joined_processes.hpp>
#include <mixmatch/program/same_run.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/version.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#ifdef MIXMATCH_HAS_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace mixmatch::training {

namespace detail {

/// LibTorch 2 warns of a lost connection with a stack: the programs say in a line who was lost.
/// TORCH_CPP_LOG_LEVEL brings the warnings back.
inline void hide_connection_warnings() {
#ifndef C10_USE_GLOG
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
    FLAGS_caffe2_log_level = c10::GLOG_ERROR;
  }
#endif
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

}  // namespace detail

/// Joins the processes that a launcher has started (launch_environment()), if one has, before anything is
/// read or written, and puts their group into o.processes and the launcher's name into o.launcher. The group
/// lives until run_program() ends; the only process of mpirun or srun has none. Each takes the GPU of its
/// number on its machine. Ranks other than 0 print nothing but their last words, and have a temporary
/// directory in o.out's place, which holds what --resume needs of rank 0's. A launcher that starts all of
/// them anew (torchrun --max_restarts) means a run that has a checkpoint to go on.
template <class Options>
void join_processes(Options& o) {
  const auto environment = launch_environment();
  if (!environment.has_value()) {
    return;
  }
  o.launcher = environment->launcher;
  if (environment->world_size == 1 && environment->launcher != "torchrun") {
    return;
  }
  detail::hide_connection_warnings();
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
  auto& group = detail::join_group(*environment,
                                   ProcessGroupOptions().device(parse_device(o.device)).timeout(o.timeout));
  detail::check_same_settings(group, {{"the version of mixmatch", MIXMATCH_VERSION},
                                      {"the version of LibTorch", TORCH_VERSION},
                                      {"--resume", o.resume ? "on" : "off"}});
  print_message(stdout, "{} processes of {}, this is rank 0\n", group.world_size(), environment->launcher);
  if (o.threads == 0 && environment->local_world_size > 1) {
    o.threads = usual_threads(static_cast<int>(environment->local_world_size));
  }
  std::error_code ignored;
  const bool again = group.max_of(environment->restarts) > 0 || group.started_again();
  const bool goes_on = again && std::filesystem::exists(RunDirectory::at(o.out).checkpoint(), ignored);
  if (group.broadcast_text(goes_on ? "1" : "") == "1") {
    o.resume = true;
  }
  const std::string out = o.out;
  if (group.rank() != 0) {
    std::string name = (std::filesystem::temp_directory_path() / "mixmatch-rank-XXXXXX").string();
    TORCH_CHECK(::mkdtemp(name.data()) != nullptr, "cannot make a directory in ",
                std::filesystem::temp_directory_path().string());
    detail::joined_processes()->scratch = name;
    group.before_exit([] { detail::joined_processes()->remove_scratch(); });
    o.out = name;
  }
  if (o.resume) {
    detail::share_run_directory(group, out, o.out);
  }
  o.processes = &group;
}

}  // namespace mixmatch::training
