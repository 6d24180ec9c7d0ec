#pragma once

// Processes as torchrun starts them.

#include <mixmatch/distributed/c10d_process_group.hpp>

#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "subprocess.hpp"

/// A port that nobody listens at, below those that the system gives to clients.
inline int next_port() {
  static int port = 20000 + static_cast<int>(::getpid() % 3000) * 4;
  do {
    ++port;
  } while (mixmatch::training::detail::cannot_listen(port) != 0);
  return port;
}

/// A command as one rank. It may begin with variables, NAME=value.
inline std::unique_ptr<Subprocess> start_rank(int rank, int ranks, const std::string& address, int port,
                                              const std::vector<std::string>& command) {
  std::vector<std::string> all{"/usr/bin/env",
                               "RANK=" + std::to_string(rank),
                               "WORLD_SIZE=" + std::to_string(ranks),
                               "LOCAL_RANK=" + std::to_string(rank),
                               "LOCAL_WORLD_SIZE=" + std::to_string(ranks),
                               "MASTER_ADDR=" + address,
                               "MASTER_PORT=" + std::to_string(port)};
  all.insert(all.end(), command.begin(), command.end());
  return std::make_unique<Subprocess>(all);
}

/// A command for each rank; `own(rank)` are its further arguments.
template <class Own>
std::vector<std::unique_ptr<Subprocess>> start_processes(int ranks, const std::vector<std::string>& command,
                                                         const Own& own) {
  const int port = next_port();
  std::vector<std::unique_ptr<Subprocess>> processes;
  for (int rank = 0; rank < ranks; ++rank) {
    auto all = command;
    const std::vector<std::string> more = own(rank);
    all.insert(all.end(), more.begin(), more.end());
    processes.push_back(start_rank(rank, ranks, "127.0.0.1", port, all));
  }
  return processes;
}
inline std::vector<std::unique_ptr<Subprocess>> start_processes(int ranks,
                                                                const std::vector<std::string>& command) {
  return start_processes(ranks, command, [](int) { return std::vector<std::string>(); });
}
