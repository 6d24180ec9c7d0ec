#pragma once

#include <mixmatch/detail/io/byte_view.hpp>
#include <mixmatch/detail/io/exif.hpp>
#include <mixmatch/detail/io/picture_header.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// Goes through the markers of a JPEG file up to its end: size, EXIF orientation, and whether all is there
/// that its scans need, which stb_image takes on trust.
class JpegHeaderReader {
 public:
  explicit JpegHeaderReader(std::string_view bytes) : view_{bytes} {}

  /// What is wrong, else "".
  std::string read(PictureHeader& header) {
    uint64_t at = 2;
    for (;;) {
      while (view_.has(at, 1) && view_.byte(at) != 0xFF) {
        ++at;
      }
      while (view_.byte(at) == 0xFF) {
        ++at;
      }
      if (!view_.has(at, 1)) {
        return cut_short;
      }
      const uint32_t marker = view_.byte(at++);
      if (marker == 0xD9) {
        break;
      }
      if (marker <= 0x01 || (marker >= 0xD0 && marker <= 0xD8)) {  // these stand alone
        continue;
      }
      const uint64_t length = view_.big16(at);
      if (!view_.has(at, std::max<uint64_t>(length, 2))) {
        return cut_short;
      }
      if (length < 2) {
        return damaged;
      }
      std::string problem = segment(marker, at + 2, length - 2);
      if (!problem.empty()) {
        return problem;
      }
      at += length;
      if (marker == 0xDA) {
        at = end_of_scan(at);
      }
    }
    if (components_ == 0 || scans_ == 0) {
      return "a JPEG file without a picture";
    }
    if (covered_ != (1U << components_) - 1) {
      return cut_short;
    }
    if (components_ == 4 && adobe_transform_ != 0 && adobe_transform_ != 2) {
      return "a JPEG file of four colours (CMYK) without Adobe's marker, which says what they mean; save it "
             "as "
             "RGB";
    }
    header.width = width_;
    header.height = height_;
    header.orientation = orientation_;
    return "";
  }

 private:
  static constexpr const char* damaged = "a damaged JPEG file";
  static constexpr const char* cut_short = "the picture is cut short";
  static constexpr int most_scans =
      100;  // progressive files have about ten; each goes over the whole picture

  std::string segment(uint32_t marker, uint64_t at, uint64_t length) {
    switch (marker) {
      case 0xC4:
        return huffman_tables(at, at + length);
      case 0xDB:
        return quantization_tables(at, at + length);
      case 0xDA:
        return scan(at, length);
      case 0xE1:
        if (!has_exif_ && view_.part(at, 6) == std::string_view("Exif\0\0", 6)) {
          has_exif_ = true;
          orientation_ = exif_orientation(view_.part(at + 6, length - 6));
        }
        return "";
      case 0xEE:
        if (length >= 12 && view_.part(at, 5) == "Adobe") {
          adobe_transform_ = static_cast<int>(view_.byte(at + 11));
        }
        return "";
      case 0xC0:
      case 0xC1:
      case 0xC2:
        return frame(at, length, marker == 0xC2);
      default:
        // C3, C5 … CF but for those above: other ways to code.
        return marker >= 0xC3 && marker <= 0xCF
                   ? "a JPEG file of a kind that is not read (lossless, hierarchical or arithmetic coding)"
                   : "";
    }
  }

  std::string frame(uint64_t at, uint64_t length, bool progressive) {
    components_ = components_ == 0 ? static_cast<int>(view_.byte(at + 5)) : -1;
    if (components_ < 0 || length < 6 || length != 6 + 3 * static_cast<uint64_t>(components_)) {
      return damaged;
    }
    if (view_.byte(at) != 8) {
      return "a JPEG file of " + std::to_string(view_.byte(at)) + " bits a colour, where 8 are read";
    }
    if (components_ != 1 && components_ != 3 && components_ != 4) {
      return "a JPEG file of " + std::to_string(components_) + " colours, where 1, 3 and 4 are read";
    }
    progressive_ = progressive;
    height_ = view_.big16(at + 1);
    width_ = view_.big16(at + 3);
    uint32_t across = 1, down = 1;
    for (int i = 0; i < components_; ++i) {
      auto& component = component_[static_cast<size_t>(i)];
      const uint64_t from = at + 6 + 3 * static_cast<uint64_t>(i);
      component = {view_.byte(from), view_.byte(from + 1) >> 4, view_.byte(from + 1) & 15U,
                   view_.byte(from + 2)};
      if (component.across < 1 || component.across > 4 || component.down < 1 || component.down > 4 ||
          component.quantization > 3) {
        return damaged;
      }
      across = std::max(across, component.across);
      down = std::max(down, component.down);
    }
    for (int i = 0; i < components_; ++i) {
      const auto& component = component_[static_cast<size_t>(i)];
      if (across % component.across != 0 || down % component.down != 0) {
        return "a JPEG file of colours whose sizes are no whole parts of each other";
      }
    }
    return "";
  }

