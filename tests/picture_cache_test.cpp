#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/picture_cache.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/report/report.hpp>
#include <mixmatch/step/feed.hpp>
#include <mixmatch/step/prefetch.hpp>

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "pictures.hpp"
#include "test_util.hpp"

#ifdef MIXMATCH_HAS_PNG

using mixmatch::data::data_checksum;
using mixmatch::data::ImageDataset;
using mixmatch::data::ImageFolder;
using mixmatch::data::ImageFolderOptions;
using mixmatch::data::ImagePool;
using mixmatch::data::load_image_folder;
using mixmatch::data::PictureCache;
using mixmatch::data::PictureCacheOptions;
using mixmatch::data::ReplacedPicture;
using torch::Tensor;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kSize = 6, kBytes = 3 * kSize * kSize;

/// Pictures of different colours: eight with a label in two classes, twelve without.
struct CachedFolder {
  explicit CachedFolder(int64_t unlabeled = 12) {
    for (int64_t i = 0; i < 8 + unlabeled; ++i) {
      const std::string name = i < 4   ? "labeled/a/" + std::to_string(i)
                               : i < 8 ? "labeled/b/" + std::to_string(i)
                                       : "unlabeled/" + std::to_string(100 + i);
      files.push_back(name + ".png");
      labels.push_back(i < 8 ? i / 4 : -1);
      write_picture(dir / files.back(), png(i, 255 - i, 7 * i % 256));
    }
  }
  std::unique_ptr<PictureCache> make(int64_t pictures, PictureCacheOptions options = {}) const {
    return std::make_unique<PictureCache>(dir.path(), files, at::tensor(labels, at::kLong), kSize,
                                          options.cache_memory(pictures * kBytes));
  }
  ImageFolder load(int64_t pictures, ImageFolderOptions options = {}) const {
    return load_image_folder(dir.path(), kSize, options.cache_memory(pictures * kBytes));
  }

  TempDir dir;
  std::vector<std::string> files;
  std::vector<int64_t> labels;
};

Tensor picture_rows(const std::vector<int64_t>& rows) { return at::tensor(rows, at::kLong); }

Tensor all_rows(int64_t count) { return at::arange(count, at::kLong); }

}  // namespace

TEST_CASE(
    "PictureCache: what is gathered does not depend on what is kept, and no more is decoded than must be") {
  const CachedFolder folder;
  const Tensor expected = folder.load(20).images;
  REQUIRE(expected.defined());
  torch::manual_seed(1);
  for (const int64_t room : {0, 1, 7, 20, 1000}) {
    const auto cache = folder.make(room);
    const int64_t capacity = std::min<int64_t>(room, 20);
    CHECK(cache->capacity() == capacity);
    CHECK(cache->size() == 20);
    CHECK(cache->image_sizes() == std::vector<int64_t>{3, kSize, kSize});
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      const int64_t before = cache->decoded();
      const Tensor order = at::randperm(20, at::kLong);
      for (int64_t begin = 0; begin < 20; begin += 5) {
        const Tensor rows = order.narrow(0, begin, 5);
        CHECK(cache->gather(rows).equal(expected.index_select(0, rows)));
      }
      // All at first; then a share of capacity / 20 is found, in whatever order.
      CHECK(cache->decoded() - before == (epoch == 0 ? 20 : 20 - capacity));
      CHECK(cache->kept() == capacity);
    }
    const int64_t before = cache->decoded();
    const Tensor rows = picture_rows({3, 19, 3, 3, 0, 19});
    CHECK(cache->gather(rows).equal(expected.index_select(0, rows)));
    CHECK(cache->decoded() - before <= 3);
    CHECK(cache->gather(picture_rows({})).sizes() == at::IntArrayRef({0, 3, kSize, kSize}));
  }
}

