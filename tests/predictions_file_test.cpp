#include <mixmatch/program/predictions_file.hpp>

#include <limits>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::training::format_predictions;
using mixmatch::training::Predictions;
using mixmatch::training::write_predictions;

TEST_CASE("predictions: the largest class with its probability, the next one, quoted where it must be") {
  const Predictions p{{"x.png", "sub/y, z.png", "grüße.png"},
                      torch::tensor({{.25, .75}, {.5, .5}, {.875, .125}}),
                      {"cat", "a, \"b\""}};
  CHECK(format_predictions(p) ==
        "file,class,confidence,second_class,margin,abstain\n"
        "x.png,\"a, \"\"b\"\"\",0.75,cat,0.5,\n"
        "\"sub/y, z.png\",cat,0.5,\"a, \"\"b\"\"\",0,\n"
        "grüße.png,cat,0.875,\"a, \"\"b\"\"\",0.75,\n");
  TempDir dir;
  write_predictions(dir / "p.csv", p);
  CHECK(lines_of(read_file(dir / "p.csv"))[1] == "\"sub/y, z.png\",cat,0.5,\"a, \"\"b\"\"\",0,");
  CHECK(lines_of(read_file(dir / "p.csv"))[3] == "grüße.png,cat,0.875,\"a, \"\"b\"\"\",0.75,");
}

TEST_CASE("predictions: confidence at a temperature, abstentions below a threshold, where the files are") {
  // At temperature 1/2 the probabilities are squared: .36 and .16 are .6923 and .3077 of .52.
  Predictions p{{"a", "b", "c"},
                torch::tensor({{.6, .4, 0.}, {.2, .1, .7}, {.5, .5, 0.}}, torch::kDouble),
                {"x", "y", "z"},
                {.5, .7, .9},
                std::vector<std::string>{"up/a", "up, and/b", "up/c"}};
  const auto lines = lines_of(format_predictions(p));
  CHECK(lines[0] == "file,class,confidence,second_class,margin,abstain,path,label");
  CHECK(lines[1] == "a,x,0.692308,y,0.384615,yes,up/a,");
  CHECK(lines[2] == "b,z,0.907407,x,0.833333,no,\"up, and/b\",");
  CHECK(lines[3] == "c,x,0.5,y,0,yes,up/c,");
  // Files, paths and rows are put in order together.
  TempDir dir;
  write_predictions(dir / "p.csv", p);
  const auto sorted = lines_of(read_file(dir / "p.csv"));
  REQUIRE(sorted.size() == 4);
  CHECK(sorted[1] == lines[3]);
  CHECK(sorted[2] == lines[1]);
  CHECK(sorted[3] == lines[2]);
  write_predictions(dir / "p.csv", p, torch::tensor({1, 2, 0}, torch::kLong));
  CHECK(lines_of(read_file(dir / "p.csv")) ==
        std::vector<std::string>{lines[0], lines[2], lines[3], lines[1]});
  p.rule = {1, .6, .9};  // what reaches it is accepted
  CHECK(lines_of(format_predictions(p))[1] == "a,x,0.6,y,0.2,no,up/a,");
  p.rule.threshold = std::numeric_limits<double>::infinity();
  CHECK(lines_of(format_predictions(p))[2] == "b,z,0.7,x,0.5,yes,\"up, and/b\",");
  p.paths->pop_back();
  CHECK_THAT(error_of([&] { format_predictions(p); }),
             contains("paths must be one a file or none, got 2 for 3"));
  CHECK(lines_of(format_predictions({{"a"}, torch::ones({1, 1}), {"only"}}))[1] == "a,only,1,,,");
}

TEST_CASE("predictions: equals keep their order, a NaN comes first, none is a header") {
  TempDir dir;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  write_predictions(dir / "p.csv",
                    {{"a", "b", "c"}, torch::tensor({{.5, .5}, {.5, .5}, {nan, nan}}), {"x", "y"}});
  const auto lines = lines_of(read_file(dir / "p.csv"));
  REQUIRE(lines.size() == 4);
  CHECK(lines[1].rfind("c,", 0) == 0);
  CHECK(lines[2] == "a,x,0.5,y,0,");
  CHECK(lines[3] == "b,x,0.5,y,0,");
  CHECK(format_predictions({{}, torch::empty({0, 2}), {"x", "y"}, {2, .5, .9}}) ==
        "file,class,confidence,second_class,margin,abstain\n");
  CHECK(format_predictions({{}, torch::empty({0, 2}), {"x", "y"}, {}, std::vector<std::string>()}) ==
        "file,class,confidence,second_class,margin,abstain,path,label\n");
  write_predictions(dir / "none.csv", {{}, torch::empty({0, 2}), {"x", "y"}});
  CHECK(lines_of(read_file(dir / "none.csv")).size() == 1);
  CHECK_THAT(error_of([] {
               format_predictions({{"a"}, torch::rand({1, 3}), {"x", "y"}});
             }),
             contains("probabilities must be [1, 2], got [1, 3]"));
  CHECK_THAT(error_of([&] {
               write_predictions(dir / "no" / "p.csv", {{"a"}, torch::rand({1, 2}), {"x", "y"}});
             }),
             contains("cannot write"));
}
