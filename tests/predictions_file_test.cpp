#include <mixmatch/program/predictions_file.hpp>

#include <limits>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::training::format_predictions;
using mixmatch::training::write_predictions;

TEST_CASE("predictions: the largest class with its probability, quoted where it must be") {
  const auto p = torch::tensor({{.25, .75}, {.5, .5}, {.875, .125}});
  const std::vector<std::string> classes{"cat", "a, \"b\""};
  CHECK(format_predictions({"x.png", "sub/y, z.png", "grüße.png"}, p, classes) ==
        "file,class,confidence\n"
        "x.png,\"a, \"\"b\"\"\",0.75\n"
        "\"sub/y, z.png\",cat,0.5\n"
        "grüße.png,cat,0.875\n");
  TempDir dir;
  write_predictions(dir / "p.csv", {"x.png", "sub/y, z.png", "grüße.png"}, p, classes);
  CHECK(lines_of(read_file(dir / "p.csv"))[1] == "\"sub/y, z.png\",cat,0.5");
  CHECK(lines_of(read_file(dir / "p.csv"))[3] == "grüße.png,cat,0.875");
}

TEST_CASE("predictions: equals keep their order, a NaN comes first, none is a header") {
  TempDir dir;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  write_predictions(dir / "p.csv", {"a", "b", "c"}, torch::tensor({{.5, .5}, {.5, .5}, {nan, nan}}),
                    {"x", "y"});
  const auto lines = lines_of(read_file(dir / "p.csv"));
  REQUIRE(lines.size() == 4);
  CHECK(lines[1].rfind("c,", 0) == 0);
  CHECK(lines[2] == "a,x,0.5");
  CHECK(lines[3] == "b,x,0.5");
  CHECK(format_predictions({}, torch::empty({0, 2}), {"x", "y"}) == "file,class,confidence\n");
  CHECK_THAT(error_of([] {
               format_predictions({"a"}, torch::rand({1, 3}), {"x", "y"});
             }),
             contains("probabilities must be [1, 2], got [1, 3]"));
  CHECK_THAT(error_of([&] {
               write_predictions(dir / "no" / "p.csv", {"a"}, torch::rand({1, 2}), {"x", "y"});
             }),
             contains("cannot write"));
}
