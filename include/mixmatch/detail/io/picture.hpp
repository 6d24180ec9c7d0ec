#pragma once

#include <c10/util/StringUtil.h>
#include <mixmatch/detail/io/printable.hpp>

#include <csetjmp>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

// What the decoders of the formats share. Each is given a file's bytes and fills a Picture; it returns what
// is wrong, or "".

namespace mixmatch::detail {

inline constexpr const char* picture_cut_short = "the picture is cut short";

inline std::string picture_damaged(std::string_view format, std::string_view why) {
  return c10::str("a damaged ", format, " file, or of a kind that is not read (",
                  printable_beginning(why, 200), ")");
}

inline std::string decoder_missing(const char* library, const char* package) {
  return c10::str("this program was built without ", library, "; install Debian's ", package,
                  " and configure again");
}

struct Picture {
  int64_t size = 0;        ///< What its shorter side will become.
  int64_t max_pixels = 0;  ///< What a file may claim.

  int64_t stored_width = 0, stored_height = 0;
  int orientation = 1;  ///< EXIF's: how the stored picture is to be turned.
  double scale = 1;     ///< The stored picture was decoded at this part of its size.
  int64_t width = 0, height = 0;
  std::unique_ptr<uint8_t[]> rgb;  ///< width x height, interleaved

  /// Takes the size that a header claims, unless a file of `bytes` cannot hold so much: the format packs
  /// `pixels_per_byte` into one at most.
  std::string claim(int64_t new_width, int64_t new_height, size_t bytes, int64_t pixels_per_byte) {
    width = stored_width = new_width;
    height = stored_height = new_height;
    const std::string pixels = c10::str(width, " x ", height, " pixels");
    if (width < 1 || height < 1) {
      return "a picture of " + pixels;
    }
    if (width > max_pixels / height) {
      return c10::str("a picture of ", pixels, ", expected at most ", max_pixels, " of them (max_pixels)");
    }
    return width * height / pixels_per_byte <= static_cast<int64_t>(bytes)
               ? ""
               : c10::str("the file claims ", pixels, ", which its ", bytes, " bytes cannot hold");
  }

  /// Takes memory of `channels` bytes a pixel; the decoder takes `more` for itself. Large pictures wait for
  /// each other, or each thread would take a gigabyte.
  void allocate(int64_t channels = 3, int64_t more = 0) {
    static std::mutex large_pictures;
    if (width * height * channels + more > int64_t{1} << 26) {
      alone_ = std::unique_lock(large_pictures);
    }
    // Left untouched: what a damaged file lacks takes no pages.
    rgb = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(width * height * channels));
  }

 private:
  std::unique_lock<std::mutex> alone_;
};

/// What a C library says of a file. Its errors leave it by a jump: a step holds nothing that has a
/// destructor.
struct DecoderErrors {
  std::jmp_buf jump;
  char text[256] = "";
  bool cut_short = false;

  /// Whether the step went through.
  template <class Step>
  bool run(const Step& step) {
    if (setjmp(jump) != 0) {
      return false;
    }
    step();
    return true;
  }
  std::string problem(std::string_view format) const {
    return cut_short ? picture_cut_short : picture_damaged(format, text);
  }
};

}  // namespace mixmatch::detail
