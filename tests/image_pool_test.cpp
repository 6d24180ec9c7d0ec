#include <mixmatch/data/image_pool.hpp>

#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::gather_images;
using mixmatch::data::ImageDataset;
using mixmatch::data::ImagePool;

namespace {

ImageDataset make(int64_t count, int64_t first_label, std::vector<std::string> names = {}) {
  return {at::randint(256, {count, 3, 4, 5}, at::kByte),
          at::arange(first_label, first_label + count, at::kLong), std::move(names)};
}

}  // namespace

TEST_CASE("a pool is the sets one after the other") {
  const std::vector<ImageDataset> sets{make(4, 0), make(1, 10, {"a", "b"}), make(0, 0), make(7, 20, {"c"})};
  const ImagePool pool(sets);
  CHECK(pool.size() == 12);
  CHECK(pool.class_names == std::vector<std::string>{"a", "b"});
  CHECK(pool.num_classes() == 2);
  CHECK(pool.labels.equal(at::cat({sets[0].labels, sets[1].labels, sets[3].labels})));
  const auto all = at::cat({sets[0].images, sets[1].images, sets[3].images});
  const auto rows = at::tensor({11, 0, 4, 4, 3, 5, 11, 10}, at::kLong);
  const auto gathered = pool.gather(rows);
  CHECK(gathered.is_contiguous());
  CHECK(gathered.equal(gather_images(all, rows)));
  CHECK(pool.gather(at::arange(12, at::kLong)).equal(all));
  CHECK(pool.gather(at::arange(24, at::kLong).slice(0, 0, 24, 2).remainder(12)).size(0) == 12);
  CHECK(pool.gather(at::empty({0}, at::kLong)).sizes() == at::IntArrayRef({0, 3, 4, 5}));
}

TEST_CASE("a pool shares its sets' images") {
  auto first = make(2, 0);
  const ImagePool pool({first, make(3, 0)});
  first.images.fill_(9);
  CHECK(pool.gather(at::tensor({1}, at::kLong)).eq(9).all().item<bool>());
}

