#pragma once

#include <mixmatch/detail/io/picture.hpp>

#include <string>
#include <string_view>

#ifdef MIXMATCH_HAS_PNG

#include <mixmatch/detail/io/exif.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <new>

#include <png.h>

namespace mixmatch::detail {

/// Why libpng refuses a program that was compiled with the headers of another version; "" where it does not:
/// the first two numbers of the versions are the same.
inline std::string png_library_problem(std::string_view compiled, std::string_view found) {
  const auto release = [](std::string_view version) {
    const size_t dot = version.find('.', version.find('.') + 1);
    return version.substr(0, dot);
  };
  return release(compiled) == release(found)
             ? ""
             : c10::str("this program was compiled for libpng ", compiled, " and runs with libpng ", found);
}

struct PngDecoder {
  std::string_view left;  ///< Of the file.
  DecoderErrors errors;
  png_structp png;
  png_infop info;

  explicit PngDecoder(std::string_view bytes)
      : left(bytes),
        png(png_create_read_struct(
            PNG_LIBPNG_VER_STRING, this,
            [](png_structp any, png_const_charp text) {
              auto& self = *static_cast<PngDecoder*>(png_get_error_ptr(any));
              std::snprintf(self.errors.text, sizeof self.errors.text, "%s", text);
              std::longjmp(self.errors.jump, 1);
            },
            [](png_structp, png_const_charp) {})),
        info(png == nullptr ? nullptr : png_create_info_struct(png)) {}
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;
  ~PngDecoder() { png_destroy_read_struct(&png, &info, nullptr); }

  static void read(png_structp any, png_bytep out, size_t count) {
    auto& self = *static_cast<PngDecoder*>(png_get_io_ptr(any));
    if (count > self.left.size()) {
      self.errors.cut_short = true;
      png_error(any, "");
    }
    std::copy_n(self.left.data(), count, out);
    self.left.remove_prefix(count);
  }
};

/// By libpng. Of an animated file the first picture.
inline std::string decode_png(std::string_view bytes, Picture& picture) {
  PngDecoder decoder(bytes);
  const png_structp png = decoder.png;
  const png_infop info = decoder.info;
  auto& errors = decoder.errors;
  if (info == nullptr) {
    const std::string problem = png_library_problem(PNG_LIBPNG_VER_STRING, png_get_libpng_ver(nullptr));
    return problem.empty() ? throw std::bad_alloc() : problem;
  }
  if (!errors.run([&] {
        png_set_read_fn(png, &decoder, PngDecoder::read);
        png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // max_pixels is the limit
        png_read_info(png, info);
      })) {
    return errors.problem("PNG");
  }
  // Deflate's best, for eight pixels a byte.
  std::string problem =
      picture.claim(png_get_image_width(png, info), png_get_image_height(png, info), bytes.size(), 8 * 1032);
  if (!problem.empty()) {
    return problem;
  }
  picture.allocate();
  if (!errors.run([&] {
        png_set_strip_16(png);  // the upper eight bits remain
        png_set_expand(png);
        png_set_gray_to_rgb(png);
        png_set_strip_alpha(png);
        const int passes = png_set_interlace_handling(png);
        png_read_update_info(png, info);
        const size_t row = png_get_rowbytes(png, info);
        if (row != 3 * static_cast<size_t>(picture.width)) {
          png_error(png, "rows of another length");
        }
        for (int pass = 0; pass < passes; ++pass) {
          for (int64_t y = 0; y < picture.height; ++y) {
            png_read_row(png, picture.rgb.get() + 3 * picture.width * y, nullptr);
          }
        }
        png_read_end(png, info);
      })) {
    return errors.problem("PNG");
  }
#ifdef PNG_eXIf_SUPPORTED
  png_bytep exif = nullptr;
  png_uint_32 length = 0;
  if (png_get_eXIf_1(png, info, &length, &exif) != 0) {
    picture.orientation = exif_orientation({reinterpret_cast<const char*>(exif), length});
  }
#endif
  return "";
}

}  // namespace mixmatch::detail

#else

namespace mixmatch::detail {

inline std::string decode_png(std::string_view, Picture&) { return decoder_missing("libpng", "libpng-dev"); }

}  // namespace mixmatch::detail

#endif
