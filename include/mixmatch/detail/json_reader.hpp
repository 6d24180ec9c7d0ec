#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <mixmatch/detail/utf8.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::detail {

/// A JSON value. A number keeps the text it was written in, so that none loses digits on the way.
struct JsonValue {
  enum class Kind { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::string text;  ///< a string's characters in UTF-8, or a number as written
  std::vector<JsonValue> items;
  std::vector<std::pair<std::string, JsonValue>> members;  ///< of an object, in the file's order

  /// The member of that name, or null if this is no object or has none.
  const JsonValue* find(std::string_view name) const {
    for (const auto& member : members) {
      if (member.first == name) {
        return &member.second;
      }
    }
    return nullptr;
  }

  /// Throws if this is no number, or one that int64 does not hold (a fraction or an exponent counts as such).
  int64_t to_int64() const { return number<int64_t>("a whole number of at most 64 bits"); }

  /// Throws if this is no number, or beyond the range of double.
  double to_double() const { return number<double>("a number within the range of double"); }

 private:
  template <class T>
  T number(const char* expected) const {
    T value{};
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data(), end, value);
    TORCH_CHECK(kind == Kind::number && parsed.ec == std::errc() && parsed.ptr == end, "JSON: expected ",
                expected, ", got ", kind == Kind::number ? text : "another kind of value");
    return value;
  }
};

/// Reads RFC 8259 and nothing beyond it.
class JsonReader {
 public:
  JsonReader(std::string_view text, int max_depth) : text_(text), max_depth_(max_depth) {}

  JsonValue read() {
    JsonValue value = read_value(0);
    skip_space();
    if (at_ != text_.size()) {
      fail("expected the end of the text");
    }
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { fail_at(at_, message); }

  /// "JSON line 3 column 7: MESSAGE, got …"; columns count bytes.
  [[noreturn]] void fail_at(size_t position, const std::string& message) const {
    const std::string_view before = text_.substr(0, position);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const size_t column = position - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
    std::string found = "the end of the text";
    if (position < text_.size()) {
      const char c = text_[position];
      found = c > 0x20 && c < 0x7F ? fmt::format("'{}'", c)
                                   : fmt::format("byte 0x{:02x}", static_cast<unsigned char>(c));
    }
    TORCH_CHECK(false, "JSON line ", line, " column ", column, ": ", message, ", got ", found);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    if (at_ < text_.size() && text_[at_] == c) {
      ++at_;
      return true;
    }
    return false;
  }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

  JsonValue read_value(int depth) {
    skip_space();
    if (depth > max_depth_) {
      fail(fmt::format("expected at most {} levels of arrays and objects", max_depth_));
    }
    JsonValue value;
    const char c = peek();
    if (c == '{') {
      read_object(value, depth);
    } else if (c == '[') {
      read_array(value, depth);
    } else if (c == '"') {
      value.kind = JsonValue::Kind::string;
      value.text = read_string();
    } else if (c == '-' || is_digit(c)) {
      value.kind = JsonValue::Kind::number;
      value.text = read_number();
    } else if (read_word("true") || read_word("false")) {
      value.kind = JsonValue::Kind::boolean;
      value.boolean = c == 't';
    } else if (!read_word("null")) {
      fail("expected a value");
    }
    return value;
  }

  bool read_word(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) {
      return false;
    }
    at_ += word.size();
    return true;
  }

