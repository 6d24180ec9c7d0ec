#pragma once

#include <mixmatch/detail/io/picture.hpp>

#include <string>
#include <string_view>

#ifdef MIXMATCH_HAS_TIFF
#include <tiffio.h>
#endif

#if defined(MIXMATCH_HAS_TIFF) && TIFFLIB_VERSION >= 20221213  // 4.5: handlers of each file's own

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

namespace mixmatch::detail {

/// A file in memory, and what libtiff says of it.
struct TiffDecoder {
  std::string_view bytes;
  toff_t at = 0;
  bool reads_pixels = false;
  char text[1024] = "";
  TIFF* tiff = nullptr;
  TIFFRGBAImage image{};
  bool has_image = false;

  explicit TiffDecoder(std::string_view file) : bytes(file) {
    auto* options = TIFFOpenOptionsAlloc();
    TIFFOpenOptionsSetErrorHandlerExtR(options, hear, this);
    // Of tags there are many that are not known.
    TIFFOpenOptionsSetWarningHandlerExtR(
        options,
        [](TIFF* file_, void* user, const char* module, const char* format, va_list arguments) {
          return self(user).reads_pixels ? hear(file_, user, module, format, arguments) : 1;
        },
        this);
    tiff = TIFFClientOpenExt(
        "", "r", this,
        [](thandle_t user, void* out, tmsize_t count) {
          const size_t from = std::min<toff_t>(self(user).at, self(user).bytes.size());
          const size_t got = self(user).bytes.copy(static_cast<char*>(out), static_cast<size_t>(count), from);
          self(user).at = from + got;
          return static_cast<tmsize_t>(got);
        },
        [](thandle_t, void*, tmsize_t) { return tmsize_t{-1}; },
        [](thandle_t user, toff_t offset, int from) {
          const toff_t begin = from == SEEK_CUR   ? self(user).at
                               : from == SEEK_END ? self(user).bytes.size()
                                                  : 0;
          return self(user).at = begin + offset;
        },
        [](thandle_t) { return 0; }, [](thandle_t user) { return toff_t{self(user).bytes.size()}; },
        // Without a map libtiff 4.5 takes tiles for damaged whose bytes are no multiple of 1,024.
        [](thandle_t user, void** base, toff_t* size) {
          *base = const_cast<char*>(self(user).bytes.data());
          *size = self(user).bytes.size();
          return 1;
        },
        [](thandle_t, void*, toff_t) {}, options);
    TIFFOpenOptionsFree(options);
  }
  TiffDecoder(const TiffDecoder&) = delete;
  TiffDecoder& operator=(const TiffDecoder&) = delete;
  ~TiffDecoder() {
    if (has_image) {
      TIFFRGBAImageEnd(&image);
    }
    if (tiff != nullptr) {
      TIFFClose(tiff);
    }
  }

  template <class T>
  T field(uint32_t tag) {
    T value{};
    return TIFFGetFieldDefaulted(tiff, tag, &value) == 1 ? value : T{};
  }

 private:
  static TiffDecoder& self(void* user) { return *static_cast<TiffDecoder*>(user); }

  /// Keeps the first message, in place of the process's handlers.
  static int hear(TIFF*, void* user, const char*, const char* format, va_list arguments) {
    if (self(user).text[0] == '\0') {
      std::vsnprintf(self(user).text, sizeof self(user).text, format, arguments);
    }
    return 1;
  }
};

/// By libtiff; of several pictures the first.
inline std::string decode_tiff(std::string_view bytes, Picture& picture) {
  TiffDecoder decoder(bytes);
  TIFF* const tiff = decoder.tiff;
  auto& image = decoder.image;
  auto& text = decoder.text;
  if (tiff == nullptr) {
    return picture_damaged("TIFF", text);
  }
  if ((decoder.field<uint32_t>(TIFFTAG_SUBFILETYPE) & FILETYPE_REDUCEDIMAGE) != 0) {
    return "a TIFF file that begins with a thumbnail, as cameras' raw files do";
  }
  const int64_t width = decoder.field<uint32_t>(TIFFTAG_IMAGEWIDTH);
  const int64_t height = decoder.field<uint32_t>(TIFFTAG_IMAGELENGTH);
  // What is packed has no bound: a bit may be a row of a fax.
  const bool packed = decoder.field<uint16_t>(TIFFTAG_COMPRESSION) != COMPRESSION_NONE;
  std::string problem =
      picture.claim(width, height, bytes.size(), packed ? std::numeric_limits<int64_t>::max() : 8);
  if (!problem.empty()) {
    return problem;
  }
  // A strip or tile, that is unpacked at once, may be larger than the picture.
  const auto part = TIFFIsTiled(tiff) != 0 ? TIFFTileSize64(tiff) : TIFFStripSize64(tiff);
  if (part > static_cast<uint64_t>(width * height) * 32 + (uint64_t{1} << 24)) {
    return c10::str("a TIFF file that takes more memory than its ", width, " x ", height, " pixels");
  }
  decoder.has_image = TIFFRGBAImageOK(tiff, text) != 0 && TIFFRGBAImageBegin(&image, tiff, 1, text) != 0;
  if (!decoder.has_image || image.photometric == PHOTOMETRIC_CIELAB) {  // which libtiff reads only nearly
    return picture_damaged("TIFF", decoder.has_image ? "L*a*b* colours" : text);
  }
  // The stored colour, whatever its alpha; the upper eight bits of 16; and not turned yet.
  for (size_t i = 0; image.UaToAa != nullptr && i < 65536; ++i) {
    image.UaToAa[i] = static_cast<uint8_t>(i & 255U);
  }
  for (size_t i = 0; image.Bitdepth16To8 != nullptr && i < 65536; ++i) {
    image.Bitdepth16To8[i] = static_cast<uint8_t>(i >> 8);
  }
  picture.orientation = image.orientation;
  image.orientation = image.req_orientation = ORIENTATION_TOPLEFT;
  picture.allocate(4, static_cast<int64_t>(part));
  text[0] = '\0';
  decoder.reads_pixels = true;  // whose warnings are of damage
  if (TIFFRGBAImageGet(&image, reinterpret_cast<uint32_t*>(picture.rgb.get()), image.width, image.height) ==
          0 ||
      text[0] != '\0') {
    return picture_damaged("TIFF", text);
  }
  for (int64_t i = 0; i < width * height; ++i) {
    uint32_t pixel = 0;
    std::memcpy(&pixel, picture.rgb.get() + 4 * i, 4);
    uint8_t* colours = picture.rgb.get() + 3 * i;
    colours[0] = TIFFGetR(pixel);
    colours[1] = TIFFGetG(pixel);
    colours[2] = TIFFGetB(pixel);
  }
  return "";
}

}  // namespace mixmatch::detail

#else

namespace mixmatch::detail {

inline std::string decode_tiff(std::string_view, Picture&) {
  return decoder_missing("libtiff 4.5 or newer", "libtiff-dev");
}

}  // namespace mixmatch::detail

#endif
