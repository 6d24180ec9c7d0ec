// What a program says that was built where neither matio nor stb_image is installed.
#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/svhn.hpp>

#include <cstdio>
#include <string>

#include "test_util.hpp"

namespace data = mixmatch::data;

#if defined(MIXMATCH_HAS_MATIO) || defined(MIXMATCH_HAS_STB_IMAGE)
#error "this is to be compiled without the optional libraries"
#endif

namespace {

bool says(const std::string& message, const std::string& function, const std::string& package) {
  const bool right = message.find(function + ": cannot read some where: ") == 0 &&
                     message.find('\n') == std::string::npos &&
                     message.find("install Debian's " + package) != std::string::npos;
  std::printf("%s: %s\n", right ? "ok" : "wrong", message.c_str());
  return right;
}

}  // namespace

int main() {
  const auto dir = temp_dir();
  write_file(dir / "x.png", "");
  bool right =
      says(error_of([] { data::load_svhn("some where", data::Split::train); }), "load_svhn", "libmatio-dev");
  right =
      says(error_of([] { data::load_image_folder("some where", 32); }), "load_image_folder", "libstb-dev") &&
      right;
  right = says(error_of([] { data::decode_image("some where", 32); }), "decode_image", "libstb-dev") && right;
  return right && data::list_images(dir.path()).size() == 1 ? 0 : 1;
}
