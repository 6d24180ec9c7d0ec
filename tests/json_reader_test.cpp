#include <mixmatch/detail/io/json_reader.hpp>
#include <mixmatch/run/json.hpp>

#include <cstdint>
#include <limits>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::detail::JsonValue;
using mixmatch::detail::parse_json;
using Kind = JsonValue::Kind;

namespace {
std::string refusal(const std::string& text) {
  return error_of([&] { parse_json(text); });
}
}  // namespace

TEST_CASE("parse_json: every kind of value, in the file's order") {
  const auto value =
      parse_json(" {\"b\" : [1, -2.5e3 ,\"x\",true,false,null,[],{}],\r\n\t\"a\":{\"c\":0}} \n");
  REQUIRE(value.kind == Kind::object);
  REQUIRE(value.members.size() == 2);
  CHECK(value.members[0].first == "b");
  CHECK(value.members[1].first == "a");
  const auto& items = value.find("b")->items;
  REQUIRE(items.size() == 8);
  CHECK(items[0].to_int64() == 1);
  CHECK(items[0].to_double() == 1);
  CHECK(items[1].text == "-2.5e3");
  CHECK(items[1].to_double() == -2500);
  CHECK(items[2].text == "x");
  CHECK((items[3].kind == Kind::boolean && items[3].boolean));
  CHECK((items[4].kind == Kind::boolean && !items[4].boolean));
  CHECK(items[5].kind == Kind::null);
  CHECK((items[6].kind == Kind::array && items[6].items.empty()));
  CHECK((items[7].kind == Kind::object && items[7].members.empty()));
  CHECK(value.find("a")->find("c")->to_int64() == 0);
  CHECK(value.find("d") == nullptr);
  CHECK(items[0].find("d") == nullptr);
  CHECK(parse_json("\"alone\"").text == "alone");
}

TEST_CASE("parse_json: strings, their escapes and UTF-8") {
  CHECK(parse_json(R"("\"\\\/\b\f\n\r\t")").text == "\"\\/\b\f\n\r\t");
  CHECK(parse_json(R"("\u0041\u00e9\u20AC\u0000z")").text == std::string("A\xC3\xA9\xE2\x82\xAC\0z", 8));
  CHECK(parse_json(R"("\ud83d\ude00 \uD800\uDC00 \uDBFF\uDFFF")").text ==
        "\xF0\x9F\x98\x80 \xF0\x90\x80\x80 \xF4\x8F\xBF\xBF");
  CHECK(parse_json("\"\xF0\x9F\x98\x80\xC3\xA9\x7F\"").text == "\xF0\x9F\x98\x80\xC3\xA9\x7F");
  // What JsonObject writes.
  const std::string odd = "tab\t quote\" back\\ slash/ h\xC3\xA9 \x01";
  CHECK(parse_json(mixmatch::training::JsonObject().set("k", odd).set("n", 0.1).str()).find("k")->text ==
        odd);
}

TEST_CASE("parse_json: numbers keep their digits and their limits") {
  CHECK(parse_json("9223372036854775807").to_int64() == std::numeric_limits<int64_t>::max());
  CHECK(parse_json("-9223372036854775808").to_int64() == std::numeric_limits<int64_t>::min());
  CHECK(parse_json("123456789012345678901234567890").text == "123456789012345678901234567890");
  CHECK(parse_json("0.1").to_double() == 0.1);
  CHECK(parse_json("-0").to_double() == 0);
  CHECK(parse_json("5e-324").to_double() == 5e-324);
  CHECK(parse_json("1E+2").to_double() == 100);
  CHECK_THAT(error_of([] { parse_json("9223372036854775808").to_int64(); }),
             contains("expected a whole number of at most 64 bits, got 9223372036854775808"));
  CHECK_THAT(error_of([] { parse_json("1.0").to_int64(); }), contains("got 1.0"));
  CHECK_THAT(error_of([] { parse_json("1e999").to_double(); }),
             contains("within the range of double, got 1e999"));
  CHECK_THAT(error_of([] { parse_json("\"7\"").to_int64(); }), contains("got another kind of value"));
}

