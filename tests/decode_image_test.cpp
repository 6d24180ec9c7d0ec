#include <mixmatch/data/decode_image.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "picture_encoders.hpp"
#include "pictures.hpp"
#include "test_util.hpp"

#ifdef MIXMATCH_TEST_ENCODERS

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

const std::string rgb_bmp = from_hex(
    "424d460000000000000036000000280000000200000002000000010018000000000010000000c40e0000c40e00000000"
    "000000000000ff00001e140a00000000ff00ff000000");

// 2 x 2, lossless: (10, 20, 30) hidden by its alpha, (40, 50, 60), (70, 80, 90), (100, 110, 120).
const std::string alpha_webp = from_hex(
    "524946462a000000574542505650384c1e0000002f014000101f700a8f2b78d4434050f49ce981bf816c8032559845f4"
    "3f76");

// 16 x 8, left (200, 40, 90), right (20, 160, 240).
const std::string lossy_webp = from_hex(
    "524946463e000000574542505650382032000000f001009d012a1000080000c01225a00274b700fd0002340000feef38"
    "7ffe904c733317fe850fffb256d94aecd5bfebe18000");

const std::string animated_webp = from_hex(
    "524946468800000057454250565038580a00000002000000030000030000414e494d06000000000000000000414e4d46"
    "2a000000000000000000030000030000000000025650384c110000002f03c0000007508426f4a0ff8188e87f0000414e"
    "4d462a000000000000000000030000030000000000005650384c110000002f03c00000075084d2f6a0ff8188e87f0000");

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

/// A number as `count` bytes, the lowest first.
std::string little(uint64_t value, int count) {
  const std::string big = big_endian(value, count);
  return {big.rbegin(), big.rend()};
}

/// The lossless WebP with EXIF data behind it.
std::string webp_with_exif(const std::string& webp, uint64_t side, const std::string& data) {
  const std::string chunks = "WEBPVP8X" + little(10, 4) + little(8, 4) + little(side - 1, 3) +
                             little(side - 1, 3) + webp.substr(12) + "EXIF" + little(data.size(), 4) + data;
  return "RIFF" + little(chunks.size(), 4) + chunks;
}

/// The difference of two pictures in grey levels: the mean, the largest.
std::pair<double, double> difference(const at::Tensor& a, const at::Tensor& b) {
  const auto levels = (a.to(at::kFloat) - b.to(at::kFloat)).abs();
  return {levels.mean().item<double>(), levels.max().item<double>()};
}

/// A picture without hard edges, so that lossy formats keep it: [height, width, 3].
at::Tensor smooth_picture(int64_t height, int64_t width) {
  const auto y = at::arange(height, at::kFloat).view({height, 1}), x = at::arange(width, at::kFloat);
  const auto wave = [&](double a, double b) { return 127 + 120 * at::sin(a * y + b * x); };
  return at::stack({wave(.05, .02), wave(.01, -.04), wave(-.03, .06)}, 2).to(at::kByte);
}