TEST_CASE("PictureCache: memory stays bounded while all of a larger set goes through") {
  const TempDir dir;
  std::vector<std::string> files;
  for (int64_t i = 0; i < 300; ++i) {
    files.push_back(std::to_string(i) + ".png");
    write_picture(dir / files.back(), png(i % 256, 1, 2));
  }
  const int64_t size = 256, bytes = 3 * size * size;
  const PictureCache cache(dir.path(), files, at::full({300}, -1, at::kLong), size,
                           PictureCacheOptions().cache_memory(20 * bytes + 1));
  cache.gather(all_rows(10));
  const int64_t before = peak_memory();
  for (int64_t begin = 10; begin < 300; begin += 10) {
    const Tensor images = cache.gather(at::arange(begin, begin + 10, at::kLong));
    CHECK(images.select(1, 0).select(1, 0).select(1, 0).equal(
        at::arange(begin, begin + 10, at::kLong).remainder(256).to(at::kByte)));
  }
  CHECK(cache.kept() == 20);
  CHECK(peak_memory() - before < 20);  // MB; all decoded are 59
}

TEST_CASE("PictureCache: threads may gather at a time") {
  const CachedFolder folder(40);
  const Tensor expected = folder.load(1000).images;
  const auto cache = folder.make(20, PictureCacheOptions().threads(3));
  std::atomic<int64_t> wrong{0};
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      const auto generator = seeded(thread);
      for (int64_t i = 0; i < 30; ++i) {
        const Tensor rows = at::randint(48, {9}, generator, at::TensorOptions(at::kLong));
        wrong += cache->gather(rows).equal(expected.index_select(0, rows)) ? 0 : 1;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(wrong == 0);
  CHECK(cache->kept() == 20);
  const int64_t before = cache->decoded();
  cache->gather(all_rows(48));
  CHECK(cache->decoded() - before == 28);
}

TEST_CASE("PictureCache: an unreadable picture is replaced by the next without a label, whatever is kept") {
  const CachedFolder folder;
  const Tensor whole = folder.load(20).images;
  const auto cut = [&](int64_t i) {
    const auto path = folder.dir / folder.files[static_cast<size_t>(i)];
    write_file(path, read_file(path).substr(0, 40));
  };
  for (const int64_t i : {10, 13, 14, 19}) {
    cut(i);
  }
  // 13 and 14 follow each other. 19 is the last of all: round to 8, the first without a label.
  const std::map<int64_t, int64_t> replaced{{10, 11}, {13, 15}, {14, 15}, {19, 8}};
  Tensor source = all_rows(20);
  for (const auto& [from, to] : replaced) {
    source[from] = to;
  }
  const Tensor expected = whole.index_select(0, source);
  for (const int64_t room : {0, 4, 20}) {
    for (const bool backwards : {false, true}) {
      std::map<std::string, std::string> told;
      int64_t calls = 0;
      const auto cache =
          folder.make(room, PictureCacheOptions().on_replaced([&](const ReplacedPicture& picture) {
            told[picture.unreadable.file] = describe(picture);
            ++calls;
          }));
      CHECK(cache->replaced().empty());
      for (int64_t pass = 0; pass < 2; ++pass) {
        for (int64_t i = 0; i < 20; i += 4) {
          const int64_t begin = backwards ? 16 - i : i;
          CHECK(cache->gather(all_rows(20).narrow(0, begin, 4)).equal(expected.narrow(0, begin, 4)));
        }
      }
      CHECK(calls == 4);
      CHECK(told["unlabeled/113.png"] ==
            "unlabeled/113.png: the picture is cut short; unlabeled/115.png is used in its place");
      CHECK(cache->replacements() == replaced);
      CHECK(cache->replaced() == std::vector<int64_t>{10, 13, 14, 19});
    }
  }
  CHECK_THAT(error_of([&] {
               folder.make(9, PictureCacheOptions().strict(true))->gather(picture_rows({1, 13}));
             }),
             contains("cannot read ") && contains("unlabeled/113.png: the picture is cut short"));
  // The next with the same label might be held out.
  cut(5);
  CHECK_THAT(error_of([&] {
               folder.make(9)->gather(picture_rows({1, 5}));
             }),
             contains("cannot read ") && contains("labeled/b/5.png: the picture is cut short"));
  const auto cache = folder.make(9);
  CHECK(cache->check(5) == "the picture is cut short");
  CHECK(cache->check(4).empty());
  CHECK(cache->kept() == 1);
  CHECK(cache->gather(picture_rows({4})).equal(whole.narrow(0, 4, 1)));
  CHECK(cache->decoded() == 2);
  for (int64_t i = 8; i < 20; ++i) {
    cut(i);
  }
  CHECK_THAT(error_of([&] { cache->gather(picture_rows({13})); }),
             contains("unlabeled/113.png: the picture is cut short; nor any other picture without a label"));
}

TEST_CASE("PictureCache: refuses what does not fit in one line") {
  const CachedFolder folder;
  const auto cache = folder.make(3);
  CHECK_THAT(error_of([&] {
               cache->gather(picture_rows({0, 20}));
             }),
             contains("row 20 is out of range for 20 pictures"));
  CHECK_THAT(error_of([&] { cache->gather(picture_rows({-1})); }), contains("row -1 is out of range"));
  CHECK_THAT(error_of([&] { cache->gather(at::zeros({1})); }), contains("rows must be int64 [B] on the CPU"));
  CHECK_THAT(error_of([&] { folder.make(-1); }), contains("cache_memory must be >= 0"));
  CHECK_THAT(error_of([&] { folder.make(1, PictureCacheOptions().threads(-1)); }),
             contains("threads must be"));
  CHECK_THAT(error_of([&] { PictureCache(folder.dir.path(), folder.files, all_rows(3), 4); }),
             contains("labels must be int64 [20], got"));
  CHECK_THAT(error_of([&] { PictureCache(folder.dir.path(), folder.files, all_rows(20), 0); }),
             contains("size must be in [1, 16384]"));
}

TEST_CASE(
    "load_image_folder: a folder larger than its memory is decoded on demand, and found to be the same") {
  const CachedFolder folder;
  write_file(folder.dir / "unlabeled/no.jpg", "no picture");
  write_file(folder.dir / "unlabeled/empty.png", "");
  write_file(folder.dir / "labeled/a/bad.png", read_file(folder.dir / folder.files[0]).substr(0, 40));
  const std::string whole = read_file(folder.dir / folder.files[11]);
  write_file(folder.dir / folder.files[11], whole.substr(0, 40));
  {
    const ImageFolder memory = folder.load(23), demand = folder.load(22);
    CHECK(memory.files == demand.files);
    CHECK(memory.images.equal(demand.gather(all_rows(20))));
    CHECK(memory.images[11].equal(memory.images[12]));
    CHECK(data_checksum(ImagePool({memory})) == data_checksum(ImagePool({demand})));
    CHECK(ImagePool({memory}).replaced().equal(picture_rows({11})));
    CHECK(ImagePool({demand}).replaced().equal(picture_rows({11})));
    // Where all others are damaged too, none is given for it.
    std::vector<std::string> kept;
    for (size_t i = 8; i < 20; ++i) {
      kept.push_back(read_file(folder.dir / folder.files[i]));
      write_file(folder.dir / folder.files[i], whole.substr(0, 40));
    }
    const ImageFolder labeled = folder.load(30);
    CHECK(labeled.size() == 8);
    CHECK(labeled.unreadable.size() == 15);
    CHECK(ImagePool({labeled}).replaced().numel() == 0);
    for (size_t i = 8; i < 20; ++i) {
      write_file(folder.dir / folder.files[i], kept[i - 8]);
    }
  }
  write_file(folder.dir / folder.files[11], whole);
  const ImageFolder memory = folder.load(23), demand = folder.load(22);
  CHECK(memory.images.defined());
  CHECK_FALSE(demand.images.defined());
  CHECK(demand.on_demand());
  CHECK(demand.size() == 20);
  CHECK(demand.files == memory.files);
  CHECK(demand.labels.equal(memory.labels));
  REQUIRE(demand.unreadable.size() == 3);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(describe(demand.unreadable[i]) == describe(memory.unreadable[i]));
  }
  CHECK_THAT(
      error_of([&] { folder.load(5, ImageFolderOptions().strict(true)); }),
      contains("load_image_folder: cannot read ") && contains("labeled/a/bad.png: the picture is cut short"));
  // Those with a label are looked at beforehand, and stay.
  const auto& cache = dynamic_cast<const PictureCache&>(*demand.source);
  CHECK(cache.decoded() == 9);
  CHECK(cache.kept() == 8);
  demand.gather(all_rows(8));
  CHECK(cache.decoded() == 9);

  const Tensor rows = picture_rows({5, 19, 0, 5});
  const Tensor expected = memory.images.index_select(0, rows);
  CHECK(demand.gather(rows).equal(expected));
  const ImageDataset some = mixmatch::data::take(demand, rows);
  CHECK(some.on_demand());
  CHECK(some.size() == 4);
  CHECK(some.labels.equal(mixmatch::data::take(memory, rows).labels));
  CHECK(some.gather(picture_rows({3, 1})).equal(expected.index_select(0, picture_rows({3, 1}))));
  CHECK(mixmatch::data::take(some, picture_rows({2}))
            .gather(picture_rows({0}))
            .equal(memory.images.narrow(0, 0, 1)));
  CHECK_THAT(error_of([&] { some.gather(picture_rows({4})); }), contains("out of range"));
  CHECK(mixmatch::data::to_device(demand, torch::kCPU).on_demand());

  const auto pixels = [](const Tensor& images) { return images.flatten(1).narrow(1, 0, 3); };
  CHECK(mixmatch::training::predict_probabilities(pixels, demand)
            .equal(mixmatch::training::predict_probabilities(pixels, memory)));
  const Tensor probabilities = at::tensor({0.9F, 0.1F}).expand({4, 2}).contiguous();
  const auto wrong = mixmatch::training::wrong_examples(some, probabilities, 9);  // of label 0, 0, -1, 1
  REQUIRE(wrong.size() == 2);
  CHECK(wrong[0].image.equal(memory.images[5]));
}

