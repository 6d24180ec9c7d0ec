#pragma once

#include <cstdint>

namespace mixmatch::detail {

/// What a picture's file says of it before it is decoded.
struct PictureHeader {
  int64_t width = 0, height = 0;
  int orientation = 1;  ///< EXIF's: how the stored picture is to be turned
};

}  // namespace mixmatch::detail
