#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/training/png.hpp>

#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

#ifdef MIXMATCH_HAS_STB_IMAGE

using mixmatch::data::decode_image;
using mixmatch::data::ImageFolder;
using mixmatch::data::ImageFolderOptions;
using mixmatch::data::list_images;
using mixmatch::data::load_image_folder;
using mixmatch::training::encode_png;
namespace fs = std::filesystem;

namespace {

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i < digits.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// Small pictures from an encoder of another kind. 8 x 8 of grey 200; 16 x 8, left (200, 40, 90), right (20,
// 160, 240).
const std::string grey_jpeg = from_hex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a07"
    "0706080c0a0c0c0b0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc0000b080008"
    "000801011100ffc40014000100000000000000000000000000000008ffc4001410010000000000000000000000000000"
    "0000ffda0008010100003f00603fffd9");

const std::string colour_jpeg = from_hex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000201010101010201010102020202020403020202020504"
    "040304060506060605060606070908060709070606080b08090a0a0a0a0a06080b0c0b0a0c090a0a0affdb0043010202"
    "02020202050303050a0706070a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
    "0a0a0a0a0a0a0a0a0a0a0a0a0a0affc00011080008001003011100021101031101ffc400140001000000000000000000"
    "00000000000008ffc40014100100000000000000000000000000000000ffc40016010101010000000000000000000000"
    "000009040affc40014110100000000000000000000000000000000ffda000c03010002110311003f003ba72604210866"
    "6dffd9");

const std::string grey16_png = from_hex(
    "89504e470d0a1a0a0000000d4948445200000002000000021000000000074d8ebb0000001249444154789c636060f8ff"
    "9f41c8a48101000ee102c5e1ce5a490000000049454e44ae426082");

const std::string rgba_png = from_hex(
    "89504e470d0a1a0a0000000d494844520000000200000002080600000072b60d240000001a49444154789c63f8cfc0f0"
    "9fe13f43030303c37f062e11390d0036a904e1248cad840000000049454e44ae426082");

const std::string palette_gif =
    from_hex("47494638376102000200810000ff000000ff000000ff0908072c000000000200020000080700010410302020003b");

const std::string rgb_bmp = from_hex(
    "424d460000000000000036000000280000000200000002000000010018000000000010000000c40e0000c40e00000000"
    "000000000000ff00001e140a00000000ff00ff000000");

const std::string rgb_tga = from_hex(
    "000002000000000000000000020002001800ff00001e140a0000ff00ff00000000000000000054525545564953494f4e"
    "2d5846494c452e00");

/// A picture of one colour as a PNG file's bytes.
std::string png(int64_t red, int64_t green, int64_t blue, int64_t height = 5, int64_t width = 4) {
  return encode_png(
      at::tensor({red, green, blue}, at::kByte).view({3, 1, 1}).expand({3, height, width}).contiguous());
}

void write_picture(const fs::path& path, const std::string& bytes) {
  fs::create_directories(path.parent_path());
  write_file(path, bytes);
}

/// The colour at (y, x), as text.
std::string color(const at::Tensor& image, int64_t y = 0, int64_t x = 0) {
  std::string text;
  for (int64_t c = 0; c < 3; ++c) {
    text += (c == 0 ? "" : ",") + std::to_string(image[c][y][x].item<int64_t>());
  }
  return text;
}