TEST_CASE("ImagePool: images on demand beside others") {
  const CachedFolder folder;
  const ImageFolder memory = folder.load(20), demand = folder.load(3);
  ImageDataset other{at::randint(256, {4, 3, kSize, kSize}, at::kByte), at::full({4}, 1, at::kLong), {}};
  for (const bool first : {true, false}) {
    const auto pool = [&](const ImageDataset& set) {
      std::vector<ImageDataset> sets{other, set};
      if (first) {
        sets = {set, ImageDataset{}, other};
      }
      return ImagePool(sets);
    };
    const Tensor rows = picture_rows({23, 0, 19, 20, 3, 4, 5});
    CHECK(pool(demand).gather(rows).equal(pool(memory).gather(rows)));
    CHECK(pool(demand).labels.equal(pool(memory).labels));
    CHECK(pool(demand).image_size() == kSize);
    CHECK(pool(demand).device().is_cpu());
    CHECK(data_checksum(pool(demand)) == data_checksum(pool(memory)));
    const auto before = data_checksum(pool(demand));
    other.images[3][2][5][5].bitwise_xor_(1);
    CHECK(data_checksum(pool(demand)) != before);
  }
  CHECK(ImagePool({demand}).gather(all_rows(20)).equal(memory.images));
  CHECK(ImagePool({demand}).in_one().gather(all_rows(20)).equal(memory.images));
  other.images = other.images.narrow(3, 0, 4);
  CHECK_THAT(error_of([&] {
               ImagePool({demand, other});
             }),
             contains("set 1 has images of [3, 6, 4], those before it of [3, 6, 6]"));
}

