#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/image_pool.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include "catch.hpp"
#include "pictures.hpp"
#include "test_util.hpp"

#ifdef MIXMATCH_HAS_PNG

using mixmatch::data::decode_image;
using mixmatch::data::describe;
using mixmatch::data::ImageFolder;
using mixmatch::data::ImageFolderOptions;
using mixmatch::data::load_image_folder;
using mixmatch::training::encode_png;
namespace fs = std::filesystem;

namespace {

std::string folder_error(const fs::path& dir, const ImageFolderOptions& options = {}) {
  const auto message = error_of([&] { load_image_folder(dir, 4, options); });
  CHECK((message.empty() || message.find("load_image_folder: ") == 0));
  CHECK(message.find('\n') == std::string::npos);
  return message;
}

/// Two classes of two pictures, three unlabeled ones.
void write_folder(const fs::path& dir) {
  write_picture(dir / "labeled/dog/b.png", png(2, 0, 0));
  write_picture(dir / "labeled/dog/a.png", png(1, 0, 0));
  write_picture(dir / "labeled/cat/deep/x.PNG", png(4, 0, 0));
  write_picture(dir / "labeled/cat/y.png", png(5, 0, 0));
  write_picture(dir / "unlabeled/2.png", png(12, 0, 0));
  write_picture(dir / "unlabeled/1/1.png", png(11, 0, 0));
  write_picture(dir / "unlabeled/3.png", png(13, 0, 0));
}

}  // namespace

TEST_CASE("load_image_folder reads labeled and unlabeled pictures in order") {
  const auto dir = temp_dir();
  write_folder(dir.path());
  const ImageFolder folder = load_image_folder(dir.path(), 4);
  CHECK(folder.class_names == std::vector<std::string>{"cat", "dog"});
  CHECK(folder.images.sizes() == at::IntArrayRef({7, 3, 4, 4}));
  CHECK(folder.images.scalar_type() == at::kByte);
  CHECK(folder.labels.equal(at::tensor({0, 0, 1, 1, -1, -1, -1}, at::kLong)));
  CHECK(folder.files == std::vector<std::string>{"labeled/cat/deep/x.PNG", "labeled/cat/y.png",
                                                 "labeled/dog/a.png", "labeled/dog/b.png",
                                                 "unlabeled/1/1.png", "unlabeled/2.png", "unlabeled/3.png"});
  CHECK(folder.images.select(1, 0).select(1, 0).select(1, 0).equal(
      at::tensor({4, 5, 1, 2, 11, 12, 13}, at::kByte)));
  CHECK(folder.unreadable.empty());
}

TEST_CASE("load_image_folder gives the same with any number of threads") {
  const auto dir = temp_dir();
  write_folder(dir.path());
  for (int64_t i = 0; i < 40; ++i) {
    const auto name = "unlabeled/many/" + std::to_string(i) + ".png";
    write_picture(dir / name,
                  i % 7 == 3 ? "broken" : encode_png(at::randint(256, {3, 7 + i, 50}, at::kByte)));
  }
  at::set_num_threads(1);
  const ImageFolder one = load_image_folder(dir.path(), 8);
  at::set_num_threads(3);
  const ImageFolder three = load_image_folder(dir.path(), 8);
  at::set_num_threads(2);
  CHECK(one.images.equal(three.images));
  CHECK(one.files == three.files);
  REQUIRE(one.unreadable.size() == 6);
  for (size_t i = 0; i < 6; ++i) {
    CHECK(one.unreadable[i].file == three.unreadable[i].file);
  }
  for (size_t i = 0; i < one.files.size(); ++i) {
    CHECK(one.images[static_cast<int64_t>(i)].equal(decode_image(dir / one.files[i], 8)));
  }
}

TEST_CASE("load_image_folder needs no unlabeled pictures") {
  const auto dir = temp_dir();
  write_folder(dir.path());
  fs::remove_all(dir / "unlabeled");
  for (int i = 0; i < 2; ++i) {
    const ImageFolder folder = load_image_folder(dir.path(), 4);
    CHECK(folder.size() == 4);
    CHECK(folder.labels.ge(0).all().item<bool>());
    fs::create_directory(dir / "unlabeled");
  }
}

