#include <mixmatch/io/atomic_file.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

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

TEST_CASE("a symbolic link stays one, and the file it leads to is replaced") {
  namespace fs = std::filesystem;
  const TempDir dir;
  fs::create_directory(dir / "real");
  write_file(dir / "real" / "f", "old");
  fs::permissions(dir / "real" / "f", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("real/f", dir / "link");
  fs::create_symlink("link", dir / "second");
  write_file_atomically(dir / "second", "new");
  CHECK(read_file(dir / "real" / "f") == "new");
  CHECK(fs::is_symlink(dir / "link"));
  CHECK(fs::is_symlink(dir / "second"));
  CHECK(fs::status(dir / "real" / "f").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
  fs::create_symlink("real/none yet", dir / "dangling");
  write_file_atomically(dir / "dangling", "made");
  CHECK(read_file(dir / "real" / "none yet") == "made");
  fs::create_symlink("circle", dir / "circle");
  CHECK_THAT(error_of([&] { write_file_atomically(dir / "circle", "x"); }), contains("cannot write"));
}

TEST_CASE("what is no regular file is written into, never replaced") {
  namespace fs = std::filesystem;
  write_file_atomically("/dev/null", "x");
  CHECK(fs::is_character_file("/dev/null"));
  CHECK_THAT(error_of([] { write_file_atomically("/dev/full", "x"); }),
             contains("cannot write /dev/full: No space left on device"));

  const TempDir dir;
  REQUIRE(::mkfifo((dir / "pipe").c_str(), 0600) == 0);
  const int reader = ::open((dir / "pipe").c_str(), O_RDONLY | O_NONBLOCK);
  write_file_atomically(dir / "pipe", "into the pipe");
  std::string got(64, ' ');
  got.resize(static_cast<size_t>(::read(reader, got.data(), got.size())));
  ::close(reader);
  CHECK(got == "into the pipe");
  CHECK(fs::is_fifo(dir / "pipe"));

  // As /dev/stdout: a link by way of /proc to whatever file is open.
  const int file = ::open((dir / "open").c_str(), O_WRONLY | O_CREAT, 0600);
  fs::create_symlink("/proc/self/fd/" + std::to_string(file), dir / "stdout");
  write_file_atomically(dir / "stdout", "through");
  struct stat by_descriptor {
  }, by_name{};
  REQUIRE(::fstat(file, &by_descriptor) == 0);
  REQUIRE(::stat((dir / "open").c_str(), &by_name) == 0);
  ::close(file);
  CHECK(by_descriptor.st_ino == by_name.st_ino);
  CHECK(read_file(dir / "open") == "through");
}
