#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace mixmatch::training {

/// What a launcher tells a process of its place among those that it started.
struct LaunchEnvironment {
  std::string launcher;  ///< for messages: torchrun, mpirun, PMI, Slurm
  int64_t rank = 0, world_size = 1;
  /// Among those on this machine: which GPU is its; and how many those are, 1 where that is not said.
  int64_t local_rank = 0, local_world_size = 1;
  std::string job;  ///< tells runs apart that share a master's port; may be empty
  std::string master_addr = "127.0.0.1";
  int64_t master_port = 29500;
  /// Whether the launcher itself listens there (torchrun's agent), or rank 0 does.
  bool launcher_listens = false;
  /// How often the launcher has started all of them anew.
  int64_t restarts = 0;
};

namespace detail {

/// The first host of Slurm's list: node07 of "node[07-09,12],gpu1".
inline std::string first_host(std::string_view list) {
  std::string host;
  bool skipping = false, inside = false;
  for (const char c : list) {
    if (c == '[') {
      inside = true;
    } else if (c == ']') {
      inside = skipping = false;
    } else if (c == ',' && !inside) {
      break;
    } else if (inside && (c == ',' || c == '-')) {
      skipping = true;
    } else if (!skipping) {
      host += c;
    }
  }
  return host;
}

}  // namespace detail

/// What the environment says: torchrun's RANK and WORLD_SIZE, else OMPI_COMM_WORLD_RANK and …_SIZE (Open
/// MPI's mpirun), PMI_RANK and PMI_SIZE (MPICH's and Intel's), or SLURM_PROCID and SLURM_STEP_NUM_TASKS of a
/// step that srun started; none of them: nothing, no launcher. MASTER_ADDR and MASTER_PORT say where rank 0
/// listens for all of them; torchrun sets both, and under Slurm the step's first host and a port by its job's
/// number stand for them. Throws on a variable that holds no such number. `get` is std::getenv, or a test's.
inline std::optional<LaunchEnvironment> launch_environment(
    const std::function<const char*(const char*)>& get = [](const char* name) { return std::getenv(name); }) {
  const auto number = [&get](const char* name, int64_t least, int64_t most) {
    const char* text = get(name);
    const auto value = mixmatch::detail::parse_number<int64_t>(text);
    TORCH_CHECK(value.has_value() && *value >= least && *value <= most, name, " must be a whole number in [",
                least, ", ", most, "], got ", mixmatch::detail::printable_beginning(text, 40));
    return *value;
  };
  const auto same = [&get](const char* name, const char* other) {
    return get(other) != nullptr && std::string_view(get(name)) == get(other);
  };
  struct Names {
    const char *launcher, *rank, *world_size, *local_rank, *local_world_size, *job;
  };
  for (const auto& names :
       {Names{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"},
        Names{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
              "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_MCA_ess_base_jobid"},
        Names{"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_JOBID"},
        // Of a step: a batch script has SLURM_NTASKS too, and is one process.
        Names{"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE",
              "SLURM_JOB_ID"}}) {
    if (get(names.rank) == nullptr || get(names.world_size) == nullptr) {
      continue;
    }
    const bool is_slurm = std::string_view(names.launcher) == "Slurm";
    // Slurm's own PMI, which knows less.
    if (std::string_view(names.launcher) == "PMI" && same("PMI_RANK", "SLURM_PROCID") &&
        same("PMI_SIZE", "SLURM_STEP_NUM_TASKS")) {
      continue;
    }
    LaunchEnvironment found;
    found.launcher = names.launcher;
    found.world_size = number(names.world_size, 1, 65536);
    found.rank = number(names.rank, 0, found.world_size - 1);
    if (found.world_size == 1 && found.launcher != "torchrun") {
      return found;  // it meets nobody, wherever that would be
    }
    found.local_rank =
        get(names.local_rank) != nullptr ? number(names.local_rank, 0, found.world_size - 1) : 0;
    if (get(names.local_world_size) != nullptr) {
      // Slurm's is of the job; this step may be smaller.
      found.local_world_size = std::min(number(names.local_world_size, 1, 65536), found.world_size);
    }
    if (const char* job = get(names.job)) {
      found.job = job;
    }
    if (const char* address = get("MASTER_ADDR"); address != nullptr && *address != '\0') {
      found.master_addr = address;
    } else if (is_slurm) {
      const char* hosts = get("SLURM_STEP_NODELIST");
      TORCH_CHECK(hosts != nullptr,
                  "MASTER_ADDR and SLURM_STEP_NODELIST are not set: where does rank 0 run?");
      found.master_addr = detail::first_host(hosts);
    } else {
      TORCH_CHECK(found.launcher != "torchrun", "MASTER_ADDR is not set, but RANK is");
    }
    if (get("MASTER_PORT") != nullptr) {
      found.master_port = number("MASTER_PORT", 1, 65535);
    } else if (is_slurm && get("SLURM_JOB_ID") != nullptr) {
      found.master_port = 20000 + number("SLURM_JOB_ID", 0, int64_t{1} << 62) % 20000;
    }
    if (const char* agent = get("TORCHELASTIC_USE_AGENT_STORE")) {
      found.launcher_listens = std::string_view(agent) == "True";
    }
    if (get("TORCHELASTIC_RESTART_COUNT") != nullptr) {
      found.restarts = number("TORCHELASTIC_RESTART_COUNT", 0, int64_t{1} << 31);
    }
    return found;
  }
  return std::nullopt;
}

}  // namespace mixmatch::training
