#pragma once

// Changes to an input: a pure function of the generator's numbers, the corpus and what was compared.

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "coverage.hpp"
#include "fuzz.hpp"

namespace fuzz {

class Mutator {
 public:
  Mutator(uint64_t seed, const std::vector<std::string>& dictionary, size_t longest)
      : random_(seed), dictionary_(dictionary), longest_(longest) {}

  /// A number in [0, limit).
  size_t below(size_t limit) { return limit == 0 ? 0 : static_cast<size_t>(random_() % limit); }

  /// One to sixteen changes to one part, seldom to more; `other` lends pieces.
  void change(Input& input, const Input& other) {
    do {
      const size_t part = below(input.size());
      for (size_t left = size_t{1} << below(5); left > 0; --left) {
        change_once(input[part], other[part]);
      }
      if (input[part].size() > longest_) {
        input[part].resize(longest_);
      }
    } while (input.size() > 1 && below(4) == 0);
  }

 private:
  void change_once(std::string& text, std::string_view other) {
    const size_t at = below(text.size() + 1);
    const size_t rest = text.size() - at;
    switch (below(14)) {
      case 0:  // a bit
        if (rest > 0) {
          text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        }
        break;
      case 1:  // a byte
        if (rest > 0) {
          text[at] = any_byte();
        }
        break;
      case 2:  // a number one up or down, or a few
        number(text, at, [this](uint64_t value) { return value + below(71) - 35; });
        break;
      case 3:
        number(text, at, [this](uint64_t) { return interesting(); });
        break;
      case 4: {
        std::string bytes(1 + below(16), any_byte());
        if (below(2) == 0) {
          std::generate(bytes.begin(), bytes.end(), [this] { return any_byte(); });
        }
        text.insert(at, bytes);
        break;
      }
      case 5:
        text.erase(at, 1 + below(below(4) == 0 ? text.size() + 1 : 16));
        break;
      case 6:  // again, here or elsewhere
        text.insert(below(text.size() + 1), text.substr(at, 1 + below(64)));
        break;
      case 7:
        if (below(4) == 0) {
          text.resize(at);
        }
        break;
      case 8:
        if (!dictionary_.empty()) {
          text.insert(at, dictionary_[below(dictionary_.size())]);
        }
        break;
      case 9:
        if (!dictionary_.empty()) {
          const std::string& word = dictionary_[below(dictionary_.size())];
          text.replace(at, std::min(rest, word.size()), word);
        }
        break;
      case 10:  // from another input
        if (!other.empty()) {
          const size_t from = below(other.size());
          const size_t length = 1 + below(other.size() - from);
          text.replace(at, below(2) == 0 ? 0 : std::min(rest, length), other.substr(from, length));
        }
        break;
      case 11:
        decimal(text, at);
        break;
      case 12:  // very long or very deep
        if (below(16) == 0) {
          const std::string piece = text.substr(at, 1 + below(4));
          std::string many;
          for (size_t left = below(4096); left > 0 && many.size() < longest_; --left) {
            many += piece;
          }
          text.insert(at, many);
        }
        break;
      default:
        compared(text);
    }
  }

  char any_byte() { return static_cast<char>(random_()); }

  uint64_t interesting() {
    constexpr std::array<uint64_t, 24> values{0,
                                              1,
                                              2,
                                              3,
                                              4,
                                              7,
                                              8,
                                              16,
                                              32,
                                              64,
                                              100,
                                              127,
                                              128,
                                              255,
                                              256,
                                              1000,
                                              0x7FFF,
                                              0x8000,
                                              0xFFFF,
                                              0x7FFFFFFF,
                                              0x80000000,
                                              0xFFFFFFFF,
                                              0x7FFFFFFFFFFFFFFF,
                                              0x8000000000000000};
    const uint64_t value = values[below(values.size())];
    return below(2) == 0 ? value : ~value + below(2);
  }

  /// Rewrites 1, 2, 4 or 8 bytes as a number of either order.
  template <class Change>
  void number(std::string& text, size_t at, Change&& change) {
    const size_t bytes = size_t{1} << below(4);
    if (at + bytes > text.size()) {
      return;
    }
    const bool big_endian = below(2) == 0;
    const auto place = [&](size_t i) -> char& { return text[at + (big_endian ? bytes - 1 - i : i)]; };
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) {
      value |= uint64_t{static_cast<unsigned char>(place(i))} << (8 * i);
    }
    value = change(value);
    for (size_t i = 0; i < bytes; ++i) {
      place(i) = static_cast<char>(value >> (8 * i));
    }
  }

  /// Another number in digits, for the one at or after `at`.
  void decimal(std::string& text, size_t at) {
    const size_t begin = text.find_first_of("0123456789", at);
    if (begin == std::string::npos) {
      return;
    }
    const size_t end = std::min(text.find_first_not_of("0123456789", begin), text.size());
    const uint64_t value = interesting();
    text.replace(begin, end - begin,
                 below(2) == 0 ? std::to_string(value) : std::to_string(static_cast<int64_t>(value)));
  }

  /// Looks for a number that was compared with another, and puts that in its place.
  void compared(std::string& text) {
    const size_t count = std::min(coverage::comparison_count, coverage::comparisons.size());
    if (count == 0) {
      return;
    }
    const auto [left, right, bytes] = coverage::comparisons[below(count)];
    const bool swapped = below(2) == 0;
    std::string from, to;
    for (int i = 0; i < bytes; ++i) {
      from += static_cast<char>((swapped ? right : left) >> (8 * i));
      to += static_cast<char>((swapped ? left : right) >> (8 * i));
    }
    if (below(2) == 0) {
      std::reverse(from.begin(), from.end());
      std::reverse(to.begin(), to.end());
    }
    const size_t at = text.find(from, below(text.size() + 1));
    if (at != std::string::npos) {
      text.replace(at, to.size(), to);
    }
  }

  std::mt19937_64 random_;
  const std::vector<std::string>& dictionary_;
  size_t longest_;
};

}  // namespace fuzz
