#include <mixmatch/data/split_file.hpp>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::load_split;
using mixmatch::data::save_split;
using mixmatch::data::SslSplit;
using torch::Tensor;

namespace {

Tensor rows(std::vector<int64_t> values) { return torch::tensor(values, torch::kLong); }

void check_equal(const SslSplit& a, const SslSplit& b) {
  CHECK(torch::equal(a.labeled, b.labeled));
  CHECK(torch::equal(a.unlabeled, b.unlabeled));
  CHECK(torch::equal(a.validation, b.validation));
}

}  // namespace

TEST_CASE("split file: comes back as it was, and reads like text") {
  TempDir dir;
  const auto path = dir / "split.txt";
  const SslSplit whole{rows({1, 4}), rows({0, 2, 5}), rows({3})};
  save_split(path, whole, 6);
  CHECK(read_file(path) == "mixmatch split of 6 images\nlabeled 1 4\nvalidation 3\nunlabeled all others\n");
  check_equal(load_split(path, 6), whole);

  const SslSplit part{rows({1, 4}), rows({0}), rows({})};
  save_split(path, part, 6);
  CHECK_THAT(read_file(path), contains("unlabeled 0\n"));
  check_equal(load_split(path, 6), part);

  const auto drawn = mixmatch::data::split_labels(torch::arange(300) % 10, 40, 20, 7);
  save_split(path, drawn, 300);
  check_equal(load_split(path, 300), drawn);
}

TEST_CASE("split file: written by hand, in any order and without a part") {
  TempDir dir;
  const auto path = dir / "split.txt";
  write_file(path, "mixmatch split of 5 images\nunlabeled all others\n\nlabeled 4 0\n");
  check_equal(load_split(path, 5), {rows({0, 4}), rows({1, 2, 3}), rows({})});
  write_file(path, "mixmatch split of 5 images\nlabeled 4 0\n");
  check_equal(load_split(path, 5), {rows({0, 4}), rows({}), rows({})});
}

TEST_CASE("split file: what does not fit is refused in one line that names the file") {
  TempDir dir;
  const auto path = dir / "split.txt";
  const auto refused = [&](const std::string& text) {
    write_file(path, text);
    const std::string error = error_of([&] { load_split(path, 5); });
    CHECK_THAT(error, contains(path.string()));
    CHECK(error.find('\n') == std::string::npos);
    return error;
  };
  const std::string head = "mixmatch split of 5 images\n";
  CHECK_THAT(error_of([&] { load_split(dir / "none", 5); }), contains("cannot read the split file"));
  CHECK_THAT(refused("labeled 1\n"), contains("is no split file"));
  CHECK_THAT(refused(""), contains("cannot read"));
  CHECK_THAT(refused("mixmatch split of 6 images\nlabeled 1\n"),
             contains("splits 6 images, the data set has 5"));
  CHECK_THAT(refused(head + "labeled 1 5\n"), contains("labeled has \"5\", expected a row in [0, 5)"));
  CHECK_THAT(refused(head + "labeled 1 -1\n"), contains("\"-1\""));
  CHECK_THAT(refused(head + "labeled 1 two\n"), contains("\"two\""));
  CHECK_THAT(refused(head + "labeled 1\nvalidation 1\n"), contains("row 1 stands there twice"));
  CHECK_THAT(refused(head + "labelled 1\n"), contains("got \"labelled\""));
  CHECK_THAT(refused(head + "validation 1\n"), contains("has no labeled rows"));
  CHECK_THAT(refused(head + "labeled 1\nunlabeled 2\nunlabeled all others\n"), contains("all others"));
  CHECK_THAT(error_of([&] {
               save_split(dir / "no" / "split.txt", {rows({0}), rows({}), rows({})}, 1);
             }),
             contains("cannot write"));
}
