#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/json_cursor.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::detail {

// A type of its own, as clang cannot take a pair of what is not complete yet.
struct JsonMember;

/// A JSON value. A number keeps the text it was written in, so that none loses digits on the way.
struct JsonValue {
  enum class Kind { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::string text;  ///< a string's characters in UTF-8, or a number as written
  std::vector<JsonValue> items;
  std::vector<JsonMember> members;  ///< of an object, in the file's order

  /// The member of that name, or null if this is no object or has none.
  const JsonValue* find(std::string_view name) const;

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

struct JsonMember {
  std::string first;
  JsonValue second;
};

inline const JsonValue* JsonValue::find(std::string_view name) const {
  for (const auto& member : members) {
    if (member.first == name) {
      return &member.second;
    }
  }
  return nullptr;
}

inline JsonValue read_json_value(JsonCursor& json, int depth) {
  const char c = json.peek();
  if (depth < 0) {
    json.fail("no further level of lists and objects");
  }
  JsonValue value;
  if (c == '{') {
    value.kind = JsonValue::Kind::object;
    json.object([&](std::string name) {
      value.members.push_back({std::move(name), read_json_value(json, depth - 1)});
    });
    std::vector<std::string_view> names;
    for (const auto& member : value.members) {
      names.push_back(member.first);
    }
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) {
      json.fail("an object with each name once before this, not \"" + std::string(*twice) + "\" twice");
    }
  } else if (c == '[') {
    value.kind = JsonValue::Kind::array;
    json.array([&] { value.items.push_back(read_json_value(json, depth - 1)); });
  } else if (c == '"') {
    value.kind = JsonValue::Kind::string;
    value.text = json.string();
  } else if (c == '-' || (c >= '0' && c <= '9')) {
    value.kind = JsonValue::Kind::number;
    value.text = json.number();
  } else if (json.word("true") || json.word("false")) {
    value.kind = JsonValue::Kind::boolean;
    value.boolean = c == 't';
  } else if (!json.word("null")) {
    json.fail("a value");
  }
  return value;
}

/// The value that `text` holds, as JsonCursor reads it; in addition an object must not hold a name twice.
/// Lists and objects nest at most `max_depth` deep. Throws c10::Error "JSON line L column C: expected WHAT,
/// got WHAT".
inline JsonValue parse_json(std::string_view text, int max_depth = 64) {
  JsonCursor json(text, "JSON ");
  JsonValue value = read_json_value(json, max_depth);
  json.finish();
  return value;
}

}  // namespace mixmatch::detail
