#pragma once

// Pictures as files' bytes from the libraries' own encoders, for the tests of what reads them. Each takes
// uint8 or uint16 [height, width, channels].

#include <mixmatch/data/decode_image.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "pictures.hpp"
#include "test_util.hpp"

#if defined(MIXMATCH_HAS_JPEG) && defined(MIXMATCH_HAS_PNG) && defined(MIXMATCH_HAS_WEBP) && \
    defined(MIXMATCH_HAS_TIFF)
#include <tiffio.h>
#if TIFFLIB_VERSION >= 20221213  // as detail/io/tiff.hpp wants it
#define MIXMATCH_TEST_ENCODERS 1
#endif
#endif

#ifdef MIXMATCH_TEST_ENCODERS

#include <webp/encode.h>

struct JpegSettings {
  int quality = 100;
  bool progressive = false, smaller_colours = false;
  J_COLOR_SPACE stored = JCS_YCbCr;
};

/// Three channels are RGB, four are stored as they are.
inline std::string encode_jpeg(const at::Tensor& image, const JpegSettings& settings = {}) {
  const auto pixels = image.contiguous();
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&jpeg, &memory, &size);
  jpeg.image_height = static_cast<JDIMENSION>(pixels.size(0));
  jpeg.image_width = static_cast<JDIMENSION>(pixels.size(1));
  jpeg.input_components = static_cast<int>(pixels.size(2));
  jpeg.in_color_space = pixels.size(2) == 1 ? JCS_GRAYSCALE : pixels.size(2) == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&jpeg);
  if (pixels.size(2) != 1) {
    jpeg_set_colorspace(&jpeg, pixels.size(2) == 4 ? JCS_CMYK : settings.stored);
  }
  jpeg_set_quality(&jpeg, settings.quality, TRUE);
  jpeg.comp_info[0].h_samp_factor = jpeg.comp_info[0].v_samp_factor = settings.smaller_colours ? 2 : 1;
  if (settings.progressive) {
    jpeg_simple_progression(&jpeg);
  }
  jpeg_start_compress(&jpeg, TRUE);
  while (jpeg.next_scanline < jpeg.image_height) {
    JSAMPROW row = pixels.data_ptr<uint8_t>() + jpeg.next_scanline * pixels.size(1) * pixels.size(2);
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  std::string bytes(reinterpret_cast<const char*>(memory), size);
  std::free(memory);
  return bytes;
}

/// Its rows in seven passes.
inline std::string encode_interlaced_png(const at::Tensor& image) {
  const auto pixels = image.contiguous();
  std::string bytes;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &bytes,
      [](png_structp any, png_bytep data, size_t count) {
        static_cast<std::string*>(png_get_io_ptr(any))->append(reinterpret_cast<const char*>(data), count);
      },
      [](png_structp) {});
  png_set_IHDR(png, info, static_cast<png_uint_32>(pixels.size(1)), static_cast<png_uint_32>(pixels.size(0)),
               8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_ADAM7, PNG_COMPRESSION_TYPE_BASE, PNG_FILTER_TYPE_BASE);
  png_write_info(png, info);
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < pixels.size(0); ++y) {
    rows.push_back(pixels.data_ptr<uint8_t>() + y * pixels.size(1) * 3);
  }
  png_write_image(png, rows.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return bytes;
}

/// Lossless.
inline std::string encode_webp(const at::Tensor& image) {
  const auto pixels = image.contiguous();
  uint8_t* memory = nullptr;
  const size_t size =
      WebPEncodeLosslessRGB(pixels.data_ptr<uint8_t>(), static_cast<int>(pixels.size(1)),
                            static_cast<int>(pixels.size(0)), static_cast<int>(3 * pixels.size(1)), &memory);
  std::string bytes(reinterpret_cast<const char*>(memory), size);
  WebPFree(memory);
  return bytes;
}

