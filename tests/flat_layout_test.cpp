#include <mixmatch/optim/flat_layout.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cstdint>
#include <vector>

using mixmatch::training::detail::FlatLayout;
using torch::Tensor;

namespace {

struct ThreeParameters {
  Tensor kernel = at::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast), bias = at::randn({70}),
         scale = at::randn({});
  Tensor average = at::randn({2, 3, 4, 5});
  FlatLayout layout;

  ThreeParameters() {
    layout.add("kernel", kernel, average, /*is_kernel=*/true, /*rate_factor=*/1);
    layout.add("bias", bias, {}, false, 1);
    layout.add("scale", scale, {}, false, 0.5);
  }
};

}  // namespace

TEST_CASE("FlatLayout: parameters follow each other, each from a multiple of 64 elements on") {
  torch::manual_seed(1);
  ThreeParameters of;
  const auto& placed = of.layout.parameters();
  REQUIRE(placed.size() == 3);
  CHECK(of.layout.num_elements() == 128 + 128 + 64);
  CHECK(std::vector<int64_t>{placed[0].offset, placed[1].offset, placed[2].offset} ==
        std::vector<int64_t>{0, 128, 256});
  const Tensor kernel = of.kernel.clone(), bias = of.bias.clone(), average = of.average.clone();
  Tensor block = of.layout.new_block(), averages = of.layout.new_block();
  of.layout.move_into(block, averages);
  CHECK(of.kernel.equal(kernel));
  CHECK(of.kernel.strides() == kernel.strides());
  CHECK(of.bias.equal(bias));
  CHECK(of.average.equal(average));
  CHECK(of.average.strides() == kernel.strides());
  // Nothing but the parameters is in the blocks.
  CHECK(block.count_nonzero().item<int64_t>() == 120 + 70 + 1);
  CHECK(averages.count_nonzero().item<int64_t>() == 120);
  const auto views = of.layout.views_in(block);
  REQUIRE(views.size() == 3);
  CHECK(views[1].equal(bias));
  block.fill_(2);
  CHECK(of.kernel.eq(2).all().item<bool>());
  CHECK(of.scale.item<float>() == 2);
  CHECK(of.layout.views_in(Tensor()).empty());
}

TEST_CASE("FlatLayout: tells of a parameter whose memory is another one") {
  ThreeParameters of;
  Tensor block = of.layout.new_block(), averages = of.layout.new_block();
  of.layout.move_into(block, averages);
  of.layout.check_lie_in(block);
  of.bias.set_data(of.bias.clone());
  CHECK_THAT(error_of([&] { of.layout.check_lie_in(block); }), contains("parameter bias no longer lies in"));
}

TEST_CASE("FlatLayout: all float32, or all float64, of one device") {
  ThreeParameters of;
  const auto refused = [](FlatLayout& layout, const Tensor& tensor, const Tensor& average) {
    return error_of([&] { layout.add("more", tensor, average, false, 1); });
  };
  CHECK_THAT(refused(of.layout, at::zeros({3}, at::kDouble), {}),
             contains("must be all float32 or all float64, got Double more"));
  CHECK_THAT(refused(of.layout, at::zeros({3}), at::zeros({3}, at::TensorOptions(at::kMeta))),
             contains("parameter more and its average must be on cpu as the first is, got meta"));
  FlatLayout empty;
  CHECK_THAT(refused(empty, at::zeros({3}, at::kHalf), {}), contains("got Half more"));
}
