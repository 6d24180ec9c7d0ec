#include <mixmatch/program/suggest_settings.hpp>

#include <string>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::training::DataFacts;
using mixmatch::training::suggest_settings;

namespace {

/// "name value" of each setting, in their order.
std::vector<std::string> suggested(const DataFacts& facts) {
  std::vector<std::string> texts;
  for (const auto& setting : suggest_settings(facts)) {
    CHECK_FALSE(setting.reason.empty());
    texts.push_back(setting.name + " " + setting.value);
  }
  return texts;
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("suggest_settings: lambda-u by classes and length of the run, and its ramp over all of it") {
  const std::vector<int64_t> ten(10, 25), four(4, 10);
  // 75 * 10/10 * sqrt(800 * 16 / 1048576) = 8.286
  CHECK(suggested({ten, 1750, "mixmatch", 800, 16}) == Texts{"lambda-u 8.3", "rampup-steps 800"});
  // 75 * 4/10 * sqrt(500 * 16 / 1048576) = 2.620
  CHECK(suggested({four, 600, "mixmatch", 500, 16}) == Texts{"lambda-u 2.6", "rampup-steps 500"});
  // 75 * 4/10 * sqrt(3000 * 64 / 1048576) = 12.837
  CHECK(suggested({four, 600, "mixmatch", 3000, 64}) == Texts{"lambda-u 13", "rampup-steps 3000"});
  // The paper's own run, and longer ones.
  CHECK(suggested({ten, 1750, "mixmatch", 16384, 64}) == Texts{"lambda-u 75", "rampup-steps 16384"});
  CHECK(suggested({ten, 1750, "mixmatch", 1 << 20, 64}) == Texts{"lambda-u 75", "rampup-steps 1048576"});
  CHECK(suggested({std::vector<int64_t>(100, 4), 9000, "mixmatch", 1 << 20, 64}).front() == "lambda-u 750");
  CHECK(suggested({{3}, 10, "mixmatch", 1, 1}).front() == "lambda-u 0.0073");
}

TEST_CASE("suggest_settings: balanced batches and alignment where the labeled classes are unequal") {
  CHECK(suggested({{10, 14, 10}, 600, "fixmatch", 500, 16}).empty());
  CHECK(suggested({{10, 15, 10}, 600, "fixmatch", 500, 16}) ==
        Texts{"imbalance balanced_batches", "alignment labeled"});
  CHECK(suggested({{100, 1}, 600, "uda", 500, 16}) ==
        Texts{"imbalance balanced_batches", "alignment labeled"});
  // Others have no alignment, and without unlabeled images there is nothing to align.
  CHECK(suggested({{100, 1}, 600, "vat", 500, 16}) == Texts{"imbalance balanced_batches"});
  CHECK(suggested({{100, 1}, 0, "supervised", 500, 16}) == Texts{"imbalance balanced_batches"});
  CHECK(suggest_settings({{100, 1}, 600, "uda", 500, 16})[1].reason ==
        "labeled classes have 1 to 100 images, and those without a label are taken to be alike");
  CHECK(suggested({{5, 5}, 600, "pi_model", 500, 16}).empty());
}

TEST_CASE("suggest_settings: bad input") {
  const std::string missing = "suggest_settings: every class must have a labeled image";
  CHECK_THAT(error_of([] { suggest_settings({{}, 1, "mixmatch", 1, 1}); }), contains(missing));
  CHECK_THAT(error_of([] { suggest_settings({{3, 0}, 1, "mixmatch", 1, 1}); }), contains(missing));
  CHECK_THAT(error_of([] {
               suggest_settings({{3}, 1, "mixmatch", 0, 1});
             }),
             contains("steps and batch must be >= 1, got 0 and 1"));
}