TEST_CASE("load_image_folder takes names with blanks and other letters") {
  const auto dir = temp_dir();
  write_picture(dir / "labeled/big dog/my picture.png", png(1, 0, 0));
  write_picture(dir / "labeled/\xe7\x8c\xab/\xc3\xa9t\xc3\xa9.png", png(2, 0, 0));
  const ImageFolder folder = load_image_folder(dir.path(), 2);
  CHECK(folder.class_names == std::vector<std::string>{"big dog", "\xe7\x8c\xab"});
  CHECK(folder.files == std::vector<std::string>{"labeled/big dog/my picture.png",
                                                 "labeled/\xe7\x8c\xab/\xc3\xa9t\xc3\xa9.png"});
}

TEST_CASE("load_image_folder leaves out what it cannot read, and lists it") {
  const auto dir = temp_dir();
  write_folder(dir.path());
  write_file(dir / "labeled/cat/a bad one.png", "no picture");
  write_file(dir / "labeled/stray.png", png(1, 1, 1));
  write_file(dir / "labeled/notes.txt", "");
  write_file(dir / "unlabeled/2.png", "P5 2 2 255\n123");
  std::string told;
  const ImageFolder folder = load_image_folder(
      dir.path(), 4,
      ImageFolderOptions().on_replaced([&](const auto& picture) { told += describe(picture); }));
  CHECK(folder.labels.equal(at::tensor({0, 0, 1, 1, -1, -1, -1}, at::kLong)));
  CHECK(folder.files.front() == "labeled/cat/deep/x.PNG");
  CHECK(color(folder.images[0]) == "4,0,0");
  CHECK(folder.files[4] == "unlabeled/1/1.png");
  CHECK(folder.files[5] == "unlabeled/2.png");
  CHECK(folder.files[6] == "unlabeled/3.png");
  CHECK(color(folder.images[6]) == "13,0,0");
  // Without a label and damaged: as it would be if it were decoded on demand.
  CHECK(color(folder.images[5]) == "13,0,0");
  CHECK(told == "unlabeled/2.png: the picture is cut short; unlabeled/3.png is used in its place");
  CHECK(mixmatch::data::ImagePool({folder}).replaced().equal(at::tensor({5}, at::kLong)));
  REQUIRE(folder.unreadable.size() == 2);
  CHECK(folder.unreadable[0].file == "labeled/stray.png");
  CHECK(folder.unreadable[0].reason == "lies in no class folder");
  CHECK(folder.unreadable[1].file == "labeled/cat/a bad one.png");
  CHECK_THAT(folder.unreadable[1].reason, contains("not a picture of a known format"));
  CHECK_THAT(describe(folder.unreadable[1]), contains("left out labeled/cat/a bad one.png: not a picture"));
  REQUIRE(folder.left_out.size() == 1);
  CHECK(describe(folder.left_out[0]) == R"(left out: 1 ".txt" file (not a picture): labeled/notes.txt)");

  const auto strict = ImageFolderOptions().strict(true);
  CHECK_THAT(folder_error(dir.path(), strict),
             contains((dir / "labeled/stray.png").string() + " lies in no class folder"));
  fs::remove(dir / "labeled/stray.png");
  CHECK_THAT(folder_error(dir.path(), strict), contains(R"(left out: 1 ".txt" file)"));
  fs::remove(dir / "labeled/notes.txt");
  CHECK_THAT(folder_error(dir.path(), strict),
             contains("cannot read " + (dir / "labeled/cat/a bad one.png").string() + ": not a picture"));
  fs::remove(dir / "labeled/cat/a bad one.png");
  CHECK_THAT(folder_error(dir.path(), strict),
             contains((dir / "unlabeled/2.png").string() + ": the picture is cut short"));
}

