#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <mixmatch/training/json.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace mixmatch::detail {

/// Text from a file in a message: quoted, on one line, and not longer than is read with pleasure.
inline std::string quote_for_message(std::string_view text) {
  constexpr size_t longest = 120;
  return training::detail::json_quote(text.substr(0, longest)) + (text.size() > longest ? "…" : "");
}

/// Reads JSON (RFC 8259) whose structure the caller knows, from front to back: whatever the text holds that
/// was not asked for is an error, so that neither deep nesting nor long lists cost anything. Strict: UTF-8
/// alone, no comments, no trailing commas, no lone surrogates. Duplicate keys are the caller's matter.
///
///     JsonCursor json(text, "config.json: ");
///     json.object([&](std::string key) { values[key] = json.integer(); });
///     json.finish();
///
/// Throws c10::Error in one line: `context`, the byte, what was expected and what came.
class JsonCursor {
 public:
  /// The text must outlive the cursor.
  explicit JsonCursor(std::string_view text, std::string context = "")
      : text_(text), context_(std::move(context)) {}

  /// `member(std::string key)` reads each value.
  template <class Member>
  void object(Member&& member) {
    list('{', '}', "an object", [&] {
      std::string key = string("a name in quotes");
      skip_space();
      if (!take(':')) {
        fail("':'");
      }
      member(std::move(key));
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
      if (position_ == text_.size()) {
        fail("the string's closing quote");
      }
      if (take('\\')) {
        escape(result);
        continue;
      }
      const std::string_view rest = text_.substr(position_);
      const size_t length = mixmatch::detail::utf8_length(rest);
      if (length == 0 || static_cast<unsigned char>(rest.front()) < 0x20) {
        fail("UTF-8 without control characters");
      }
      result += rest.substr(0, length);
      position_ += length;
    }
    return result;
  }

  /// A whole number in [0, 2^64).
  uint64_t integer() {
    skip_space();
    uint64_t value = 0;
    const char* begin = text_.data() + position_;
    const char* end = text_.data() + text_.size();
    const auto [stop, error] = std::from_chars(begin, end, value);
    const bool leading_zero = stop - begin > 1 && *begin == '0';
    const bool goes_on = stop != end && (*stop == '.' || *stop == 'e' || *stop == 'E');
    if (error != std::errc() || leading_zero || goes_on) {
      fail("a whole number in [0, 2^64)");
    }
    position_ += static_cast<size_t>(stop - begin);
    return value;
  }

  /// Throws unless nothing but white space is left.
  void finish() {
    skip_space();
    if (position_ != text_.size()) {
      fail("the end");
    }
  }

  [[noreturn]] void fail(const char* expected) const {
    const std::string_view rest = text_.substr(position_);
    TORCH_CHECK(false, context_, "byte ", position_, ": expected ", expected, ", got ",
                rest.empty() ? "the end" : quote_for_message(rest.substr(0, 16)));
  }

 private:
  void skip_space() {
    while (position_ < text_.size() && std::string_view(" \t\n\r").find(text_[position_]) != text_.npos) {
      ++position_;
    }
  }

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

  unsigned code_unit() {
    unsigned value = 0;
    const std::string_view digits = text_.substr(position_, 4);
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || stop != digits.data() + 4) {
      fail("four hexadecimal digits");
    }
    position_ += 4;
    return value;
  }

  void escape(std::string& result) {
    constexpr std::string_view names = "\"\\/bfnrt", characters = "\"\\/\b\f\n\r\t";
    if (position_ < text_.size()) {
      const size_t known = names.find(text_[position_]);
      if (known != names.npos) {
        ++position_;
        result += characters[known];
        return;
      }
    }
    if (!take('u')) {
      fail("an escape: one of \"\\/bfnrtu");
    }
    unsigned code = code_unit();
    if (code >= 0xDC00 && code < 0xE000) {
      fail("a high surrogate before the low one");
    }
    if (code >= 0xD800 && code < 0xDC00) {
      const bool escaped = take('\\') && take('u');
      const unsigned low = escaped ? code_unit() : 0;
      if (low < 0xDC00 || low >= 0xE000) {
        fail("a low surrogate after the high one");
      }
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(result, code);
  }

  static void append_utf8(std::string& result, unsigned code) {
    if (code < 0x80) {
      result += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const unsigned marks[] = {0, 0xC0, 0xE0, 0xF0};
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
