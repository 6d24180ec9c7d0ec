#pragma once

#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>

namespace mixmatch::detail {

/// The number that the whole text is, written as in C, whatever the locale; none for any other text and for
/// numbers that T cannot hold. "1e3" is an integer too.
template <class T>
requires std::integral<T> || std::floating_point<T> std::optional<T> parse_number(std::string_view text) {
  T number{};
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  if (parsed.ec == std::errc() && parsed.ptr == end) {
    return number;
  }
  if constexpr (std::integral<T>) {
    constexpr double exact_integers = 9007199254740992.0;  // 2^53
    const auto real = parse_number<double>(text);
    if (real.has_value() && *real == std::trunc(*real) && std::abs(*real) <= exact_integers &&
        *real >= static_cast<double>(std::numeric_limits<T>::min()) &&
        *real <= static_cast<double>(std::numeric_limits<T>::max())) {
      return static_cast<T>(*real);
    }
  }
  return std::nullopt;
}

/// A number of bytes, 0 or more, with K, M, G or T (1024 times as much each, in either case) behind it or not:
/// "500M", "1.5G", "4g". None for any other text.
inline std::optional<int64_t> parse_bytes(std::string_view text) {
  constexpr std::string_view units = "KMGTkmgt";
  const auto unit = text.empty() ? std::string_view::npos : units.find(text.back());
  double scale = 1;
  if (unit != std::string_view::npos) {
    text.remove_suffix(1);
    for (size_t i = 0; i <= unit % 4; ++i) {
      scale *= 1024;
    }
  }
  const auto number = parse_number<double>(text);
  constexpr double most = 1e18;
  if (!number.has_value() || !(*number >= 0 && *number * scale <= most)) {
    return std::nullopt;
  }
  return static_cast<int64_t>(*number * scale);
}

}  // namespace mixmatch::detail