TEST_CASE("load_image_folder names all that it does not read") {
  const auto dir = temp_dir();
  write_folder(dir.path());
  const auto strict = ImageFolderOptions().strict(true);
  const auto left_out = [&] {
    std::string text;
    for (const auto& item : load_image_folder(dir.path(), 4).left_out) {
      text += describe(item) + "\n";
    }
    return text;
  };
  CHECK(left_out().empty());
  CHECK(folder_error(dir.path(), strict).empty());

  SECTION("pictures of other formats") {
    write_file(dir / "labeled/cat/x.gif", "GIF89a");
    write_file(dir / "unlabeled/y.png.gif", "GIF89a");
    const std::string line = "left out: 2 GIF files (not a format that is read), e.g. labeled/cat/x.gif";
    CHECK(left_out() == line + "\n");
    CHECK_THAT(folder_error(dir.path(), strict), contains(dir.path().string() + ": " + line));
  }
  SECTION("links to nothing") {
    fs::create_symlink("gone", dir / "labeled/horse");
    CHECK_THAT(left_out(), contains("1 link to nothing (the file or folder is gone): labeled/horse"));
    CHECK_THAT(folder_error(dir.path(), strict), contains("labeled/horse"));
    fs::remove(dir / "labeled/horse");
    fs::remove_all(dir / "unlabeled");
    fs::create_symlink("gone", dir / "unlabeled");
    CHECK_THAT(left_out(), contains("1 link to nothing (the file or folder is gone): unlabeled"));
    CHECK_THAT(folder_error(dir.path(), strict), contains("link to nothing"));
    fs::remove_all(dir / "labeled");
    fs::create_symlink("gone", dir / "labeled");
    CHECK_THAT(folder_error(dir.path()), contains((dir / "labeled").string() + " is a link to nothing"));
  }
  SECTION("a folder's misspelt name") {
    fs::rename(dir / "unlabeled", dir / "unlabelled");
    fs::create_directory(dir / "test");
    CHECK_THAT(
        left_out(),
        contains(R"(1 folder "unlabelled" (none of "labeled", "unlabeled", "validation", "train", "val"): )"
                 "unlabelled"));
    CHECK_THAT(left_out(), contains(R"(1 folder (none of "labeled", "unlabeled", )"));
    CHECK_THAT(folder_error(dir.path(), strict), contains(R"(none of "labeled", "unlabeled")"));
    fs::rename(dir / "labeled", dir / "Labelled");
    CHECK_THAT(folder_error(dir.path()), contains(R"(it has folder "Labelled")"));
  }
  SECTION("files beside the folders") {
    write_file(dir / "a.png", png(1, 2, 3));
    write_file(dir / "readme.txt", "text");
    CHECK_THAT(left_out(), contains(R"(1 picture (in none of "labeled", "unlabeled", )"));
    CHECK_THAT(left_out(), contains(R"(1 ".txt" file (not a picture): readme.txt)"));
    CHECK_THAT(folder_error(dir.path(), strict), contains("a.png"));
  }
  SECTION("what systems leave behind is no class, and no error") {
    write_picture(dir / "labeled/@eaDir/cat/x.png", png(1, 2, 3));
    write_picture(dir / "unlabeled/@eaDir/x.png", png(1, 2, 3));
    write_picture(dir / "__MACOSX/labeled/x.png", png(1, 2, 3));
    write_picture(dir / ".thumbnails/x.png", png(1, 2, 3));
    write_picture(dir / "run/config.json", "{}");  // a run's directory
    CHECK(load_image_folder(dir.path(), 4).num_classes() == 2);
    CHECK(load_image_folder(dir.path(), 4).size() == 7);
    CHECK_THAT(left_out(),
               contains(R"(2 "@eaDir" folders (made by a system, not by you), e.g. labeled/@eaDir)"));
    CHECK_THAT(left_out(), contains("__MACOSX"));
    CHECK_THAT(left_out(), contains(".thumbnails"));
    CHECK_THAT(left_out(), contains("run directory"));
    CHECK(folder_error(dir.path(), strict).empty());
  }
  SECTION("a class's name that no file of text can hold") {
    write_picture(dir / "labeled/caf\xE9/x.png", png(1, 2, 3));
    CHECK_THAT(folder_error(dir.path()),
               contains("class folder " + (dir / "labeled/caf\\xe9").string() + ": its name is not UTF-8"));
  }
  SECTION("a class of pictures that cannot be read") {
    write_picture(dir / "labeled/owl/x.gif", "GIF89a");
    CHECK_THAT(folder_error(dir.path()),
               contains("owl holds no pictures (JPEG, PNG, WebP, TIFF, BMP, PPM and "
                        "PGM); left out: 1 GIF file"));
  }
  SECTION("pictures that are too large") {
    CHECK_THAT(folder_error(dir.path(), ImageFolderOptions(strict).max_pixels(19)),
               contains("4 x 5 pixels, expected at most 19"));
    CHECK(folder_error(dir.path(), ImageFolderOptions(strict).max_pixels(20)).empty());
  }
}

