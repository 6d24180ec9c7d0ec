#include <torch/serialize.h>
#include <mixmatch/data/batch_stream.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

#include <cstddef>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

using mixmatch::data::BatchStream;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_shuffle.inc"
}

namespace {

Tensor stream_indices(int64_t size) { return at::arange(size, at::kLong) * 3 + 100; }

Tensor step_tensor(int64_t step) { return at::full({}, step, at::TensorOptions(at::kLong)); }

/// The first batches, one after the other.
Tensor first_rows(const BatchStream& stream, int64_t batches) {
  std::vector<Tensor> rows;
  for (int64_t step = 0; step < batches; ++step) {
    rows.push_back(stream.rows(step));
  }
  return at::cat(rows);
}

std::string saved_stream(const BatchStream& stream) {
  torch::serialize::OutputArchive archive;
  stream.save(archive);
  std::ostringstream out;
  archive.save_to(out);
  return out.str();
}

std::string load_error(const BatchStream& stream, const std::string& bytes) {
  std::istringstream in(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(in);
  return error_of([&] { stream.load(archive); });
}

/// Classes 0 … 3 of 20, 1, 7 and 2 rows, which are the numbers from 100 on, in an order that mixes them.
struct UnequalRows {
  Tensor rows = at::arange(100, 130, at::kLong).index_select(0, order());
  Tensor classes = class_of(rows);

  static Tensor class_of(const Tensor& rows) {
    return rows.ge(120) + rows.ge(121).to(at::kLong) + rows.ge(128);
  }
  static Tensor order() { return BatchStream(at::arange(30, at::kLong), 30, 77).rows(0); }
};

}  // namespace

TEST_CASE("a batch stream visits every row once an epoch, in a new order") {
  // 12 rows in batches of 5: five epochs are 12 batches, of which four span two epochs.
  const BatchStream stream(stream_indices(12), 5, 1);
  CHECK(stream.size() == 12);
  CHECK(stream.batch_size() == 5);
  const auto rows = first_rows(stream, 12).view({5, 12});
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    CHECK(std::get<0>(rows[epoch].sort()).equal(stream_indices(12)));
    CHECK_FALSE(rows[epoch].equal(stream_indices(12)));
    for (int64_t other = 0; other < epoch; ++other) {
      CHECK_FALSE(rows[epoch].equal(rows[other]));
    }
  }
}

TEST_CASE("a batch may be larger than the set") {
  const auto rows = first_rows(BatchStream(stream_indices(3), 8, 1), 3).view({8, 3});
  for (int64_t epoch = 0; epoch < 8; ++epoch) {
    CHECK(std::get<0>(rows[epoch].sort()).equal(stream_indices(3)));
  }
  CHECK(BatchStream(at::tensor({42}, at::kLong), 4, 1).rows(7).equal(at::full({4}, 42, at::kLong)));
}

TEST_CASE("the order of an epoch does not depend on the batch size") {
  const Tensor rows = first_rows(BatchStream(stream_indices(30), 45, 9), 2);
  CHECK(first_rows(BatchStream(stream_indices(30), 5, 9), 18).equal(rows));
  CHECK_FALSE(first_rows(BatchStream(stream_indices(30), 45, 10), 2).equal(rows));
}

TEST_CASE("a batch stream is the same everywhere") {
  // By integers of Python, from the paper's rounds and SplitMix64.
  const BatchStream stream(at::arange(8, at::kLong), 8, 5);
  const auto first = stream.rows(0), second = stream.rows(1), late = stream.rows(1000000000);
  INFO(first << second << late);
  CHECK(first.equal(at::tensor({4, 0, 1, 7, 6, 5, 2, 3}, at::kLong)));
  CHECK(second.equal(at::tensor({6, 5, 0, 7, 4, 3, 1, 2}, at::kLong)));
  CHECK(late.equal(at::tensor({3, 1, 2, 0, 4, 6, 7, 5}, at::kLong)));
}

