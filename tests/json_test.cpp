#include <mixmatch/run/json.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

using mixmatch::training::JsonObject;

TEST_CASE("an object in the order of its keys", "[json]") {
  CHECK(JsonObject().str() == "{}\n");
  const auto text = JsonObject()
                        .set("steps", int64_t{300})
                        .set("error", 4.56)
                        .set("method", "mixmatch")
                        .set("resume", false)
                        .set("name", std::string("x"))
                        .set("small", 1e-7)
                        .set("float", 0.1F)
                        .set("unsigned", std::numeric_limits<uint64_t>::max())
                        .set("least", std::numeric_limits<int64_t>::min())
                        .str();
  CHECK(text ==
        "{\n  \"steps\": 300,\n  \"error\": 4.56,\n  \"method\": \"mixmatch\",\n  \"resume\": false,\n  "
        "\"name\": \"x\",\n"
        "  \"small\": 1e-07,\n  \"float\": 0.1,\n  \"unsigned\": 18446744073709551615,\n"
        "  \"least\": -9223372036854775808\n}\n");
}

TEST_CASE("setting a key again replaces its value in place", "[json]") {
  CHECK(JsonObject().set("a", 1).set("b", 2).set("a", "x").str() == "{\n  \"a\": \"x\",\n  \"b\": 2\n}\n");
}

TEST_CASE("numbers that JSON lacks are null", "[json]") {
  CHECK(JsonObject().set("a", std::nan("")).str() == "{\n  \"a\": null\n}\n");
  CHECK(JsonObject().set("a", -std::numeric_limits<double>::infinity()).str() == "{\n  \"a\": null\n}\n");
}

TEST_CASE("doubles read back to the same value", "[json]") {
  for (const double value : {1.0 / 3, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, -2.5}) {
    const auto text = JsonObject().set("a", value).str();
    CHECK(std::strtod(text.c_str() + text.find(": ") + 2, nullptr) == value);
  }
}

TEST_CASE("strings are escaped and UTF-8 is kept", "[json]") {
  const auto quoted = [](std::string_view text) {
    const auto object = JsonObject().set("k", text).str();
    return object.substr(10, object.size() - 14);
  };
  CHECK(quoted("plain") == "plain");
  CHECK(quoted("a\"b\\c/") == "a\\\"b\\\\c/");
  CHECK(quoted("\n\r\t") == "\\n\\r\\t");
  CHECK(quoted(std::string_view("\0\x01\x1f\x7f", 4)) == "\\u0000\\u0001\\u001f\\u007f");
  CHECK(quoted("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80") == "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
  CHECK(quoted("\xff") == "\\ufffd");
  CHECK(quoted("a\xc3") == "a\\ufffd");                      // cut short
  CHECK(quoted("\xc0\xaf") == "\\ufffd\\ufffd");             // overlong
  CHECK(quoted("\xed\xa0\x80") == "\\ufffd\\ufffd\\ufffd");  // a surrogate
  CHECK(JsonObject().set("a\"\n", 1).str() == "{\n  \"a\\\"\\n\": 1\n}\n");
}
