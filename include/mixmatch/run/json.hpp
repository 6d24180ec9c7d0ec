#pragma once

#include <fmt/format.h>
#include <mixmatch/detail/io/json_quote.hpp>

#include <cmath>
#include <concepts>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// A flat JSON object in the order of its first `set`s, one key a line. Numbers have the fewest digits that
/// read back to the same value; a number that JSON cannot express (NaN, infinity) is null. Setting a key
/// again replaces its value.
class JsonObject {
 public:
  template <class T>
  JsonObject& set(std::string_view key, const T& value) {
    if constexpr (std::convertible_to<const T&, std::string_view>) {
      return put(key, mixmatch::detail::json_quote(value));
    } else if constexpr (std::floating_point<T>) {
      return put(key, std::isfinite(value) ? fmt::format("{}", value) : "null");
    } else {
      static_assert(std::integral<T>);
      return put(key, fmt::format("{}", value));
    }
  }

  /// The object as text, with a newline at its end.
  std::string str() const {
    std::string text = "{";
    for (size_t i = 0; i < members_.size(); ++i) {
      text += i == 0 ? "\n" : ",\n";
      text += "  " + mixmatch::detail::json_quote(members_[i].first) + ": " + members_[i].second;
    }
    return text + (members_.empty() ? "}\n" : "\n}\n");
  }

 private:
  JsonObject& put(std::string_view key, std::string value) {
    for (auto& [name, old] : members_) {
      if (name == key) {
        old = std::move(value);
        return *this;
      }
    }
    members_.emplace_back(key, std::move(value));
    return *this;
  }

  std::vector<std::pair<std::string, std::string>> members_;
};

}  // namespace mixmatch::training
