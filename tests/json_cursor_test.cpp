#include <mixmatch/detail/io/json_cursor.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

using mixmatch::detail::JsonCursor;

namespace {

std::string string_of(std::string_view text) {
  JsonCursor json(text);
  std::string value = json.string();
  json.finish();
  return value;
}

uint64_t integer_of(std::string_view text) {
  JsonCursor json(text);
  const uint64_t value = json.integer();
  json.finish();
  return value;
}

std::vector<uint64_t> integers_of(std::string_view text) {
  JsonCursor json(text);
  std::vector<uint64_t> values;
  json.array([&] { values.push_back(json.integer()); });
  json.finish();
  return values;
}

std::string error_in_string(const std::string& text) {
  return error_of([&] { string_of(text); });
}
std::string error_in_integer(const std::string& text) {
  return error_of([&] { integer_of(text); });
}
std::string error_in_integers(const std::string& text) {
  return error_of([&] { integers_of(text); });
}

}  // namespace

TEST_CASE("nested objects and lists in the order of the text") {
  const std::string text = " {\"a\" : {\"x\":1, \"y\":2},\n\t\"b\":{},\r\"c\":{\"z\":[3,4 , 5]}} ";
  JsonCursor json(text);
  std::string order;
  std::vector<uint64_t> values;
  json.object([&](const std::string& outer) {
    json.object([&](const std::string& inner) {
      order += outer + inner + " ";
      if (outer == "c") {
        json.array([&] { values.push_back(json.integer()); });
      } else {
        values.push_back(json.integer());
      }
    });
  });
  json.finish();
  CHECK(order == "ax ay cz ");
  CHECK(values == std::vector<uint64_t>{1, 2, 3, 4, 5});
  CHECK(integers_of("[]").empty());
  CHECK(integers_of("[ ]").empty());
}

