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
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (c == '\r') {
      quoted += "\\r";
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
