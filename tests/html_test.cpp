#include <mixmatch/report/html.hpp>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch::training;

TEST_CASE("escape_html: markup becomes text, text stays") {
  CHECK(escape_html("a<b>&\"c\"'d'") == "a&lt;b&gt;&amp;&quot;c&quot;&#39;d&#39;");
  CHECK(escape_html("") == "");
  CHECK(escape_html("&amp;") == "&amp;amp;");
  CHECK(escape_html("h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80\t\n") ==
        "h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80\t\n");
}

TEST_CASE("escape_html: what HTML cannot hold is replaced") {
  const std::string unknown = "\xEF\xBF\xBD";
  CHECK(escape_html(std::string("a\0b", 3)) == "a" + unknown + "b");
  CHECK(escape_html("\x01\x1F\x7F\r") == unknown + unknown + unknown + unknown);
  CHECK(escape_html("\xC2\x80\xC2\x9F") == unknown + unknown);
  CHECK(escape_html("\xC2\xA0") == "\xC2\xA0");
  CHECK(escape_html("a\xFF") == "a" + unknown);
  CHECK(escape_html("\xC3") == unknown);
  CHECK(escape_html("\xC3<") == unknown + "&lt;");
  CHECK(escape_html("\xEF\xBF\xBE\xEF\xBF\xBF\xF4\x8F\xBF\xBF\xEF\xB7\x90") ==
        unknown + unknown + unknown + unknown);
  CHECK(escape_html("\xEF\xBF\xBD\xEF\xB7\xB0") == "\xEF\xBF\xBD\xEF\xB7\xB0");
  CHECK(escape_html("\xE2\xBF\xBE\xF0\x9F\xBF\xBD") == "\xE2\xBF\xBE\xF0\x9F\xBF\xBD");
}

TEST_CASE("encode_base64: RFC 4648's vectors and all bytes") {
  const std::vector<std::pair<std::string, std::string>> vectors = {
      {"", ""},
      {"f", "Zg=="},
      {"fo", "Zm8="},
      {"foo", "Zm9v"},
      {"foob", "Zm9vYg=="},
      {"fooba", "Zm9vYmE="},
      {"foobar", "Zm9vYmFy"},
      {"\xFB\xEF\xFF", "++//"},
  };
  for (const auto& [bytes, text] : vectors) {
    CHECK(encode_base64(bytes) == text);
  }
  CHECK(encode_base64(std::string("\0\0\0", 3)) == "AAAA");
}

TEST_CASE("html_table: escaped cells, numbers to the right") {
  const std::string table =
      html_table({"run & seed", "error", "note"},
                 {{"a<b", "1.25", "1 of 2, unfinished"}, {"c", "-", "9"}, {"d", "9.1 \xC2\xB1 0.2", ""}});
  CHECK_THAT(table, contains("<th>run &amp; seed</th><th class=\"number\">error</th><th>note</th>"));
  CHECK_THAT(table, contains("<td>a&lt;b</td><td class=\"number\">1.25</td><td>1 of 2, unfinished</td>"));
  CHECK_THAT(table, contains("<td class=\"number\">9.1 \xC2\xB1 0.2</td>"));
  CHECK_THAT(error_of([] { html_table({"a", "b"}, {{"1"}}); }), contains("a row must have 2 cells, got 1"));
}

TEST_CASE("html_page: whole, escaped title, nothing from outside") {
  const std::string page = html_page("<t> & u", "<p>body</p>\n");
  CHECK(page.rfind("<!DOCTYPE html>\n<html lang=\"en\">", 0) == 0);
  CHECK_THAT(page, contains("<title>&lt;t&gt; &amp; u</title>"));
  CHECK_THAT(page, contains("<p>body</p>"));
  CHECK_THAT(page, contains("prefers-color-scheme: dark"));
  CHECK(page.find("http") == std::string::npos);
  CHECK(page.find("@import") == std::string::npos);
  CHECK(page.find("url(") == std::string::npos);
  CHECK_THAT(error_of([] { html_page("", ""); }), contains("title must not be empty"));
}