TEST_CASE("ImagePool: knows in whose place others are given") {
  const CachedFolder folder;
  write_file(folder.dir / folder.files[12], "P5 2 2 255\n12");
  write_file(folder.dir / folder.files[9],
             "no picture");  // left out at once: 12 is the 12th of those that stay
  const ImageFolder demand = folder.load(3);
  REQUIRE(demand.size() == 19);
  const ImagePool pool({mixmatch::data::take(demand, all_rows(5)), demand});
  CHECK(pool.replaced().numel() == 0);
  const Tensor images = pool.gather(picture_rows({5 + 11, 5 + 12}));
  CHECK(images[0].equal(images[1]));
  CHECK(pool.replaced().equal(picture_rows({5 + 11})));
  CHECK(demand.files[11] == folder.files[12]);
}

TEST_CASE("data_checksum: of pictures in files, without decoding them") {
  const CachedFolder folder;
  const auto checksum = [&](int64_t room) { return data_checksum(ImagePool({folder.load(room)})); };
  const auto before = checksum(20);
  CHECK(checksum(3) == before);
  CHECK(checksum(0) == before);
  const auto demand = folder.load(0);
  data_checksum(ImagePool({demand}));
  CHECK(dynamic_cast<const PictureCache&>(*demand.source).decoded() == 8);
  const auto rows = [&](const std::vector<int64_t>& of) {
    return data_checksum(ImagePool({mixmatch::data::take(demand, picture_rows(of))}));
  };
  CHECK(rows({9, 10}) != rows({10, 9}));

  const auto path = folder.dir / "unlabeled/110.png";
  const auto bytes = read_file(path);
  const auto changed = [&](const std::string& to) {
    write_file(path, to);
    const auto now = checksum(3);
    write_file(path, bytes);
    return now != before;
  };
  auto other = bytes;
  other[other.size() - 20] = static_cast<char>(other[other.size() - 20] ^ 1);
  CHECK(changed(other));
  CHECK(changed(bytes + "x"));
  CHECK_FALSE(changed(bytes));
  fs::rename(path, folder.dir / "unlabeled/110a.png");  // in the same place
  CHECK(checksum(3) != before);
}

