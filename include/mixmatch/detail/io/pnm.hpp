#pragma once

#include <mixmatch/detail/io/byte_view.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// The beginning of a binary PPM (P6) or PGM (P5) file; more pictures may follow the first.
struct PnmHeader {
  int64_t channels = 0, width = 0, height = 0;
  uint32_t largest =
      0;               ///< The value of white, up to 65,535; two bytes a sample, the higher first, above 255.
  uint64_t begin = 0;  ///< Where the samples begin.
};

/// Reads it from bytes that begin as one; what is wrong, else "".
inline std::string read_pnm_header(std::string_view bytes, PnmHeader& header) {
  const ByteView view{bytes};
  header.channels = view.byte(1) == '6' ? 3 : 1;
  uint64_t at = 2;
  const auto is_space = [&] {
    const uint32_t c = view.byte(at);
    return c == ' ' || (c >= '\t' && c <= '\r');
  };
  // Numbers, between them blanks and comments to the end of the line.
  const auto number = [&](int64_t most) -> int64_t {
    while (view.has(at, 1) && (is_space() || view.byte(at) == '#')) {
      if (view.byte(at) == '#') {
        while (view.has(at, 1) && view.byte(at) != '\n' && view.byte(at) != '\r') {
          ++at;
        }
      } else {
        ++at;
      }
    }
    int64_t value = -1;
    for (; view.byte(at) >= '0' && view.byte(at) <= '9' && value <= most; ++at) {
      value = (value < 0 ? 0 : value) * 10 + (view.byte(at) - '0');
    }
    return value <= most ? value : -1;
  };
  constexpr int64_t largest_side = 0x7FFFFFFF;
  header.width = number(largest_side);
  header.height = number(largest_side);
  const int64_t largest = number(65535);
  if (header.width < 0 || header.height < 0 || largest < 1 || !is_space()) {
    return view.has(at, 1) ? "a PPM or PGM file with a damaged header" : "the picture is cut short";
  }
  header.largest = static_cast<uint32_t>(largest);
  header.begin = at + 1;
  return "";
}

/// The samples as interleaved RGB bytes, 3 * width * height of them: white is 255, and of 16 bits the upper
/// eight are taken, as of a PNG's. What is wrong, else "".
inline std::string read_pnm_pixels(std::string_view bytes, const PnmHeader& header, uint8_t* out) {
  const uint64_t pixels = static_cast<uint64_t>(header.width) * static_cast<uint64_t>(header.height);
  const uint64_t samples = pixels * static_cast<uint64_t>(header.channels);
  const uint64_t sample_bytes = header.largest > 255 ? 2 : 1;
  if ((bytes.size() - header.begin) / sample_bytes < samples) {
    return "the picture is cut short";
  }
  const auto* in = reinterpret_cast<const unsigned char*>(bytes.data()) + header.begin;
  for (uint64_t i = 0; i < samples; ++i) {
    const uint32_t value = sample_bytes == 2 ? static_cast<uint32_t>(in[2 * i] << 8 | in[2 * i + 1]) : in[i];
    if (value > header.largest) {
      return "a sample is larger than the largest that the header allows";
    }
    const auto level = static_cast<uint8_t>((value * 65535U + header.largest / 2) / header.largest >> 8);
    if (header.channels == 3) {
      out[i] = level;
    } else {
      out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = level;
    }
  }
  return "";
}

}  // namespace mixmatch::detail