struct TiffSettings {
  uint16_t photometric = PHOTOMETRIC_RGB, compression = COMPRESSION_LZW, orientation = 1;
  int alpha = -1;  ///< what the last channel is (EXTRASAMPLE_…)
  bool planes = false, tiles = false;
  const char* mode = "w";  ///< "wb": big-endian; "w8": 64 bits
  uint32_t kind = 0;       ///< FILETYPE_…
};

inline std::string encode_tiff(const at::Tensor& image, const TiffSettings& settings = {}) {
  const auto dir = temp_dir();
  const std::filesystem::path path = dir / "x.tif";
  const bool wide = image.scalar_type() == at::kShort;  // whose bits are those of uint16
  const int64_t height = image.size(0), width = image.size(1), channels = image.size(2);
  TIFF* tiff = TIFFOpen(path.c_str(), settings.mode);
  TIFFSetField(tiff, TIFFTAG_SUBFILETYPE, settings.kind);
  TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, static_cast<uint32_t>(width));
  TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, static_cast<uint32_t>(height));
  TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, wide ? 16 : 8);
  TIFFSetField(tiff, TIFFTAG_SAMPLESPERPIXEL, static_cast<int>(channels));
  TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, settings.photometric);
  TIFFSetField(tiff, TIFFTAG_COMPRESSION, settings.compression);
  TIFFSetField(tiff, TIFFTAG_ORIENTATION, settings.orientation);
  TIFFSetField(tiff, TIFFTAG_PLANARCONFIG, settings.planes ? PLANARCONFIG_SEPARATE : PLANARCONFIG_CONTIG);
  if (settings.alpha >= 0) {
    const auto kind = static_cast<uint16_t>(settings.alpha);
    TIFFSetField(tiff, TIFFTAG_EXTRASAMPLES, 1, &kind);
  }
  if (settings.photometric == PHOTOMETRIC_PALETTE) {  // colour i is (i, 255 - i, i / 2)
    std::vector<uint16_t> red, green, blue;
    for (int i = 0; i < 256; ++i) {
      red.push_back(static_cast<uint16_t>(257 * i));
      green.push_back(static_cast<uint16_t>(257 * (255 - i)));
      blue.push_back(static_cast<uint16_t>(257 * (i / 2)));
    }
    TIFFSetField(tiff, TIFFTAG_COLORMAP, red.data(), green.data(), blue.data());
  }
  const int64_t side = 16;
  if (settings.tiles) {
    TIFFSetField(tiff, TIFFTAG_TILEWIDTH, static_cast<uint32_t>(side));
    TIFFSetField(tiff, TIFFTAG_TILELENGTH, static_cast<uint32_t>(side));
  } else {
    TIFFSetField(tiff, TIFFTAG_ROWSPERSTRIP, 4);
  }
  const int64_t planes = settings.planes ? channels : 1;
  uint32_t part = 0;
  for (int64_t p = 0; p < planes; ++p) {
    const auto plane = settings.planes ? image.narrow(2, p, 1) : image;
    const int64_t rows = settings.tiles ? side : 4, columns = settings.tiles ? side : width;
    for (int64_t y = 0; y < height; y += rows) {
      for (int64_t x = 0; x < width; x += columns) {
        auto block =
            plane.narrow(0, y, std::min(rows, height - y)).narrow(1, x, std::min(columns, width - x));
        if (settings.tiles) {
          block = at::constant_pad_nd(block, {0, 0, 0, side - block.size(1), 0, side - block.size(0)});
        }
        block = block.clone(at::MemoryFormat::Contiguous);
        const auto bytes = static_cast<tmsize_t>(block.nbytes());
        settings.tiles ? TIFFWriteEncodedTile(tiff, part++, block.data_ptr(), bytes)
                       : TIFFWriteEncodedStrip(tiff, part++, block.data_ptr(), bytes);
      }
    }
  }
  TIFFClose(tiff);
  return read_file(path);
}

#endif
