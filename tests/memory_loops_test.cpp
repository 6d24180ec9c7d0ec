#include <mixmatch/detail/cpu/memory_loops.hpp>

#include "catch.hpp"

using mixmatch::detail::MemoryLoop;
using mixmatch::detail::offsets_at;
using mixmatch::detail::order_and_join;
using Loops = std::vector<MemoryLoop<2>>;
using Steps = std::array<int64_t, 2>;

TEST_CASE("memory_loops: one tensor's steps order the loops, outermost first; equal ones stay in order") {
  Loops loops{{3, {5, 1}}, {4, {70, 100}}, {2, {9, 1}}};
  order_and_join(loops, 1);
  REQUIRE(loops.size() == 3);
  CHECK(loops[0].steps == Steps{70, 100});
  CHECK(loops[1].steps == Steps{5, 1});
  CHECK(loops[2].steps == Steps{9, 1});
}

TEST_CASE("memory_loops: loops that one loop can do in every tensor become one") {
  // [2, 3, 4]: both tensors contiguous.
  Loops loops{{2, {12, 12}}, {3, {4, 4}}, {4, {1, 1}}};
  order_and_join(loops, 0);
  REQUIRE(loops.size() == 1);
  CHECK(loops[0].size == 24);
  CHECK(loops[0].steps == Steps{1, 1});
  // The second tensor's first dimension is cut out of a longer one: only the other two join.
  loops = {{2, {12, 99}}, {3, {4, 4}}, {4, {1, 1}}};
  order_and_join(loops, 0);
  REQUIRE(loops.size() == 2);
  CHECK(loops[0].size == 2);
  CHECK(loops[0].steps == Steps{12, 99});
  CHECK(loops[1].size == 12);
  CHECK(loops[1].steps == Steps{1, 1});
  // Transposed: what is the innermost of one tensor is not that of the other.
  loops = {{3, {4, 1}}, {4, {1, 3}}};
  order_and_join(loops, 0);
  CHECK(loops.size() == 2);
  // The outer two join, whatever order they come in, and what stays apart moves up; an expanded dimension
  // (step 0) joins none but its like.
  loops = {{4, {1, 9}}, {3, {20, 20}}, {2, {60, 60}}, {5, {0, 0}}};
  order_and_join(loops, 0);
  REQUIRE(loops.size() == 3);
  CHECK(loops[0].size == 6);
  CHECK(loops[0].steps == Steps{20, 20});
  CHECK(loops[1].size == 4);
  CHECK(loops[1].steps == Steps{1, 9});
  CHECK(loops[2].size == 5);
  CHECK(loops[2].steps == Steps{0, 0});
  Loops none;
  order_and_join(none, 0);
  CHECK(none.empty());
}

TEST_CASE("memory_loops: offsets by hand") {
  const Loops loops{{2, {100, 7}}, {3, {10, 50}}, {4, {1, 1}}};
  CHECK(offsets_at(loops, 3, 0) == Steps{0, 0});
  CHECK(offsets_at(loops, 3, 1) == Steps{1, 1});
  CHECK(offsets_at(loops, 3, 23) == Steps{100 + 20 + 3, 7 + 100 + 3});
  // Of the first two loops alone: pass 4 is place 1 of the first, place 1 of the second.
  CHECK(offsets_at(loops, 2, 4) == Steps{110, 57});
  CHECK(offsets_at(loops, 0, 0) == Steps{0, 0});
}