TEST_CASE("strings: escapes and UTF-8") {
  CHECK(string_of("\"\"").empty());
  CHECK(string_of(R"("a\"b\\c\/d\b\f\n\r\t")") == "a\"b\\c/d\b\f\n\r\t");
  CHECK(string_of("\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\"") == "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
  CHECK(string_of(R"("\u0041\u00e9\u20AC")") == "A\xc3\xa9\xe2\x82\xac");
  CHECK(string_of(R"("\ud83d\ude00")") == "\xf0\x9f\x98\x80");
  CHECK(string_of(R"("\uD800\uDC00")") == "\xf0\x90\x80\x80");
  CHECK(string_of(R"("\uDBFF\uDFFF")") == "\xf4\x8f\xbf\xbf");
  CHECK(string_of(R"("\u007f\u0080\u07ff\u0800\uffff")") == "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf");
  CHECK(string_of(R"("a\u0000b")") == std::string("a\0b", 3));
}

TEST_CASE("strings that are none") {
  CHECK_THAT(error_in_string(""), contains("line 1 column 1: expected a string, got the end of the text"));
  CHECK_THAT(error_in_string("7"), contains("line 1 column 1: expected a string, got '7'"));
  CHECK_THAT(error_in_string("'a'"), contains("expected a string"));
  CHECK_THAT(error_in_string("\"abc"), contains("line 1 column 5: expected a character of the string or its "
                                                "closing quote, got the end of the text"));
  CHECK_THAT(error_in_string("\"abc\\\""), contains("closing quote"));
  CHECK_THAT(error_in_string("\"a\nb\""),
             contains("line 1 column 3: expected a character of the string or its closing quote"));
  CHECK_THAT(error_in_string(std::string("\"\0\"", 3)), contains("a character of the string"));
  CHECK_THAT(error_in_string("\"\xff\""), contains("UTF-8"));
  CHECK_THAT(error_in_string("\"\xc0\xaf\""), contains("UTF-8"));      // overlong
  CHECK_THAT(error_in_string("\"\xed\xa0\x80\""), contains("UTF-8"));  // a surrogate
  CHECK_THAT(error_in_string("\"\xf4\x90\x80\x80\""), contains("UTF-8"));
  CHECK_THAT(error_in_string("\"\xe2\x82"), contains("UTF-8"));  // cut short
  CHECK_THAT(error_in_string(R"("\x")"), contains("expected one of"));
  CHECK_THAT(error_in_string("\"\\"), contains("expected one of"));
  CHECK_THAT(error_in_string(R"("\u12")"), contains("four hexadecimal digits"));
  CHECK_THAT(error_in_string(R"("\u12g4")"), contains("four hexadecimal digits"));
  CHECK_THAT(error_in_string(R"("\u-123")"), contains("four hexadecimal digits"));
  CHECK_THAT(error_in_string(R"("\u)"), contains("four hexadecimal digits"));
  CHECK_THAT(error_in_string(R"("\udc00")"), contains("the first half of a surrogate pair before"));
  CHECK_THAT(error_in_string(R"("\ud800")"), contains("the second half of a surrogate pair"));
  CHECK_THAT(error_in_string(R"("\ud800x")"), contains("the second half of a surrogate pair"));
  CHECK_THAT(error_in_string(R"("\ud800\u0041")"), contains("the second half of a surrogate pair"));
  CHECK_THAT(error_in_string("\"a\" \"b\""), contains("line 1 column 5: expected the end of the text"));
}

TEST_CASE("whole numbers to their limits") {
  CHECK(integer_of("0") == 0);
  CHECK(integer_of(" 42 ") == 42);
  CHECK(integer_of("18446744073709551615") == std::numeric_limits<uint64_t>::max());
  for (const char* wrong : {"18446744073709551616", "99999999999999999999999", "-1", "-0", "+1", "01", "00",
                            "1.0", "1e3", "1E3", "", "x", "null", "true", "0x", "0x10", "\"1\""}) {
    INFO(wrong);
    CHECK_THAT(error_in_integer(wrong), contains("expected "));
  }
  CHECK_THAT(error_in_integer("-1"),
             contains("line 1 column 1: expected a whole number in [0, 2^64), got '-'"));
}

TEST_CASE("lists and objects that are none") {
  CHECK_THAT(error_in_integers("{}"), contains("expected a list, got '{'"));
  CHECK_THAT(error_in_integers("[1"),
             contains("line 1 column 3: expected ',' or ']', got the end of the text"));
  CHECK_THAT(error_in_integers("[1,]"), contains("expected a whole number"));
  CHECK_THAT(error_in_integers("[,1]"), contains("expected a whole number"));
  CHECK_THAT(error_in_integers("[1 2]"), contains("expected ',' or ']'"));
  CHECK_THAT(error_in_integers("[1}"), contains("expected ',' or ']'"));
  CHECK_THAT(error_in_integers("[1]]"), contains("expected the end of the text"));
  CHECK_THAT(error_in_integers("[1] // one"), contains("expected the end of the text"));
  CHECK_THAT(error_in_integers("\xef\xbb\xbf[1]"), contains("expected a list"));  // a byte-order mark
  const auto error_in_object = [](const std::string& text) {
    return error_of([&] {
      JsonCursor json(text, "x.json: ");
      json.object([&](const std::string&) { json.integer(); });
      json.finish();
    });
  };
  CHECK(error_in_object("{\"a\": 1, \"b\": 2}").empty());
  CHECK(error_in_object("[]") == "x.json: line 1 column 1: expected an object, got '['");
  CHECK_THAT(error_in_object("{a: 1}"), contains("expected a name in quotes"));
  CHECK_THAT(error_in_object("{\"a\" 1}"), contains("expected ':'"));
  CHECK_THAT(error_in_object("{\"a\":}"), contains("expected a whole number"));
  CHECK_THAT(error_in_object("{\"a\":1,}"), contains("expected a name in quotes"));
  CHECK_THAT(error_in_object("{\"a\":1"), contains("expected ',' or '}', got the end of the text"));
  CHECK_THAT(error_in_object("{\"a\":[[[[[["), contains("expected a whole number"));
}

TEST_CASE("messages are short and on one line whatever the text holds") {
  const std::string text = "[\n\"" + std::string(1000000, 'x');
  const std::string message = error_in_integers(text);
  CHECK(message.size() < 200);
  CHECK(message.find('\n') == std::string::npos);
}
