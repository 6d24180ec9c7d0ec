#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mixmatch::detail {

/// A file's bytes as numbers, wherever they are asked for: beyond its end everything is 0.
struct ByteView {
  std::string_view bytes;

  size_t size() const { return bytes.size(); }
  /// Whether `count` bytes lie there.
  bool has(uint64_t at, uint64_t count) const { return at <= bytes.size() && count <= bytes.size() - at; }
  uint32_t byte(uint64_t at) const { return has(at, 1) ? static_cast<unsigned char>(bytes[at]) : 0U; }

  uint32_t big16(uint64_t at) const { return byte(at) << 8 | byte(at + 1); }
  uint32_t big32(uint64_t at) const { return big16(at) << 16 | big16(at + 2); }
  uint32_t little16(uint64_t at) const { return byte(at + 1) << 8 | byte(at); }
  uint32_t little32(uint64_t at) const { return little16(at + 2) << 16 | little16(at); }

  /// At most `count` bytes from there.
  std::string_view part(uint64_t at, uint64_t count) const {
    return at < bytes.size() ? bytes.substr(at, count) : std::string_view();
  }
};

}  // namespace mixmatch::detail
