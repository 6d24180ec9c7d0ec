#include <mixmatch/data/list_images.hpp>

#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "catch.hpp"
#include "pictures.hpp"
#include "test_util.hpp"

using mixmatch::data::describe;
using mixmatch::data::find_images;
using mixmatch::data::list_images;
namespace fs = std::filesystem;

TEST_CASE("list_images finds images by extension, at any depth, in order") {
  const auto dir = temp_dir();
  for (const std::string name : {"b.png", "a.JPG", "sub/c.jpeg", "sub/deep er/d.Bmp", "sub-1/e.webp",
                                 "\xc3\xa4\xe2\x82\xac \xf0\x9f\x90\x88.TIF", "f.ppm", "g.pgm", "notes.txt",
                                 "png", "h.png.bak", ".hidden.png", ".cache/i.png", "two words.png"}) {
    write_picture(dir / name, "x");
  }
  fs::create_directory(dir / "folder.png");
  write_file(dir / "folder.png/j.png", "x");
  fs::create_symlink("missing", dir / "dangling.png");
  fs::create_directory_symlink("..", dir / "sub/up");  // round in a circle
  fs::create_directory_symlink(dir.path(), dir / "sub/deep er/top");
  REQUIRE(::mkfifo((dir / "pipe.png").c_str(), 0666) == 0);
  CHECK(list_images(dir.path()) ==
        std::vector<std::string>{"a.JPG", "b.png", "dangling.png", "f.ppm", "folder.png/j.png", "g.pgm",
                                 "sub-1/e.webp", "sub/c.jpeg", "sub/deep er/d.Bmp", "two words.png",
                                 "\xc3\xa4\xe2\x82\xac \xf0\x9f\x90\x88.TIF"});
  CHECK_THAT(error_of([&] { list_images(dir / "none"); }),
             contains("list_images: cannot read directory " + (dir / "none").string() + ": No such file"));
  CHECK_THAT(error_of([&] { list_images(dir / "b.png"); }), contains("Not a directory"));
  if (make_unreadable(dir / "sub")) {
    CHECK_THAT(error_of([&] { list_images(dir.path()); }),
               contains((dir / "sub").string() + ": Permission denied"));
    fs::permissions(dir / "sub", fs::perms::owner_all);
  }
}

TEST_CASE("list_images follows links to directories elsewhere") {
  const auto dir = temp_dir();
  write_picture(dir / "elsewhere/a.png", "x");
  fs::create_directories(dir / "here");
  fs::create_directory_symlink(dir / "elsewhere", dir / "here/linked");
  CHECK(list_images(dir / "here") == std::vector<std::string>{"linked/a.png"});
}

TEST_CASE("find_images: what a file is counts, where its name does not say it is a picture") {
  const auto dir = temp_dir();
  write_picture(dir / "a/photo", png(1, 2, 3));
  write_picture(dir / "a/photo.dat", block_jpeg({{{1}}}));
  write_picture(dir / "x.jfif", "x");
  write_picture(dir / "y", std::string("RIFF\x9A\0\0\0WEBPVP8 ", 16));
  write_picture(dir / "z", std::string("MM\0*\0\0\0\x08", 8));
  CHECK(find_images(dir.path()).files ==
        std::vector<std::string>{"a/photo", "a/photo.dat", "x.jfif", "y", "z"});
  CHECK(find_images(dir.path()).left_out.empty());
}

TEST_CASE("find_images: every entry is used, or counted by its kind") {
  const auto dir = temp_dir();
  write_picture(dir / "1.png", "x");
  write_picture(dir / "a/1.gif", "GIF89a");
  write_picture(dir / "a/2.gif", "GIF87a");
  write_picture(dir / "b", "GIF89a");
  write_picture(dir / "c.TGA", std::string("\0\0\x02", 3));
  write_picture(dir / "d.heic", std::string("\0\0\0\x18"
                                            "ftypheic",
                                            12));
  write_picture(dir / "notes.txt", "");
  write_picture(dir / "no extension", "text");
  write_picture(dir / "@eaDir/1.png/thumb.jpg", "x");
  write_picture(dir / "a/@eaDir/2.jpg", "x");
  write_picture(dir / ".thumbnails/1.png", "x");
  write_picture(dir / "__MACOSX/1.png", "x");
  write_picture(dir / ".DS_Store", "x");
  write_picture(dir / "a/._1.png", "x");
  write_picture(dir / "Thumbs.db", "x");
  fs::create_symlink("nowhere", dir / "gone");
  REQUIRE(::mkfifo((dir / "pipe.png").c_str(), 0666) == 0);
  write_picture(dir / "strange.\x1B[2J", "x");

  const auto found = find_images(dir.path());
  CHECK(found.files == std::vector<std::string>{"1.png"});
  std::vector<std::string> serious, incidental;
  for (const auto& item : found.left_out) {
    (item.incidental ? incidental : serious).push_back(describe(item));
  }
  CHECK(incidental == std::vector<std::string>{
                          "left out: 2 hidden files (its name begins with a dot), e.g. .DS_Store",
                          R"(left out: 1 ".thumbnails" folder (its name begins with a dot): .thumbnails)",
                          R"(left out: 2 "@eaDir" folders (made by a system, not by you), e.g. @eaDir)",
                          R"(left out: 1 "Thumbs.db" file (made by a system, not by you): Thumbs.db)",
                          R"(left out: 1 "__MACOSX" folder (made by a system, not by you): __MACOSX)"});
  CHECK(serious ==
        std::vector<std::string>{"left out: 3 GIF files (not a format that is read), e.g. a/1.gif",
                                 "left out: 1 TGA file (not a format that is read): c.TGA",
                                 "left out: 1 HEIC file (not a format that is read): d.heic",
                                 "left out: 1 link to nothing (the file or folder is gone): gone",
                                 "left out: 1 file without extension (not a picture): no extension",
                                 R"(left out: 1 ".txt" file (not a picture): notes.txt)",
                                 "left out: 1 special file (a pipe, socket or device): pipe.png",
                                 R"(left out: 1 ".\x1b[2j" file (not a picture): strange.\x1b[2J)"});
}
