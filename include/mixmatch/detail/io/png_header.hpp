#pragma once

#include <mixmatch/detail/io/byte_view.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/exif.hpp>
#include <mixmatch/detail/io/picture_header.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// Goes through the chunks of a PNG file up to its end: size, EXIF orientation, and the checksums of what the
/// picture is made of, which stb_image does not look at. What is wrong, else "".
///
/// A palette with fewer colours than a pixel can name is filled up with black in `bytes`: stb_image would
/// take what lies in memory.
inline std::string read_png_header(std::string& bytes, PictureHeader& header) {
  const ByteView view{bytes};
  uint64_t palette_at = 0, palette_length = 0;
  bool has_data = false;
  for (uint64_t at = 8;;) {
    const uint64_t length = view.big32(at);
    if (!view.has(at, 12) || !view.has(at, 12 + length)) {
      return "the picture is cut short";
    }
    const std::string_view kind = view.part(at + 4, 4);
    if (at == 8 && (kind != "IHDR" || length != 13)) {
      return kind == "CgBI" ? "a PNG file in Apple's own variant (CgBI)" : "a damaged PNG file";
    }
    const bool critical = (view.byte(at + 4) & 0x20U) == 0;
    if (critical && kind != "IHDR" && kind != "PLTE" && kind != "IDAT" && kind != "IEND") {
      return "a damaged PNG file, or of a kind that is not read (chunk \"" + printable(kind) + "\")";
    }
    if ((critical || kind == "tRNS") && crc32(view.part(at + 4, 4 + length)) != view.big32(at + 8 + length)) {
      return "a damaged PNG file (a checksum does not fit)";
    }
    if (kind == "IHDR" && at == 8) {
      header.width = view.big32(at + 8);
      header.height = view.big32(at + 12);
    } else if (kind == "PLTE") {
      palette_at = at;
      palette_length = length;
    } else if (kind == "eXIf") {
      header.orientation = exif_orientation(view.part(at + 8, length));
    }
    has_data = has_data || kind == "IDAT";
    at += 12 + length;
    if (kind == "IEND") {
      break;
    }
  }
  if (!has_data) {
    return "a PNG file without a picture";
  }
  constexpr uint64_t full = 3 * 256;
  const bool indexed = view.byte(25) == 3;
  if (indexed && palette_length > 0 && palette_length < full && palette_length % 3 == 0) {
    bytes.insert(palette_at + 8 + palette_length, full - palette_length, '\0');
    bytes[palette_at + 2] = '\x03';  // its length, in four bytes
    bytes[palette_at + 3] = '\0';
  }
  return "";
}

}  // namespace mixmatch::detail