/// Its middle square, as decode_image's result where nothing is resized.
at::Tensor planes(const at::Tensor& image) {
  const int64_t side = std::min(image.size(0), image.size(1));
  return image.narrow(0, (image.size(0) - side) / 2, side)
      .narrow(1, (image.size(1) - side) / 2, side)
      .permute({2, 0, 1})
      .contiguous();
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
  for (const auto& [name, bytes] :
       std::map<std::string, std::string>{{"alpha.png", rgba_png}, {"plain.bmp", rgb_bmp}}) {
    CAPTURE(name);
    const auto image = decode(name, bytes, 2);
    CHECK(color(image, 0, 0) == "255,0,0");
    CHECK(color(image, 0, 1) == "0,255,0");
    CHECK(color(image, 1, 0) == "0,0,255");
    CHECK(color(image, 1, 1) == "10,20,30");
  }
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
    const auto square = decode_bytes(block_jpeg(blocks, jpeg_adobe(0)), 16).permute({1, 2, 0});
    CHECK(corners(decode_bytes(webp_with_exif(encode_webp(square), 16, exif(number)), 16)) == expected);
    CHECK(corners(decode_bytes(
              webp_with_exif(encode_webp(square), 16, std::string("Exif\0\0", 6) + exif(number)), 16)) ==
          expected);
    TiffSettings tiff;
    tiff.orientation = static_cast<uint16_t>(number);
    CHECK(corners(decode_bytes(encode_tiff(square, tiff), 16)) == expected);
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

TEST_CASE("decode_image: letterbox keeps all of the picture, turned as EXIF says") {
  using mixmatch::data::parse_picture_fit;
  using mixmatch::data::PictureFit;
  const auto dir = temp_dir();
  const auto decoded = [&](const std::string& bytes, int64_t size, const char* fit) {
    write_file(dir / "x", bytes);
    return decode_image(dir / "x", size, DecodeImageOptions().fit(parse_picture_fit(fit)));
  };
  const std::string r = "250,10,20", g = "30,240,10", x = "90,100,110", grey_level = "127,127,127";
  const std::vector<std::vector<std::vector<int>>> wide{{grey, red, green, grey}};  // 32 x 8
  const auto whole = decoded(block_jpeg(wide, jpeg_adobe(0)), 32, "letterbox");
  CHECK(color(whole, 11, 16) == grey_level);
  CHECK(color(whole, 20, 16) == grey_level);
  for (const auto& [column, expected] : std::map<int64_t, std::string>{{2, x}, {10, r}, {20, g}, {30, x}}) {
    CHECK(color(whole, 12, column) == expected);
    CHECK(color(whole, 19, column) == expected);
  }
  const auto turned = decoded(block_jpeg(wide, jpeg_adobe(0) + jpeg_exif(6)), 32, "letterbox");
  CHECK(turned.equal(whole.rot90(-1, {1, 2})));
  // Decoded at a part of its size, the whole of it is still there.
  const auto small = decoded(block_jpeg(std::vector(8, std::vector(32, red)), jpeg_adobe(0)), 8, "letterbox");
  CHECK(color(small, 2, 0) == grey_level);
  CHECK(color(small, 3, 0) == r);
  CHECK(color(small, 4, 7) == r);
  CHECK(color(small, 5, 7) == grey_level);
  const auto square = block_jpeg({{red, green}, {blue, grey}}, jpeg_adobe(0));
  CHECK(decoded(square, 9, "letterbox").equal(decoded(square, 9, "crop")));
  CHECK(parse_picture_fit("crop") == PictureFit::crop);
  CHECK(picture_fit_name(PictureFit::letterbox) == std::string("letterbox"));
  CHECK_THAT(error_of([] { parse_picture_fit("stretch"); }),
             contains("fit must be crop or letterbox, got \"stretch\""));
}

TEST_CASE("decode_image: a JPEG of four inks is right, with Adobe's marker or without") {
  const std::vector<std::vector<std::vector<int>>> inks{{{240, 120, 60, 128}}};
  // Stored inverted, as Adobe does, and Pillow takes for granted: red = cyan times black.
  CHECK(color(decode_bytes(block_jpeg(inks, jpeg_adobe(0)), 8)) == "120,60,30");
  CHECK(color(decode_bytes(block_jpeg(inks), 8)) == "120,60,30");
  // YCCK: white without colour, under half a black.
  CHECK(color(decode_bytes(block_jpeg({{{0, 128, 128, 128}}}, jpeg_adobe(2)), 8)) == "128,128,128");
  CHECK(color(decode_bytes(block_jpeg({{{255, 128, 128, 128}}}, jpeg_adobe(2)), 8)) == "0,0,0");
  CHECK_THAT(refusal(block_jpeg({{{1, 2}}})), contains("damaged JPEG file, or of a kind that is not read"));
  // Reduced as well: 64 of 640 pixels.
  const auto four = at::cat({smooth_picture(640, 640), smooth_picture(640, 640).narrow(2, 0, 1)}, 2);
  const auto expected =
      (four.narrow(2, 0, 3).to(at::kFloat) * four.narrow(2, 3, 1).to(at::kFloat) / 255).round();
  const auto [mean, largest] = difference(decode_bytes(encode_jpeg(four), 64),
                                          decode_bytes(encode_png(planes(expected.to(at::kByte))), 64));
  CHECK(mean < 1);
  CHECK(largest < 6);
}

TEST_CASE("decode_image: JPEG of every kind") {
  const auto image = smooth_picture(100, 140);
  const auto expected = planes(image);
  for (const bool progressive : {false, true}) {
    for (const bool smaller : {false, true}) {
      CAPTURE(progressive, smaller);
      JpegSettings settings;
      settings.progressive = progressive;
      settings.smaller_colours = smaller;
      const auto [mean, largest] = difference(decode_bytes(encode_jpeg(image, settings), 100), expected);
      CHECK(mean < (smaller ? 1.5 : 0.6));
      CHECK(largest <= (smaller ? 9 : 4));
    }
  }
  JpegSettings rgb;
  rgb.stored = JCS_RGB;  // which Adobe's marker says
  CHECK(difference(decode_bytes(encode_jpeg(image, rgb), 100), expected).second <= 2);
  const auto grey = image.narrow(2, 0, 1);
  CHECK(difference(decode_bytes(encode_jpeg(grey), 100), planes(grey).expand({3, 100, 100})).second <= 2);
  // What cameras leave between segments takes nothing from the picture.
  std::string padded = encode_jpeg(image);
  padded.insert(padded.find("\xFF\xDB"), "some bytes");
  CHECK(decode_bytes(padded, 100).equal(decode_bytes(encode_jpeg(image), 100)));
}

TEST_CASE("decode_image: a large JPEG is decoded at a part of its size, and looks the same") {
  // Not of whole blocks, and the middle begins between the pixels of the smaller picture.
  const auto image = smooth_picture(1003, 1335);
  const std::string bytes = encode_jpeg(image);
  const std::string same = encode_png(image.permute({2, 0, 1}).contiguous());
  for (const auto& [size, eighths] :
       std::map<int64_t, int>{{32, 1}, {62, 1}, {63, 2}, {125, 2}, {126, 4}, {250, 4}, {251, 8}, {1003, 8}}) {
    CAPTURE(size);
    mixmatch::detail::Picture picture;
    picture.size = size;
    picture.max_pixels = int64_t{1} << 24;
    REQUIRE(mixmatch::detail::decode_jpeg(bytes, picture).empty());
    CHECK(picture.scale == eighths / 8.0);
    CHECK(picture.height == (1003 * eighths + 7) / 8);
    const auto [mean, largest] = difference(decode_bytes(bytes, size), decode_bytes(same, size));
    CHECK(mean < 0.9);
    CHECK(largest <= 4);
  }
}

TEST_CASE("decode_image: PNG of every kind") {
  const auto image = smooth_picture(33, 21);
  CHECK(decode_bytes(encode_interlaced_png(image), 21).equal(planes(image)));
  const auto one_row = [](char depth, char kind, const std::string& chunks, const std::string& pixels,
                          uint64_t width) {
    return decode_bytes(png_begin(width, 1, depth, kind) + chunks +
                            png_chunk("IDAT", zlib_store(std::string(1, '\0') + pixels)) +
                            png_chunk("IEND", ""),
                        1);
  };
  CHECK(color(one_row(1, 0, "", "\x80", 1)) == "255,255,255");
  CHECK(color(one_row(2, 0, "", "\x40", 1)) == "85,85,85");
  CHECK(color(one_row(4, 0, "", "\xB0", 1)) == "187,187,187");
  CHECK(color(one_row(2, 3, png_chunk("PLTE", "\1\2\3\4\5\6\7\x8\x9"), "\x80", 1)) == "7,8,9");
  CHECK(color(one_row(16, 2, "", "\x12\xFF\x34\x80\x56\x01", 1)) == "18,52,86");
  CHECK(color(one_row(16, 6, "", std::string("\x12\xFF\x34\x80\x56\x01\0\0", 8), 1)) == "18,52,86");
  CHECK(color(one_row(8, 4, "", std::string("\x12\0", 2), 1)) == "18,18,18");
  CHECK(color(one_row(8, 0, png_chunk("tRNS", std::string("\0\x12", 2)), "\x12", 1)) == "18,18,18");
  // An animation's first picture; the orientation behind the picture.
  const std::string animated =
      png_begin(1, 1, 8, 0) + png_chunk("acTL", big_endian(2, 4) + big_endian(0, 4)) +
      png_chunk("IDAT", zlib_store(std::string("\0\x07", 2))) +
      png_chunk("fdAT", big_endian(1, 4) + zlib_store(std::string("\0\x63", 2))) + png_chunk("IEND", "");
  CHECK(color(decode_bytes(animated, 1)) == "7,7,7");
  const auto turned =
      decode_bytes(png_begin(2, 2, 8, 0) + png_chunk("IDAT", zlib_store(std::string("\0\7\7\0\x09\x09", 6))) +
                       png_chunk("eXIf", exif(3)) + png_chunk("IEND", ""),
                   2);
  CHECK(color(turned, 0, 0) == "9,9,9");
}

TEST_CASE("decode_image: a libpng of another version than the headers' is said to be that") {
  using mixmatch::detail::png_library_problem;
  CHECK(png_library_problem("1.6.39", "1.6.39").empty());
  CHECK(png_library_problem("1.6.39", "1.6.4").empty());  // the third number may differ
  CHECK(png_library_problem("1.6.39", "1.5.30") ==
        "this program was compiled for libpng 1.6.39 and runs with libpng 1.5.30");
  CHECK_FALSE(png_library_problem("1.6.39", "2.6.39").empty());
}

TEST_CASE("decode_image: WebP") {
  const auto image = smooth_picture(33, 21);
  const std::string lossless = encode_webp(image);
  CHECK(decode_bytes(lossless, 21).equal(planes(image)));
  CHECK(color(decode_bytes(alpha_webp, 2)) == "10,20,30");
  CHECK(color(decode_bytes(alpha_webp, 2), 0, 1) == "40,50,60");
  const auto lossy = decode_bytes(lossy_webp, 8);
  CHECK(difference(lossy.select(2, 0).select(1, 4), at::tensor({200, 40, 90})).second <= 8);
  CHECK(difference(lossy.select(2, 7).select(1, 4), at::tensor({20, 160, 240})).second <= 8);
  CHECK(refusal(animated_webp) == "an animated WebP file, where a single picture is read");
  for (const size_t length : {size_t{20}, size_t{30}, lossless.size() / 2, lossless.size() - 2}) {
    CHECK(refusal(lossless.substr(0, length)) == "the picture is cut short");
  }
  std::string damaged = lossless;
  damaged.replace(24, 20, std::string(20, '\xA5'));
  CHECK_THAT(refusal(damaged), contains("a damaged WebP file"));
  CHECK(refusal(encode_webp(at::zeros({20, 20, 3}, at::kByte)), DecodeImageOptions().max_pixels(399)) ==
        "a picture of 20 x 20 pixels, expected at most 399 of them (max_pixels)");
}

TEST_CASE("decode_image: TIFF of every kind") {
  const auto image = smooth_picture(37, 45);
  const auto expected = planes(image);
  const auto check = [](const at::Tensor& stored, const TiffSettings& settings, const at::Tensor& right) {
    const auto decoded = decode_bytes(encode_tiff(stored, settings), 37);
    CHECK(decoded.equal(right.expand({3, 37, 37})));
  };
  for (const bool tiles : {false, true}) {
    for (const bool planes_apart : {false, true}) {
      for (const char* mode : {"wl", "wb", "w8"}) {
        CAPTURE(tiles, planes_apart, mode);
        TiffSettings settings;
        settings.tiles = tiles;
        settings.planes = planes_apart;
        settings.mode = mode;
        check(image, settings, expected);
        settings.compression = COMPRESSION_NONE;
        check(image, settings, expected);
        // Of 16 bits the upper eight.
        const auto wide = (image.to(at::kInt) * 256 + 255 - image.flip(0).to(at::kInt)).to(at::kShort);
        check(wide, settings, expected);
        // The stored colour, whatever its alpha.
        for (const int alpha : {EXTRASAMPLE_UNSPECIFIED, EXTRASAMPLE_ASSOCALPHA, EXTRASAMPLE_UNASSALPHA}) {
          settings.alpha = alpha;
          check(at::cat({image, image.narrow(2, 0, 1)}, 2), settings, expected);
          check(at::cat({wide, wide.narrow(2, 0, 1)}, 2), settings, expected);
        }
      }
    }
  }
  TiffSettings settings;
  const auto one = image.narrow(2, 0, 1), level = planes(one);
  for (const int compression : {COMPRESSION_NONE, COMPRESSION_PACKBITS, COMPRESSION_ADOBE_DEFLATE}) {
    settings.compression = static_cast<uint16_t>(compression);
    settings.photometric = PHOTOMETRIC_MINISBLACK;
    check(one, settings, level);
    settings.photometric = PHOTOMETRIC_MINISWHITE;
    check(one, settings, 255 - level);
    settings.photometric = PHOTOMETRIC_PALETTE;
    check(one, settings, at::cat({level, 255 - level, at::div(level, 2, "floor")}));
  }
  settings = {};
  settings.photometric = PHOTOMETRIC_SEPARATED;  // inks, not inverted
  const auto inks = at::tensor({15, 135, 195, 127}, at::kByte).expand({20, 20, 4});
  CHECK(color(decode_bytes(encode_tiff(inks, settings), 1)) == "120,60,30");

  settings = {};
  settings.kind = FILETYPE_REDUCEDIMAGE;
  CHECK_THAT(refusal(encode_tiff(image, settings)), contains("begins with a thumbnail"));
  settings = {};
  settings.photometric = PHOTOMETRIC_CIELAB;
  CHECK_THAT(refusal(encode_tiff(image, settings)), contains("L*a*b*"));
  for (const int compression : {COMPRESSION_NONE, COMPRESSION_LZW, COMPRESSION_ADOBE_DEFLATE}) {
    settings = {};
    settings.compression = static_cast<uint16_t>(compression);
    std::string bytes = encode_tiff(image, settings);
    // The pixels come first; what says where they are, last.
    CHECK_THAT(refusal(bytes.substr(0, bytes.size() / 2)), contains("TIFF"));
    bytes.erase(8, 500);
    CHECK_THAT(refusal(bytes), contains("a damaged TIFF file"));
  }
  settings = {};
  settings.compression = COMPRESSION_LZW;
  std::string damaged = encode_tiff(image, settings);
  damaged.replace(20, 40, std::string(40, '\xA5'));
  CHECK_THAT(refusal(damaged), contains("a damaged TIFF file"));
}

TEST_CASE("decode_image: BMP of every depth") {
  const auto image = [](uint64_t header, uint64_t bits, const std::string& row,
                        const std::string& palette = "", uint64_t compression = 0,
                        const std::string& masks = "") {
    const uint64_t begin = 14 + header + palette.size() + (header == 40 ? masks.size() : 0);
    std::string info = little(header, 4);
    if (header == 12) {
      info += little(1, 2) + little(1, 2) + little(1, 2) + little(bits, 2);
    } else {
      info += little(1, 4) + little(1, 4) + little(1, 2) + little(bits, 2) + little(compression, 4) +
              std::string(20, '\0') + masks;
      info.resize(header == 40 ? info.size() : header, '\0');
    }
    return "BM" + little(begin + row.size(), 4) + little(0, 4) + little(begin, 4) + info + palette + row;
  };
  const auto pixel = [](const std::string& bytes) { return color(decode_bytes(bytes, 1, "x.bmp")); };
  const std::string colours("\3\2\1\0\6\5\4\0\x09\x08\x07\0", 12), few = colours.substr(0, 8);
  const auto word = [](uint64_t value) { return little(value, 4); };
  CHECK(pixel(image(40, 1, word(0x80), few)) == "4,5,6");
  CHECK(pixel(image(40, 4, word(0x20), colours)) == "7,8,9");
  CHECK(pixel(image(40, 8, word(2), colours)) == "7,8,9");
  CHECK(pixel(image(40, 8, word(3), colours)) == "0,0,0");
  CHECK(pixel(image(12, 8, word(1), "\3\2\1\6\5\4")) == "4,5,6");
  CHECK(pixel(image(40, 24, word(0x010203))) == "1,2,3");
  CHECK(pixel(image(12, 24, word(0x010203))) == "1,2,3");
  CHECK(pixel(image(40, 32, word(0xFF010203))) == "1,2,3");
  CHECK(pixel(image(40, 16, word(31 << 10 | 16 << 5 | 1))) == "255,131,8");
  CHECK(pixel(image(40, 16, word(31 << 11 | 32 << 5 | 1), "", 3, word(0xF800) + word(0x7E0) + word(0x1F))) ==
        "255,129,8");
  const std::string masks = word(0xFF) + word(0xFF00) + word(0xFF0000) + word(0xFF000000);
  CHECK(pixel(image(40, 32, word(0x010203), "", 3, masks.substr(0, 12))) == "3,2,1");
  CHECK(pixel(image(108, 32, word(0x010203), "", 3, masks)) == "3,2,1");
  CHECK(pixel(image(124, 32, word(0x010203), "", 3, masks)) == "3,2,1");
  CHECK(pixel(image(40, 32, word(0x010203), "", 3, word(0) + word(0xFFFFFFFF) + word(0x80))) == "0,0,0");
  std::string down = rgb_bmp;
  down.replace(22, 4, "\xFE\xFF\xFF\xFF");  // -2 rows: from the top
  CHECK(decode_bytes(down, 2).equal(decode_bytes(rgb_bmp, 2).flip(1)));
  CHECK_THAT(refusal(image(40, 8, word(0), colours, 1)), contains("a damaged BMP file"));
  CHECK_THAT(refusal(image(40, 8, word(0), colours, 3)), contains("compressed"));
  CHECK_THAT(refusal(image(40, 13, word(0))), contains("13 bits a pixel"));
}

TEST_CASE("decode_image: transparency is dropped, also where it hides a colour") {
  const std::string row("\0\x0A\x14\x1E\0\xF0\xF0\x3C\xFF", 9);
  const auto image = decode_bytes(
      png_begin(2, 2, 8, 6) + png_chunk("IDAT", zlib_store(row + row)) + png_chunk("IEND", ""), 1);
  // 1 x 1: half of each.
  CHECK(color(image) == "125,130,45");
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
  // 40 bytes of WebP that claim 16,384 x 16,384 pixels.
  const std::string webp = "RIFF" + little(32, 4) + "WEBPVP8L" + little(20, 4) + "\x2F" +
                           little(0x0FFFFFFF, 4) + std::string(15, '\0');
  CHECK(refusal(webp) ==
        "a picture of 16384 x 16384 pixels, expected at most 134217728 of them (max_pixels)");
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
  CHECK_THAT(refusal(png_begin(0, 5, 8, 2) + png_chunk("IDAT", packed_zeros(1000)) + png_chunk("IEND", "")),
             contains("damaged PNG file"));
  TiffSettings plain;
  plain.compression = COMPRESSION_NONE;
  std::string tiff = encode_tiff(at::zeros({5, 4, 3}, at::kByte), plain);
  const auto set_tag = [&tiff](const std::string& tag, uint64_t value) {  // a 16-bit number of the directory
    tiff.replace(tiff.find(tag) + 8, 2, little(value, 2));
  };
  set_tag(std::string("\0\1\3\0\1\0\0\0\4", 9), 10000);
  set_tag(std::string("\1\1\3\0\1\0\0\0\5", 9), 10000);
  claims(tiff);
  std::string bmp = rgb_bmp;
  bmp.replace(18, 8, std::string("\x10\x27\0\0\x10\x27\0\0", 8));
  claims(bmp);
  bmp.replace(22, 4, std::string("\0\0\0\x80", 4));
  CHECK_THAT(refusal(bmp), contains("pi"));
  // A header of 335 MB, behind which a palette would lie.
  bmp = rgb_bmp;
  bmp[17] = '\x14';
  bmp.replace(28, 2, std::string("\x08\0", 2));
  CHECK(color(decode_bytes(bmp, 1)) == "0,0,0");

  // 64 MB of pixels where one is read.
  const auto bomb =
      png_begin(1, 1, 8, 0) + png_chunk("IDAT", packed_zeros(size_t{64} << 20)) + png_chunk("IEND", "");
  CHECK(color(decode_bytes(bomb, 1)) == "0,0,0");
  // A tile of 3 GB for 5 x 4 pixels.
  TiffSettings tiled;
  tiled.tiles = true;
  tiff = encode_tiff(at::zeros({5, 4, 3}, at::kByte), tiled);
  set_tag(std::string("\x42\1\3\0\1\0\0\0\x10", 9), 32768);
  set_tag(std::string("\x43\1\3\0\1\0\0\0\x10", 9), 32768);
  CHECK(refusal(tiff) == "a TIFF file that takes more memory than its 4 x 5 pixels");
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
           {"GIF", "GIF89a"},
           {"camera raw", std::string("II*\0\x10\0\0\0CR\2\0", 12)},
           {"HEIC", std::string("\0\0\0\x18"
                                "ftypheic",
                                12)},
           {"AVIF", std::string("\0\0\0\x1C"
                                "ftypavif",
                                12)},
           {"Git-LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"}}) {
    CAPTURE(name);
    CHECK(refusal(begin + std::string(200, 'x')) ==
          "a " + name + " file; JPEG, PNG, WebP, TIFF, BMP, PPM and PGM are read");
  }
  CHECK_THAT(refusal(std::string("\0\0\2", 3), {}, "x.TGA"), contains("a TGA file; JPEG"));
}

