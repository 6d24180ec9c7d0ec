#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <unistd.h>
#include <mixmatch/detail/io/jpeg_header.hpp>
#include <mixmatch/detail/io/picture_format.hpp>
#include <mixmatch/detail/io/picture_header.hpp>
#include <mixmatch/detail/io/png_header.hpp>
#include <mixmatch/detail/io/pnm.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/resize_image.hpp>
#include <mixmatch/detail/io/stb_image.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch::data {

using torch::Tensor;

struct DecodeImageOptions {
  /// A picture of more pixels (width times height) is refused before memory is taken for it. The default
  /// takes those of a camera of 108 million pixels.
  TORCH_ARG(int64_t, max_pixels) = int64_t{1} << 27;
};

namespace detail {

inline constexpr const char* no_stb_image =
    "this program was built without the stb_image library; install Debian's libstb-dev and build it again";

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

/// Size and orientation of a GIF, BMP or TGA picture; what is wrong, else "".
inline std::string read_simple_header(mixmatch::detail::PictureFormat format, std::string_view bytes,
                                      mixmatch::detail::PictureHeader& header) {
  using mixmatch::detail::PictureFormat;
  const mixmatch::detail::ByteView view{bytes};
  if (format == PictureFormat::gif) {
    header.width = view.little16(6);
    header.height = view.little16(8);
    return view.has(0, 13) ? "" : "the picture is cut short";
  }
  uint64_t begin = 0, bits = 0;  // of the pixels where nothing is compressed
  if (format == PictureFormat::bmp) {
    const bool old = view.little32(14) == 12;
    const auto width = static_cast<int32_t>(old ? view.little16(18) : view.little32(18));
    const auto height = static_cast<int32_t>(old ? view.little16(20) : view.little32(22));
    header.width = width;
    header.height = std::abs(int64_t{height});  // negative: the upper row first
    begin = view.little32(10);
    bits = view.little16(old ? 24 : 28);
    if (old && bits < 24) {
      return "a BMP file of the oldest kind with a palette, which is not read";
    }
    if (const uint32_t compression = old ? 0 : view.little32(30); compression != 0 && compression != 3) {
      return "a compressed BMP file, of a kind that is not read";
    }
    if (width < 0) {
      return "a damaged BMP file";
    }
  } else {
    header.width = view.little16(12);
    header.height = view.little16(14);
    if ((view.byte(17) & 0x10U) != 0) {  // from right to left
      header.orientation = 2;
    }
    const uint64_t palette = view.byte(1) == 0 ? 0 : view.little16(5) * uint64_t{(view.byte(7) + 7) / 8};
    if (view.byte(1) != 0 && view.little16(3) != 0) {
      return "a TGA file whose palette does not begin with the first colour, of a kind that is not read";
    }
    begin = 18 + view.byte(0) + palette;
    bits = view.byte(2) >= 8 ? 0 : (view.byte(16) + 7) / 8 * 8;  // run lengths from 8 on
  }
  const auto row = (static_cast<uint64_t>(header.width) * bits + 7) / 8;
  const uint64_t stride = format == PictureFormat::bmp ? (row + 3) / 4 * 4 : row;
  const auto height = static_cast<uint64_t>(header.height);
  return begin <= bytes.size() && (stride == 0 || height <= (bytes.size() - begin) / stride)
             ? ""
             : "the picture is cut short";
}

/// How many pixels a byte of a file can stand for at most.
inline constexpr int64_t pixels_per_byte(mixmatch::detail::PictureFormat format) {
  switch (format) {
    case mixmatch::detail::PictureFormat::jpeg:
      return 1024;  // blocks of 64 for 2 bits each, colours that are smaller
    case mixmatch::detail::PictureFormat::png:
      return 8 * 1032;  // deflate's best, for 8 pixels a byte
    case mixmatch::detail::PictureFormat::gif:
      return 4096;  // a code of at least 9 bits for at most 4,096
    case mixmatch::detail::PictureFormat::bmp:
      return 8;
    case mixmatch::detail::PictureFormat::tga:
      return 64;  // 128 for two bytes
    case mixmatch::detail::PictureFormat::pnm:
      return 1;
  }
  return 1;
}

inline std::string size_problem(mixmatch::detail::PictureFormat format,
                                const mixmatch::detail::PictureHeader& header, size_t bytes,
                                int64_t max_pixels) {
  const int64_t width = header.width, height = header.height;
  if (width < 1 || height < 1) {
    return c10::str("a picture of ", width, " x ", height, " pixels");
  }
  if (width > max_pixels / height) {
    return c10::str("a picture of ", width, " x ", height, " pixels, expected at most ", max_pixels,
                    " of them (max_pixels)");
  }
  if (width * height / pixels_per_byte(format) > static_cast<int64_t>(bytes)) {
    return c10::str("the file claims ", width, " x ", height, " pixels, which its ", bytes,
                    " bytes cannot hold");
  }
  return "";
}

#ifdef MIXMATCH_HAS_STB_IMAGE

/// What stb_image reads a picture's bytes through. It fills up a picture that is cut short by itself;
/// `past_end` tells.
struct PictureBytes {
  std::string_view bytes;
  size_t at = 0;
  bool past_end = false;
};

inline constexpr mixmatch::detail::stb::stbi_io_callbacks picture_callbacks{
    [](void* user, char* out, int size) {
      auto& self = *static_cast<PictureBytes*>(user);
      const size_t got = std::min(static_cast<size_t>(std::max(size, 0)), self.bytes.size() - self.at);
      std::copy_n(self.bytes.data() + self.at, got, out);
      self.at += got;
      // It reads 128 bytes ahead, and more only where the picture has them.
      self.past_end = self.past_end || got == 0 || (static_cast<int>(got) < size && size > 128);
      return static_cast<int>(got);
    },
    [](void* user, int count) {
      auto& self = *static_cast<PictureBytes*>(user);
      const size_t skipped = std::min(static_cast<size_t>(std::max(count, 0)), self.bytes.size() - self.at);
      self.at += skipped;
      self.past_end = self.past_end || static_cast<int>(skipped) < count;
    },
    [](void* user) {
      const auto& self = *static_cast<PictureBytes*>(user);
      return static_cast<int>(self.at == self.bytes.size());
    }};

using StbPixels = std::unique_ptr<mixmatch::detail::stb::stbi_uc, void (*)(void*)>;

/// Decodes by stb_image into interleaved RGB bytes; what is wrong, else "".
inline std::string decode_by_stb(std::string_view bytes, std::string_view format,
                                 const mixmatch::detail::PictureHeader& header, StbPixels& pixels) {
  namespace stb = mixmatch::detail::stb;
  auto& budget = mixmatch::detail::stb_memory::budget;
  // 32 bytes a pixel are more than any format needs (PNG of four times 16 bits: 24); JPEG rounds sizes up.
  budget.left = static_cast<size_t>(header.width + 64) * static_cast<size_t>(header.height + 64) * 32 +
                4 * bytes.size() + (size_t{1} << 20);
  budget.exceeded = false;
  PictureBytes file{bytes};
  int width = 0, height = 0, channels = 0;
  pixels.reset(
      stb::mixmatch_stbi_load_from_callbacks(&picture_callbacks, &file, &width, &height, &channels, 3));
  if (file.past_end) {
    return "the picture is cut short";
  }
  if (pixels == nullptr) {
    return budget.exceeded ? c10::str("a ", format, " file that takes more memory than its ", header.width,
                                      " x ", header.height, " pixels, or more than there is")
                           : c10::str("a damaged ", format, " file, or of a kind that is not read (",
                                      mixmatch::detail::printable(stb::mixmatch_stbi_failure_reason()), ")");
  }
  if (width != header.width || height != header.height) {
    return c10::str("a damaged ", format, " file");
  }
  return "";
}

/// A BMP's palette with fewer colours than a pixel can name is filled up with black, as Pillow's: stb_image
/// would take the others from memory that no one wrote.
inline void complete_bmp_palette(std::string& bytes) {
  const mixmatch::detail::ByteView view{bytes};
  const uint32_t bits = view.little16(28);
  const uint64_t begin = view.little32(10);  // of the pixels
  const uint32_t header = view.little32(14);
  const bool known = header == 40 || header == 56 || header == 108 || header == 124;
  const uint64_t full = 14 + uint64_t{header} + 4 * (uint64_t{1} << std::min(bits, 16U));
  if (known && bits <= 8 && begin < full && begin <= bytes.size()) {
    bytes.insert(begin, full - begin, '\0');
    for (size_t i = 0; i < 4; ++i) {
      bytes[10 + i] = static_cast<char>((full >> (8 * i)) & 0xFFU);
    }
  }
}

/// Turns three planes of size x size as the orientation says.
inline void turn_upright(int orientation, int64_t size, uint8_t* planes) {
  if (orientation == 1) {
    return;
  }
  const bool transposed = orientation >= 5;
  const bool rows_back = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool columns_back = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const std::vector<uint8_t> stored(planes, planes + 3 * size * size);
  for (int64_t c = 0; c < 3; ++c) {
    for (int64_t y = 0; y < size; ++y) {
      for (int64_t x = 0; x < size; ++x) {
        const int64_t row = transposed ? x : y, column = transposed ? y : x;
        const int64_t from_row = rows_back ? size - 1 - row : row;
        const int64_t from_column = columns_back ? size - 1 - column : column;
        planes[(c * size + y) * size + x] =
            stored[static_cast<size_t>((c * size + from_row) * size + from_column)];
      }
    }
  }
}

/// The picture as decode_image gives it, into 3 * size * size bytes; what is wrong with the file, else "".
inline std::string decode_picture(const std::filesystem::path& path, int64_t size, int64_t max_pixels,
                                  uint8_t* out) try {
  using mixmatch::detail::PictureFormat;
  // As many as a picture of 16 bits and four channels takes, and as much of other things in its file.
  const int64_t most_bytes = std::min(max_pixels, int64_t{1} << 40) * 8 + (int64_t{64} << 20);
  std::string bytes;
  std::string problem = read_picture_file(path, most_bytes, bytes);
  if (!problem.empty()) {
    return problem;
  }
  auto format = mixmatch::detail::picture_format(bytes);
  const auto extension = mixmatch::detail::small_extension(path.filename().native());
  if (!format.has_value() && mixmatch::detail::is_tga(bytes, mixmatch::detail::is_tga_extension(extension))) {
    format = PictureFormat::tga;
  }
  if (!format.has_value()) {
    const auto other = mixmatch::detail::foreign_format(bytes);
    return other.empty()
               ? c10::str("not a picture of a known format (", mixmatch::detail::picture_format_names,
                          " are read)")
               : c10::str("a ", other, " file; ", mixmatch::detail::picture_format_names, " are read");
  }
  mixmatch::detail::PictureHeader header;
  mixmatch::detail::PnmHeader pnm;
  switch (*format) {
    case PictureFormat::jpeg:
      problem = mixmatch::detail::JpegHeaderReader(bytes).read(header);
      break;
    case PictureFormat::png:
      problem = mixmatch::detail::read_png_header(bytes, header);
      break;
    case PictureFormat::pnm:
      problem = mixmatch::detail::read_pnm_header(bytes, pnm);
      header.width = pnm.width;
      header.height = pnm.height;
      break;
    default:
      problem = read_simple_header(*format, bytes, header);
  }
  if (problem.empty()) {
    problem = size_problem(*format, header, bytes.size(), max_pixels);
  }
  if (!problem.empty()) {
    return problem;
  }
  // Large pictures one after the other, or each thread would take a gigabyte.
  static std::mutex large_pictures;
  std::unique_lock<std::mutex> alone(large_pictures, std::defer_lock);
  if (header.width * header.height > int64_t{1} << 24) {
    alone.lock();
  }
  if (*format == PictureFormat::pnm) {
    std::vector<uint8_t> pixels(static_cast<size_t>(3 * header.width * header.height));
    problem = mixmatch::detail::read_pnm_pixels(bytes, pnm, pixels.data());
    if (problem.empty()) {
      mixmatch::detail::resize_and_crop(pixels.data(), header.width, header.height, size, out);
    }
    return problem;
  }
  StbPixels pixels(nullptr, [](void* memory) { mixmatch::detail::stb::mixmatch_stbi_image_free(memory); });
  if (*format == PictureFormat::bmp) {
    complete_bmp_palette(bytes);
  }
  problem = decode_by_stb(bytes, mixmatch::detail::picture_format_name(*format), header, pixels);
  if (problem.empty()) {
    mixmatch::detail::resize_and_crop(pixels.get(), header.width, header.height, size, out);
    turn_upright(header.orientation, size, out);
  }
  return problem;
} catch (const std::bad_alloc&) {
  return "not enough memory for the picture";
}

#else

inline std::string decode_picture(const std::filesystem::path&, int64_t, int64_t, uint8_t*) {
  return no_stb_image;
}

#endif

inline void check_decode_options(const char* caller, int64_t size, int64_t max_pixels) {
  TORCH_CHECK(size >= 1 && size <= 16384, caller, ": size must be in [1, 16384], got ", size);
  TORCH_CHECK(max_pixels >= 1, caller, ": max_pixels must be >= 1, got ", max_pixels);
}

}  // namespace detail

/// The picture in a file as uint8 [3, size, size], upright, RGB, on the CPU: resized so that its shorter side
/// is `size` (bilinear, antialiased where it shrinks), and the middle of its longer side cut out.
///
/// JPEG, PNG, BMP, GIF (first picture), TGA, binary PPM and PGM, by content and not by name; other formats
/// are refused by name. EXIF's orientation is obeyed (JPEG, PNG). Grey becomes RGB; of 16 bits a channel the
/// upper eight are taken, and a PPM's or PGM's white becomes 255. Transparency is dropped, as by Pillow's
/// convert("RGB"): a pixel has the colour that is stored, also where it was not to be seen.
///
/// Needs the stb_image library (Debian: libstb-dev, headers alone) when the program is built, and throws
/// without it. Takes at most about 32 bytes of memory a pixel. Throws c10::Error in one line "decode_image:
/// cannot read PATH: REASON": no such file, no permission, not a picture, cut short, damaged, of more than
/// options.max_pixels(), of more pixels than its bytes can hold, a JPEG of four colours without Adobe's
/// marker.
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
