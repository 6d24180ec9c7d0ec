#pragma once

#include <mixmatch/detail/io/picture.hpp>

#include <string>
#include <string_view>

#ifdef MIXMATCH_HAS_JPEG

#include <mixmatch/detail/io/exif.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>  // jpeglib.h takes it for granted

#include <jpeglib.h>

#include <jerror.h>

namespace mixmatch::detail {

struct JpegDecoder {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr callbacks{};
  jpeg_progress_mgr progress{};
  DecoderErrors errors;

  JpegDecoder() {
    jpeg.err = jpeg_std_error(&callbacks);
    jpeg.client_data = &errors;
    callbacks.error_exit = [](j_common_ptr any) {
      auto& self = *static_cast<DecoderErrors*>(any->client_data);
      static_assert(sizeof self.text >= JMSG_LENGTH_MAX);
      any->err->format_message(any, self.text);
      self.cut_short = any->err->msg_code == JWRN_JPEG_EOF || any->err->msg_code == JERR_INPUT_EOF;
      std::longjmp(self.jump, 1);
    };
    callbacks.emit_message = [](j_common_ptr any, int level) {
      const int code = any->err->msg_code;
      // Bytes between segments, as some cameras leave, and new versions of the format take nothing away.
      if (level < 0 && code != JWRN_EXTRANEOUS_DATA && code != JWRN_NOT_SEQUENTIAL &&
          code != JWRN_JFIF_MAJOR && code != JWRN_ADOBE_XFORM) {
        any->err->error_exit(any);
      }
    };
    // Progressive files have about ten scans, each of which goes over the whole picture.
    progress.progress_monitor = [](j_common_ptr any) {
      if (reinterpret_cast<j_decompress_ptr>(any)->input_scan_number > 100) {
        auto& self = *static_cast<DecoderErrors*>(any->client_data);
        std::snprintf(self.text, sizeof self.text, "more than 100 scans");
        std::longjmp(self.jump, 1);
      }
    };
  }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;
  ~JpegDecoder() { jpeg_destroy_decompress(&jpeg); }
};

/// By libjpeg-turbo. A picture much larger than it is to become is decoded at a part of its size, which takes
/// a part of the time: the smallest of 1/8, 1/4 and 1/2 that leaves its shorter side twice as long.
inline std::string decode_jpeg(std::string_view bytes, Picture& picture) {
  constexpr const char* format = "JPEG";
  JpegDecoder decoder;
  auto& jpeg = decoder.jpeg;
  if (!decoder.errors.run([&] {
        jpeg_create_decompress(&jpeg);  // clears all but err and client_data
        jpeg.progress = &decoder.progress;
        jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
        jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
        jpeg_read_header(&jpeg, TRUE);
      })) {
    return decoder.errors.problem(format);
  }
  for (auto marker = jpeg.marker_list; marker != nullptr; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.starts_with(exif_begin)) {
      picture.orientation = exif_orientation(data);
      break;
    }
  }
  // Blocks of 64 for two bits each, colours that are smaller.
  std::string problem = picture.claim(jpeg.image_width, jpeg.image_height, bytes.size(), 1024);
  if (!problem.empty()) {
    return problem;
  }
  const bool inks = jpeg.num_components == 4;
  const int64_t channels = inks ? 4 : 3;
  jpeg.out_color_space = inks ? JCS_CMYK : JCS_RGB;
  // Other eighths take longer than the whole.
  jpeg.scale_denom = 8;
  jpeg.scale_num = 1;
  while (jpeg.scale_num < 8 &&
         std::min(picture.width, picture.height) * jpeg.scale_num < 2 * 8 * picture.size) {
    jpeg.scale_num *= 2;
  }
  if (!decoder.errors.run([&] { jpeg_calc_output_dimensions(&jpeg); })) {
    return decoder.errors.problem(format);
  }
  picture.scale = jpeg.scale_num / 8.0;
  picture.width = jpeg.output_width;
  picture.height = jpeg.output_height;
  const int64_t coefficients = jpeg_has_multiple_scans(&jpeg) ? 2 * channels : 0;  // bytes a pixel
  picture.allocate(channels, picture.stored_width * picture.stored_height * coefficients);
  if (!decoder.errors.run([&] {
        jpeg_start_decompress(&jpeg);
        while (jpeg.output_scanline < jpeg.output_height) {
          JSAMPROW row = picture.rgb.get() + jpeg.output_scanline * picture.width * channels;
          jpeg_read_scanlines(&jpeg, &row, 1);
        }
        jpeg_finish_decompress(&jpeg);
      })) {
    return decoder.errors.problem(format);
  }
  if (inks) {  // stored inverted, as Adobe does: red = cyan times black
    const uint8_t* in = picture.rgb.get();
    uint8_t* out = picture.rgb.get();
    for (int64_t i = 0; i < picture.width * picture.height; ++i, in += 4, out += 3) {
      const int black = in[3];
      for (int c = 0; c < 3; ++c) {
        out[c] = static_cast<uint8_t>((in[c] * black + 127) / 255);
      }
    }
  }
  return "";
}

}  // namespace mixmatch::detail

#else

namespace mixmatch::detail {

inline std::string decode_jpeg(std::string_view, Picture&) {
  return decoder_missing("libjpeg-turbo", "libjpeg-dev");
}

}  // namespace mixmatch::detail

#endif