TEST_CASE("every order is equally likely") {
  // Row 0's place over 6,000 epochs of six rows: 1,000 in each expected, standard deviation 29.
  const auto rows = first_rows(BatchStream(at::arange(6, at::kLong), 6, 123), 6000).view({6000, 6});
  for (int64_t row = 0; row < 6; ++row) {
    CHECK((rows.eq(row).sum(0) - 1000).abs().max().item<int64_t>() < 150);
  }
  const auto pairs = ((rows.select(1, 0) == 2) & (rows.select(1, 1) == 4)).sum().item<int64_t>();
  CHECK(std::abs(pairs - 200) < 75);  // 6000 / 30

  // All 24 orders of four rows: 500 of each expected, standard deviation 22.
  const auto orders = first_rows(BatchStream(at::arange(4, at::kLong), 4, 7), 12000).view({12000, 4});
  const auto codes = (orders * at::tensor({64, 16, 4, 1}, at::kLong)).sum(1);
  const auto counts = codes.bincount({}, 256);
  CHECK(counts.gt(0).sum().item<int64_t>() == 24);
  CHECK(counts.max().item<int64_t>() < 610);
  CHECK(counts.masked_select(counts.gt(0)).min().item<int64_t>() > 390);
}

TEST_CASE("neighbours in a long order are independent") {
  // Of 49,750 rows, the mean distance of neighbours in the order is a third of the range.
  const Tensor rows = BatchStream(at::arange(49750, at::kLong), 49750, 3).rows(0);
  CHECK(std::get<0>(rows.sort()).equal(at::arange(49750, at::kLong)));
  const double distance = rows.diff().abs().to(at::kDouble).mean().item<double>() / 49750;
  CHECK(std::abs(distance - 1.0 / 3) < 0.006);
  const double half = rows.narrow(0, 0, 24875).to(at::kDouble).mean().item<double>() / 49750;
  CHECK(std::abs(half - 0.5) < 0.006);
  // A fixed point is expected once.
  CHECK(rows.eq(at::arange(49750, at::kLong)).sum().item<int64_t>() < 8);
}

TEST_CASE("a batch is a function of the step, a number or a tensor, in any order") {
  const BatchStream stream(stream_indices(10), 4, 2), other(stream_indices(10), 4, 2);
  const auto all = first_rows(stream, 20).view({20, 4});
  for (const int64_t step : {7, 0, 19, 2, 3, 3}) {
    CHECK(other.rows(step).equal(all[step]));
    CHECK(other.rows(step_tensor(step)).equal(all[step]));
  }
  CHECK_FALSE(stream.rows(0).is_same(stream.rows(0)));
}

TEST_CASE("a batch stream keeps rows of its own") {
  Tensor indices = stream_indices(10);
  const BatchStream stream(indices, 4, 2);
  const auto before = stream.rows(3);
  indices.zero_();
  CHECK(stream.rows(3).equal(before));
  // Of any strides.
  const auto wide = at::stack({stream_indices(10), at::zeros({10}, at::kLong)}, 1);
  CHECK(BatchStream(wide.select(1, 0), 4, 2).rows(3).equal(before));
}

TEST_CASE("a batch's rows are the same in ATen's calls and in the CUDA kernel, of one stream or of two") {
  constexpr uint64_t seed = ~uint64_t{5};
  const UnequalRows of;
  std::vector<BatchStream> streams;
  for (const int64_t size : {1, 7, 250, 49750}) {
    streams.emplace_back(stream_indices(size), 64, seed, 1, 3);
  }
  streams.push_back(BatchStream::balanced(of.rows, of.classes, 70, seed, 2, 3));
  for (size_t i = 0; i < streams.size(); ++i) {
    const auto &stream = streams[i], &other = streams[(i + 1) % streams.size()];
    for (const int64_t step : {0, 1234}) {
      const Tensor number = step_tensor(step), expected = stream.rows(step), beside = other.rows(step);
      CHECK(stream.rows_composite(number).equal(expected));
      cuda_emulation::EmulatedDevice device;
      device.add("stream_rows<i64>", cuda_emulation::stream_rows<int64_t>);
      CHECK(stream.rows(number).equal(expected));
      Tensor first = at::zeros_like(expected), second = at::zeros_like(beside);
      BatchStream::rows_out(stream, first, other, second, number);
      CHECK(first.equal(expected));
      CHECK(second.equal(beside));
      CHECK(device.launches() == 2);
    }
  }
}