  std::string quantization_tables(uint64_t at, uint64_t end) {
    while (at < end) {
      const uint32_t which = view_.byte(at) & 15U, wide = view_.byte(at) >> 4;
      at += 1 + (wide != 0 ? 128U : 64U);
      if (which > 3 || wide > 1 || at > end) {
        return damaged;
      }
      quantization_ |= 1U << which;
    }
    return "";
  }

  std::string huffman_tables(uint64_t at, uint64_t end) {
    while (at < end) {
      const uint32_t which = view_.byte(at) & 15U, kind = view_.byte(at) >> 4;
      uint32_t values = 0, code = 0;
      for (uint64_t bits = 1; bits <= 16; ++bits) {
        const uint32_t codes = view_.byte(at + bits);
        values += codes;
        code = (code << 1) + codes;
        if (code > 1U << bits) {
          return damaged;
        }
      }
      at += 17 + values;
      if (which > 3 || kind > 1 || values > 256 || at > end) {
        return damaged;
      }
      huffman_[kind] |= 1U << which;
    }
    return "";
  }

  std::string scan(uint64_t at, uint64_t length) {
    const uint64_t count = view_.byte(at);
    if (components_ == 0 || count < 1 || count > static_cast<uint64_t>(components_) ||
        length != 4 + 2 * count) {
      return damaged;
    }
    if (++scans_ > most_scans) {
      return "a JPEG file of more than " + std::to_string(most_scans) + " scans";
    }
    const uint32_t first = view_.byte(at + 1 + 2 * count), step = view_.byte(at + 3 + 2 * count) >> 4;
    const bool direct = !progressive_ || first == 0;
    for (uint64_t i = 0; i < count; ++i) {
      const uint32_t id = view_.byte(at + 1 + 2 * i), tables = view_.byte(at + 2 + 2 * i);
      const auto* const begin = component_.data();
      const auto* const end = begin + components_;
      const auto* known = std::find_if(begin, end, [&](const Component& item) { return item.id == id; });
      if (known == end || (tables >> 4) > 3 || (tables & 15U) > 3) {
        return damaged;
      }
      const bool needs_direct = direct && step == 0;
      const bool needs_other = !progressive_ || first > 0;
      if ((quantization_ >> known->quantization & 1U) == 0 ||
          (needs_direct && (huffman_[0] >> (tables >> 4) & 1U) == 0) ||
          (needs_other && (huffman_[1] >> (tables & 15U) & 1U) == 0)) {
        return "a JPEG file without the tables that its picture needs";
      }
      if (direct) {
        covered_ |= 1U << static_cast<unsigned>(known - begin);
      }
    }
    return "";
  }

  /// The next marker behind the scan's data, in which 0xFF is followed by 0 or a restart's number.
  uint64_t end_of_scan(uint64_t at) const {
    for (;; ++at) {
      at = view_.bytes.find('\xFF', at);
      if (at == std::string_view::npos) {
        return view_.size();
      }
      const uint32_t next = view_.byte(at + 1);
      if (view_.has(at + 1, 1) && next != 0 && next != 0xFF && (next < 0xD0 || next > 0xD7)) {
        return at;
      }
    }
  }

  struct Component {
    uint32_t id = 0, across = 0, down = 0, quantization = 0;
  };

  ByteView view_;
  int64_t width_ = 0, height_ = 0;
  int components_ = 0, scans_ = 0, orientation_ = 1, adobe_transform_ = -1;
  bool progressive_ = false, has_exif_ = false;
  std::array<Component, 4> component_{};
  uint32_t quantization_ = 0, covered_ = 0;
  std::array<uint32_t, 2> huffman_{};
};

}  // namespace mixmatch::detail