TEST_CASE("parse_json: what RFC 8259 does not allow, with its place") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "line 1 column 1: expected a value, got the end of the text"},
      {" \n ", "line 2 column 2: expected a value, got the end of the text"},
      {"{\"a\": 1,\n \"b\" 2}", "line 2 column 6: expected ':', got '2'"},
      {"[1, 2,]", "column 7: expected a value, got ']'"},
      {"[1 2]", "column 4: expected ',' or ']', got '2'"},
      {"[1", "column 3: expected ',' or ']', got the end of the text"},
      {"{\"a\": 1", "expected ',' or '}', got the end of the text"},
      {"{\"a\": 1,}", "column 9: expected a name in quotes, got '}'"},
      {"{a: 1}", "column 2: expected a name in quotes, got 'a'"},
      {"{'a': 1}", "expected a name in quotes"},
      {"1 2", "column 3: expected the end of the text, got '2'"},
      {"[1] x", "expected the end of the text, got 'x'"},
      {"01", "column 2: expected no digit after a leading 0, got '1'"},
      {"-", "column 2: expected a digit, got the end of the text"},
      {"1.", "column 3: expected a digit"},
      {".5", "expected a value, got '.'"},
      {"+1", "expected a value, got '+'"},
      {"1e", "column 3: expected a digit"},
      {"1e+", "column 4: expected a digit"},
      {"0x10", "expected the end of the text, got 'x'"},
      {"NaN", "expected a value, got 'N'"},
      {"-Infinity", "expected a digit, got 'I'"},
      {"nul", "expected a value, got 'n'"},
      {"True", "expected a value, got 'T'"},
      {"truex", "column 5: expected the end of the text"},
      {"// no\n1", "expected a value, got '/'"},
      {"\xEF\xBB\xBF{}", "column 1: expected a value, got byte 0xef"},
      {"\"abc", "column 5: expected a character of the string or its closing quote, got the end of the text"},
      {"\"a\nb\"", "column 3: expected a character of the string or its closing quote, got byte 0x0a"},
      {std::string("\"a\0b\"", 5), "got byte 0x00"},
      {std::string("\0", 1), "expected a value, got byte 0x00"},
      {"\"\\x41\"", "column 3: expected one of \"\\/bfnrtu after a backslash, got 'x'"},
      {"\"\\", "after a backslash, got the end of the text"},
      {"\"\\u12g4\"", "column 6: expected four hexadecimal digits after \\u, got 'g'"},
      {"\"\\u12", "expected four hexadecimal digits after \\u, got the end of the text"},
      {"\"\\ud83d\"", "column 8: expected the second half of a surrogate pair, got '\"'"},
      {"\"\\ud83d", "expected the second half of a surrogate pair, got the end of the text"},
      {"\"\\ud83d\\u0041\"", "column 8: expected the second half of a surrogate pair"},
      {"\"\\ude00\"", "column 2: expected the first half of a surrogate pair before the second"},
      {"\"\xC3(\"", "column 2: expected UTF-8, got byte 0xc3"},
      {"\"\xC0\x80\"", "expected UTF-8"},
      {"\"\xED\xA0\x80\"", "expected UTF-8"},
      {"\"\xF5\x80\x80\x80\"", "expected UTF-8"},
      {"{\"a\": 1, \"b\": 2, \"a\": 3}",
       "expected an object with each name once before this, not \"a\" twice"},
      {"{\"a\": 1, \"\\u0061\": 3}", "not \"a\" twice"},
  };
  for (const auto& [text, message] : cases) {
    INFO(text);
    CHECK_THAT(refusal(text), contains(message));
    CHECK(refusal(text).find('\n') == std::string::npos);
  }
}

TEST_CASE("parse_json: depth is limited, not the stack's patience") {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(parse_json(nested(64)).kind == Kind::array);
  CHECK_THAT(refusal(nested(66)), contains("column 66: expected no further level of lists and objects"));
  CHECK_THAT(refusal(std::string(1000000, '[')), contains("no further level"));
  CHECK(parse_json(nested(3), 3).items.size() == 1);
  CHECK_THAT(error_of([&] { parse_json(nested(4) + "", 2); }), contains("no further level"));
  CHECK_THAT(error_of([&] { parse_json("{\"a\": {\"b\": {\"c\": {}}}}", 2); }), contains("no further level"));
}
