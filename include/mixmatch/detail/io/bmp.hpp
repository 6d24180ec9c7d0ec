#pragma once

#include <mixmatch/detail/io/byte_view.hpp>
#include <mixmatch/detail/io/picture.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// A BMP file whose pixels are not compressed: 1, 2, 4 and 8 bits with a palette, whose missing colours are
/// black, 16 and 32 with or without masks, and 24.
inline std::string decode_bmp(std::string_view bytes, Picture& picture) {
  const ByteView view{bytes};
  const uint64_t begin = view.little32(10), header = view.little32(14);
  const bool oldest = header == 12;
  const int64_t width = oldest ? view.little16(18) : int64_t{static_cast<int32_t>(view.little32(18))};
  const int64_t height = oldest ? view.little16(20) : int64_t{static_cast<int32_t>(view.little32(22))};
  const uint32_t bits = view.little16(oldest ? 24 : 28), compression = oldest ? 0 : view.little32(30);
  const bool masked = compression == 3 || compression == 6;
  if (!std::has_single_bit(bits) ? bits != 24 : bits > 32) {
    return picture_damaged("BMP", c10::str(bits, " bits a pixel"));
  }
  if (compression != 0 && !(masked && (bits == 16 || bits == 32))) {
    return picture_damaged("BMP", "compressed");
  }
  std::string problem = picture.claim(width, std::abs(height), bytes.size(), 8);
  if (!problem.empty()) {
    return problem;
  }
  const uint64_t stride = (static_cast<uint64_t>(width) * bits + 31) / 32 * 4;
  if (!view.has(begin, stride * static_cast<uint64_t>(std::abs(height)))) {
    return picture_cut_short;
  }
  // Each colour's bits in a pixel: red, green, blue.
  std::array<uint32_t, 3> masks{0xFF0000, 0xFF00, 0xFF};
  if (bits == 16) {
    masks = {0x7C00, 0x3E0, 0x1F};
  }
  for (uint64_t c = 0; masked && c < 3; ++c) {
    masks[c] = view.little32(54 + 4 * c);
  }
  const uint64_t colour_bytes = oldest ? 3 : 4, palette = 14 + header;
  const auto colour = [&](uint32_t pixel, size_t c) -> uint8_t {
    if (bits <= 8) {
      const uint64_t at = palette + colour_bytes * pixel + 2 - c;
      return static_cast<uint8_t>(at < begin ? view.byte(at) : 0);
    }
    const uint32_t most = masks[c] == 0 ? 1 : masks[c] >> std::countr_zero(masks[c]);
    const uint32_t level = masks[c] == 0 ? 0 : (pixel & masks[c]) >> std::countr_zero(masks[c]);
    return static_cast<uint8_t>(uint64_t{level} * 255 / most);
  };
  picture.allocate();
  for (int64_t y = 0; y < picture.height; ++y) {
    const uint64_t row = begin + stride * static_cast<uint64_t>(height < 0 ? y : height - 1 - y);
    uint8_t* out = picture.rgb.get() + 3 * width * y;
    for (uint64_t x = 0; x < static_cast<uint64_t>(width); ++x, out += 3) {
      const uint64_t at = row + x * bits / 8;
      const uint32_t pixel = bits < 8     ? view.byte(at) >> (8 - bits - x * bits % 8) & ((1U << bits) - 1)
                             : bits == 8  ? view.byte(at)
                             : bits == 16 ? view.little16(at)
                                          : view.little16(at) | view.byte(at + 2) << 16 |
                                                (bits == 32 ? view.byte(at + 3) << 24 : 0);
      for (size_t c = 0; c < 3; ++c) {
        out[c] = colour(pixel, c);
      }
    }
  }
  return "";
}

}  // namespace mixmatch::detail
