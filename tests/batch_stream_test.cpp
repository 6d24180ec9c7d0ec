#include <torch/serialize.h>
#include <mixmatch/data/batch_stream.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <sstream>
#include <vector>

using mixmatch::data::BatchStream;
using torch::Tensor;

namespace {

Tensor indices(int64_t size) { return at::arange(size, at::kLong) * 3 + 100; }

Tensor draw(BatchStream& stream, int64_t batches) {
  std::vector<Tensor> drawn;
  for (int64_t i = 0; i < batches; ++i) {
    drawn.push_back(stream.next());
  }
  return at::cat(drawn);
}

void save(const BatchStream& stream, std::ostream& out) {
  torch::serialize::OutputArchive archive;
  stream.save(archive);
  archive.save_to(out);
}

void load(BatchStream& stream, std::istream& in) {
  torch::serialize::InputArchive archive;
  archive.load_from(in);
  stream.load(archive);
}

}  // namespace

TEST_CASE("a batch stream visits every row once an epoch, in a new order") {
  // 12 rows in batches of 5: five epochs are 12 batches, of which four span two epochs.
  BatchStream stream(indices(12), 5, 1);
  const auto rows = draw(stream, 12).view({5, 12});
  CHECK(stream.position() == 12);
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    CHECK(std::get<0>(rows[epoch].sort()).equal(indices(12)));
    CHECK_FALSE(rows[epoch].equal(indices(12)));
    for (int64_t other = 0; other < epoch; ++other) {
      CHECK_FALSE(rows[epoch].equal(rows[other]));
    }
  }
}

TEST_CASE("a batch may be larger than the set") {
  BatchStream stream(indices(3), 8, 1);
  const auto rows = draw(stream, 3).view({8, 3});
  for (int64_t epoch = 0; epoch < 8; ++epoch) {
    CHECK(std::get<0>(rows[epoch].sort()).equal(indices(3)));
  }
  BatchStream one(at::tensor({42}, at::kLong), 4, 1);
  CHECK(one.next().equal(at::full({4}, 42, at::kLong)));
}

TEST_CASE("the order of an epoch does not depend on the batch size") {
  BatchStream small(indices(30), 5, 9);
  BatchStream large(indices(30), 45, 9);
  CHECK(draw(small, 18).equal(draw(large, 2)));
  BatchStream other(indices(30), 45, 10);
  CHECK_FALSE(other.next().equal(BatchStream(indices(30), 45, 9).next()));
}

TEST_CASE("a batch stream is the same everywhere") {
  BatchStream stream(at::arange(8, at::kLong), 8, 5);
  const auto first = stream.next();
  const auto second = stream.next();
  INFO(first << second);
  CHECK(first.equal(at::tensor({4, 2, 0, 6, 3, 7, 1, 5}, at::kLong)));
  CHECK(second.equal(at::tensor({0, 4, 6, 5, 2, 1, 3, 7}, at::kLong)));
}

TEST_CASE("every order is equally likely") {
  // Row 0's place over 6,000 epochs of six rows: 1,000 in each expected, standard deviation 29.
  BatchStream stream(at::arange(6, at::kLong), 6, 123);
  const auto rows = draw(stream, 6000).view({6000, 6});
  const auto places = (rows == 0).sum(0);
  CHECK((places - 1000).abs().max().item<int64_t>() < 150);
  const auto pairs = ((rows.select(1, 0) == 2) & (rows.select(1, 1) == 4)).sum().item<int64_t>();
  CHECK(std::abs(pairs - 200) < 75);  // 6000 / 30
}

TEST_CASE("seek moves a stream in both directions") {
  BatchStream stream(indices(10), 4, 2);
  const auto all = draw(stream, 20).view({20, 4});
  for (const int64_t position : {7, 0, 19, 2, 3}) {
    stream.seek(position);
    CHECK(stream.next().equal(all[position]));
    CHECK(stream.position() == position + 1);
  }
  CHECK_THAT(error_of([&] { stream.seek(-1); }), contains("position must be >= 0, got -1"));
}

TEST_CASE("ranks share what one process would have") {
  const int64_t world = 3;
  BatchStream whole(indices(25), 4 * world, 6);
  std::vector<BatchStream> ranks;
  for (int64_t rank = 0; rank < world; ++rank) {
    ranks.emplace_back(indices(25), 4, 6, rank, world);
  }
  for (int step = 0; step < 10; ++step) {
    std::vector<Tensor> parts;
    for (auto& rank : ranks) {
      parts.push_back(rank.next());
    }
    CHECK(at::cat(parts).equal(whole.next()));
  }
}

TEST_CASE("a saved batch stream goes on where it stood") {
  BatchStream stream(indices(10), 4, ~uint64_t{0});
  draw(stream, 7);
  std::stringstream file;
  save(stream, file);
  const auto expected = draw(stream, 9);

  BatchStream resumed(indices(10), 4, ~uint64_t{0});
  load(resumed, file);
  CHECK(resumed.position() == 7);
  CHECK(draw(resumed, 9).equal(expected));
}

TEST_CASE("a checkpoint of one rank serves another world size with the same global batch") {
  BatchStream single(indices(10), 4, 1);
  draw(single, 3);
  std::stringstream file;
  save(single, file);
  BatchStream second(indices(10), 2, 1, /*rank=*/1, /*world_size=*/2);
  load(second, file);
  CHECK(second.next().equal(single.next().narrow(0, 2, 2)));
}

TEST_CASE("a batch stream refuses the state of another one") {
  BatchStream stream(indices(10), 4, 1);
  draw(stream, 3);
  const auto message = [&](BatchStream other) {
    std::stringstream file;
    save(stream, file);
    const auto error = error_of([&] { load(other, file); });
    CHECK(other.position() == 0);
    return error;
  };
  CHECK_THAT(message(BatchStream(indices(11), 4, 1)), contains("has size 10, this one 11"));
  CHECK_THAT(message(BatchStream(indices(10), 5, 1)), contains("has global_batch_size 4, this one 5"));
  CHECK_THAT(message(BatchStream(indices(10), 4, 2)), contains("has seed 1, this one 2"));
  CHECK_THAT(message(BatchStream(indices(10) + 1, 4, 1)), contains("other indices"));

  torch::serialize::OutputArchive empty;
  std::stringstream file;
  empty.save_to(file);
  CHECK_THAT(error_of([&] { load(stream, file); }), contains("holds no stream"));
  CHECK(stream.position() == 3);
}

TEST_CASE("a batch stream names a bad argument") {
  CHECK_THAT(error_of([] { BatchStream(at::empty({0}, at::kLong), 4, 1); }),
             contains("indices must not be empty"));
  CHECK_THAT(error_of([] { BatchStream(at::ones({3}), 4, 1); }),
             contains("indices must be int64 [N], got Float"));
  CHECK_THAT(error_of([] { BatchStream(indices(4).view({2, 2}), 4, 1); }), contains("[2, 2]"));
  CHECK_THAT(error_of([] { BatchStream(indices(4), 0, 1); }), contains("batch_size must be >= 1, got 0"));
  CHECK_THAT(error_of([] { BatchStream(indices(4), 1, 1, 2, 2); }),
             contains("rank must be in [0, 2), got 2"));
  CHECK_THAT(error_of([] { BatchStream(indices(4), 1, 1, 0, 0); }),
             contains("world_size must be >= 1, got 0"));
}
