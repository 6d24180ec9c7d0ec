#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// What a file is by its first bytes, whatever its name.

namespace mixmatch::detail {

enum class PictureFormat { jpeg, png, webp, tiff, bmp, pnm };

inline constexpr std::string_view picture_format_names = "JPEG, PNG, WebP, TIFF, BMP, PPM and PGM";

/// How many of a file's first bytes tell its format.
inline constexpr size_t picture_magic_size = 32;

/// A TIFF file to all others.
inline constexpr std::string_view canon_raw{"II*\0\x10\0\0\0CR", 10};

/// The format of which a file with this beginning is a picture.
inline std::optional<PictureFormat> picture_format(std::string_view begin) {
  using std::string_view_literals::operator""sv;
  if (begin.starts_with("\xFF\xD8\xFF"sv)) {
    return PictureFormat::jpeg;
  }
  if (begin.starts_with("\x89PNG\r\n\x1A\n"sv)) {
    return PictureFormat::png;
  }
  if (begin.starts_with("RIFF"sv) && begin.size() > 8 && begin.substr(8).starts_with("WEBP"sv)) {
    return PictureFormat::webp;
  }
  if ((begin.starts_with("II*\0"sv) && !begin.starts_with(canon_raw)) || begin.starts_with("MM\0*"sv) ||
      begin.starts_with("II+\0"sv) || begin.starts_with("MM\0+"sv)) {
    return PictureFormat::tiff;
  }
  // Four bytes that are 0 in every file that is written today, and then the length of the next header.
  if (begin.starts_with("BM"sv) && begin.size() > 18 && begin[6] == 0 && begin[7] == 0 && begin[8] == 0 &&
      begin[9] == 0 && static_cast<unsigned char>(begin[14]) >= 12 && begin[15] == 0 && begin[16] == 0) {
    return PictureFormat::bmp;
  }
  if ((begin.starts_with("P5"sv) || begin.starts_with("P6"sv)) && begin.size() > 2 &&
      "\t\n\v\f\r #"sv.find(begin[2]) != std::string_view::npos) {
    return PictureFormat::pnm;
  }
  return std::nullopt;
}

/// The name of another format of pictures, or of one that pictures are taken for; "" if it is none of those.
/// A TGA file is known by its name alone: its beginning tells nothing.
inline std::string_view foreign_format(std::string_view begin, std::string_view extension) {
  using std::string_view_literals::operator""sv;
  struct Magic {
    size_t at;
    std::string_view bytes, name;
  };
  static constexpr std::array magics{Magic{0, "GIF8"sv, "GIF"},
                                     Magic{0, canon_raw, "camera raw"},
                                     Magic{4, "ftypavif"sv, "AVIF"},
                                     Magic{4, "ftypavis"sv, "AVIF"},
                                     Magic{4, "ftyphei"sv, "HEIC"},
                                     Magic{4, "ftyphev"sv, "HEIC"},
                                     Magic{4, "ftypmif1"sv, "HEIF"},
                                     Magic{4, "ftypmsf1"sv, "HEIF"},
                                     Magic{4, "ftypcrx"sv, "camera raw"},
                                     Magic{0, "IIRO"sv, "camera raw"},
                                     Magic{0, "IIU\0"sv, "camera raw"},
                                     Magic{0, "FUJIFILMCCD-RAW"sv, "camera raw"},
                                     Magic{4, "ftyp"sv, "film"},
                                     Magic{8, "AVI "sv, "film"},
                                     Magic{0, "\x1A\x45\xDF\xA3"sv, "film"},
                                     Magic{0, "\xFF\x0A"sv, "JPEG XL"},
                                     Magic{4, "JXL \r\n"sv, "JPEG XL"},
                                     Magic{4, "jP  \r\n"sv, "JPEG 2000"},
                                     Magic{0, "\xFF\x4F\xFF\x51"sv, "JPEG 2000"},
                                     Magic{0, "8BPS"sv, "Photoshop"},
                                     Magic{0, "#?RADIANCE"sv, "Radiance HDR"},
                                     Magic{0, "#?RGBE"sv, "Radiance HDR"},
                                     Magic{0, "\x76\x2F\x31\x01"sv, "OpenEXR"},
                                     Magic{0, "\x53\x80\xF6\x34"sv, "Softimage PIC"},
                                     Magic{0, "qoif"sv, "QOI"},
                                     Magic{0, "DDS "sv, "DDS"},
                                     Magic{0, "\0\0\1\0"sv, "icon"},
                                     Magic{0, "gimp xcf"sv, "GIMP"},
                                     Magic{0, "SIMPLE  ="sv, "FITS"},
                                     Magic{0, "%PDF-"sv, "PDF"},
                                     Magic{0, "%!PS"sv, "PostScript"},
                                     Magic{0, "<svg"sv, "SVG"},
                                     Magic{0, "version https://git-lfs"sv, "Git-LFS pointer"}};
  for (const auto& magic : magics) {
    if (begin.size() > magic.at && begin.substr(magic.at).starts_with(magic.bytes) &&
        (magic.at != 8 || begin.starts_with("RIFF"))) {
      return magic.name;
    }
  }
  if (begin.size() > 2 && begin[0] == 'P' && "\t\n\v\f\r #"sv.find(begin[2]) != std::string_view::npos) {
    switch (begin[1]) {
      case '1':
      case '4':
        return "PBM";
      case '2':
      case '3':
        return "plain-text PPM or PGM";
      case '7':
        return "PAM";
      default:
        break;
    }
  }
  return extension == ".tga" ? "TGA" : "";
}

/// The extension of a file's name in small letters, with its dot; "" if it has none.
inline std::string small_extension(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || dot == 0) {
    return "";
  }
  std::string extension(name.substr(dot));
  for (char& c : extension) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return extension;
}

/// Whether a file of such a name is a picture of one of the formats, if what it says is true.
inline bool is_picture_extension(std::string_view extension) {
  constexpr std::array<std::string_view, 13> extensions{".png",  ".jpg", ".jpeg", ".jpe", ".jfif",
                                                        ".webp", ".tif", ".tiff", ".bmp", ".dib",
                                                        ".ppm",  ".pgm", ".pnm"};
  return std::find(extensions.begin(), extensions.end(), extension) != extensions.end();
}

}  // namespace mixmatch::detail