std::string folder_error(const fs::path& dir, const ImageFolderOptions& options = {}) {
  const auto message = error_of([&] { load_image_folder(dir, 4, options); });
  CHECK(message.find("load_image_folder: ") == 0);
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

TEST_CASE("decode_image reads the formats and turns all into RGB") {
  const auto dir = temp_dir();
  const auto decode = [&](const std::string& name, const std::string& bytes, int64_t size) {
    write_file(dir / name, bytes);
    auto image = decode_image(dir / name, size);
    CHECK(image.sizes() == at::IntArrayRef({3, size, size}));
    CHECK(image.scalar_type() == at::kByte);
    CHECK(image.is_contiguous());
    return image;
  };
  const auto close = [](const at::Tensor& image, int64_t x, std::vector<int64_t> expected) {
    return (image.select(1, 4).select(1, x).to(at::kLong) - at::tensor(expected, at::kLong))
               .abs()
               .max()
               .item<int64_t>() <= 2;
  };
  const auto grey = decode("grey.jpg", grey_jpeg, 8);
  CHECK((grey.to(at::kLong) - 200).abs().max().item<int64_t>() <= 1);
  const auto both = decode("colour.jpeg", colour_jpeg, 8);  // the middle 8 x 8
  CHECK(close(both, 1, {200, 40, 90}));
  CHECK(close(both, 6, {20, 160, 240}));

  const auto grey16 = decode("grey16.png", grey16_png, 2);
  CHECK(color(grey16, 0, 0) == "0,0,0");
  CHECK(color(grey16, 0, 1) == "255,255,255");
  CHECK(color(grey16, 1, 0) == "18,18,18");
  CHECK(color(grey16, 1, 1) == "128,128,128");
  for (const auto& [name, bytes] : std::map<std::string, std::string>{
           {"alpha.png", rgba_png}, {"plain.bmp", rgb_bmp}, {"plain.tga", rgb_tga}}) {
    CAPTURE(name);
    const auto image = decode(name, bytes, 2);
    CHECK(color(image, 0, 0) == "255,0,0");
    CHECK(color(image, 0, 1) == "0,255,0");
    CHECK(color(image, 1, 0) == "0,0,255");
    CHECK(color(image, 1, 1) == "10,20,30");
  }
  CHECK(color(decode("palette.gif", palette_gif, 2), 1, 1) == "9,8,7");
  CHECK(color(decode("one.ppm", "P6 1 1 255\n\x01\x02\x03", 1)) == "1,2,3");
  CHECK(color(decode("one.pgm", "P5 1 1 255\n\x07", 3), 2, 2) == "7,7,7");
  CHECK(color(decode("by content.jpg", png(6, 7, 8), 4)) == "6,7,8");  // not by name
  CHECK(color(decode("grey.png", encode_png(at::full({1, 3, 3}, 9, at::kByte)), 2)) == "9,9,9");
}

TEST_CASE("decode_image takes pictures of any size") {
  const auto dir = temp_dir();
  const auto path = dir / "picture.png";
  write_file(path, png(3, 5, 250, 1, 1));
  const auto one = decode_image(path, 16);
  CHECK(one.equal(at::tensor({3, 5, 250}, at::kByte).view({3, 1, 1}).expand({3, 16, 16})));
  write_file(path, png(3, 5, 250, 1, 3000));
  CHECK(color(decode_image(path, 16), 15, 15) == "3,5,250");
  {
    auto large = at::zeros({1, 10000, 10000}, at::kByte);
    large[0].narrow(0, 0, 5000).fill_(200);
    large[0].narrow(1, 0, 5000).add_(50);
    write_file(path, encode_png(large));
  }
  const auto image = decode_image(path, 32);
  CHECK(color(image, 0, 0) == "250,250,250");
  CHECK(color(image, 14, 17) == "200,200,200");
  CHECK(color(image, 17, 14) == "50,50,50");
  CHECK(color(image, 31, 31) == "0,0,0");
}

TEST_CASE("decode_image refuses in one line that names the file") {
  const auto dir = temp_dir();
  const auto path = dir / "x.png";
  const auto error = [&](int64_t size = 4) {
    const auto message = error_of([&] { decode_image(path, size); });
    CHECK(message.find('\n') == std::string::npos);
    return message;
  };
  const std::string cannot = "decode_image: cannot read " + path.string() + ": ";
  CHECK(error() == cannot + "No such file or directory");
  write_file(path, "");
  CHECK(error() == cannot + "the file is empty");
  write_file(path, "this is text");
  CHECK_THAT(error(), contains(cannot + "not a picture of a known format"));
  for (const double share : {0.3, 0.6, 0.9}) {
    const auto jpeg_part = static_cast<size_t>(share * static_cast<double>(colour_jpeg.size()));
    write_file(path, colour_jpeg.substr(0, jpeg_part));
    CHECK_THAT(error(), contains(cannot));
    const auto whole = encode_png(at::randint(256, {3, 40, 40}, at::kByte));
    write_file(path, whole.substr(0, static_cast<size_t>(share * static_cast<double>(whole.size()))));
    CHECK_THAT(error(), contains(cannot));
  }
  write_file(path, rgb_bmp.substr(0, rgb_bmp.size() - 5));
  CHECK(error() == cannot + "the picture is cut short");
  write_file(path, "P6 40 40 255\n" + std::string(3000, 'x'));
  CHECK(error() == cannot + "the picture is cut short");
  write_file(path, "P6 100000 100000 255\n" + std::string(3000, 'x'));
  CHECK_THAT(error(), contains(cannot));
  write_file(path, png(1, 2, 3));
  CHECK_THAT(error(0), contains("size must be in [1, 16384], got 0"));
  if (make_unreadable(path)) {
    CHECK(error() == cannot + "Permission denied");
  }
  fs::remove(path);
  fs::create_directory(path);
  CHECK(error() == cannot + "not a regular file");
  fs::remove(path);
  REQUIRE(::mkfifo(path.c_str(), 0666) == 0);
  CHECK(error() == cannot + "not a regular file");
}

TEST_CASE("list_images finds images by extension, at any depth, in order") {
  const auto dir = temp_dir();
  for (const std::string name : {"b.png", "a.JPG", "sub/c.jpeg", "sub/deep er/d.Bmp", "sub-1/e.gif",
                                 "\xc3\xa4\xe2\x82\xac \xf0\x9f\x90\x88.tga", "f.ppm", "g.pgm", "notes.txt",
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
                                 "sub-1/e.gif", "sub/c.jpeg", "sub/deep er/d.Bmp", "two words.png",
                                 "\xc3\xa4\xe2\x82\xac \xf0\x9f\x90\x88.tga"});
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
  write_file(dir / "unlabeled/2.png", rgb_bmp.substr(0, rgb_bmp.size() - 5));
  const ImageFolder folder = load_image_folder(dir.path(), 4);
  CHECK(folder.labels.equal(at::tensor({0, 0, 1, 1, -1, -1}, at::kLong)));
  CHECK(folder.files.front() == "labeled/cat/deep/x.PNG");
  CHECK(color(folder.images[0]) == "4,0,0");
  CHECK(folder.files[4] == "unlabeled/1/1.png");
  CHECK(folder.files[5] == "unlabeled/3.png");
  CHECK(color(folder.images[5]) == "13,0,0");
  REQUIRE(folder.unreadable.size() == 3);
  CHECK(folder.unreadable[0].file == "labeled/stray.png");
  CHECK(folder.unreadable[0].reason == "lies in no class folder");
  CHECK(folder.unreadable[1].file == "labeled/cat/a bad one.png");
  CHECK_THAT(folder.unreadable[1].reason, contains("not a picture of a known format"));
  CHECK(folder.unreadable[2].file == "unlabeled/2.png");
  CHECK(folder.unreadable[2].reason == "the picture is cut short");

  const auto strict = ImageFolderOptions().strict(true);
  CHECK_THAT(folder_error(dir.path(), strict),
             contains((dir / "labeled/stray.png").string() + " lies in no class folder"));
  fs::remove(dir / "labeled/stray.png");
  CHECK_THAT(folder_error(dir.path(), strict),
             contains("cannot read " + (dir / "labeled/cat/a bad one.png").string() + ": not a picture"));
  fs::remove(dir / "labeled/cat/a bad one.png");
  CHECK_THAT(folder_error(dir.path(), strict),
             contains((dir / "unlabeled/2.png").string() + ": the picture is cut short"));
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
             contains("class folder " + (labeled / "empty one").string() + " holds no readable picture; " +
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
TEST_CASE("image folders need stb_image") {
  CHECK_THAT(error_of([] { mixmatch::data::load_image_folder("pictures", 32); }), contains("libstb-dev"));
}
#endif
