#pragma once

// Pictures as files' bytes, made by the letter of their formats, for the tests of what reads them.

#include <mixmatch/run/png.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "test_util.hpp"

inline std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i < digits.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

/// A picture of one colour as a PNG file's bytes.
inline std::string png(int64_t red, int64_t green, int64_t blue, int64_t height = 5, int64_t width = 4) {
  return mixmatch::training::encode_png(
      at::tensor({red, green, blue}, at::kByte).view({3, 1, 1}).expand({3, height, width}).contiguous());
}

inline void write_picture(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  write_file(path, bytes);
}

/// The colour at (y, x), as text.
inline std::string color(const at::Tensor& image, int64_t y = 0, int64_t x = 0) {
  std::string text;
  for (int64_t c = 0; c < 3; ++c) {
    text += (c == 0 ? "" : ",") + std::to_string(image[c][y][x].item<int64_t>());
  }
  return text;
}

/// A number as `count` bytes, the highest first.
inline std::string big_endian(uint64_t value, int count) {
  std::string bytes;
  for (int i = count; i-- > 0;) {
    bytes.push_back(static_cast<char>(value >> (8 * i) & 0xFFU));
  }
  return bytes;
}

/// A JPEG file's segment: marker, length, content.
inline std::string jpeg_segment(unsigned char marker, const std::string& content) {
  return "\xFF" + big_endian(marker, 1) + big_endian(content.size() + 2, 2) + content;
}

/// EXIF data (a TIFF file) that hold an orientation.
inline std::string exif(uint64_t orientation) {
  return std::string("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01", 18) + big_endian(orientation, 2) +
         std::string(6, '\0');
}

inline std::string jpeg_exif(uint64_t orientation) {
  return jpeg_segment(0xE1, std::string("Exif\0\0", 6) + exif(orientation));
}

/// Adobe's marker: 0 = the colours are RGB or CMYK, and CMYK inverted.
inline std::string jpeg_adobe(char transform) {
  return jpeg_segment(0xEE, std::string("Adobe\0\x64\0\0\0\0", 11) + transform);
}

struct JpegTables {
  bool quantization = true, huffman = true;
};

/// A baseline JPEG of blocks of one colour each: `blocks[y][x]` has a number from 0 to 255 for each of its
/// channels. `segments` come first.
inline std::string block_jpeg(const std::vector<std::vector<std::vector<int>>>& blocks,
                              const std::string& segments = "", JpegTables tables = {}) {
  const size_t channels = blocks[0][0].size();
  std::string file = "\xFF\xD8" + segments;
  if (tables.quantization) {
    file += jpeg_segment(0xDB, std::string(1, '\0') + std::string(64, '\x08'));
  }
  std::string frame = "\x08" + big_endian(8 * blocks.size(), 2) + big_endian(8 * blocks[0].size(), 2) +
                      big_endian(channels, 1);
  std::string scan = big_endian(channels, 1);
  for (size_t c = 1; c <= channels; ++c) {
    frame += big_endian(c, 1) + std::string("\x11\0", 2);
    scan += big_endian(c, 1) + std::string(1, '\0');
  }
  file += jpeg_segment(0xC0, frame);
  if (tables.huffman) {
    // Differences of 0 to 11 bits have codes of 4 bits, the end of a block one of 1 bit.
    file += jpeg_segment(
        0xC4, std::string("\0\0\0\0\x0C", 5) + std::string(12, '\0') + from_hex("000102030405060708090a0b"));
    file += jpeg_segment(0xC4, "\x10\x01" + std::string(15, '\0') + std::string(1, '\0'));
  }
  file += jpeg_segment(0xDA, scan + std::string("\0\x3F\0", 3));
  std::string bits;
  const auto put = [&](unsigned value, unsigned count) {
    for (unsigned i = count; i-- > 0;) {
      bits.push_back((value >> i & 1U) != 0 ? '1' : '0');
    }
  };
  std::vector<int> before(channels, 0);
  for (const auto& row : blocks) {
    for (const auto& block : row) {
      for (size_t c = 0; c < channels; ++c) {
        const int level = block[c] - 128;
        const int difference = level - std::exchange(before[c], level);
        unsigned size = 0;
        while (std::abs(difference) >> size != 0) {
          ++size;
        }
        put(size, 4);
        put(static_cast<unsigned>(difference > 0 ? difference : difference + (1 << size) - 1), size);
        put(0, 1);
      }
    }
  }
  bits.resize((bits.size() + 7) / 8 * 8, '1');
  for (size_t i = 0; i < bits.size(); i += 8) {
    file.push_back(static_cast<char>(std::stoi(bits.substr(i, 8), nullptr, 2)));
    if (file.back() == '\xFF') {
      file.push_back('\0');
    }
  }
  return file + "\xFF\xD9";
}

inline std::string png_chunk(const std::string& kind, const std::string& content) {
  return big_endian(content.size(), 4) + kind + content +
         big_endian(slow_crc(kind + content, 0xEDB88320U), 4);
}

inline std::string png_begin(uint64_t width, uint64_t height, char depth, char kind) {
  return "\x89PNG\r\n\x1A\n" + png_chunk("IHDR", big_endian(width, 4) + big_endian(height, 4) + depth + kind +
                                                     std::string(3, '\0'));
}

/// A zlib stream of `count` zeros, a thousandth as long.
inline std::string packed_zeros(size_t count) {
  // One block of fixed codes: a zero, then copies of the last byte, 258 at a time.
  std::string bits = "110";
  bits += "00110000";
  for (size_t done = 1; done < count; done += 258) {
    bits += "1100010100000";  // 285, at distance 1
  }
  bits += "0000000";
  bits.resize((bits.size() + 7) / 8 * 8, '0');
  std::string bytes = "\x78\x01";
  for (size_t i = 0; i < bits.size(); i += 8) {
    int byte = 0;
    for (size_t k = 0; k < 8; ++k) {
      byte |= (bits[i + k] == '1' ? 1 : 0) << k;
    }
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes + std::string(4, '\0');
}
