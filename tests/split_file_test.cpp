#include <mixmatch/data/split_file.hpp>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::load_split;
using mixmatch::data::NamedImages;
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
  CHECK_THAT(error_of([&] { load_split(dir / "none", 5); }),
             contains("cannot read " + (dir / "none").string()));
  CHECK_THAT(refused("labeled 1\n"), contains("is no split file"));
  CHECK_THAT(refused(""), contains("is no split file"));
  CHECK_THAT(refused("mixmatch split of 6 images\nlabeled 1\n"),
             contains("splits 6 images, the data set has 5"));
  CHECK_THAT(refused(head + "labeled 1 5\n"), contains("labeled has \"5\", expected a row in [0, 5)"));
  CHECK_THAT(refused(head + "labeled 1 -1\n"), contains("\"-1\""));
  CHECK_THAT(refused(head + "labeled 1 two\n"), contains("\"two\""));
  CHECK_THAT(refused(head + "labeled 1\nvalidation 1\n"), contains("row 1 stands there twice"));
  CHECK_THAT(refused(head + "labeled \"1\n"), contains("line 2: a name in quotes does not end"));
  CHECK_THAT(refused(head + "labeled \x1b[2J\n"), contains("\"\\x1b[2J\""));
  CHECK_THAT(refused("mixmatch split of pictures\nlabeled \"a.png\"\n"),
             contains("splits pictures by their names, and this data set has none"));
  CHECK_THAT(refused(head + "labelled 1\n"), contains("got \"labelled\""));
  CHECK_THAT(refused(head + "validation 1\n"), contains("has no labeled rows"));
  CHECK_THAT(refused(head + "labeled 1\nunlabeled 2\nunlabeled all others\n"), contains("all others"));
  CHECK_THAT(error_of([&] {
               save_split(dir / "no" / "split.txt", {rows({0}), rows({}), rows({})}, 1);
             }),
             contains("cannot write"));
}

TEST_CASE("split file: of rows, it carries the checksum of the images that the rows are of") {
  TempDir dir;
  const auto path = dir / "split.txt";
  const SslSplit split{rows({1, 4}), rows({0, 2}), rows({3})};
  save_split(path, split, 5, "1f2e3d4c");
  CHECK(lines_of(read_file(path)).at(1) == "data crc32c 1f2e3d4c");
  check_equal(load_split(path, 5, "1f2e3d4c"), split);
  check_equal(load_split(path, 5), split);
  CHECK(mixmatch::data::read_split_header(path).checksum == "1f2e3d4c");
  CHECK_THAT(error_of([&] { load_split(path, 5, "00000000"); }),
             contains("splits another data set: it is of images with crc32c 1f2e3d4c, these have 00000000"));
}

namespace {

/// Files that hold their names, and a label for each.
NamedImages make_files(const std::filesystem::path& dir, const std::vector<std::string>& labeled,
                       const std::vector<std::string>& unlabeled) {
  NamedImages images{dir, {}, {}};
  std::vector<int64_t> labels;
  for (const auto* files : {&labeled, &unlabeled}) {
    for (const auto& file : *files) {
      std::filesystem::create_directories((dir / file).parent_path());
      write_file(dir / file, file);
      images.files.push_back(file);
      labels.push_back(files == &labeled ? 0 : -1);
    }
  }
  images.labels = rows(labels);
  return images;
}

}  // namespace

TEST_CASE("split file: of pictures, it names them, whatever bytes a name has") {
  TempDir dir;
  const std::vector<std::string> labeled{"labeled/a b/1.png",         "labeled/größe/\"q\".png",
                                         "labeled/c/back\\slash.png", "labeled/c/line\nbreak\r\t.png",
                                         "labeled/c/\xff\xc3.png",    "labeled/c/# all others.png"};
  const auto images = make_files(dir.path(), labeled, {"unlabeled/1.png", "unlabeled/2.png"});
  const auto path = dir / "split.txt";
  const SslSplit split{rows({0, 1, 3, 4}), rows({5, 6, 7}), rows({2})};
  save_split(path, split, images);
  const auto lines = lines_of(read_file(path));
  REQUIRE(lines.size() == 8);
  CHECK(lines[0] == "mixmatch split of pictures");
  CHECK(lines[1] == "labeled \"labeled/a b/1.png\" crc32c " +
                        mixmatch::detail::hex(mixmatch::detail::crc32c("labeled/a b/1.png")));
  CHECK_THAT(lines[4], contains("\"labeled/c/\\xff\\xc3.png\""));
  // It has a label, and is to train without.
  CHECK_THAT(lines[6], contains("unlabeled \"labeled/c/# all others.png\""));
  CHECK(lines[7] == "unlabeled all others");
  check_equal(load_split(path, images), split);
  CHECK(mixmatch::data::read_split_header(path).by_name);

  const SslSplit part{rows({0}), rows({6}), rows({1, 2, 3, 4, 5})};
  save_split(path, part, images);
  check_equal(load_split(path, images), part);
}

