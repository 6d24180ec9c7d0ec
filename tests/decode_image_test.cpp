#include <mixmatch/data/decode_image.hpp>

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "catch.hpp"
#include "pictures.hpp"
#include "test_util.hpp"

#ifdef MIXMATCH_HAS_STB_IMAGE

using mixmatch::data::decode_image;
using mixmatch::data::DecodeImageOptions;
using mixmatch::training::encode_png;
using mixmatch::training::detail::zlib_store;
namespace fs = std::filesystem;

namespace {

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

at::Tensor decode_bytes(const std::string& bytes, int64_t size, const std::string& name = "x.png") {
  const auto dir = temp_dir();
  write_file(dir / name, bytes);
  return decode_image(dir / name, size);
}

/// What is wrong with a file of these bytes: on one line, readable, and after the file's name.
std::string refusal(const std::string& bytes, const DecodeImageOptions& options = {},
                    const std::string& name = "x.png") {
  const auto dir = temp_dir();
  write_file(dir / name, bytes);
  const std::string message = error_of([&] { decode_image(dir / name, 4, options); });
  const std::string begin = "decode_image: cannot read " + (dir / name).string() + ": ";
  INFO(message);
  REQUIRE(message.rfind(begin, 0) == 0);
  for (const char c : message) {
    CHECK(static_cast<unsigned char>(c) >= 0x20);
  }
  return message.substr(begin.size());
}

const std::vector<int> red{250, 10, 20}, green{30, 240, 10}, blue{15, 25, 230}, grey{90, 100, 110};

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
  CHECK((decode("x.jfif", grey_jpeg, 8).to(at::kLong) - 200).abs().max().item<int64_t>() <= 1);
  CHECK((decode("without extension", grey_jpeg, 8).to(at::kLong) - 200).abs().max().item<int64_t>() <= 1);
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

TEST_CASE("decode_image: PGM and PPM of any depth") {
  const auto first = [](const std::string& header, const std::string& samples) {
    return color(decode_bytes(header + samples, 1, "x.pgm"));
  };
  // 16 bits: the upper byte comes first, and is what remains.
  CHECK(first("P5\n1 1\n65535\n", "\xC3\x50") == "195,195,195");
  CHECK(first("P6\n1 1\n65535\n", "\xC3\x50\x61\xA8\x30\xD4") == "195,97,48");
  CHECK(first("P5 1 1 15\n", "\x0B") == "187,187,187");
  CHECK(first("P5 1 1 15\n", "\x0F") == "255,255,255");
  CHECK(first("P5 1 1 1000\n", std::string("\x01\xF4", 2)) == "128,128,128");
  CHECK(first("P5 1 1 1\n", "\x01") == "255,255,255");
  for (int level = 0; level < 256; ++level) {
    CHECK(first("P5 1 1 255\n", std::string(1, static_cast<char>(level))) ==
          color(at::full({3, 1, 1}, level, at::kByte)));
  }
  CHECK(first("P5# a comment\n1 # another\r\t1\n#third\n255 ", "\x09") == "9,9,9");
  CHECK(first("P5 1 1 255\n", "\x09 and what follows") == "9,9,9");

  CHECK(refusal("P5 0 7 255\n") == "a picture of 0 x 7 pixels");
  CHECK(refusal("P5 7 0 255\n") == "a picture of 7 x 0 pixels");
  CHECK(refusal("P5 2 2 255\n123") == "the picture is cut short");
  CHECK(refusal("P5 2 2 65535\n1234567") == "the picture is cut short");
  CHECK(refusal("P6 2 2 255\n12345678901") == "the picture is cut short");
  CHECK(refusal("P5 2 2 255") == "the picture is cut short");
  CHECK(refusal("P5 2") == "the picture is cut short");
  for (const std::string header : {"P5 -1 1 255\n", "P5 1 1 0\n", "P5 1 1 65536\n", "P5 x 1 255\n",
                                   "P5 99999999999999999999 1 255\n", "P5 1 1 255x"}) {
    CAPTURE(header);
    CHECK_THAT(refusal(header + "123"), contains("damaged header"));
  }
  CHECK_THAT(refusal("P5 1 1 15\n\x10"), contains("larger than the largest"));
  CHECK_THAT(refusal("P1 1 1 1\n"), contains("a PBM file"));
  CHECK_THAT(refusal("P3 1 1 255\n1 2 3\n"), contains("a plain-text PPM or PGM file"));
  CHECK_THAT(refusal("P7\nWIDTH 1\n"), contains("a PAM file"));
}

TEST_CASE("decode_image: EXIF's orientation is obeyed") {
  // Stored:  red   green      4 x 4 of blocks, so that neither way is the same.
  //          blue  grey
  const std::vector<std::vector<std::vector<int>>> blocks{{red, green}, {blue, grey}};
  const std::string r = "250,10,20", g = "30,240,10", b = "15,25,230", x = "90,100,110";
  const std::map<int, std::vector<std::string>> upright{
      {1, {r, g, b, x}}, {2, {g, r, x, b}}, {3, {x, b, g, r}}, {4, {b, x, r, g}},
      {5, {r, b, g, x}}, {6, {b, r, x, g}}, {7, {x, g, b, r}}, {8, {g, x, r, b}}};
  const auto corners = [](const at::Tensor& image) {
    return std::vector<std::string>{color(image, 2, 2), color(image, 2, 13), color(image, 13, 2),
                                    color(image, 13, 13)};
  };
  for (const auto& [orientation, expected] : upright) {
    CAPTURE(orientation);
    const auto number = static_cast<uint64_t>(orientation);
    CHECK(corners(decode_bytes(block_jpeg(blocks, jpeg_adobe(0) + jpeg_exif(number)), 16)) == expected);
    // The other byte order.
    std::string little =
        jpeg_segment(0xE1, std::string("Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", 24) +
                               static_cast<char>(orientation) + std::string(7, '\0'));
    CHECK(corners(decode_bytes(block_jpeg(blocks, jpeg_adobe(0) + little), 16)) == expected);
    // A PNG of the same.
    std::string rows;
    for (int y = 0; y < 16; ++y) {
      rows.push_back('\0');
      for (int i = 0; i < 16; ++i) {
        for (const int level : blocks[static_cast<size_t>(y / 8)][static_cast<size_t>(i / 8)]) {
          rows.push_back(static_cast<char>(level));
        }
      }
    }
    CHECK(corners(decode_bytes(png_begin(16, 16, 8, 2) + png_chunk("eXIf", exif(number)) +
                                   png_chunk("IDAT", zlib_store(rows)) + png_chunk("IEND", ""),
                               16)) == expected);
  }
  // One that is wider than high stands on its side: the middle of its length is cut out all the same.
  const std::vector<std::vector<std::vector<int>>> wide{{grey, red, green, grey}};
  const auto turned = decode_bytes(block_jpeg(wide, jpeg_adobe(0) + jpeg_exif(6)), 8);
  CHECK(color(turned, 1, 4) == r);
  CHECK(color(turned, 6, 4) == g);
  // What makes no sense says nothing.
  for (const uint64_t orientation : {0, 9, 65535}) {
    CHECK(corners(decode_bytes(block_jpeg(blocks, jpeg_adobe(0) + jpeg_exif(orientation)), 16)) ==
          upright.at(1));
  }
  const std::string tiff = exif(6);
  for (size_t length = 0; length < tiff.size() - 6; ++length) {
    const auto cut = jpeg_segment(0xE1, std::string("Exif\0\0", 6) + tiff.substr(0, length));
    CHECK(corners(decode_bytes(block_jpeg(blocks, jpeg_adobe(0) + cut), 16)) == upright.at(1));
  }
  std::string far = exif(6);
  far.replace(4, 4, "\xFF\xFF\xFF\xFF");
  CHECK(corners(decode_bytes(
            block_jpeg(blocks, jpeg_adobe(0) + jpeg_segment(0xE1, std::string("Exif\0\0", 6) + far)), 16)) ==
        upright.at(1));
}

TEST_CASE("decode_image: a JPEG of four colours is right or refused") {
  const std::vector<std::vector<std::vector<int>>> inks{{{240, 120, 60, 128}}};
  // Adobe stores them inverted: red = cyan times black.
  CHECK(color(decode_bytes(block_jpeg(inks, jpeg_adobe(0)), 8)) == "120,60,30");
  CHECK_THAT(refusal(block_jpeg(inks)), contains("four colours (CMYK) without Adobe's marker"));
  CHECK_THAT(refusal(block_jpeg(inks, jpeg_adobe(1))), contains("four colours"));
  // YCCK: white without colour, under half a black.
  CHECK(color(decode_bytes(block_jpeg({{{0, 128, 128, 128}}}, jpeg_adobe(2)), 8)) == "128,128,128");
  CHECK(color(decode_bytes(block_jpeg({{{255, 128, 128, 128}}}, jpeg_adobe(2)), 8)) == "0,0,0");
  CHECK_THAT(refusal(block_jpeg({{{1, 2}}})), contains("2 colours"));
}

TEST_CASE("decode_image: transparency is dropped, also where it hides a colour") {
  const std::string row("\0\x0A\x14\x1E\0\xF0\xF0\x3C\xFF", 9);
  const auto image = decode_bytes(
      png_begin(2, 2, 8, 6) + png_chunk("IDAT", zlib_store(row + row)) + png_chunk("IEND", ""), 1);
  // 1 x 1: half of each.
  CHECK(color(image) == "125,130,45");
}

TEST_CASE("decode_image: pictures from right to left, and from top to bottom") {
  std::string tga = rgb_tga;
  tga[17] = '\x10';
  const auto mirrored = decode_bytes(tga, 2, "x.tga"), plain = decode_bytes(rgb_tga, 2, "x.tga");
  CHECK(mirrored.equal(plain.flip(2)));
  std::string bmp = rgb_bmp;
  bmp.replace(22, 4, "\xFE\xFF\xFF\xFF");  // -2 rows
  CHECK(decode_bytes(bmp, 2).equal(decode_bytes(rgb_bmp, 2).flip(1)));
  // A TGA file of the old version, without a footer, is known by its name alone.
  const std::string old = rgb_tga.substr(0, rgb_tga.size() - 26);
  CHECK(decode_bytes(old, 2, "x.TGA").equal(plain));
  CHECK_THAT(refusal(old), contains("not a picture of a known format"));
}

TEST_CASE("decode_image: a palette's missing colours are black") {
  const auto indexed = [](const std::string& pixels) {
    return decode_bytes(png_begin(2, 2, 8, 3) + png_chunk("PLTE", "\x01\x02\x03\x04\x05\x06") +
                            png_chunk("IDAT", zlib_store(pixels)) + png_chunk("IEND", ""),
                        2);
  };
  const auto image = indexed(std::string("\0\0\x01\0\x02\xFF", 6));
  CHECK(color(image, 0, 0) == "1,2,3");
  CHECK(color(image, 0, 1) == "4,5,6");
  CHECK(color(image, 1, 0) == "0,0,0");
  CHECK(color(image, 1, 1) == "0,0,0");

  // Two rows of two pixels of a byte each, the lower row first; one colour.
  const std::string bmp =
      from_hex(
          "424d42000000000000003a000000280000000200000002000000010008000000000000000000c40e0000c40e0000") +
      std::string("\1\0\0\0\0\0\0\0\3\2\1\0", 12) + std::string("\0\1\0\0\xFF\0\0\0", 8);
  const auto lower = decode_bytes(bmp, 2, "x.bmp");
  CHECK(color(lower, 0, 0) == "0,0,0");
  CHECK(color(lower, 0, 1) == "1,2,3");
  CHECK(color(lower, 1, 0) == "1,2,3");
  CHECK(color(lower, 1, 1) == "0,0,0");
  // The oldest header has no palette here.
  CHECK(color(decode_bytes(from_hex("424d1e000000000000001a0000000c000000010001000100180003020100"), 1,
                           "x.bmp")) == "1,2,3");
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
  fs::create_symlink("missing", path);
  CHECK(error() == cannot + "a link to nothing");
  fs::remove(path);
  write_file(path, "");
  CHECK(error() == cannot + "the file is empty");
  write_file(path, "this is text");
  CHECK_THAT(error(), contains(cannot + "not a picture of a known format"));
  for (const double share : {0.3, 0.6, 0.9}) {
    const auto jpeg_part = static_cast<size_t>(share * static_cast<double>(colour_jpeg.size()));
    write_file(path, colour_jpeg.substr(0, jpeg_part));
    CHECK(error() == cannot + "the picture is cut short");
    const auto whole = encode_png(at::randint(256, {3, 40, 40}, at::kByte));
    write_file(path, whole.substr(0, static_cast<size_t>(share * static_cast<double>(whole.size()))));
    CHECK(error() == cannot + "the picture is cut short");
  }
  write_file(path, rgb_bmp.substr(0, rgb_bmp.size() - 5));
  CHECK(error() == cannot + "the picture is cut short");
  write_file(path, "P6 40 40 255\n" + std::string(3000, 'x'));
  CHECK(error() == cannot + "the picture is cut short");
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

TEST_CASE("decode_image: what cannot be right is refused before it takes time or memory") {
  const int64_t before = peak_memory();
  CHECK(refusal("\xFF\xD8" + std::string("\xFF\xE0\0\x10", 4)) == "the picture is cut short");
  // 35 bytes that claim 23,000 x 23,000 pixels.
  const std::string gif = from_hex(
      "47494638396100000000800000000000"
      "0000002c00000000d859d8590002024c01003b");
  const auto gif_of = [&](uint16_t side) {
    std::string bytes = gif;
    for (const size_t at : {size_t{6}, size_t{8}}) {
      bytes[at] = static_cast<char>(side & 0xFF);
      bytes[at + 1] = static_cast<char>(side >> 8);
    }
    return bytes;
  };
  CHECK(refusal(gif_of(23000)) ==
        "a picture of 23000 x 23000 pixels, expected at most 134217728 of them (max_pixels)");
  CHECK(refusal(gif_of(10000)) == "the file claims 10000 x 10000 pixels, which its 35 bytes cannot hold");
  CHECK(refusal(gif_of(0)) == "a picture of 0 x 0 pixels");
  CHECK(refusal("P6 100000 100000 255\n" + std::string(3000, 'x')) ==
        "a picture of 100000 x 100000 pixels, expected at most 134217728 of them (max_pixels)");
  CHECK(refusal("P6 10000 10000 255\n" + std::string(3000, 'x')) ==
        "the file claims 10000 x 10000 pixels, which its 3019 bytes cannot hold");
  const auto claims = [](const std::string& bytes) {
    CHECK_THAT(refusal(bytes), contains("the file claims 10000 x 10000 pixels"));
  };
  std::string jpeg = block_jpeg({{red}}, jpeg_adobe(0));
  jpeg.replace(jpeg.find("\xFF\xC0") + 5, 4, "\x27\x10\x27\x10");
  claims(jpeg);
  claims(png_begin(10000, 10000, 8, 2) + png_chunk("IDAT", packed_zeros(1000)) + png_chunk("IEND", ""));
  CHECK(refusal(png_begin(0, 5, 8, 2) + png_chunk("IDAT", packed_zeros(1000)) + png_chunk("IEND", "")) ==
        "a picture of 0 x 5 pixels");
  std::string tga = rgb_tga;
  tga[2] = '\x0A';  // run lengths
  tga.replace(12, 4, "\x10\x27\x10\x27");
  claims(tga);
  std::string bmp = rgb_bmp;
  bmp.replace(18, 8, std::string("\x10\x27\0\0\x10\x27\0\0", 8));
  CHECK(refusal(bmp) == "the picture is cut short");
  bmp.replace(22, 4, std::string("\0\0\0\x80", 4));
  CHECK_THAT(refusal(bmp), contains("pi"));
  // A header of 335 MB, behind which a palette would have to be filled up.
  bmp = rgb_bmp;
  bmp[17] = '\x14';
  bmp.replace(28, 2, std::string("\x08\0", 2));
  CHECK_THAT(refusal(bmp), contains("damaged BMP"));

  // 64 MB of pixels for one.
  const auto bomb =
      png_begin(1, 1, 8, 0) + png_chunk("IDAT", packed_zeros(size_t{64} << 20)) + png_chunk("IEND", "");
  CHECK_THAT(refusal(bomb), contains("takes more memory than its 1 x 1 pixels"));
#if !defined(__SANITIZE_ADDRESS__)
  CHECK(peak_memory() - before < 40);
#else
  static_cast<void>(before);
#endif

  CHECK(refusal(png(1, 2, 3, 10, 10), DecodeImageOptions().max_pixels(99)) ==
        "a picture of 10 x 10 pixels, expected at most 99 of them (max_pixels)");
  CHECK(color(decode_bytes(png(1, 2, 3, 10, 10), 4)) == "1,2,3");
  CHECK_THAT(error_of([] { decode_image("x", 4, DecodeImageOptions().max_pixels(0)); }),
             contains("max_pixels must be >= 1, got 0"));
}

TEST_CASE("decode_image: other formats are refused by name") {
  for (const auto& [name, begin] : std::map<std::string, std::string>{
           {"Radiance HDR", "#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 7 +X 9\n"},
           {"Photoshop", "8BPS\x01"},
           {"Softimage PIC", "\x53\x80\xF6\x34" + std::string(84, '\0') + "PICT"},
           {"WebP", std::string("RIFF\0\0\0\0WEBPVP8 ", 16)},
           {"TIFF", std::string("II*\0\x08\0\0\0", 8)},
           {"HEIC", std::string("\0\0\0\x18"
                                "ftypheic",
                                12)},
           {"AVIF", std::string("\0\0\0\x1C"
                                "ftypavif",
                                12)},
           {"Git-LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"}}) {
    CAPTURE(name);
    CHECK(refusal(begin + std::string(200, 'x')) ==
          "a " + name + " file; JPEG, PNG, BMP, GIF, TGA, PPM and PGM are read");
  }
}

TEST_CASE("decode_image: damage is found, and no byte of a file is repeated raw") {
  const std::string whole = png(9, 8, 7);
  std::string bytes = whole;
  bytes[bytes.find("IDAT") + 20] ^= 1;
  CHECK_THAT(refusal(bytes), contains("damaged PNG file (a checksum"));
  CHECK_THAT(
      refusal(png_begin(9, 9, 1, 0) + png_chunk("ID\n\x1A", std::string(35, 'x')) + png_chunk("IEND", "")),
      contains("chunk \"ID\\n\\x1a\""));
  // A chunk that must be understood, of a name that a terminal would obey.
  CHECK_THAT(refusal(png_begin(9, 9, 1, 0) + png_chunk("I\x1B[2", "x") +
                     png_chunk("IDAT", packed_zeros(100)) + png_chunk("IEND", "")),
             contains("chunk \"I\\x1b[2\""));
  CHECK_THAT(refusal(whole.substr(0, 8) + png_chunk("CgBI", "1234") + whole.substr(8)), contains("Apple"));
  const std::vector<std::vector<std::vector<int>>> block{{red}};
  JpegTables none;
  none.huffman = false;
  CHECK_THAT(refusal(block_jpeg(block, "", none)), contains("without the tables"));
  none = {};
  none.quantization = false;
  CHECK_THAT(refusal(block_jpeg(block, "", none)), contains("without the tables"));
  std::string jpeg = block_jpeg(block);
  jpeg[jpeg.find("\xFF\xC0") + 1] = '\xC9';
  CHECK_THAT(refusal(jpeg), contains("arithmetic"));
  jpeg = block_jpeg(block);
  jpeg[jpeg.find("\xFF\xC0") + 4] = 12;
  CHECK_THAT(refusal(jpeg), contains("12 bits a colour"));
  jpeg = block_jpeg(block);
  jpeg.insert(jpeg.find("\xFF\xC4"), jpeg_segment(0xC4, std::string(1, '\0') + std::string(16, '\xFF')));
  CHECK_THAT(refusal(jpeg), contains("damaged JPEG"));
  // A file's name is written so that a terminal does not obey it.
  const auto dir = temp_dir();
  const std::string message = error_of([&] { decode_image(dir / "a\n\x1B[31m\xFF\xC2\x9B.png", 4); });
  CHECK(message == "decode_image: cannot read " + (dir / "a\\n\\x1b[31m\\xff\\xc2\\x9b.png").string() +
                       ": No such file or directory");
}

#else
TEST_CASE("decode_image needs stb_image") {
  CHECK_THAT(error_of([] { mixmatch::data::decode_image("picture", 32); }), contains("libstb-dev"));
}
#endif
