#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <unistd.h>
#include <mixmatch/detail/io/bmp.hpp>
#include <mixmatch/detail/io/jpeg.hpp>
#include <mixmatch/detail/io/picture.hpp>
#include <mixmatch/detail/io/picture_format.hpp>
#include <mixmatch/detail/io/png.hpp>
#include <mixmatch/detail/io/pnm.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/resize_image.hpp>
#include <mixmatch/detail/io/tiff.hpp>
#include <mixmatch/detail/io/webp.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <new>
#include <string>

namespace mixmatch::data {

using torch::Tensor;

struct DecodeImageOptions {
  /// A picture of more pixels (width times height) is refused before memory is taken for it. The default
  /// takes those of a camera of 108 million pixels.
  TORCH_ARG(int64_t, max_pixels) = int64_t{1} << 27;
};

namespace detail {

/// The bytes of a regular file of at most `most` bytes; what is wrong, else "".
inline std::string read_picture_file(const std::filesystem::path& path, int64_t most, std::string& bytes) {
  struct File {
    int descriptor;
    ~File() {
      if (descriptor >= 0) {
        ::close(descriptor);
      }
    }
  };
  // A pipe without a writer would wait for ever.
  const File file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat info {};
  if (file.descriptor < 0 || ::fstat(file.descriptor, &info) != 0) {
    const int error = errno;
    std::error_code ignored;
    return error == ENOENT && std::filesystem::is_symlink(std::filesystem::symlink_status(path, ignored))
               ? "a link to nothing"
           : error == ENXIO ? "not a regular file"
                            : std::strerror(error);
  }
  if (!S_ISREG(info.st_mode)) {
    return "not a regular file";
  }
  if (info.st_size == 0) {
    return "the file is empty";
  }
  if (info.st_size > most) {
    return c10::str("a file of ", info.st_size, " bytes, where a picture takes at most ", most,
                    " (max_pixels)");
  }
  bytes.resize(static_cast<size_t>(info.st_size));
  for (size_t done = 0; done < bytes.size();) {
    const auto got = ::read(file.descriptor, bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      return got < 0 ? std::strerror(errno) : "it became shorter while it was read";
    }
    done += static_cast<size_t>(got);
  }
  return "";
}

/// The picture as decode_image gives it, into 3 * size * size bytes; what is wrong with the file, else "".
inline std::string decode_picture(const std::filesystem::path& path, int64_t size, int64_t max_pixels,
                                  uint8_t* out) try {
  namespace io = mixmatch::detail;
  // As many as a picture of 16 bits and four channels takes, and as much of other things in its file.
  const int64_t most_bytes = std::min(max_pixels, int64_t{1} << 40) * 8 + (int64_t{64} << 20);
  std::string bytes;
  std::string problem = read_picture_file(path, most_bytes, bytes);
  if (!problem.empty()) {
    return problem;
  }
  const auto format = io::picture_format(bytes);
  if (!format.has_value()) {
    const auto other = io::foreign_format(bytes, io::small_extension(path.filename().native()));
    return other.empty()
               ? c10::str("not a picture of a known format (", io::picture_format_names, " are read)")
               : c10::str("a ", other, " file; ", io::picture_format_names, " are read");
  }
  io::Picture picture;
  picture.size = size;
  picture.max_pixels = max_pixels;
  constexpr std::array decoders{
      io::decode_jpeg, io::decode_png, io::decode_webp,  // as PictureFormat has them
      io::decode_tiff, io::decode_bmp, io::decode_pnm};
  problem = decoders[static_cast<size_t>(*format)](bytes, picture);
  if (problem.empty()) {
    const int64_t side = std::min(picture.stored_width, picture.stored_height);
    const auto begin = [&](int64_t length) {
      return picture.scale * static_cast<double>((length - side) / 2);
    };
    io::crop_and_resize(picture.rgb.get(), picture.width, picture.height, begin(picture.stored_width),
                        begin(picture.stored_height), picture.scale * static_cast<double>(side),
                        picture.orientation, size, out);
  }
  return problem;
} catch (const std::bad_alloc&) {
  return "not enough memory for the picture";
}

inline void check_decode_options(const char* caller, int64_t size, int64_t max_pixels) {
  TORCH_CHECK(size >= 1 && size <= 16384, caller, ": size must be in [1, 16384], got ", size);
  TORCH_CHECK(max_pixels >= 1, caller, ": max_pixels must be >= 1, got ", max_pixels);
}

}  // namespace detail

/// The picture in a file as uint8 [3, size, size], upright, RGB, on the CPU: resized so that its shorter side
/// is `size` (bilinear, antialiased where it shrinks), and the middle of its longer side cut out.
///
/// JPEG, PNG, WebP, TIFF, BMP (not compressed), binary PPM and PGM, by content and not by name; other formats
/// are refused by name, and so is an animated WebP. Of an animated PNG, or of several pictures in one file,
/// the first. EXIF's orientation is obeyed (JPEG, PNG, WebP, TIFF). Grey becomes RGB; of 16 bits a channel
/// the upper eight are taken, and a PPM's or PGM's white becomes 255. CMYK becomes RGB as by Pillow: without
/// a colour profile, and JPEG's inks inverted, with Adobe's marker or without. Transparency is dropped, as by
/// Pillow's convert("RGB"): a pixel has the colour that is stored, also where it was not to be seen. A JPEG
/// is decoded at a part of its size where twice `size` still remains.
///
/// JPEG, PNG, WebP and TIFF need libjpeg-turbo, libpng, libwebp and libtiff 4.5 (Debian: libjpeg-dev,
/// libpng-dev, libwebp-dev, libtiff-dev) when the program is configured, and are refused without. Takes at
/// most about 16 bytes of memory a pixel. Throws c10::Error in one line "decode_image: cannot read PATH:
/// REASON": no such file, no permission, not a picture, cut short, damaged, of more than
/// options.max_pixels(), of more pixels than its bytes can hold.
inline Tensor decode_image(const std::filesystem::path& path, int64_t size,
                           const DecodeImageOptions& options = {}) {
  detail::check_decode_options("decode_image", size, options.max_pixels());
  Tensor image = at::empty({3, size, size}, at::kByte);
  const std::string reason =
      detail::decode_picture(path, size, options.max_pixels(), image.data_ptr<uint8_t>());
  TORCH_CHECK(reason.empty(), "decode_image: cannot read ", mixmatch::detail::printable(path), ": ", reason);
  return image;
}

}  // namespace mixmatch::data
