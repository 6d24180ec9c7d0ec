#include <mixmatch/atomic_file.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <filesystem>
#include <string>
#include <vector>

using mixmatch::write_file_atomically;

TEST_CASE("files are written whole or not at all") {
  const TempDir dir;
  const std::string bytes("a\0b\n", 4);
  write_file_atomically(dir / "f", bytes);
  CHECK(read_file(dir / "f") == bytes);
  write_file_atomically(dir / "f", "");
  CHECK(read_file(dir / "f").empty());
  const std::string large(3000000, 'x');
  write_file_atomically(dir / "f", large);
  CHECK(read_file(dir / "f") == large);

  const auto path = dir / "none" / "f";
  CHECK(error_of([&] { write_file_atomically(path, "x"); }) ==
        "cannot write " + path.string() + ": No such file or directory");
  std::filesystem::create_directory(dir / "d");
  write_file(dir / "d" / "x", "x");
  CHECK_THAT(error_of([&] { write_file_atomically(dir / "d", "x"); }), contains("cannot write"));
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    names.push_back(entry.path().filename().string());
  }
  CHECK(names.size() == 2);  // f and d: no temporary file is left
}

TEST_CASE("a file name without a directory is written here") {
  const TempDir dir;
  const auto here = std::filesystem::current_path();
  std::filesystem::current_path(dir.path());
  write_file_atomically("f", "x");
  std::filesystem::current_path(here);
  CHECK(read_file(dir / "f") == "x");
}
