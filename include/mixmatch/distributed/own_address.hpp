#pragma once

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace mixmatch::training {

namespace detail {

/// In figures, "" for anything but IPv4 and IPv6. A link-local address has its interface behind it: %eth0.
inline std::string address_text(const sockaddr* address) {
  if (address == nullptr || (address->sa_family != AF_INET && address->sa_family != AF_INET6)) {
    return "";
  }
  const bool v4 = address->sa_family == AF_INET;
  char text[NI_MAXHOST] = {};
  const auto size = static_cast<socklen_t>(v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
  return ::getnameinfo(address, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

inline bool is_loopback(const std::string& address) {
  return address.rfind("127.", 0) == 0 || address == "::1" || address.rfind("::ffff:127.", 0) == 0;
}

/// Whether an interface is up and not one that a machine keeps for its own containers and virtual machines.
inline bool is_outer_interface(std::string_view name, unsigned flags) {
  for (const std::string_view inner :
       {"docker", "br-", "virbr", "veth", "vnet", "cni", "flannel", "cali", "lxcbr", "lxdbr", "podman"}) {
    if (name.substr(0, inner.size()) == inner) {
      return false;
    }
  }
  return (flags & IFF_UP) != 0 && (flags & IFF_LOOPBACK) == 0;
}

/// The address of this machine's first outer interface, IPv4 before IPv6 and link-local last; "" where there
/// is none.
inline std::string first_outer_address() {
  std::string found;
  int found_worth = 0;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) {
    return "";
  }
  for (const ifaddrs* item = list; item != nullptr; item = item->ifa_next) {
    const std::string address = address_text(item->ifa_addr);
    if (address.empty() || is_loopback(address) || !is_outer_interface(item->ifa_name, item->ifa_flags)) {
      continue;
    }
    const bool link_local = address.rfind("169.254.", 0) == 0 || address.rfind("fe80:", 0) == 0;
    const int worth = link_local ? 1 : item->ifa_addr->sa_family == AF_INET6 ? 2 : 3;
    if (worth > found_worth) {
      found = address;
      found_worth = worth;
    }
  }
  ::freeifaddrs(list);
  return found;
}

}  // namespace detail

/// The address, IPv4 or IPv6, by which a process that listens at `master` and those on other machines reach
/// this one: of the interface that the way to `master` begins at. On the master's own machine that is a
/// loopback address, which is right for "localhost", 127.… and ::1; for any other name it is the first outer
/// interface's. Empty where it cannot be told, such as for an unknown name.
inline std::string own_address(const std::string& master, int64_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_DGRAM;  // connecting such a socket sends nothing
  addrinfo* found = nullptr;
  if (::getaddrinfo(master.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return "";
  }
  std::string address;
  for (const int family : {AF_INET, AF_INET6}) {  // IPv4 first, as all have it that have both
    for (const addrinfo* item = found; item != nullptr && address.empty(); item = item->ai_next) {
      if (item->ai_family != family) {
        continue;
      }
      const int socket = ::socket(family, SOCK_DGRAM, 0);
      sockaddr_storage own{};
      socklen_t size = sizeof own;
      if (socket >= 0 && ::connect(socket, item->ai_addr, item->ai_addrlen) == 0 &&
          ::getsockname(socket, reinterpret_cast<sockaddr*>(&own), &size) == 0) {
        address = detail::address_text(reinterpret_cast<const sockaddr*>(&own));
      }
      if (socket >= 0) {
        ::close(socket);
      }
    }
  }
  ::freeaddrinfo(found);
  const bool meant = master == "localhost" || detail::is_loopback(master);
  return detail::is_loopback(address) && !meant ? detail::first_outer_address() : address;
}

}  // namespace mixmatch::training
