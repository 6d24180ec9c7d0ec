#pragma once

#include <mixmatch/detail/io/picture.hpp>

#include <string>
#include <string_view>

#ifdef MIXMATCH_HAS_WEBP

#include <mixmatch/detail/io/byte_view.hpp>
#include <mixmatch/detail/io/exif.hpp>

#include <cstdint>
#include <limits>
#include <new>

#include <webp/decode.h>

namespace mixmatch::detail {

/// By libwebp.
inline std::string decode_webp(std::string_view bytes, Picture& picture) {
  const ByteView view{bytes};
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  WebPDecoderConfig config;
  if (WebPInitDecoderConfig(&config) == 0) {
    return "libwebp is of another version than its headers";
  }
  const uint64_t end = 8 + uint64_t{view.little32(4)};
  VP8StatusCode status = WebPGetFeatures(data, bytes.size(), &config.input);
  if (end > bytes.size() || status == VP8_STATUS_NOT_ENOUGH_DATA) {
    return picture_cut_short;
  }
  if (status == VP8_STATUS_OK && config.input.has_animation != 0) {
    return "an animated WebP file, where a single picture is read";
  }
  if (status == VP8_STATUS_OK) {
    // A few bytes can fill any lossless picture with one colour.
    const std::string problem = picture.claim(config.input.width, config.input.height, bytes.size(),
                                              std::numeric_limits<int64_t>::max());
    if (!problem.empty()) {
      return problem;
    }
    const int64_t pixels = picture.width * picture.height;
    picture.allocate(3, 4 * pixels);
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA = {picture.rgb.get(), 3 * config.input.width, static_cast<size_t>(3 * pixels)};
    status = WebPDecode(data, bytes.size(), &config);
  }
  if (status == VP8_STATUS_OUT_OF_MEMORY) {
    throw std::bad_alloc();
  }
  if (status != VP8_STATUS_OK) {
    return status == VP8_STATUS_NOT_ENOUGH_DATA || status == VP8_STATUS_SUSPENDED
               ? picture_cut_short
               : picture_damaged("WebP", status == VP8_STATUS_UNSUPPORTED_FEATURE ? "unsupported feature"
                                                                                  : "bitstream error");
  }
  for (uint64_t at = 12; at + 8 <= end; at += 8 + (uint64_t{view.little32(at + 4)} + 1) / 2 * 2) {
    if (view.part(at, 4) == "EXIF") {
      picture.orientation = exif_orientation(view.part(at + 8, view.little32(at + 4)));
    }
  }
  return "";
}

}  // namespace mixmatch::detail

#else

namespace mixmatch::detail {

inline std::string decode_webp(std::string_view, Picture&) {
  return decoder_missing("libwebp", "libwebp-dev");
}

}  // namespace mixmatch::detail

#endif
