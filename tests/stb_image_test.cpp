// A program's own stb_image, in one file with the library's, before and after.
#if __has_include(<stb/stb_image.h>)
#define STB_IMAGE_IMPLEMENTATION
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb/stb_image.h>
#undef STB_IMAGE_IMPLEMENTATION
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#endif

#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/detail/io/stb_image.hpp>

#include <string>

#include "catch.hpp"
#include "test_util.hpp"

#ifdef MIXMATCH_HAS_STB_IMAGE
#if __has_include(<stb/stb_image.h>)
#include <stb/stb_image.h>
#endif

TEST_CASE("a program's own stb_image and the library's do not meet") {
#ifndef STBI_INCLUDE_STB_IMAGE_H
  FAIL("the program's guard is gone");
#endif
  const unsigned char picture[] = {'P', '6', ' ', '1', ' ', '1', ' ', '2', '5', '5', '\n', 1, 2, 3};
  int width = 0, height = 0, channels = 0;
  auto* theirs = ::stbi_load_from_memory(picture, sizeof picture, &width, &height, &channels, 3);
  REQUIRE(theirs != nullptr);
  CHECK(theirs[2] == 3);
  ::stbi_image_free(theirs);

  const auto dir = temp_dir();
  write_file(dir / "picture.ppm", std::string(reinterpret_cast<const char*>(picture), sizeof picture));
  CHECK(mixmatch::data::decode_image(dir / "picture.ppm", 1)[2].item<int64_t>() == 3);

  const unsigned char text[] = {'t', 'e', 'x', 't'};
  CHECK(::stbi_load_from_memory(text, sizeof text, &width, &height, &channels, 3) == nullptr);
  const std::string reason = ::stbi_failure_reason();
  CHECK_THAT(error_of([&] { mixmatch::data::decode_image(dir.path(), 1); }), contains("not a regular file"));
  CHECK(::stbi_failure_reason() == reason);
}
#else
TEST_CASE("there is no stb_image here") { SUCCEED(); }
#endif
