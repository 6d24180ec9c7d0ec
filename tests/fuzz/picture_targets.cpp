// Pictures of each format, and folders of them.

#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/image_pool.hpp>
#include <mixmatch/data/picture_cache.hpp>
#include <mixmatch/detail/io/byte_view.hpp>
#include <mixmatch/detail/io/crc32c.hpp>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fuzz.hpp"
#include "picture_seeds.hpp"

namespace fs = std::filesystem;
using torch::Tensor;

namespace fuzz {

#if defined(MIXMATCH_HAS_JPEG) && defined(MIXMATCH_HAS_PNG) && defined(MIXMATCH_HAS_WEBP) && \
    defined(MIXMATCH_HAS_TIFF)

namespace {

/// One target a format: what one teaches is of no use for another.
void add_format(std::vector<Target>& targets, const std::string& name,
                const std::vector<std::string_view>& seeds, int64_t times_input,
                std::vector<std::string> dictionary) {
  const std::string file = "picture." + name;
  // A few bytes of some formats fill any picture with one colour.
  const auto options = mixmatch::data::DecodeImageOptions().max_pixels(int64_t{1} << 20);
  Target target{name,
                {file},
                {},
                std::move(dictionary),
                [file, options](const fs::path& dir, const Input&) {
                  const auto image = mixmatch::data::decode_image(dir / file, 8, options);
                  digest(image.data_ptr<uint8_t>(), static_cast<size_t>(image.numel()));
                },
                times_input};
  for (const auto seed : seeds) {
    target.seeds.push_back({from_hex(seed)});
  }
  targets.push_back(std::move(target));
}

/// The file with checksums that fit the chunks, so that what reads these is reached.
std::string with_checksums(std::string bytes) {
  const mixmatch::detail::ByteView view{bytes};
  for (uint64_t at = 8; view.has(at, 12); at += 12 + uint64_t{view.big32(at)}) {
    const uint64_t length = view.big32(at);
    if (view.has(at + 8, length + 4)) {
      const uint32_t crc = mixmatch::detail::crc32(view.part(at + 4, 4 + length));
      for (uint64_t i = 0; i < 4; ++i) {
        bytes[at + 8 + length + i] = static_cast<char>(crc >> (24 - 8 * i));
      }
    }
  }
  return bytes;
}

/// Two pictures without a label: on demand, with room for one of them, as all at once.
void read_on_demand(const fs::path& dir, const Input&) {
  const auto make = [&] {
    return std::make_unique<mixmatch::data::PictureCache>(
        dir, std::vector<std::string>{"first.jpeg", "second.png"}, at::full({2}, -1, at::kLong), 8,
        mixmatch::data::PictureCacheOptions().cache_memory(3 * 8 * 8).threads(1).decode(
            mixmatch::data::DecodeImageOptions().max_pixels(int64_t{1} << 20)));
  };
  const auto all_at_once = make();
  Tensor images = at::zeros({2, 3, 8, 8}, at::kByte);
  const auto reasons = all_at_once->decode_all(images);
  for (const auto& reason : reasons) {
    if (!reason.empty()) {
      expect_clean(reason, "why a picture cannot be read");
    }
  }
  const auto cache = make();
  const Tensor drawn = cache->gather(at::tensor({1, 0, 1}, at::kLong));  // throws where neither can be read
  digest(drawn.data_ptr<uint8_t>(), static_cast<size_t>(drawn.numel()));
  expect(drawn[0].equal(drawn[2]), "a picture that is drawn twice is another");
  for (int64_t i = 0; i < 2; ++i) {
    expect(cache->gather(at::full({1}, i, at::kLong))[0].equal(drawn[1 - i]),
           "a picture that is kept is another");
    if (reasons[static_cast<size_t>(i)].empty()) {
      expect(images[i].equal(drawn[1 - i]), "a picture is another in memory than on demand");
    }
  }
  expect(cache->replaced().size() < 2, "both pictures are replaced");
  const auto begins = cache->check_all();
  for (size_t i = 0; i < 2; ++i) {
    expect(begins[i] == reasons[i], "a picture is left out in memory or on demand alone");
  }
}

/// Makes what the lines say below `root`: a kind (p a picture, b the beginning of one, t a text, l a link to
/// nothing, d a directory, c a link to the root) and a path.
void make_tree(const fs::path& root, const std::string& listing) {
  const std::string picture = "P6 1 1 255\nabc";
  std::error_code ignored;
  size_t lines = 0;
  for (size_t begin = 0; begin < listing.size() && lines < 32; ++lines) {
    const size_t end = std::min(listing.find('\n', begin), listing.size());
    const std::string line = listing.substr(begin, end - begin);
    begin = end + 1;
    if (line.size() < 2 || line.size() > 200 || line.find('\0') != std::string::npos ||
        line.find("..") != std::string::npos || line[1] == '/') {
      continue;  // nothing outside of the root
    }
    const fs::path path = root / line.substr(1);
    fs::create_directories(line[0] == 'd' ? path : path.parent_path(), ignored);
    if (line[0] == 'p' || line[0] == 'b' || line[0] == 't') {
      std::FILE* file = std::fopen(path.c_str(), "wb");
      if (file != nullptr) {
        const std::string bytes = line[0] == 't'   ? "text"
                                  : line[0] == 'b' ? picture.substr(0, picture.size() - 1)
                                                   : picture;
        std::fputs(bytes.c_str(), file);
        std::fclose(file);
      }
    } else if (line[0] == 'l') {
      fs::create_symlink("nothing", path, ignored);
    } else if (line[0] == 'c') {
      fs::create_directory_symlink(root, path, ignored);
    }
  }
}

void read_folder(const fs::path&, const Input& input) {
  const fs::path root = scratch() / "tree";
  std::error_code ignored;
  fs::remove_all(root, ignored);
  fs::create_directory(root);
  make_tree(root, input[0]);
  const auto folder = mixmatch::data::load_image_folder(root, 8);
  expect(folder.files.size() == static_cast<size_t>(folder.size()), "another number of files than of images");
  for (const auto& name : folder.class_names) {
    expect(mixmatch::detail::is_utf8(name), "a class name that is not UTF-8");
  }
  for (const auto& file : folder.files) {
    digest_text(file);
  }
  for (const auto& file : folder.unreadable) {
    digest_text(file.file);
    expect_clean(mixmatch::data::describe(file), "a file left out");
  }
  // The same on demand, unless nothing without a label can be read.
  const auto demand =
      mixmatch::data::load_image_folder(root, 8, mixmatch::data::ImageFolderOptions().cache_memory(0));
  if (demand.files == folder.files) {
    const mixmatch::data::ImagePool in_memory({folder}), on_demand({demand});
    expect(on_demand.gather(at::arange(folder.size(), at::kLong)).equal(folder.images),
           "another picture on demand than in memory");
    expect(on_demand.replaced().equal(in_memory.replaced()), "others are replaced on demand than in memory");
    expect(mixmatch::data::data_checksum(on_demand) == mixmatch::data::data_checksum(in_memory),
           "another checksum on demand than in memory");
  } else {
    expect(folder.labels.ge(0).all().item<bool>(), "other pictures on demand than in memory");
  }
  if (mixmatch::data::ImagePool({folder}).replaced().numel() > 0) {
    return;  // which strict refuses
  }
  // What strict takes is all that there is.
  const auto strict =
      mixmatch::data::load_image_folder(root, 8, mixmatch::data::ImageFolderOptions().strict(true));
  expect(strict.files == folder.files && folder.unreadable.empty(), "strict takes what was left out");
}

}  // namespace

void add_picture_targets(std::vector<Target>& targets) {
  const auto bytes = [](std::initializer_list<std::string_view> digits) {
    std::vector<std::string> words;
    for (const auto text : digits) {
      words.push_back(from_hex(text));
    }
    return words;
  };
  add_format(targets, "jpeg", pictures::jpeg, 16 * 1024,
             bytes({"ffd8",
                    "ffd9",
                    "ffda",
                    "ffc0",
                    "ffc1",
                    "ffc2",
                    "ffc4",
                    "ffdb",
                    "ffdd0004",
                    "ffe0",
                    "ffe1",
                    "ffee",
                    "ffd0",
                    "ff00",
                    "ffff",
                    "fffe0002",
                    "41646f626500",
                    "4578696600004d4d002a00000008",
                    "457869660000",
                    "49492a0008000000",
                    "0112000300000001",
                    "0800080008",
                    "03011100021101031101",
                    "2200",
                    "003f00"}));
  add_format(
      targets, "png", pictures::png, 8 * 8 * 1032,
      bytes({"49484452", "49444154", "49454e44", "504c5445", "74524e53", "43674249", "00000000", "789c",
             "7801", "01000100feff00", "0001ffff", "edc1", "0000000d", "1006", "0803", "0103"}));
  targets.push_back(targets.back());
  targets.back().name = "png_chunks";
  targets.back().run = [](const fs::path&, const Input& input) {
    const auto image = mixmatch::data::decode_image(write("chunks.png", with_checksums(input[0])), 8);
    digest(image.data_ptr<uint8_t>(), static_cast<size_t>(image.numel()));
  };
  add_format(targets, "webp", pictures::webp, 16 * 1024,
             bytes({"52494646", "57454250", "56503820", "5650384c", "56503858", "414c5048", "45584946",
                    "414e494d", "414e4d46", "9d012a", "2f", "0a000000", "10000000", "ffffff"}));
  add_format(targets, "bmp", pictures::bmp, 200,
             bytes({"424d",     "28000000", "0c000000", "38000000", "6c000000", "7c000000", "40000000",
                    "ffffffff", "00000080", "0100",     "0400",     "0800",     "1000",     "1800",
                    "2000",     "01000000", "03000000", "ff000000", "0000",     "0001"}));
  add_format(
      targets, "tiff", pictures::tiff, 16 * 1024,
      bytes({"49492a00", "4d4d002a", "49492b00", "00010400", "01010400", "02010300", "03010300", "06010300",
             "11010400", "12010300", "15010300", "16010400", "17010400", "1c010300", "3d010300", "40010300",
             "42010400", "43010400", "44010400", "45010400", "52010300", "53010300", "0500",     "0700",
             "0800",     "b2800000", "00010000", "ffffffff", "1000"}));
  add_format(targets, "pnm", pictures::pnm, 200,
             {"P1", "P2",  "P3",  "P4",    "P5",    "P6", "P7", "#",          "\n",
              " ",  "255", "256", "65535", "65536", "0",  "-1", "4294967296", "99999999999999999999",
              "Pf", "PF"});
  targets.push_back({"picture_cache",
                     {"first.jpeg", "second.png"},
                     {{from_hex(pictures::jpeg[0]), from_hex(pictures::png[0])},
                      {from_hex(pictures::pnm[0]), from_hex(pictures::bmp[0])},
                      {from_hex(pictures::webp[0]), from_hex(pictures::tiff[0])}},
                     {},
                     read_on_demand,
                     16 * 1024});
  targets.push_back({"image_folder",
                     {"listing"},
                     {{"plabeled/cat/1.png\nplabeled/dog/1.jpg\npunlabeled/1.ppm\n"},
                      {"plabeled/a/b/1.png\nplabeled/b/2.PNG\nplabeled/b/3.webp\n"},
                      {"plabeled/a/1.bmp\nplabeled/b/2.tif\ndunlabeled\n"},
                      {"plabeled/a/1.bmp\nplabeled/b/2.tif\nbunlabeled/1.ppm\npunlabeled/2.ppm\n"}},
                     {"\n",        "/",         "plabeled/",    "punlabeled/", "bunlabeled/",
                      "dlabeled/", "llabeled/", "clabeled/",    "tlabeled/",   "lunlabeled",
                      ".png",      ".webp",     ".tiff",        ".jfif",       ".",
                      "@eaDir/",   "Thumbs.db", "punlabelled/", "ptest/",      "\xff",
                      "\x1b[2J",   "\xc2\x9b",  "\xc3\xa9",     "\"",          ","},
                     read_folder});
}

#else

void add_picture_targets(std::vector<Target>&) {}

#endif

}  // namespace fuzz
