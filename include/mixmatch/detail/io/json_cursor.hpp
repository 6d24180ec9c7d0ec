#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/utf8.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace mixmatch::detail {

/// Reads JSON (RFC 8259) from front to back, one value at a time, and keeps nothing: what the caller does not
/// ask for is an error, so that neither deep nesting nor long lists cost anything. Strict: UTF-8 without a
/// byte-order mark, no comments, no trailing commas, no lone surrogates. Duplicate names are the caller's
/// matter.
///
///     JsonCursor json(text, "config.json: ");
///     json.object([&](std::string name) { values[name] = json.integer(); });
///     json.finish();
///
/// Throws c10::Error "CONTEXTline L column C: expected WHAT, got WHAT"; columns count bytes.
class JsonCursor {
 public:
  /// The text must outlive the cursor.
  explicit JsonCursor(std::string_view text, std::string context = "")
      : text_(text), context_(std::move(context)) {}

  /// The first character of the value that comes next; '\0' at the end of the text.
  char peek() {
    skip_space();
    return next();
  }

  /// `member(std::string name)` reads each value.
  template <class Member>
  void object(Member&& member) {
    list('{', '}', "an object", [&] {
      std::string name = string("a name in quotes");
      skip_space();
      if (!take(':')) {
        fail("':'");
      }
      member(std::move(name));
    });
  }

  /// `element()` reads each value.
  template <class Element>
  void array(Element&& element) {
    list('[', ']', "a list", element);
  }

  /// A string, its escapes resolved, as UTF-8.
  std::string string(const char* expected = "a string") {
    skip_space();
    if (!take('"')) {
      fail(expected);
    }
    std::string result;
    while (!take('"')) {
      const std::string_view rest = text_.substr(position_);
      if (rest.empty() || static_cast<unsigned char>(rest.front()) < 0x20) {
        fail("a character of the string or its closing quote");
      }
      if (rest.front() == '\\') {
        escape(result);
        continue;
      }
      const size_t length = utf8_length(rest);
      if (length == 0) {
        fail("UTF-8");
      }
      result += rest.substr(0, length);
      position_ += length;
    }
    return result;
  }

  /// A number as it is written.
  std::string number() {
    skip_space();
    const size_t begin = position_;
    take('-');
    if (!take('0')) {
      digits();
    } else if (is_digit(next())) {
      fail("no digit after a leading 0");
    }
    if (take('.')) {
      digits();
    }
    if (take('e') || take('E')) {
      if (!take('+')) {
        take('-');
      }
      digits();
    }
    return std::string(text_.substr(begin, position_ - begin));
  }

  /// A whole number in [0, 2^64).
  uint64_t integer() {
    skip_space();
    const size_t begin = position_;
    uint64_t value = 0;
    const std::string text = is_digit(next()) ? number() : "";
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || stop != text.data() + text.size()) {
      fail_at(begin, "a whole number in [0, 2^64)");
    }
    return value;
  }

  /// Whether the text goes on with this word (true, false, null), which is then read.
  bool word(std::string_view word) {
    skip_space();
    const bool here = text_.substr(position_).starts_with(word);
    position_ += here ? word.size() : 0;
    return here;
  }

  /// Throws unless nothing but white space is left.
  void finish() {
    skip_space();
    if (position_ != text_.size()) {
      fail("the end of the text");
    }
  }

  [[noreturn]] void fail(std::string_view expected) const { fail_at(position_, expected); }

 private:
  [[noreturn]] void fail_at(size_t position, std::string_view expected) const {
    const std::string_view before = text_.substr(0, position);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const size_t column = position - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
    std::string found = "the end of the text";
    if (position < text_.size()) {
      const char c = text_[position];
      found =
          c > 0x20 && c < 0x7F ? std::string{'\'', c, '\''} : "byte 0x" + hex(static_cast<unsigned char>(c));
    }
    TORCH_CHECK(false, context_, "line ", line, " column ", column, ": expected ", expected, ", got ", found);
  }

  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  char next() const { return position_ < text_.size() ? text_[position_] : '\0'; }

  void skip_space() { position_ = std::min(text_.find_first_not_of(" \t\r\n", position_), text_.size()); }

  bool take(char c) {
    const bool here = position_ < text_.size() && text_[position_] == c;
    position_ += here ? 1 : 0;
    return here;
  }

  template <class Item>
  void list(char open, char close, const char* expected, Item&& item) {
    skip_space();
    if (!take(open)) {
      fail(expected);
    }
    skip_space();
    if (take(close)) {
      return;
    }
    do {
      item();
      skip_space();
    } while (take(','));
    if (!take(close)) {
      fail(close == '}' ? "',' or '}'" : "',' or ']'");
    }
  }

  void digits() {
    if (!is_digit(next())) {
      fail("a digit");
    }
    while (is_digit(next())) {
      ++position_;
    }
  }

  void escape(std::string& result) {
    constexpr std::string_view names = "\"\\/bfnrt", characters = "\"\\/\b\f\n\r\t";
    const size_t begin = position_;
    take('\\');
    const char c = next();
    if (const size_t known = names.find(c); c != '\0' && known != names.npos) {
      ++position_;
      result += characters[known];
      return;
    }
    if (!take('u')) {
      fail("one of \"\\/bfnrtu after a backslash");
    }
    uint32_t code = code_unit();
    if (code >= 0xDC00 && code < 0xE000) {
      fail_at(begin, "the first half of a surrogate pair before the second");
    }
    if (code >= 0xD800 && code < 0xDC00) {
      const size_t second_begin = position_;
      const uint32_t second = take('\\') && take('u') ? code_unit() : 0;
      if (second < 0xDC00 || second >= 0xE000) {
        fail_at(second_begin, "the second half of a surrogate pair");
      }
      code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    }
    append_utf8(result, code);
  }

  uint32_t code_unit() {
    const std::string_view digits = text_.substr(position_, 4);
    uint32_t code = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    position_ += static_cast<size_t>(parsed.ptr - digits.data());
    if (parsed.ptr != digits.data() + 4) {
      fail("four hexadecimal digits after \\u");
    }
    return code;
  }

  static void append_utf8(std::string& result, uint32_t code) {
    if (code < 0x80) {
      result += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t marks[] = {0, 0xC0, 0xE0, 0xF0};
    result += static_cast<char>(marks[more] | (code >> (6 * more)));
    for (int i = more; i-- > 0;) {
      result += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
    }
  }

  std::string_view text_;
  std::string context_;
  size_t position_ = 0;
};

}  // namespace mixmatch::detail
