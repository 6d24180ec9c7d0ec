#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/printable.hpp>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>

namespace mixmatch::detail {

/// A file's bytes. Throws c10::Error "cannot read PATH: REASON".
inline std::string read_whole_file(const std::filesystem::path& path) {
  std::error_code ignored;
  TORCH_CHECK(!std::filesystem::is_directory(path, ignored), "cannot read ", printable(path),
              ": it is a directory");
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  TORCH_CHECK(in.is_open(), "cannot read ", printable(path), ": ", std::strerror(errno));
  std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  TORCH_CHECK(!in.bad(), "cannot read ", printable(path), ": ", std::strerror(errno));
  return bytes;
}

}  // namespace mixmatch::detail