TEST_CASE("split file: names find their pictures when others come, go or get a label") {
  TempDir dir;
  const auto path = dir / "split.txt";
  const auto old = make_files(dir.path(), {"labeled/a/1.png", "labeled/a/2.png", "labeled/b/1.png"},
                              {"unlabeled/1.png", "unlabeled/2.png", "unlabeled/3.png"});
  save_split(path, {rows({0, 2}), rows({3, 4, 5}), rows({1})}, old);
  // One more without a label: it is one of "all others".
  const auto more = make_files(dir.path(), {"labeled/a/1.png", "labeled/a/2.png", "labeled/b/1.png"},
                               {"unlabeled/0.png", "unlabeled/1.png", "unlabeled/3.png"});
  check_equal(load_split(path, more), {rows({0, 2}), rows({3, 4, 5}), rows({1})});
  // Two got a label: rows moved, and the labels must not get lost.
  auto moved = make_files(
      dir.path(),
      {"labeled/a/0.png", "labeled/a/1.png", "labeled/a/2.png", "labeled/b/0.png", "labeled/b/1.png"},
      {"unlabeled/3.png"});
  CHECK_THAT(error_of([&] { load_split(path, moved); }),
             contains("does not name \"labeled/a/0.png\" and 1 more pictures that have a label"));
  write_file(path, read_file(path) + "labeled labeled/a/0.png\nunlabeled \"labeled/b/0.png\"\n");
  check_equal(load_split(path, moved), {rows({0, 1, 4}), rows({3, 5}), rows({2})});
  // One is gone, one is another picture.
  CHECK_THAT(error_of([&] { load_split(path, old); }),
             contains("there is no readable picture \"labeled/a/0.png\" in " + dir.path().string()));
  write_file(dir / "labeled/b/1.png", "something else");
  CHECK_THAT(error_of([&] { load_split(path, moved); }),
             contains("\"labeled/b/1.png\" is another picture now: its crc32c is "));
}

TEST_CASE("split file: names that do not fit are refused in one line") {
  TempDir dir;
  const auto images = make_files(dir.path(), {"labeled/a/1.png", "labeled/b/1.png"}, {"unlabeled/1.png"});
  const auto path = dir / "split.txt";
  const auto refused = [&](const std::string& text) {
    write_file(path, "mixmatch split of pictures\n" + text);
    const std::string error = error_of([&] { load_split(path, images); });
    CHECK_THAT(error, contains(path.string()));
    CHECK(error.find('\n') == std::string::npos);
    return error;
  };
  write_file(path, "mixmatch split of pictures\nlabeled labeled/a/1.png labeled/b/1.png\r\n");
  check_equal(load_split(path, images), {rows({0, 1}), rows({}), rows({})});
  CHECK_THAT(refused("labeled labeled/a/1.png\nunlabeled all others\n"),
             contains("does not name \"labeled/b/1.png\", which has a label"));
  CHECK_THAT(refused("labeled unlabeled/1.png\n"),
             contains("line 2: labeled picture \"unlabeled/1.png\" has no label"));
  CHECK_THAT(refused("labeled labeled/a/1.png\nvalidation labeled/a/1.png\n"),
             contains("stands there twice"));
  CHECK_THAT(refused("labeled 12\n"), contains("there is no readable picture \"12\""));
  CHECK_THAT(refused("labeled \"a\\q\"\n"), contains("escape other than"));
  CHECK_THAT(refused("labeled \"a\"b\n"), contains("a name in quotes"));
  CHECK_THAT(refused("data crc32c 00000000\n"), contains("got \"data\""));
  CHECK_THAT(refused("unlabeled labeled/a/1.png labeled/b/1.png\n"), contains("has no labeled rows"));
  write_file(path, "mixmatch split of 3 images\nlabeled 0 1\n");
  CHECK_THAT(error_of([&] { load_split(path, images); }),
             contains("which pictures those were cannot be told"));
}