TEST_CASE("the kernel of rows goes on where a batch has more of them than the grid has threads") {
  using mixmatch::detail::kGolden, mixmatch::detail::mix_bits;
  const auto at = [](const Tensor& tensor) { return static_cast<cuda_emulation::i64*>(tensor.data_ptr()); };
  const Tensor number = step_tensor(1234);
  const auto check = [&](int64_t size, int64_t other_size) {
    const Tensor rows[] = {stream_indices(size), stream_indices(other_size)};
    const Tensor bounds[] = {at::tensor({int64_t{0}, size}), at::tensor({int64_t{0}, other_size})};
    const Tensor found[] = {at::zeros({64}, at::kLong), at::zeros({40}, at::kLong)};
    cuda_emulation::RowStream streams[2];
    for (const uint64_t seed : {uint64_t{0}, uint64_t{1}}) {
      streams[seed] = {
          at(found[seed]),           at(rows[seed]),          at(bounds[seed]), 1, found[seed].numel(), 1, 3,
          mix_bits(~seed + kGolden), mix_bits(seed + kGolden)};
    }
    cuda_emulation::launch(2, 2, 8, cuda_emulation::stream_rows<int64_t>, streams[0], streams[1],
                           cuda_emulation::pointer<const int64_t>(number));
    for (const uint64_t seed : {uint64_t{0}, uint64_t{1}}) {
      CHECK(found[seed].equal(BatchStream(rows[seed], found[seed].numel(), seed, 1, 3).rows(1234)));
    }
  };
  check(250, 7);
  check(1, 49750);
}

// An emulated launch compares the records' sizes alone.
#define MIXMATCH_SAME_PLACE(field) \
  (offsetof(cuda_emulation::RowStream, field) == offsetof(mixmatch::detail::CudaRowStream, field))
static_assert(MIXMATCH_SAME_PLACE(out) && MIXMATCH_SAME_PLACE(indices) && MIXMATCH_SAME_PLACE(bounds) &&
              MIXMATCH_SAME_PLACE(groups) && MIXMATCH_SAME_PLACE(batch) && MIXMATCH_SAME_PLACE(rank) &&
              MIXMATCH_SAME_PLACE(world_size) && MIXMATCH_SAME_PLACE(group_bits) &&
              MIXMATCH_SAME_PLACE(seed_bits));
#undef MIXMATCH_SAME_PLACE

TEST_CASE("a balanced stream: of each four rows one of each of four classes, each class in its own epochs") {
  const UnequalRows of;
  for (const int64_t batch : {4, 6, 9, 40}) {
    INFO(batch);
    const auto stream = BatchStream::balanced(of.rows, of.classes, batch, 3);
    const Tensor rows = first_rows(stream, 720 / batch).view({180, 4});
    CHECK(std::get<0>(UnequalRows::class_of(rows).sort(1)).equal(at::arange(4, at::kLong).expand({180, 4})));
    CHECK(rows.equal(first_rows(BatchStream::balanced(of.rows, of.classes, 4, 3), 180).view({180, 4})));
    for (int64_t c = 0; c < 4; ++c) {
      const Tensor members = std::get<0>(of.rows.masked_select(of.classes.eq(c)).sort());
      const Tensor drawn = rows.masked_select(UnequalRows::class_of(rows).eq(c));
      const int64_t epochs = drawn.numel() / members.numel();
      const Tensor by_epoch = drawn.narrow(0, 0, epochs * members.numel()).view({epochs, members.numel()});
      CHECK(std::get<0>(by_epoch.sort(1)).equal(members.expand_as(by_epoch)));
      if (members.numel() == 20) {
        CHECK_FALSE(by_epoch[0].equal(by_epoch[1]));
      }
    }
    CHECK_FALSE(UnequalRows::class_of(rows[0]).equal(UnequalRows::class_of(rows[1])));
  }
  // The order of classes changes from round to round: each class comes first in a quarter of them.
  const Tensor first = UnequalRows::class_of(
      first_rows(BatchStream::balanced(of.rows, of.classes, 4, 3), 2000).view({2000, 4}).select(1, 0));
  CHECK((first.bincount() - 500).abs().max().item<int64_t>() < 90);  // standard deviation 19
}

TEST_CASE("a balanced stream: rows of two equal classes come in orders of their own") {
  const Tensor rows = at::arange(40, at::kLong);
  const auto stream = BatchStream::balanced(rows, rows.ge(20).to(at::kLong), 40, 5);
  const Tensor drawn = stream.rows(0);
  CHECK_FALSE((drawn.masked_select(drawn.ge(20)) - 20).equal(drawn.masked_select(drawn.lt(20))));
}

