#pragma once

#include <concepts>
#include <cstddef>
#include <string>

namespace mixmatch::detail {

/// All hexadecimal digits of a number: two a byte.
template <std::unsigned_integral T>
std::string hex(T number) {
  std::string text(2 * sizeof(T), '0');
  for (size_t i = 0; i < text.size(); ++i) {
    text[text.size() - 1 - i] = "0123456789abcdef"[(number >> (4 * i)) & 0xFU];
  }
  return text;
}

}  // namespace mixmatch::detail