TEST_CASE("decode_image: damage is found, and no byte of a file is repeated raw") {
  const std::string whole = png(9, 8, 7);
  std::string bytes = whole;
  bytes[bytes.find("IDAT") + 20] ^= 1;
  CHECK_THAT(refusal(bytes), contains("damaged PNG file, or of a kind that is not read (IDAT: "));
  // Chunks that must be understood, of names that a terminal would obey.
  for (const std::string name : {"ID\n\x1A", "I\x1B[2", "CgBI"}) {
    CHECK_THAT(refusal(png_begin(9, 9, 1, 0) + png_chunk(name, std::string(35, 'x')) + png_chunk("IEND", "")),
               contains("damaged PNG file, or of a kind that is not read"));
  }
  const std::vector<std::vector<std::vector<int>>> block{{red}};
  JpegTables none;
  none.quantization = false;
  CHECK_THAT(refusal(block_jpeg(block, "", none)),
             contains("damaged JPEG file, or of a kind that is not read (Quant"));
  std::string jpeg = block_jpeg(block);
  jpeg[jpeg.find("\xFF\xC0") + 1] = '\xC3';  // lossless
  CHECK_THAT(refusal(jpeg), contains("damaged JPEG"));
  jpeg = block_jpeg(block);
  jpeg[jpeg.find("\xFF\xC0") + 4] = 12;  // bits
  CHECK_THAT(refusal(jpeg), contains("damaged JPEG"));
  jpeg = block_jpeg(block);
  jpeg.insert(jpeg.find("\xFF\xC4"), jpeg_segment(0xC4, std::string(1, '\0') + std::string(16, '\xFF')));
  CHECK_THAT(refusal(jpeg), contains("damaged JPEG"));
  // Half the data of a scan, but whole to its end.
  JpegSettings progressive;
  progressive.progressive = true;
  for (const auto& settings : {JpegSettings{}, progressive}) {
    jpeg = encode_jpeg(smooth_picture(100, 100), settings);
    jpeg.erase(jpeg.rfind("\xFF\xDA") + 20, 600);
    CHECK_THAT(refusal(jpeg),
               contains("damaged JPEG file, or of a kind that is not read (Corrupt JPEG data"));
  }
  // A scan is over in no time, and a hundred thousand of them are not.
  jpeg = encode_jpeg(smooth_picture(100, 100), progressive);
  const size_t scan = jpeg.rfind("\xFF\xDA");
  const std::string last = jpeg.substr(scan, jpeg.size() - 2 - scan);
  for (int i = 0; i < 200; ++i) {
    jpeg.insert(scan, last);
  }
  CHECK_THAT(refusal(jpeg), contains("JPEG"));
  // A file's name is written so that a terminal does not obey it.
  const auto dir = temp_dir();
  const std::string message = error_of([&] { decode_image(dir / "a\n\x1B[31m\xFF\xC2\x9B.png", 4); });
  CHECK(message == "decode_image: cannot read " + (dir / "a\\n\\x1b[31m\\xff\\xc2\\x9b.png").string() +
                       ": No such file or directory");
}