TEST_CASE("load_image_folder takes torchvision's names and pictures that are held out") {
  const auto dir = temp_dir();
  write_folder(dir.path());
  const auto strict = ImageFolderOptions().strict(true);
  CHECK(load_image_folder(dir.path(), 4).validation.numel() == 0);
  for (const std::string held_out : {"validation", "val"}) {
    write_picture(dir / held_out / "dog/9.png", png(21, 0, 0));
    write_picture(dir / held_out / "cat/8.png", png(22, 0, 0));
    write_picture(dir / held_out / "cat/7.png", "broken");
    fs::create_directory(dir / held_out / "owl");
    CHECK_THAT(folder_error(dir.path()),
               contains("class folder " + (dir / held_out / "owl").string() + ": there is no " +
                        (dir / "labeled/owl").string() + " to train with"));
    fs::remove(dir / held_out / "owl");
    const ImageFolder folder = load_image_folder(dir.path(), 4);
    CHECK(folder.labels.equal(at::tensor({0, 0, 1, 1, 0, 1, -1, -1, -1}, at::kLong)));
    CHECK(folder.validation.equal(at::tensor({4, 5}, at::kLong)));
    CHECK(folder.files[4] == held_out + "/cat/8.png");
    CHECK(color(folder.images[5]) == "21,0,0");
    CHECK(folder.unreadable.front().file == held_out + "/cat/7.png");
    CHECK(folder.left_out.empty());
    if (held_out == "validation") {
      fs::create_directory(dir / "val");
      CHECK_THAT(folder_error(dir.path()), contains(R"(has both "validation" and "val")"));
      fs::remove_all(dir / "val");
      fs::remove_all(dir / "validation");
    }
  }
  fs::remove(dir / "val/cat/7.png");
  fs::create_directory(dir / "train");
  CHECK_THAT(folder_error(dir.path()), contains(R"(has both "labeled" and "train")"));
  fs::remove(dir / "train");
  fs::rename(dir / "labeled", dir / "train");
  fs::remove_all(dir / "unlabeled");
  const ImageFolder folder = load_image_folder(dir.path(), 4, strict);
  CHECK(folder.files == std::vector<std::string>{"train/cat/deep/x.PNG", "train/cat/y.png", "train/dog/a.png",
                                                 "train/dog/b.png", "val/cat/8.png", "val/dog/9.png"});
  CHECK(folder.validation.equal(at::tensor({4, 5}, at::kLong)));
  // Files of those names are no layout.
  fs::remove_all(dir / "val");
  write_file(dir / "val", "text");
  write_file(dir / "validation", "text");
  REQUIRE(load_image_folder(dir.path(), 4).left_out.size() == 1);
  CHECK(load_image_folder(dir.path(), 4).left_out[0].count == 2);
}

TEST_CASE("load_image_folder refuses in one line that says what to mend") {
  const auto dir = temp_dir();
  const auto labeled = dir / "labeled";
  CHECK_THAT(folder_error(dir / "none"), contains("no directory " + (dir / "none").string()));
  write_file(dir / "file", "");
  CHECK_THAT(folder_error(dir / "file"), contains((dir / "file").string() + " is not a directory"));
  CHECK_THAT(folder_error(dir.path()), contains(dir.path().string() + " has no directory \"labeled\""));
  write_file(labeled, "");
  CHECK_THAT(folder_error(dir.path()), contains(labeled.string() + " is not a directory"));
  fs::remove(labeled);
  fs::create_directory(labeled);
  write_file(labeled / "a.png", png(1, 1, 1));
  CHECK_THAT(folder_error(dir.path()), contains(labeled.string() + " holds no class folder"));
  write_folder(dir.path());
  CHECK_THAT(error_of([&] { load_image_folder(dir.path(), 0); }),
             contains("size must be in [1, 16384], got 0"));

  fs::create_directory(labeled / "empty one");
  CHECK_THAT(folder_error(dir.path()),
             contains("class folder " + (labeled / "empty one").string() + " holds no pictures"));
  write_file(labeled / "empty one/bad.png", "no picture");
  CHECK_THAT(folder_error(dir.path()),
             contains("class \"empty one\" has no readable picture; " +
                      (labeled / "empty one/bad.png").string() + ": not a picture"));
  fs::remove_all(labeled / "empty one");
  if (make_unreadable(dir / "unlabeled")) {
    CHECK_THAT(folder_error(dir.path()),
               contains("cannot read directory " + (dir / "unlabeled").string() + ": Permission denied"));
    fs::permissions(dir / "unlabeled", fs::perms::owner_all);
  }
  if (make_unreadable(dir.path())) {
    CHECK_THAT(folder_error(dir.path()), contains("Permission denied"));
    fs::permissions(dir.path(), fs::perms::owner_all);
  }
  fs::remove_all(labeled / "dog");
  CHECK_THAT(folder_error(dir.path()), contains("holds one class folder, \"cat\"; expected at least two"));
}
#else
TEST_CASE("the tests of image folders need libpng") { SUCCEED(); }
#endif