TEST_CASE("Feed: a step's batch is the same whatever of the pictures is kept, ahead or not") {
  const CachedFolder folder(30);
  write_file(folder.dir / folder.files[20], "P5 2 2 255\n12");  // in memory this one would be left out
  const auto feed = [&](int64_t room) {
    const auto set = folder.load(room);
    REQUIRE(set.on_demand());
    return mixmatch::training::Feed(
        {ImagePool({set}), {all_rows(8), at::arange(8, 38, at::kLong), all_rows(0)}, {}, {}},
        mixmatch::training::FeedOptions().batch_size(5).weak_views(2).strong_views(1).augmentation(
            mixmatch::augment::RandomCropFlipOptions().padding(2)));
  };
  const auto none = feed(0), some = feed(9), most = feed(37);
  mixmatch::training::Prefetch<mixmatch::training::RawBatch> ahead(
      [&](int64_t step) { return most.gather(at::full({}, step, at::kLong)); });
  for (const int64_t step : {0, 1, 2, 3, 9, 10, 4, 5}) {
    const Tensor number = at::full({}, step, at::kLong);
    const auto a = none(number), b = some(number), c = most.augment(ahead(step), number);
    for (const auto* other : {&b, &c}) {
      CHECK(a.labeled.equal(other->labeled));
      CHECK(a.labels.equal(other->labels));
      CHECK(a.unlabeled_rows.equal(other->unlabeled_rows));
      CHECK(a.weak[1].equal(other->weak[1]));
      CHECK(a.strong[0].equal(other->strong[0]));
    }
  }
}

#endif
