#pragma once

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
#include <mixmatch/distributed/process_group.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

// How the processes of a launcher find each other in a store of c10d's.

namespace mixmatch::training::detail {

/// The errno of listening at a port, 0 where it is to be had: LibTorch says it in several lines.
inline int cannot_listen(int64_t port) {
  const auto try_family = [port](int family, const auto& any) {
    const int listener = ::socket(family, SOCK_STREAM, 0);
    if (listener < 0) {
      return errno;
    }
    const int on = 1, off = 0;
    ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (family == AF_INET6) {
      ::setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    }
    const bool listens = ::bind(listener, reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0 &&
                         ::listen(listener, 1) == 0;
    const int error = listens ? 0 : errno;
    ::close(listener);
    return error;
  };
  sockaddr_in6 any6{};
  any6.sin6_family = AF_INET6;
  any6.sin6_port = htons(static_cast<uint16_t>(port));
  sockaddr_in any4{};
  any4.sin_family = AF_INET;
  any4.sin_port = any6.sin6_port;
  const int error = try_family(AF_INET6, any6);  // for both, as c10d does
  return error == 0 ? 0 : try_family(AF_INET, any4);
}

/// What a rank adds 1 to when it has come.
inline std::string here(const std::string& place, int64_t rank) { return fmt::format("{}/{}", place, rank); }

/// The first rank, from `first` on, that has not come; world_size when all are here.
inline int64_t first_missing(c10d::Store& store, const std::string& place, int64_t first,
                             int64_t world_size) {
  while (first < world_size && store.check({here(place, first)})) {
    ++first;
  }
  return first;
}

inline PeerError did_not_come(int64_t rank, int64_t world_size, double timeout) {
  return PeerError(fmt::format("rank {} of {} did not come within {} s", rank, world_size, timeout));
}

inline constexpr auto arrival_interval = std::chrono::milliseconds(50);

/// Waits until all ranks are here, in a store that rank 0 has opened for this start; throws PeerError where
/// one of them does not come.
inline void arrive(c10d::Store& store, int64_t rank, int64_t world_size,
                   std::chrono::steady_clock::time_point until, double timeout) {
  // The name that every version looks for: two that differ are to meet, and to say so.
  const std::string place = "here";
  const int64_t count = store.add(here(place, rank), 1);
  if (count != 1) {
    throw PeerError(fmt::format("rank {} is there {}: choose another MASTER_PORT", rank,
                                count == 2 ? "already, of another run with this port"
                                           : "in vain: what listens at that port is no store of c10d's"));
  }
  int64_t missing = 0;
  do {
    missing = first_missing(store, place, missing, world_size);
    if (missing == world_size) {
      return;
    }
    std::this_thread::sleep_for(arrival_interval);
  } while (std::chrono::steady_clock::now() < until);
  throw did_not_come(missing, world_size, timeout);
}

/// A start of all processes by a launcher whose store has seen others before.
struct Start {
  std::string name;
  bool again = false;  // rank 0 alone knows: not the first
};

/// Waits until all ranks of this start are here; throws PeerError where one of them does not come.
///
/// The launcher's own count of starts will not do: each machine's agent counts those that its own processes
/// made needful. So rank 0 names each start, and each rank says that it is here under that name. A name under
/// which it was here before, or all were, is that of an earlier start: there will be another.
inline Start arrive_anew(c10d::Store& store, int64_t rank, int64_t world_size,
                         std::chrono::steady_clock::time_point until, double timeout) {
  const auto text = [&store](const char* name) {
    const auto bytes = store.get(name);
    return std::string(bytes.begin(), bytes.end());
  };
  Start start;
  if (rank == 0) {
    std::random_device random;
    start.again = store.check({"start"});
    start.name = fmt::format("{:08x}{:08x}", random(), random());
    store.set("start", std::vector<uint8_t>(start.name.begin(), start.name.end()));
    store.add(here(start.name + "/here", 0), 1);
  }
  bool is_here = rank == 0;
  int64_t missing = 0;
  do {
    if (rank != 0 && store.check({"start"})) {
      if (const std::string now = text("start"); now != start.name) {
        start.name = now;
        is_here = !store.check({now + "/all"}) && store.add(here(now + "/here", rank), 1) == 1;
        missing = 0;
      }
    }
    if (is_here) {
      missing = first_missing(store, start.name + "/here", missing, world_size);
    }
    if (rank == 0 && missing == world_size) {
      store.set(start.name + "/all", std::vector<uint8_t>{1});
    }
    if (is_here && store.check({start.name + "/all"})) {
      return start;
    }
    std::this_thread::sleep_for(arrival_interval);
  } while (std::chrono::steady_clock::now() < until);
  throw did_not_come(is_here ? missing : 0, world_size, timeout);
}

}  // namespace mixmatch::training::detail
