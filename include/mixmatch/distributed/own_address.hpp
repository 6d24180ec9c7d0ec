#pragma once

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>

namespace mixmatch::training {

namespace detail {

inline std::string address_text(const sockaddr_in& address) {
  char text[INET_ADDRSTRLEN] = {};
  ::inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
  return text;
}

inline bool is_loopback(const std::string& address) { return address.rfind("127.", 0) == 0; }

/// The address of this machine's first interface that others reach; empty where there is none.
inline std::string first_outer_address() {
  std::string found;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) == 0) {
    for (const ifaddrs* item = list; item != nullptr && found.empty(); item = item->ifa_next) {
      if (item->ifa_addr != nullptr && item->ifa_addr->sa_family == AF_INET) {
        const std::string address = address_text(*reinterpret_cast<const sockaddr_in*>(item->ifa_addr));
        found = is_loopback(address) ? "" : address;
      }
    }
    ::freeifaddrs(list);
  }
  return found;
}

}  // namespace detail

/// The IPv4 address by which a process that listens at `master` and those on other machines reach this one:
/// of the interface that the way to `master` begins at. On the master's own machine that is a loopback
/// address, which is right for "localhost" and 127.…; for any other name it is the first outer interface's.
/// Empty where it cannot be told, such as for an unknown name.
inline std::string own_address(const std::string& master, int64_t port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;  // connecting such a socket sends nothing
  addrinfo* found = nullptr;
  if (::getaddrinfo(master.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return "";
  }
  std::string address;
  const int socket = ::socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in own{};
  socklen_t size = sizeof own;
  if (socket >= 0 && ::connect(socket, found->ai_addr, found->ai_addrlen) == 0 &&
      ::getsockname(socket, reinterpret_cast<sockaddr*>(&own), &size) == 0) {
    address = detail::address_text(own);
  }
  ::close(socket);
  ::freeaddrinfo(found);
  const bool meant = master == "localhost" || detail::is_loopback(master);
  return detail::is_loopback(address) && !meant ? detail::first_outer_address() : address;
}

}  // namespace mixmatch::training