TEST_CASE("a balanced stream of equal classes of one row each, and of one class, is one without classes") {
  const Tensor rows = stream_indices(12);
  const BatchStream plain(rows, 5, 8);
  CHECK(
      first_rows(BatchStream::balanced(rows, at::full_like(rows, 7), 5, 8), 12).equal(first_rows(plain, 12)));
  const auto each = first_rows(BatchStream::balanced(rows, rows, 5, 8), 12).view({5, 12});
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    CHECK(std::get<0>(each[epoch].sort()).equal(rows));
  }
}

TEST_CASE("a balanced stream is shared by ranks, and takes only its own state") {
  const UnequalRows of;
  const auto whole = BatchStream::balanced(of.rows, of.classes, 12, 6);
  for (int64_t step = 0; step < 10; ++step) {
    std::vector<Tensor> parts;
    for (int64_t rank = 0; rank < 3; ++rank) {
      parts.push_back(BatchStream::balanced(of.rows, of.classes, 4, 6, rank, 3).rows(step));
    }
    CHECK(at::cat(parts).equal(whole.rows(step)));
  }
  const std::string saved = saved_stream(whole);
  CHECK(load_error(BatchStream::balanced(of.rows, of.classes, 12, 6), saved).empty());
  CHECK_THAT(load_error(BatchStream(of.rows, 12, 6), saved), contains("has groups 4, this one 1"));
  Tensor others = of.classes.clone();
  others[0] = others[0].item<int64_t>() == 0 ? 2 : 0;
  CHECK_THAT(load_error(BatchStream::balanced(of.rows, others, 12, 6), saved), contains("other indices"));
  CHECK_THAT(error_of([&] { BatchStream::balanced(of.rows, of.classes.narrow(0, 1, 5), 4, 1); }),
             contains("indices and classes must be int64 [N], got Long [30] and Long [5]"));
  CHECK_THAT(error_of([&] { BatchStream::balanced(of.rows, of.classes.to(at::kFloat), 4, 1); }),
             contains("and Float [30]"));
  const Tensor none = at::empty({0}, at::kLong);
  CHECK_THAT(error_of([&] { BatchStream::balanced(none, none, 4, 1); }), contains("must not be empty"));
}

TEST_CASE("two streams' rows are checked before either is written") {
  const BatchStream stream(stream_indices(40), 4, 8), other(stream_indices(40), 6, 8);
  Tensor rows = at::zeros({4}, at::kLong), wrong = at::zeros({4}, at::kLong);
  CHECK_THAT(error_of([&] { BatchStream::rows_out(stream, rows, other, wrong, step_tensor(3)); }),
             contains("out must be contiguous int64 [6] on cpu, got Long [4]"));
  CHECK(rows.count_nonzero().item<int64_t>() == 0);
}

TEST_CASE("ranks share what one process would have") {
  const BatchStream whole(stream_indices(25), 12, 6);
  for (int64_t step = 0; step < 10; ++step) {
    std::vector<Tensor> parts, composites;
    for (int64_t rank = 0; rank < 3; ++rank) {
      const BatchStream part(stream_indices(25), 4, 6, rank, 3);
      parts.push_back(part.rows(step));
      composites.push_back(part.rows_composite(step_tensor(step)));
    }
    CHECK(at::cat(parts).equal(whole.rows(step)));
    CHECK(at::cat(composites).equal(whole.rows(step)));
  }
}

TEST_CASE("a checkpoint fits the same stream, of any world size with the same global batch") {
  const std::string saved = saved_stream(BatchStream(stream_indices(10), 4, ~uint64_t{0}));
  CHECK(load_error(BatchStream(stream_indices(10), 4, ~uint64_t{0}), saved).empty());
  CHECK(load_error(BatchStream(stream_indices(10), 2, ~uint64_t{0}, /*rank=*/1, /*world_size=*/2), saved)
            .empty());
}

TEST_CASE("a batch stream refuses the state of another one") {
  const BatchStream stream(stream_indices(10), 4, 1);
  const std::string saved = saved_stream(stream);
  CHECK_THAT(load_error(BatchStream(stream_indices(11), 4, 1), saved), contains("has size 10, this one 11"));
  CHECK_THAT(load_error(BatchStream(stream_indices(10), 5, 1), saved),
             contains("has global_batch_size 4, this one 5"));
  CHECK_THAT(load_error(BatchStream(stream_indices(10), 4, 2), saved), contains("has seed 1, this one 2"));
  CHECK_THAT(load_error(BatchStream(stream_indices(10) + 1, 4, 1), saved), contains("other indices"));
  CHECK_THAT(load_error(BatchStream(stream_indices(10).flip(0), 4, 1), saved), contains("other indices"));

  const auto archive_of = [](const auto& fill) {
    torch::serialize::OutputArchive archive;
    fill(archive);
    std::ostringstream out;
    archive.save_to(out);
    return out.str();
  };
  CHECK_THAT(load_error(stream, archive_of([](auto&) {})), contains("holds no stream of this kind"));
  CHECK_THAT(load_error(stream, archive_of([](auto& archive) {
                          archive.write("order", c10::IValue(std::string("Fisher-Yates")));
                        })),
             contains("holds no stream of this kind"));
  CHECK_THAT(load_error(stream, archive_of([](auto& archive) {
                          archive.write("order", c10::IValue(std::string("swap-or-not")));
                          archive.write("size", c10::IValue(std::string("ten")));
                        })),
             contains("has no number \"size\": it holds no stream"));
}

