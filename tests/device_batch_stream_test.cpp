#include <torch/serialize.h>
#include <mixmatch/data/device_batch_stream.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

#include <sstream>
#include <vector>

using mixmatch::data::DeviceBatchStream;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_shuffle.inc"
}

namespace {

Tensor indices(int64_t size) { return at::arange(size, at::kLong) * 3 + 100; }

Tensor draw(DeviceBatchStream& stream, int64_t batches) {
  std::vector<Tensor> drawn;
  for (int64_t i = 0; i < batches; ++i) {
    drawn.push_back(stream.next());
  }
  return at::cat(drawn);
}

DeviceBatchStream stream_of(int64_t size, int64_t batch, uint64_t seed, int64_t rank = 0,
                            int64_t world_size = 1) {
  return {indices(size), batch, seed, torch::kCPU, rank, world_size};
}

}  // namespace

TEST_CASE("a device batch stream visits every row once an epoch, in a new order") {
  // 12 rows in batches of 5: five epochs are 12 batches, of which four span two epochs.
  auto stream = stream_of(12, 5, 1);
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

TEST_CASE("a device batch stream's batch may be larger than the set") {
  auto stream = stream_of(3, 8, 1);
  const auto rows = draw(stream, 3).view({8, 3});
  for (int64_t epoch = 0; epoch < 8; ++epoch) {
    CHECK(std::get<0>(rows[epoch].sort()).equal(indices(3)));
  }
  auto one = stream_of(1, 4, 1);
  CHECK(one.next().equal(at::full({4}, 100, at::kLong)));
}

TEST_CASE("the order of a device batch stream's epoch does not depend on the batch size") {
  auto small = stream_of(30, 5, 9), large = stream_of(30, 45, 9), other = stream_of(30, 45, 10);
  const Tensor rows = draw(large, 2);
  CHECK(draw(small, 18).equal(rows));
  CHECK_FALSE(draw(other, 2).equal(rows));
}

TEST_CASE("every order of a device batch stream is equally likely") {
  // Row 0's place over 6,000 epochs of six rows: 1,000 in each expected, standard deviation 29.
  DeviceBatchStream stream(at::arange(6, at::kLong), 6, 123, torch::kCPU);
  const auto rows = draw(stream, 6000).view({6000, 6});
  for (int64_t row = 0; row < 6; ++row) {
    CHECK((rows.eq(row).sum(0) - 1000).abs().max().item<int64_t>() < 150);
  }
  const auto pairs = ((rows.select(1, 0) == 2) & (rows.select(1, 1) == 4)).sum().item<int64_t>();
  CHECK(std::abs(pairs - 200) < 75);  // 6000 / 30

  // All 24 orders of four rows: 500 of each expected, standard deviation 22.
  DeviceBatchStream four(at::arange(4, at::kLong), 4, 7, torch::kCPU);
  const auto orders = draw(four, 12000).view({12000, 4});
  const auto codes = (orders * at::tensor({64, 16, 4, 1}, at::kLong)).sum(1);
  const auto counts = codes.bincount({}, 256);
  CHECK(counts.gt(0).sum().item<int64_t>() == 24);
  CHECK(counts.max().item<int64_t>() < 610);
  CHECK(counts.masked_select(counts.gt(0)).min().item<int64_t>() > 390);
}

TEST_CASE("neighbours in a long order are independent") {
  // Of 49,750 rows, the mean distance of neighbours in the order is a third of the range.
  DeviceBatchStream stream(at::arange(49750, at::kLong), 49750, 3, torch::kCPU);
  const Tensor rows = stream.next();
  CHECK(std::get<0>(rows.sort()).equal(at::arange(49750, at::kLong)));
  const double distance = rows.diff().abs().to(at::kDouble).mean().item<double>() / 49750;
  CHECK(std::abs(distance - 1.0 / 3) < 0.006);
  const double half = rows.narrow(0, 0, 24875).to(at::kDouble).mean().item<double>() / 49750;
  CHECK(std::abs(half - 0.5) < 0.006);
  // A fixed point is expected once.
  CHECK(rows.eq(at::arange(49750, at::kLong)).sum().item<int64_t>() < 8);
}

TEST_CASE("a device batch stream's rows are the same in ATen's calls and in the CUDA kernel") {
  for (const int64_t size : {1, 7, 250, 49750}) {
    auto stream = stream_of(size, 64, ~uint64_t{5}, 1, 3);
    stream.seek(1234);
    const Tensor composite = stream.next_composite();
    Tensor emulated = at::empty({64}, at::kLong);
    const Tensor rows = indices(size);
    const uint64_t seed_bits = mixmatch::detail::mix_bits(stream.seed() + mixmatch::detail::kGolden);
    cuda_emulation::launch(2, 1, 8, cuda_emulation::stream_rows<int64_t>,
                           cuda_emulation::pointer<int64_t>(emulated),
                           cuda_emulation::pointer<const int64_t>(rows), size,
                           cuda_emulation::pointer<const int64_t>(stream.position_tensor()), int64_t{64},
                           int64_t{1}, int64_t{3}, static_cast<unsigned long long>(seed_bits));
    const Tensor direct = stream.next();
    CHECK(composite.equal(direct));
    CHECK(emulated.equal(direct));
  }
}

TEST_CASE("seek moves a device batch stream in both directions") {
  auto stream = stream_of(10, 4, 2);
  const auto all = draw(stream, 20).view({20, 4});
  for (const int64_t position : {7, 0, 19, 2, 3}) {
    stream.seek(position);
    CHECK(stream.next().equal(all[position]));
    CHECK(stream.position() == position + 1);
  }
  CHECK_THAT(error_of([&] { stream.seek(-1); }), contains("position must be >= 0, got -1"));
}

TEST_CASE("ranks of a device batch stream share what one process would have") {
  auto whole = stream_of(25, 12, 6);
  std::vector<DeviceBatchStream> ranks;
  for (int64_t rank = 0; rank < 3; ++rank) {
    ranks.push_back(stream_of(25, 4, 6, rank, 3));
  }
  for (int step = 0; step < 10; ++step) {
    std::vector<Tensor> parts;
    for (auto& rank : ranks) {
      parts.push_back(rank.next());
    }
    CHECK(at::cat(parts).equal(whole.next()));
  }
}

TEST_CASE("a saved device batch stream goes on where it stood, and refuses another's state") {
  auto stream = stream_of(10, 4, 1);
  draw(stream, 7);
  std::stringstream file;
  torch::serialize::OutputArchive archive;
  stream.save(archive);
  archive.save_to(file);
  const auto expected = draw(stream, 9);

  const auto load = [&](DeviceBatchStream& target) {
    std::stringstream copy(file.str());
    torch::serialize::InputArchive input;
    input.load_from(copy);
    target.load(input);
  };
  auto resumed = stream_of(10, 4, 1);
  load(resumed);
  CHECK(resumed.position() == 7);
  CHECK(draw(resumed, 9).equal(expected));

  const auto message = [&](DeviceBatchStream other) {
    const auto error = error_of([&] { load(other); });
    CHECK(other.position() == 0);
    return error;
  };
  CHECK_THAT(message(stream_of(11, 4, 1)), contains("has size 10, this one 11"));
  CHECK_THAT(message(stream_of(10, 5, 1)), contains("has global_batch_size 4, this one 5"));
  CHECK_THAT(message(stream_of(10, 4, 2)), contains("has seed 1, this one 2"));
  CHECK_THAT(message({indices(10) + 1, 4, 1, torch::kCPU}), contains("other indices"));
}

TEST_CASE("a device batch stream names a bad argument") {
  CHECK_THAT(error_of([] { stream_of(0, 4, 1); }), contains("indices must have 1 to 2^31 - 1 rows, got 0"));
  CHECK_THAT(error_of([] { DeviceBatchStream(at::ones({3}), 4, 1, torch::kCPU); }),
             contains("indices must be int64 [N], got Float"));
  CHECK_THAT(error_of([] { stream_of(4, 0, 1); }), contains("batch_size must be >= 1, got 0"));
  CHECK_THAT(error_of([] { stream_of(4, 1, 1, 2, 2); }), contains("rank must be in [0, 2), got 2"));
  CHECK_THAT(error_of([] { stream_of(4, 1, 1, 0, 0); }), contains("world_size must be >= 1, got 0"));
}

TEST_CASE("the library launches the stream's kernel with what it expects") {
  cuda_emulation::EmulatedDevice device;
  device.add("stream_rows<i64>", cuda_emulation::stream_rows<int64_t>);
  auto stream = stream_of(40, 30, 8, 1, 2);
  stream.seek(5);
  const Tensor rows = indices(40);
  Tensor launched = at::empty({30}, at::kLong);
  REQUIRE(mixmatch::detail::stream_rows_on_cuda(
      launched, rows, stream.position_tensor(), 1, 2,
      mixmatch::detail::mix_bits(stream.seed() + mixmatch::detail::kGolden)));
  CHECK(launched.equal(stream.next()));
  CHECK(device.launches() == 1);
}
