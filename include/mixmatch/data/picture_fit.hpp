#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/printable.hpp>

#include <string_view>

namespace mixmatch::data {

/// How a picture that is not square becomes square. `crop`: its shorter side fills the square, and the middle
/// of its longer side is cut out. `letterbox`: the whole picture, its longer side fills the square, and the
/// rest is grey (127, the middle of what networks are given) on both sides.
enum class PictureFit { crop, letterbox };

/// "crop" or "letterbox"; throws on another name.
inline PictureFit parse_picture_fit(std::string_view name) {
  TORCH_CHECK(name == "crop" || name == "letterbox", "fit must be crop or letterbox, got ",
              mixmatch::detail::quote_for_message(name));
  return name == "crop" ? PictureFit::crop : PictureFit::letterbox;
}

inline const char* picture_fit_name(PictureFit fit) { return fit == PictureFit::crop ? "crop" : "letterbox"; }

}  // namespace mixmatch::data
