// What a program says that was built where no optional library is installed.
#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/svhn.hpp>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "test_util.hpp"

namespace data = mixmatch::data;

#if defined(MIXMATCH_HAS_MATIO) || defined(MIXMATCH_HAS_JPEG) || defined(MIXMATCH_HAS_PNG) || \
    defined(MIXMATCH_HAS_WEBP) || defined(MIXMATCH_HAS_TIFF)
#error "this is to be compiled without the optional libraries"
#endif

namespace {

bool says(const std::string& message, const std::string& begin, const std::string& package) {
  const bool right =
      message.rfind(begin + ": ", 0) == 0 && message.find('\n') == std::string::npos &&
      message.find("install Debian's " + package + " and configure again") != std::string::npos;
  std::printf("%s: %s\n", right ? "ok" : "wrong", message.c_str());
  return right;
}

}  // namespace

int main() {
  const auto dir = temp_dir();
  bool right = says(error_of([] { data::load_svhn("some where", data::Split::train); }),
                    "load_svhn: cannot read some where", "libmatio-dev");
  const std::vector<std::array<std::string, 3>> formats{
      {"x.jpg", "\xFF\xD8\xFF\xE0", "libjpeg-dev"},
      {"x.png", "\x89PNG\r\n\x1A\n", "libpng-dev"},
      {"x.webp", std::string("RIFF\0\0\0\0WEBPVP8 ", 16), "libwebp-dev"},
      {"x.tif", std::string("II*\0\x08\0\0\0", 8), "libtiff-dev"}};
  for (const auto& [name, bytes, package] : formats) {
    const auto path = dir / "labeled/a" / name;
    std::filesystem::create_directories(path.parent_path());
    write_file(path, bytes);
    right = says(error_of([&, file = path] { data::decode_image(file, 32); }),
                 "decode_image: cannot read " + path.string(), package) &&
            right;
  }
  // What needs no library is read all the same; a class of nothing else is refused with the reason.
  write_file(dir / "x.ppm", "P6 1 1 255\n\x01\x02\x03");
  right = data::decode_image(dir / "x.ppm", 1)[2].item<int64_t>() == 3 && right;
  std::filesystem::create_directory(dir / "labeled/b");
  std::filesystem::copy(dir / "x.ppm", dir / "labeled/b");
  right =
      says(error_of([&] { data::load_image_folder(dir.path(), 4); }),
           "load_image_folder: class \"a\" has no readable picture; " + (dir / "labeled/a/x.jpg").string(),
           "libjpeg-dev") &&
      right;
  return right && data::list_images(dir.path()).size() == 6 ? 0 : 1;
}
