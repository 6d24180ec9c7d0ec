#pragma once

#include <mixmatch/detail/io/byte_view.hpp>

#include <cstdint>
#include <string_view>

namespace mixmatch::detail {

/// What EXIF data may begin with, and a JPEG file's always do.
inline constexpr std::string_view exif_begin{"Exif\0\0", 6};

/// The orientation (1 to 8) in EXIF data, which are a TIFF file: how the stored picture is to be turned. 1,
/// as it is, where they say nothing of it or make no sense.
inline int exif_orientation(std::string_view tiff) {
  if (tiff.starts_with(exif_begin)) {
    tiff.remove_prefix(exif_begin.size());
  }
  const ByteView view{tiff};
  const bool big = tiff.starts_with(std::string_view("MM\0*", 4));
  if (!big && !tiff.starts_with(std::string_view("II*\0", 4))) {
    return 1;
  }
  const auto number16 = [&](uint64_t at) { return big ? view.big16(at) : view.little16(at); };
  const auto number32 = [&](uint64_t at) { return big ? view.big32(at) : view.little32(at); };
  const uint64_t directory = number32(4);
  const uint64_t entries = number16(directory);
  for (uint64_t entry = directory + 2; entry < directory + 2 + 12 * entries && view.has(entry, 12);
       entry += 12) {
    if (number16(entry) == 0x0112) {
      const uint32_t type = number16(entry + 2);
      const uint32_t value = type == 3 ? number16(entry + 8) : type == 4 ? number32(entry + 8) : 1;
      return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
  }
  return 1;
}

}  // namespace mixmatch::detail
