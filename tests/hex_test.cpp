#include <mixmatch/detail/io/hex.hpp>

#include "catch.hpp"

#include <cstdint>

TEST_CASE("hex: two digits a byte, leading zeros too") {
  using mixmatch::detail::hex;
  CHECK(hex(uint8_t{0x0A}) == "0a");
  CHECK(hex(uint32_t{0xAB}) == "000000ab");
  CHECK(hex(uint32_t{0xDEADBEEF}) == "deadbeef");
  CHECK(hex(uint64_t{0}) == "0000000000000000");
}
