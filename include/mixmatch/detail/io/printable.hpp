#pragma once

#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/utf8.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace mixmatch::detail {

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

/// Whether a terminal or a log would take the character, a valid UTF-8 sequence, for more than a letter:
/// controls, ends of lines, and what turns the direction of text round.
inline bool is_control_character(std::string_view character) {
  if (character.size() == 1) {
    const auto byte = static_cast<unsigned char>(character.front());
    return byte < 0x20 || byte == 0x7F;
  }
  if (character.size() == 2) {  // U+0080 … U+009F
    return character[0] == '\xC2' && static_cast<unsigned char>(character[1]) < 0xA0;
  }
  if (character.size() == 3 && character[0] == '\xE2') {
    const auto code = static_cast<uint32_t>(0x2000) |
                      (static_cast<uint32_t>(static_cast<unsigned char>(character[1]) & 0x3FU) << 6) |
                      (static_cast<unsigned char>(character[2]) & 0x3FU);
    return code == 0x200E || code == 0x200F || (code >= 0x2028 && code <= 0x202E) ||
           (code >= 0x2066 && code <= 0x2069);
  }
  return false;
}

/// Text from outside (a file's name, or words of a file) as it may stand in a message: on one line, in valid
/// UTF-8, without controls. What must not stand there becomes "\n", "\t", "\r" or "\xHH" for each byte.
inline std::string printable(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t valid = utf8_length(text);
    const size_t length = valid == 0 ? 1 : valid;
    const std::string_view character = text.substr(0, length);
    if (valid != 0 && !is_control_character(character)) {
      result += character;
    } else if (character == "\n" || character == "\t" || character == "\r") {
      result += character == "\n" ? "\\n" : character == "\t" ? "\\t" : "\\r";
    } else {
      for (const char byte : character) {
        result += "\\x";
        result += hex(static_cast<unsigned char>(byte));
      }
    }
    text.remove_prefix(length);
  }
  return result;
}

/// At most `most` bytes of the text, cut between characters.
inline std::string_view beginning_of(std::string_view text, size_t most) {
  while (most > 0 && most < text.size() && (static_cast<unsigned char>(text[most]) & 0xC0U) == 0x80U) {
    --most;
  }
  return text.substr(0, most);
}

/// The beginning of a word or message from outside, where all of it may be megabytes.
inline std::string printable_beginning(std::string_view text, size_t most) {
  return printable(beginning_of(text, most)) + (text.size() > most ? "…" : "");
}

/// printable() in quotes, with a backslash before quotes and backslashes of the text.
inline std::string printable_quoted(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    escaped += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
  }
  return '"' + printable(std::string_view(escaped)) + '"';
}

/// Text from a file in a message: quoted, on one line, and not longer than is read with pleasure.
inline std::string quote_for_message(std::string_view text) {
  const std::string_view shown = beginning_of(text, 120);
  return printable_quoted(shown) + (shown.size() < text.size() ? "…" : "");
}

inline std::string printable(const std::filesystem::path& path) {
  return printable(std::string_view(path.native()));
}
inline std::string printable(const std::string& text) { return printable(std::string_view(text)); }
inline std::string printable(const char* text) { return printable(std::string_view(text)); }

}  // namespace mixmatch::detail
