#include <mixmatch/detail/join_rows.hpp>

#include <torch/types.h>

#include <vector>

#include "catch.hpp"

using mixmatch::detail::join_rows;
using torch::Tensor;

namespace {

/// Whether the parts were joined without a copy; their join is what torch::cat makes of them either way.
bool joined_in_place(const std::vector<Tensor>& parts) {
  const Tensor all = join_rows(parts);
  const Tensor expected = torch::cat(parts);
  REQUIRE(torch::equal(all, expected));
  CHECK(all.scalar_type() == expected.scalar_type());
  CHECK(all.requires_grad() == expected.requires_grad());
  CHECK(all.suggest_memory_format() == expected.suggest_memory_format());
  return all.is_alias_of(parts.front());
}

Tensor numbered(at::IntArrayRef sizes, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return torch::arange(c10::multiply_integers(sizes), torch::kFloat).view(sizes).contiguous(format);
}

}  // namespace

TEST_CASE("join_rows: slices of one batch, in order, are a view of it") {
  const Tensor rows = numbered({10, 4});
  CHECK(joined_in_place({rows.narrow(0, 0, 3), rows.narrow(0, 3, 5), rows.narrow(0, 8, 2)}));
  CHECK(joined_in_place({rows.narrow(0, 2, 1), rows.narrow(0, 3, 1)}));  // not from the start of memory
  const Tensor images = numbered({6, 3, 4, 5}, at::MemoryFormat::ChannelsLast);
  CHECK(joined_in_place({images.narrow(0, 1, 2), images.narrow(0, 3, 3)}));
  const Tensor labels = torch::arange(9);
  CHECK(joined_in_place({labels.narrow(0, 0, 4), labels.narrow(0, 4, 5)}));
}

TEST_CASE("join_rows: everything else is copied") {
  const Tensor rows = numbered({10, 4}), images = numbered({6, 3, 4, 5}, at::MemoryFormat::ChannelsLast);
  CHECK_FALSE(joined_in_place({rows.narrow(0, 5, 5), rows.narrow(0, 0, 5)}));  // order
  CHECK_FALSE(joined_in_place({rows.narrow(0, 0, 3), rows.narrow(0, 4, 3)}));  // gap
  CHECK_FALSE(joined_in_place({rows.narrow(0, 0, 3), rows.narrow(0, 0, 3)}));  // twice the same
  CHECK_FALSE(joined_in_place({rows.narrow(0, 0, 3), rows.narrow(0, 3, 3).clone()}));
  CHECK_FALSE(joined_in_place({rows.narrow(1, 0, 2), rows.narrow(1, 2, 2)}));  // columns
  CHECK_FALSE(joined_in_place({rows.slice(0, 0, 6, 2), rows.slice(0, 6, 10, 2)}));
  CHECK_FALSE(joined_in_place({rows[0].expand({3, 4}), rows[0].expand({2, 4})}));
  CHECK_FALSE(joined_in_place({rows.narrow(0, 0, 0), rows}));
  CHECK_FALSE(joined_in_place({rows}));  // one alone
  CHECK_FALSE(joined_in_place({rows.narrow(0, 0, 3)._neg_view(), rows.narrow(0, 3, 3)}));
  CHECK_FALSE(joined_in_place({images.narrow(0, 0, 2), images.narrow(0, 2, 2).contiguous()}));
  // The same numbers of elements in the same memory, in other shapes.
  const Tensor one = numbered({24});
  CHECK_THROWS(join_rows({one.narrow(0, 0, 12).view({3, 4}), one.narrow(0, 12, 12).view({4, 3})}));
  CHECK_THROWS(join_rows({}));
}

TEST_CASE("join_rows: what was made in inference mode can be trained on") {
  std::vector<Tensor> parts;
  {
    const c10::InferenceMode inference;
    const Tensor rows = numbered({6, 2});
    parts = {rows.narrow(0, 0, 2), rows.narrow(0, 2, 4)};
  }
  CHECK_FALSE(join_rows(parts).is_inference());
}

TEST_CASE("join_rows: gradients go to each part") {
  const Tensor rows = numbered({6, 2}).requires_grad_();
  CHECK_FALSE(joined_in_place({rows.narrow(0, 0, 2), rows.narrow(0, 2, 4)}));
  (join_rows({rows.narrow(0, 0, 2), rows.narrow(0, 2, 4)}) * numbered({6, 2})).sum().backward();
  CHECK(torch::equal(rows.grad(), numbered({6, 2})));
  const torch::NoGradGuard no_grad;
  CHECK(join_rows({rows.narrow(0, 0, 2), rows.narrow(0, 2, 4)}).is_alias_of(rows));
}

TEST_CASE("separate_rows: the same memory, with a version of its own") {
  const Tensor all = numbered({6, 2});
  const Tensor rows = mixmatch::detail::separate_rows(all, 2, 3),
               others = mixmatch::detail::separate_rows(all, 0, 2);
  CHECK(rows.is_alias_of(all));
  CHECK(torch::equal(rows, all.narrow(0, 2, 3)));
  const auto version = others._version();
  rows.fill_(-1);
  CHECK(others._version() == version);
  CHECK(all.select(0, 2).eq(-1).all().item<bool>());
}
