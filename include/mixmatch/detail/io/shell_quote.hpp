#pragma once

#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/utf8.hpp>

#include <cstddef>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// The text as one word of a POSIX shell, as it is where no character of it has a meaning there. Control
/// characters and bytes that are no UTF-8 are written as bash, ksh and zsh read them ($'\x0a'), so that none
/// reaches a terminal.
inline std::string shell_quote(std::string_view text) {
  bool plain = !text.empty();
  bool printable = true;
  std::string quoted, escaped;  // within '' and within $''
  while (!text.empty()) {
    const char c = text.front();
    const size_t length = utf8_length(text);
    if (length == 0 || is_control_character(text.substr(0, length))) {
      plain = printable = false;
      for (const char byte : text.substr(0, length == 0 ? 1 : length)) {
        escaped += "\\x";
        escaped += hex(static_cast<unsigned char>(byte));
      }
    } else {
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
      plain = plain && (letter || length > 1 || std::string_view("_-./:=@%+,").find(c) != text.npos);
      quoted += c == '\'' ? "'\\''" : text.substr(0, length);
      escaped += c == '\'' || c == '\\' ? "\\" : "";
      escaped += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return plain ? quoted : printable ? "'" + quoted + "'" : "$'" + escaped + "'";
}

}  // namespace mixmatch::detail
