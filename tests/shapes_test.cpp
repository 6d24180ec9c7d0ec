#include <mixmatch/data/shapes.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <ATen/Parallel.h>

#include <set>

using mixmatch::data::make_shapes;

namespace {

/// FNV-1a of all bytes.
uint64_t hash_of(const torch::Tensor& images) {
  uint64_t hash = 0xCBF29CE484222325U;
  const auto* bytes = images.data_ptr<uint8_t>();
  for (int64_t i = 0; i < images.numel(); ++i) {
    hash = (hash ^ bytes[i]) * 0x100000001B3U;
  }
  return hash;
}

}  // namespace

TEST_CASE("make_shapes gives balanced classes in random order") {
  const auto data = make_shapes(203, 1);
  CHECK(data.images.sizes() == at::IntArrayRef({203, 3, 32, 32}));
  CHECK(data.images.scalar_type() == at::kByte);
  CHECK(data.labels.sizes() == at::IntArrayRef({203}));
  CHECK(data.labels.scalar_type() == at::kLong);
  CHECK(data.num_classes() == 10);
  CHECK(std::set<std::string>(data.class_names.begin(), data.class_names.end()).size() == 10);
  const auto counts = data.labels.bincount({}, 10);
  CHECK(counts.min().item<int64_t>() == 20);
  CHECK(counts.max().item<int64_t>() == 21);
  CHECK_FALSE(data.labels.narrow(0, 0, 20).equal(at::arange(20, at::kLong).remainder(10)));
}

TEST_CASE("make_shapes gives the same bytes on every machine") {
  const auto data = make_shapes(50, 1);
  INFO(hash_of(data.images));
  CHECK(hash_of(data.images) == 0xDE2BF132888774C7U);
}

TEST_CASE("make_shapes depends on the seed alone") {
  const auto data = make_shapes(200, 7);
  const auto again = make_shapes(200, 7);
  CHECK(data.images.equal(again.images));
  CHECK(data.labels.equal(again.labels));
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  CHECK(data.images.equal(make_shapes(200, 7).images));
  at::set_num_threads(threads);
  const auto other = make_shapes(200, 8);
  CHECK_FALSE(data.labels.equal(other.labels));
  CHECK(data.images.ne(other.images).to(at::kFloat).mean().item<float>() > 0.8F);
}

TEST_CASE("no two pictures of a class are alike") {
  const auto data = make_shapes(500, 3);
  const auto pixels = data.images.view({500, -1}).to(at::kFloat);
  const auto distances = at::cdist(pixels, pixels) + 1e9 * at::eye(500);
  CHECK(distances.min().item<float>() > 300.0F);  // 5 grey levels a value
}

TEST_CASE("each class has its own shape, lighter than what is behind it") {
  // Without noise and clutter the shapes are what inside_shape says; their areas and symmetries tell them
  // apart.
  using mixmatch::data::detail::inside_shape;
  std::set<int64_t> areas;
  for (int64_t kind = 0; kind < 10; ++kind) {
    int64_t area = 0;
    int64_t beyond = 0;
    for (int64_t v = -1300; v <= 1300; v += 20) {
      for (int64_t u = -1300; u <= 1300; u += 20) {
        const bool inside = inside_shape(kind, u, v);
        area += inside ? 1 : 0;
        // What paint() leaves out: further than 5/4 of the radius along an axis.
        beyond += inside && std::max(std::abs(u), std::abs(v)) > 1280 ? 1 : 0;
        CHECK((kind == 6 || inside == inside_shape(kind, -u, v)));
      }
    }
    INFO("class " << kind << " area " << area);
    CHECK(beyond == 0);
    CHECK(area > 2000);  // of 17,161 points
    CHECK(area < 8000);
    areas.insert(area);
  }
  CHECK(areas.size() == 10);
}

TEST_CASE("make_shapes of none, and of a negative number") {
  const auto none = make_shapes(0, 1);
  CHECK(none.size() == 0);
  CHECK(none.images.sizes() == at::IntArrayRef({0, 3, 32, 32}));
  CHECK_THAT(error_of([] { make_shapes(-1, 1); }), contains("make_shapes: count must be >= 0, got -1"));
}