  void read_array(JsonValue& value, int depth) {
    value.kind = JsonValue::Kind::array;
    take('[');
    skip_space();
    if (take(']')) {
      return;
    }
    do {
      value.items.push_back(read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) {
      fail("expected ',' or ']'");
    }
  }

  void read_object(JsonValue& value, int depth) {
    value.kind = JsonValue::Kind::object;
    take('{');
    skip_space();
    if (take('}')) {
      return;
    }
    std::vector<size_t> positions;
    do {
      skip_space();
      positions.push_back(at_);
      if (peek() != '"') {
        fail("expected a name in quotes");
      }
      std::string name = read_string();
      skip_space();
      if (!take(':')) {
        fail("expected ':'");
      }
      value.members.emplace_back(std::move(name), read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take('}')) {
      fail("expected ',' or '}'");
    }
    refuse_repeated_names(value, positions);
  }

  void refuse_repeated_names(const JsonValue& object, const std::vector<size_t>& positions) const {
    std::vector<std::pair<std::string_view, size_t>> names;
    for (size_t i = 0; i < positions.size(); ++i) {
      names.emplace_back(object.members[i].first, positions[i]);
    }
    std::sort(names.begin(), names.end());
    for (size_t i = 1; i < names.size(); ++i) {
      if (names[i].first == names[i - 1].first) {
        fail_at(names[i].second, "expected a name that the object does not have yet");
      }
    }
  }

  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  void read_digits() {
    if (!is_digit(peek())) {
      fail("expected a digit");
    }
    while (is_digit(peek())) {
      ++at_;
    }
  }

  std::string read_number() {
    const size_t begin = at_;
    take('-');
    if (!take('0')) {
      read_digits();
    } else if (is_digit(peek())) {
      fail("expected no digit after a leading 0");
    }
    if (take('.')) {
      read_digits();
    }
    if (take('e') || take('E')) {
      if (!take('+')) {
        take('-');
      }
      read_digits();
    }
    return std::string(text_.substr(begin, at_ - begin));
  }

  std::string read_string() {
    take('"');
    std::string out;
    while (!take('"')) {
      const std::string_view rest = text_.substr(at_);
      if (rest.empty() || static_cast<unsigned char>(rest.front()) < 0x20) {
        fail("expected a character of the string or its closing quote");
      }
      if (rest.front() == '\\') {
        ++at_;
        read_escape(out);
        continue;
      }
      const size_t length = utf8_length(rest);
      if (length == 0) {
        fail("expected UTF-8");
      }
      out += rest.substr(0, length);
      at_ += length;
    }
    return out;
  }

  void read_escape(std::string& out) {
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const size_t begin = at_ - 1;
    const char c = peek();
    if (const size_t known = names.find(c); c != '\0' && known != std::string_view::npos) {
      ++at_;
      out += meanings[known];
      return;
    }
    if (!take('u')) {
      fail("expected one of \"\\/bfnrtu after a backslash");
    }
    uint32_t code = read_hex4();
    if (code >= 0xDC00 && code < 0xE000) {
      fail_at(begin, "expected the first half of a surrogate pair before the second");
    }
    if (code >= 0xD800 && code < 0xDC00) {
      const size_t second_begin = at_;
      const uint32_t second = take('\\') && take('u') ? read_hex4() : 0;
      if (second < 0xDC00 || second >= 0xE000) {
        fail_at(std::min(second_begin, text_.size()), "expected the second half of a surrogate pair");
      }
      code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    }
    append_utf8(out, code);
  }

  uint32_t read_hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      const bool small = c >= 'a' && c <= 'f';
      const bool large = c >= 'A' && c <= 'F';
      if (!is_digit(c) && !small && !large) {
        fail("expected four hexadecimal digits after \\u");
      }
      code = code * 16 + static_cast<uint32_t>(is_digit(c) ? c - '0' : (small ? c - 'a' : c - 'A') + 10);
      ++at_;
    }
    return code;
  }

  static void append_utf8(std::string& out, uint32_t code) {
    const auto put = [&out](uint32_t byte) { out += static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
      return;
    }
    if (code < 0x800) {
      put(0xC0 | code >> 6);
    } else {
      if (code < 0x10000) {
        put(0xE0 | code >> 12);
      } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
      }
      put(0x80 | (code >> 6 & 0x3F));
    }
    put(0x80 | (code & 0x3F));
  }

  std::string_view text_;
  int max_depth_;
  size_t at_ = 0;
};

/// The value that `text` holds, read strictly by RFC 8259: UTF-8 without a byte-order mark, no comments, no
/// trailing commas, no NaN, one value; in addition an object must not hold a name twice. Arrays and objects
/// nest at most `max_depth` deep. Throws c10::Error "JSON line L column C: expected WHAT, got WHAT".
inline JsonValue parse_json(std::string_view text, int max_depth = 64) {
  return JsonReader(text, max_depth).read();
}

}  // namespace mixmatch::detail