TEST_CASE("a pool of channels-last images keeps the layout") {
  auto a = make(2, 0);
  auto b = make(3, 0);
  const auto rows = at::tensor({4, 0, 2}, at::kLong);
  const auto expected = ImagePool({a, b}).gather(rows);
  a.images = a.images.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK(ImagePool({a, b}).gather(rows).is_contiguous());
  b.images = b.images.contiguous(at::MemoryFormat::ChannelsLast);
  const auto gathered = ImagePool({a, b}).gather(rows);
  CHECK(gathered.is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(gathered.equal(expected));
}

TEST_CASE("a pool of any layout gives the rows of its images in one") {
  const auto layouts = [](const ImageDataset& set) {
    std::vector<ImageDataset> sets(3, set);
    sets[1].images = set.images.contiguous(at::MemoryFormat::ChannelsLast);
    sets[2].images = set.images.transpose(2, 3).contiguous().transpose(2, 3);  // planes column by column
    return sets;
  };
  const auto first = layouts(make(4, 0)), second = layouts(make(3, 4));
  const auto all = at::cat({first[0].images, second[0].images});
  for (size_t i = 0; i < first.size(); ++i) {
    for (const bool several : {false, true}) {
      const ImagePool pool(several ? std::vector<ImageDataset>{first[i], second[i]}
                                   : std::vector<ImageDataset>{first[i]});
      const auto rows = at::randint(pool.size(), {5}, at::kLong), before = rows.clone();
      const auto gathered = pool.gather(rows);
      CHECK(gathered.equal(gather_images(all, rows)));
      CHECK(gathered.is_contiguous(i == 1 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
      CHECK(rows.equal(before));
      CHECK_THAT(error_of([&] { pool.gather(at::tensor({9}, at::kLong)); }), contains("index"));
    }
  }
  auto floats = at::rand({4, 2}).requires_grad_();
  gather_images(floats, at::tensor({1, 1}, at::kLong)).sum().backward();
  CHECK(floats.grad().sum(1).equal(at::tensor({0.f, 4.f, 0.f, 0.f})));
}

TEST_CASE("a pool in one set: a copy of several, and of one the set itself") {
  const auto a = make(4, 0, {"a", "b"}), b = make(3, 4);
  const ImagePool pool({a, b}), joined = pool.in_one();
  CHECK(pool.device().is_cpu());
  CHECK(joined.size() == 7);
  CHECK(joined.image_size() == 4);
  CHECK(joined.labels.equal(pool.labels));
  CHECK(joined.class_names == pool.class_names);
  const auto rows = at::tensor({6, 0, 3, 4}, at::kLong);
  CHECK(joined.gather(rows).equal(pool.gather(rows)));
  CHECK(pool.labels_of(rows, torch::kCPU).equal(at::tensor({6, 0, 3, 4}, at::kLong)));
  a.images.fill_(9);
  CHECK(pool.gather(at::tensor({1}, at::kLong)).eq(9).all().item<bool>());
  CHECK_FALSE(joined.gather(at::tensor({1}, at::kLong)).eq(9).all().item<bool>());
  const ImagePool one({b});
  const auto same = one.in_one();
  b.images.fill_(5);
  CHECK(same.gather(at::tensor({1}, at::kLong)).eq(5).all().item<bool>());  // not held twice
}

TEST_CASE("a pool of one set, and sets without images") {
  const auto set = make(3, 5);
  const ImagePool pool({ImageDataset{}, set, ImageDataset{}});
  CHECK(pool.size() == 3);
  CHECK(pool.gather(at::tensor({2, 1}, at::kLong)).equal(set.images.index({at::tensor({2, 1}, at::kLong)})));
  CHECK_THAT(error_of([&] { pool.gather(at::tensor({3}, at::kLong)); }), contains("index"));
  CHECK_THAT(error_of([] {
               ImagePool({ImageDataset{}, ImageDataset{}});
             }),
             contains("none of 2 sets holds images"));
  CHECK_THAT(error_of([] { ImagePool({}); }), contains("none of 0 sets holds images"));
}

TEST_CASE("a pool refuses what does not fit") {
  const auto good = make(2, 0);
  const auto refuses = [&](const ImageDataset& bad, const std::string& reason) {
    CHECK_THAT(error_of([&] { ImagePool({good, bad}); }), contains("ImagePool: set 1 ") && contains(reason));
  };
  refuses({at::zeros({2, 3, 5, 5}, at::kByte), good.labels, {}},
          "has images of [3, 5, 5], those before it of [3, 4, 5]");
  refuses(
      {at::zeros({2, 3, 4, 5}, at::kLong), good.labels, {}},
      "must hold images uint8, uint16, int16, int32 or floating-point [N, C, H, W], got Long [2, 3, 4, 5]");
  refuses({at::zeros({2, 3, 4, 5}), good.labels, {}}, "has images of Float, those before it of Byte");
  refuses({at::zeros({3, 4, 5}, at::kByte), good.labels, {}}, "got Byte [3, 4, 5]");
  refuses({good.images, at::zeros({3}, at::kLong), {}}, "must hold labels int64 [2], got Long [3]");
  refuses({good.images, {}, {}}, "must hold labels int64 [2], got undefined");

  const ImagePool pool({good, good});
  for (const int64_t bad : {-1, 4}) {
    CHECK_THAT(error_of([&] { pool.gather(at::tensor({bad}, at::kLong)); }),
               contains("ImagePool::gather: index " + std::to_string(bad) + " is out of range for 4 images"));
  }
  CHECK_THAT(error_of([&] { pool.gather(at::zeros({1})); }),
             contains("indices must be int64 [B], got Float [1]"));
  CHECK_THAT(error_of([&] { pool.gather({}); }), contains("got undefined"));
}
