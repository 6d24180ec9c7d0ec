#pragma once

#include <mixmatch/detail/io/byte_view.hpp>
#include <mixmatch/detail/io/picture.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// A binary PPM (P6) or PGM (P5) file's first picture. White, up to 65,535, becomes 255; of two bytes a
/// sample the higher comes first, and the upper eight bits remain, as of a PNG's.
inline std::string decode_pnm(std::string_view bytes, Picture& picture) {
  const ByteView view{bytes};
  const uint64_t channels = view.byte(1) == '6' ? 3 : 1;
  uint64_t at = 2;
  const auto is_space = [&] {
    const uint32_t c = view.byte(at);
    return c == ' ' || (c >= '\t' && c <= '\r');
  };
  // Numbers, between them blanks and comments to the end of the line.
  const auto number = [&](int64_t most) -> int64_t {
    for (bool comment = false; view.has(at, 1) && (comment || is_space() || view.byte(at) == '#'); ++at) {
      comment = view.byte(at) == '#' || (comment && view.byte(at) != '\n' && view.byte(at) != '\r');
    }
    int64_t value = -1;
    for (; view.byte(at) >= '0' && view.byte(at) <= '9' && value <= most; ++at) {
      value = (value < 0 ? 0 : value) * 10 + (view.byte(at) - '0');
    }
    return value <= most ? value : -1;
  };
  const int64_t width = number(0x7FFFFFFF), height = number(0x7FFFFFFF), largest = number(65535);
  if (width < 0 || height < 0 || largest < 1 || !is_space()) {
    return view.has(at, 1) ? "a PPM or PGM file with a damaged header" : picture_cut_short;
  }
  std::string problem = picture.claim(width, height, bytes.size(), 1);
  if (!problem.empty()) {
    return problem;
  }
  const uint64_t samples = static_cast<uint64_t>(width * height) * channels,
                 sample_bytes = largest > 255 ? 2 : 1;
  if (!view.has(++at, samples * sample_bytes)) {
    return picture_cut_short;
  }
  picture.allocate();
  const auto white = static_cast<uint32_t>(largest);
  for (uint64_t i = 0; i < samples; ++i) {
    const uint32_t value = sample_bytes == 2 ? view.big16(at + 2 * i) : view.byte(at + i);
    if (value > white) {
      return "a sample is larger than the largest that the header allows";
    }
    const auto level = static_cast<uint8_t>((value * 65535U + white / 2) / white >> 8);
    for (uint64_t c = 0; c < 3 / channels; ++c) {
      picture.rgb[3 / channels * i + c] = level;
    }
  }
  return "";
}

}  // namespace mixmatch::detail