TEST_CASE("decode_image: the libraries write nothing and share nothing between threads") {
  const auto dir = temp_dir();
  const auto image = smooth_picture(60, 60);
  const std::map<std::string, std::string> whole{{"jpg", encode_jpeg(image)},
                                                 {"png", encode_interlaced_png(image)},
                                                 {"webp", encode_webp(image)},
                                                 {"tif", encode_tiff(image)}};
  for (const auto& [name, bytes] : whole) {
    write_file(dir / ("whole." + name), bytes);
    write_file(dir / ("cut." + name), bytes.substr(0, bytes.size() * 2 / 3));
  }
  std::fflush(stderr);
  const int kept = ::dup(STDERR_FILENO);
  const int caught = ::open((dir / "stderr").c_str(), O_WRONLY | O_CREAT, 0600);
  ::dup2(caught, STDERR_FILENO);
  std::vector<int> right(3, 0);
  std::vector<std::thread> threads;
  for (int& count : right) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        for (const auto& item : whole) {
          const auto decoded = decode_image(dir / ("whole." + item.first), 60);
          count += difference(decoded, planes(image)).second <= 5 ? 1 : 0;
          count += error_of([&] { decode_image(dir / ("cut." + item.first), 60); }).empty() ? 0 : 1;
        }
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  std::fflush(stderr);
  ::dup2(kept, STDERR_FILENO);
  ::close(kept);
  ::close(caught);
  CHECK(right == std::vector<int>(3, 80));
  CHECK(read_file(dir / "stderr").empty());
}

#else
TEST_CASE("the tests of decode_image need libjpeg-turbo, libpng, libwebp and libtiff") { SUCCEED(); }
#endif
