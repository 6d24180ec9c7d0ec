#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <unistd.h>
#include <mixmatch/data/picture_fit.hpp>
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
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

namespace mixmatch::data {

using torch::Tensor;

struct DecodeImageOptions {
  /// A picture of more pixels (width times height) is refused before memory is taken for it. The default
  /// takes those of a camera of 108 million pixels.
  TORCH_ARG(int64_t, max_pixels) = int64_t{1} << 27;
  TORCH_ARG(PictureFit, fit) = PictureFit::crop;
};

namespace detail {

/// A regular file that is open for reading, of at most `most` bytes; else `problem` is what is wrong.
class PictureFile {
 public:
  PictureFile(const std::filesystem::path& path, int64_t most)
      // A pipe without a writer would wait for ever.
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat info {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &info) != 0) {
      const int error = errno;
      std::error_code ignored;
      problem = error == ENOENT && std::filesystem::is_symlink(std::filesystem::symlink_status(path, ignored))
                    ? "a link to nothing"
                : error == ENXIO ? "not a regular file"
                                 : std::strerror(error);
    } else if (!S_ISREG(info.st_mode)) {
      problem = "not a regular file";
    } else if (info.st_size == 0) {
      problem = "the file is empty";
    } else if (info.st_size > most) {
      problem = c10::str("a file of ", info.st_size, " bytes, where a picture takes at most ", most,
                         " (max_pixels)");
    }
    size = info.st_size;
  }
  PictureFile(const PictureFile&) = delete;
  PictureFile& operator=(const PictureFile&) = delete;
  ~PictureFile() {
    if (descriptor_ >= 0) {
      ::close(descriptor_);
    }
  }

  /// Its `count` bytes from `begin` on, as many as there are; a problem is kept.
  std::string read(int64_t begin, int64_t count) {
    std::string bytes(static_cast<size_t>(std::clamp<int64_t>(size - begin, 0, count)), '\0');
    for (size_t done = 0; problem.empty() && done < bytes.size();) {
      const auto got = ::pread(descriptor_, bytes.data() + done, bytes.size() - done,
                               static_cast<off_t>(begin) + static_cast<off_t>(done));
      if (got < 0 && errno == EINTR) {
        continue;
      }
      if (got <= 0) {
        problem = got < 0 ? std::strerror(errno) : "it became shorter while it was read";
      }
      done += static_cast<size_t>(std::max<ssize_t>(got, 0));
    }
    return bytes;
  }

  int64_t size = 0;
  std::string problem;

 private:
  int descriptor_;
};

/// Most bytes that a picture's file may have: as many as one of 16 bits and four channels takes, and as much
/// of other things.
inline int64_t most_picture_bytes(int64_t max_pixels) {
  return std::min(max_pixels, int64_t{1} << 40) * 8 + (int64_t{64} << 20);
}

/// What is wrong with the format that a picture's file begins as, else "". `extension` is that of its name.
inline std::string format_problem(std::string_view begin, std::string_view extension) {
  namespace io = mixmatch::detail;
  if (io::picture_format(begin).has_value()) {
    return "";
  }
  const auto other = io::foreign_format(begin, extension);
  return other.empty() ? c10::str("not a picture of a known format (", io::picture_format_names, " are read)")
                       : c10::str("a ", other, " file; ", io::picture_format_names, " are read");
}

/// The picture as decode_image gives it of a file's bytes, into 3 * size * size bytes; what is wrong with
/// them, else "". `extension`: of the file's name, in small letters, if it has one.
inline std::string decode_picture(std::string_view bytes, std::string_view extension, int64_t size,
                                  const DecodeImageOptions& options, uint8_t* out) try {
  namespace io = mixmatch::detail;
  std::string problem = bytes.empty() ? "it is empty" : format_problem(bytes, extension);
  if (!problem.empty()) {
    return problem;
  }
  io::Picture picture;
  picture.size = size;
  picture.max_pixels = options.max_pixels();
  constexpr std::array decoders{
      io::decode_jpeg, io::decode_png, io::decode_webp,  // as PictureFormat has them
      io::decode_tiff, io::decode_bmp, io::decode_pnm};
  problem = decoders[static_cast<size_t>(*io::picture_format(bytes))](bytes, picture);
  if (!problem.empty()) {
    return problem;
  }
  if (options.fit() == PictureFit::letterbox) {
    io::resize_whole(picture.rgb.get(), picture.width, picture.height,
                     picture.scale * static_cast<double>(picture.stored_width),
                     picture.scale * static_cast<double>(picture.stored_height), picture.orientation, size,
                     out);
    return "";
  }
  const int64_t side = std::min(picture.stored_width, picture.stored_height);
  const auto begin = [&](int64_t length) { return picture.scale * static_cast<double>((length - side) / 2); };
  io::crop_and_resize(picture.rgb.get(), picture.width, picture.height, begin(picture.stored_width),
                      begin(picture.stored_height), picture.scale * static_cast<double>(side),
                      picture.orientation, size, out);
  return "";
} catch (const std::bad_alloc&) {
  return "not enough memory for the picture";
}

/// The same of a file.
inline std::string decode_picture(const std::filesystem::path& path, int64_t size,
                                  const DecodeImageOptions& options, uint8_t* out) try {
  PictureFile file(path, most_picture_bytes(options.max_pixels()));
  const std::string bytes = file.problem.empty() ? file.read(0, file.size) : "";
  return file.problem.empty()
             ? decode_picture(bytes, mixmatch::detail::small_extension(path.filename().native()), size,
                              options, out)
             : file.problem;
} catch (const std::bad_alloc&) {
  return "not enough memory for the picture";
}

/// Bytes as the decoders take them.
inline std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline void check_decode_options(const char* caller, int64_t size, int64_t max_pixels) {
  TORCH_CHECK(size >= 1 && size <= 16384, caller, ": size must be in [1, 16384], got ", size);
  TORCH_CHECK(max_pixels >= 1, caller, ": max_pixels must be >= 1, got ", max_pixels);
}

}  // namespace detail

/// The picture in a file as uint8 [3, size, size], upright, RGB, on the CPU: the square in its middle, resized
/// (bilinear, antialiased where it shrinks; of what lies outside the square nothing is seen); or as
/// options.fit() says.
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
  const std::string reason = detail::decode_picture(path, size, options, image.data_ptr<uint8_t>());
  TORCH_CHECK(reason.empty(), "decode_image: cannot read ", mixmatch::detail::printable(path), ": ", reason);
  return image;
}

/// The same of a picture file's bytes, which are somewhere in memory: a request's body, a record of a larger
/// file. Throws "decode_image: cannot read a picture in memory: REASON".
inline Tensor decode_image(std::span<const std::byte> bytes, int64_t size,
                           const DecodeImageOptions& options = {}) {
  detail::check_decode_options("decode_image", size, options.max_pixels());
  Tensor image = at::empty({3, size, size}, at::kByte);
  const std::string reason =
      detail::decode_picture(detail::text_of(bytes), "", size, options, image.data_ptr<uint8_t>());
  TORCH_CHECK(reason.empty(), "decode_image: cannot read a picture in memory: ", reason);
  return image;
}

}  // namespace mixmatch::data
