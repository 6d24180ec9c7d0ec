#pragma once

#include <ATen/ATen.h>
#include <mixmatch/detail/io/crc32c.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace mixmatch::training {

namespace detail {

inline void put_big_endian(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    out += static_cast<char>((value >> shift) & 0xFFU);
  }
}

inline void put_png_chunk(std::string& out, std::string_view type, std::string_view data) {
  put_big_endian(out, static_cast<uint32_t>(data.size()));
  const size_t start = out.size();
  out += type;
  out += data;
  put_big_endian(out, mixmatch::detail::crc32(std::string_view(out).substr(start)));
}

/// A zlib stream that stores the bytes as they are.
inline std::string zlib_store(std::string_view bytes) {
  uint32_t a = 1;
  uint32_t b = 0;
  for (const char byte : bytes) {  // Adler-32
    a = (a + static_cast<unsigned char>(byte)) % 65521;
    b = (b + a) % 65521;
  }
  std::string out = "\x78\x01";
  do {
    const auto length = static_cast<uint32_t>(std::min<size_t>(bytes.size(), 65535));
    out += bytes.size() == length ? '\1' : '\0';
    for (const uint32_t field : {length, ~length}) {
      out += static_cast<char>(field & 0xFFU);
      out += static_cast<char>((field >> 8) & 0xFFU);
    }
    out += bytes.substr(0, length);
    bytes.remove_prefix(length);
  } while (!bytes.empty());
  put_big_endian(out, (b << 16) | a);
  return out;
}

}  // namespace detail

/// The image as a PNG file's bytes: uint8 [3, H, W] (RGB) or [1, H, W] (grey), any strides, any device;
/// uncompressed. Throws c10::Error for another shape or dtype.
inline std::string encode_png(const at::Tensor& image) {
  TORCH_CHECK(image.defined() && image.scalar_type() == at::kByte && image.dim() == 3 &&
                  (image.size(0) == 3 || image.size(0) == 1) && image.size(1) > 0 && image.size(2) > 0,
              "encode_png: image must be a non-empty uint8 [3, H, W] or [1, H, W], got ",
              image.defined() ? c10::toString(image.scalar_type()) : "undefined", " ",
              image.defined() ? image.sizes() : at::IntArrayRef());
  const auto rows = image.permute({1, 2, 0}).cpu().contiguous();
  const int64_t height = rows.size(0);
  const auto row_bytes = static_cast<size_t>(rows.size(1) * rows.size(2));
  const auto* data = reinterpret_cast<const char*>(rows.data_ptr<uint8_t>());
  std::string scanlines;
  scanlines.reserve(static_cast<size_t>(height) * (row_bytes + 1));
  for (int64_t y = 0; y < height; ++y) {
    scanlines += '\0';  // filter: none
    scanlines.append(data + static_cast<size_t>(y) * row_bytes, row_bytes);
  }
  std::string header;
  detail::put_big_endian(header, static_cast<uint32_t>(rows.size(1)));
  detail::put_big_endian(header, static_cast<uint32_t>(height));
  header += '\x08';                               // bits a channel
  header += rows.size(2) == 3 ? '\x02' : '\x00';  // RGB or grey
  header.append(3, '\0');                         // deflate, standard filters, not interlaced
  std::string png = "\x89PNG\r\n\x1a\n";
  detail::put_png_chunk(png, "IHDR", header);
  detail::put_png_chunk(png, "IDAT", detail::zlib_store(scanlines));
  detail::put_png_chunk(png, "IEND", "");
  return png;
}

}  // namespace mixmatch::training
