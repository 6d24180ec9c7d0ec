#pragma once

#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/utf8.hpp>

#include <cstddef>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// The text as a JSON string; bytes that are no UTF-8 become U+FFFD.
inline std::string json_quote(std::string_view text) {
  std::string quoted = "\"";
  while (!text.empty()) {
    const char c = text.front();
    size_t length = 1;
    constexpr std::string_view special = "\"\\\n\t\r", letters = "\"\\ntr";
    if (const size_t known = special.find(c); known != special.npos) {
      quoted += '\\';
      quoted += letters[known];
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      quoted += "\\u00" + hex(static_cast<unsigned char>(c));
    } else if (length = utf8_length(text); length > 0) {
      quoted += text.substr(0, length);
    } else {
      quoted += "\\ufffd";  // a file name need not be UTF-8
      length = 1;
    }
    text.remove_prefix(length);
  }
  return quoted + '"';
}

}  // namespace mixmatch::detail