TEST_CASE("a batch stream names a bad argument") {
  CHECK_THAT(error_of([] { BatchStream(at::empty({0}, at::kLong), 4, 1); }),
             contains("indices must not be empty"));
  CHECK_THAT(error_of([] { BatchStream(at::ones({3}), 4, 1); }),
             contains("indices must be int64 [N], got Float"));
  CHECK_THAT(error_of([] { BatchStream(Tensor(), 4, 1); }), contains("got undefined"));
  CHECK_THAT(error_of([] { BatchStream(stream_indices(4).view({2, 2}), 4, 1); }), contains("[2, 2]"));
  CHECK_THAT(error_of([] { BatchStream(at::zeros({1}, at::kLong).expand({int64_t{1} << 31}), 4, 1); }),
             contains("indices must have less than 2^31 rows, got 2147483648"));
  CHECK_THAT(error_of([] { BatchStream(stream_indices(4), 0, 1); }),
             contains("batch_size must be >= 1, got 0"));
  CHECK_THAT(error_of([] { BatchStream(stream_indices(4), 1, 1, 2, 2); }),
             contains("rank must be in [0, 2), got 2"));
  CHECK_THAT(error_of([] { BatchStream(stream_indices(4), 1, 1, -1, 2); }), contains("got -1"));
  CHECK_THAT(error_of([] { BatchStream(stream_indices(4), 1, 1, 0, 0); }),
             contains("world_size must be >= 1, got 0"));
  const BatchStream stream(stream_indices(4), 1, 1);
  CHECK_THAT(error_of([&] { stream.rows(-1); }), contains("step must be >= 0, got -1"));
  CHECK_THAT(error_of([&] { stream.rows(step_tensor(-1)); }), contains("step must be >= 0, got -1"));
  CHECK_THAT(error_of([&] { stream.rows(at::zeros({1}, at::kLong)); }),
             contains("step must be int64 [] on cpu, got Long [1] on cpu"));
  CHECK_THAT(error_of([&] { stream.rows(at::zeros({})); }), contains("got Float [] on cpu"));
  CHECK_THAT(error_of([&] { stream.rows(Tensor()); }), contains("got undefined"));
  for (Tensor out : {at::zeros({2}, at::kLong), at::zeros({1}), at::zeros({1, 1}, at::kLong)}) {
    CHECK_THAT(error_of([&] { stream.rows_out(out, step_tensor(0)); }),
               contains("BatchStream: out must be contiguous int64 [1] on cpu, got "));
  }
}

TEST_CASE("the kernel of random permutations sorts, equal numbers in their order") {
  torch::manual_seed(2);
  cuda_emulation::EmulatedDevice device;
  device.add("sorted_places<i64>", cuda_emulation::sorted_places<cuda_emulation::i64>);
  for (const int64_t size : {1, 2, 63, 64, 65, 192, 300}) {
    for (const bool equal_ones : {false, true}) {
      const Tensor numbers =
          equal_ones ? at::randint(0, 5, {size}, at::kDouble) : at::rand({size}, at::kDouble);
      Tensor places = at::full({size}, -1, at::kLong);
      REQUIRE(mixmatch::detail::sorted_places_on_cuda(places, numbers));
      CHECK(places.equal(std::get<1>(numbers.sort(/*stable=*/true, 0, false))));
    }
  }
  Tensor places = at::empty({0}, at::kLong);
  CHECK_FALSE(mixmatch::detail::sorted_places_on_cuda(places, at::empty({0}, at::kDouble)));
  CHECK_FALSE(mixmatch::detail::sorted_places_on_cuda(places, at::empty({8193}, at::kDouble)));
}
