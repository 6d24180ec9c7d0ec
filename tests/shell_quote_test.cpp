#include <mixmatch/detail/io/shell_quote.hpp>

#include <string>

#include "catch.hpp"
#include "subprocess.hpp"

namespace fs = std::filesystem;
using mixmatch::detail::shell_quote;

TEST_CASE("shell_quote: plain words stay, all others come back from a shell as they were") {
  CHECK(shell_quote("runs/first-2.5_a") == "runs/first-2.5_a");
  CHECK(shell_quote("") == "''");
  CHECK(shell_quote("my run") == "'my run'");
  CHECK(shell_quote("it's") == "'it'\\''s'");
  CHECK(shell_quote("a\nb'\\") == "$'a\\x0ab\\'\\\\'");
  for (const std::string text : {"", "a", "größe", "a b", "it's",
                                 "$HOME `x` $(y) \"z\" \\ ! * ? ~ # & ; | < >", "~", "-n", "'", "''"}) {
    INFO(text);
    const auto finished = run({"/bin/sh", "-c", "printf %s " + shell_quote(text)});
    CHECK(finished.status == 0);
    CHECK(finished.out == text);
  }
  CHECK(shell_quote("\x1b[2J\x7f") == "$'\\x1b[2J\\x7f'");
  CHECK(shell_quote("caf\xe9 \xc2\x9b") == "$'caf\\xe9 \\xc2\\x9b'");
  if (fs::exists("/bin/bash")) {
    const std::string text = "a\nb\t'\\ \xff";
    CHECK(run({"/bin/bash", "-c", "printf %s " + shell_quote(text)}).out == text);
  }
}
