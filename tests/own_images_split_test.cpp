// examples/own_images: which pictures train with their labels, which are held out, and what becomes of
// classes that have none left.

#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/split_file.hpp>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "own_pictures.hpp"

namespace fs = std::filesystem;

namespace {

/// The lines of a split, without its header, as a set: their order is that of the rows.
std::set<std::string> lines_of_split(const fs::path& path) {
  const auto lines = lines_of(read_file(path));
  return {lines.begin() + 1, lines.end()};
}

}  // namespace

TEST_CASE(
    "own_images: a split names pictures, and is the same for another run, a resumed one, and other sizes") {
  TempDir dir;
  write_folder(dir / "data");
  const auto first = train_on(dir / "data", dir / "one", {"--validation", "4"});
  INFO(first.err);
  REQUIRE(first.status == 0);
  const fs::path split = dir / "one" / "split.txt";
  const auto lines = lines_of_split(split);
  CHECK(lines.size() == 17);  // 12 labeled, 4 for validation, all others
  CHECK(std::count_if(lines.begin(), lines.end(),
                      [](const auto& line) { return line.starts_with("validation "); }) == 4);
  CHECK_THAT(read_file(split), contains(" \"labeled/c a t/0 \\\"x\\\".png\" crc32c "));
  CHECK_THAT(read_file(split), contains(" \"labeled/dög/27line\\nbreak.png\" crc32c "));

  const auto second =
      train_on(dir / "data", dir / "two", {"--split", split.string(), "--seed", "9", "--size", "20"});
  INFO(second.err);
  CHECK(second.status == 0);
  CHECK(lines_of_split(dir / "two" / "split.txt") == lines);
  const auto resumed = train_on(dir / "data", dir / "one", {"--resume", "--steps", "3"});
  INFO(resumed.err);
  CHECK(resumed.status == 0);
  CHECK(lines_of(read_file(dir / "one" / "metrics.csv")).size() == 4);
}

TEST_CASE("own_images: pictures that got a label are not thrown away by a split from before") {
  TempDir dir;
  write_folder(dir / "data");
  REQUIRE(train_on(dir / "data", dir / "one", {"--validation", "4"}).status == 0);
  const fs::path split = dir / "one" / "split.txt";
  for (int i = 40; i < 45; ++i) {
    const std::string name = std::to_string(i) + ".png";
    fs::rename(dir / "data" / "unlabeled" / name, dir / "data" / "labeled" / "c a t" / name);
  }
  check_refused(train_on(dir / "data", dir / "two", {"--split", split.string()}),
                "does not name \"labeled/c a t/40.png\" and 4 more pictures that have a label");
  check_refused(train_on(dir / "data", dir / "one", {"--resume", "--steps", "3"}), "does not name");
  CHECK_FALSE(fs::exists(dir / "two"));
  // Once they are in it, they train, and the same pictures as before are held out.
  std::string text = read_file(split);
  for (int i = 40; i < 45; ++i) {
    text += "labeled \"labeled/c a t/" + std::to_string(i) + ".png\"\n";
  }
  write_file(dir / "split.txt", text);
  const auto more = train_on(dir / "data", dir / "two", {"--split", (dir / "split.txt").string()});
  INFO(more.err);
  REQUIRE(more.status == 0);
  CHECK_THAT(more.out,
             contains("21 pictures with a label in 2 classes (4 of them for validation), 5 without"));
  const auto before = lines_of_split(split), after = lines_of_split(dir / "two" / "split.txt");
  CHECK(std::includes(after.begin(), after.end(), before.begin(), before.end()));
}

TEST_CASE("own_images: a split by row numbers serves the run that it is of, and no other folder") {
  TempDir dir;
  write_folder(dir / "data");
  REQUIRE(train_on(dir / "data", dir / "one", {"--validation", "4"}).status == 0);
  // As it was written before splits named pictures: rows in the order of load_image_folder.
  const auto folder = mixmatch::data::load_image_folder(dir / "data", 16);
  const auto rows = mixmatch::data::load_split(
      dir / "one" / "split.txt", mixmatch::data::NamedImages{dir / "data", folder.files, folder.labels});
  mixmatch::data::save_split(dir / "one" / "split.txt", rows, folder.size());
  const auto resumed = train_on(dir / "data", dir / "one", {"--resume", "--steps", "3"});
  INFO(resumed.err);
  CHECK(resumed.status == 0);
  fs::copy(dir / "one" / "split.txt", dir / "split.txt");
  check_refused(train_on(dir / "data", dir / "two", {"--split", (dir / "split.txt").string()}),
                "which pictures those were cannot be told");
  fs::rename(dir / "data" / "unlabeled" / "40.png", dir / "data" / "labeled" / "dög" / "0.png");
  check_refused(train_on(dir / "data", dir / "two", {"--split", (dir / "one" / "split.txt").string()}),
                "splits other images");
  check_refused(train_on(dir / "data", dir / "one", {"--resume", "--steps", "4"}), "splits other images");
  CHECK_FALSE(fs::exists(dir / "two"));
}

TEST_CASE("own_images: a class that has no labeled picture left is named before training") {
  TempDir dir;
  for (const int i : {0, 1, 2}) {
    write_noise(dir / "data" / "labeled" / ("class " + std::to_string(i)), i, 1);
  }
  write_noise(dir / "data" / "unlabeled", 40, 10);
  for (const std::string validation : {"1", "2", "3"}) {
    const auto refused = train_on(dir / "data", dir / "run", {"--validation", validation});
    check_refused(refused, "without a labeled image to train with; 1 has its label");
    CHECK_THAT(refused.err, contains("class \"class "));
  }
  check_refused(train_on(dir / "data", dir / "run", {"--validation", "4"}),
                "own_images: --labels 0 and --validation 4: class \"class ");
  check_refused(train_on(dir / "data", dir / "run", {"--labels", "2"}),
                "--labels 2 and --validation 0 leave class");
  check_refused(train_on(dir / "data", dir / "run", {"--labels", "6"}),
                " has 1 row, too few for 2 labeled and 0 validation rows (6 and 0 over 3 classes); lower one "
                "of them, or "
                "label more images of that class");
  CHECK_FALSE(fs::exists(dir / "run"));
}

TEST_CASE("own_images: a class that nothing is held out of has no error, and none is printed") {
  TempDir dir;
  write_folder(dir / "data");
  const auto finished = train_on(dir / "data", dir / "run", {"--validation", "1"});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.out, contains(" has no images"));
  CHECK(finished.out.find("nan") == std::string::npos);
  CHECK(finished.err.find("nan") == std::string::npos);
}

TEST_CASE("own_images: in one log of both streams, what was chosen comes before the progress") {
  TempDir dir;
  write_folder(dir / "data");
  const auto finished = run({"/bin/sh", "-c",
                             std::string(MIXMATCH_OWN_IMAGES) + " --data " + (dir / "data").string() +
                                 " --out " + (dir / "run").string() +
                                 " --steps 2 --batch 4 --size 16 --widen 1 --threads 1 --device cpu > " +
                                 (dir / "log").string() + " 2>&1"});
  REQUIRE(finished.status == 0);
  const std::string log = read_file(dir / "log");
  const auto device = log.find("device cpu, 1 CPU thread, precision "),
             pictures = log.find("16 pictures with a label"), progress = log.find("%  ");
  REQUIRE(progress != log.npos);
  CHECK(device < pictures);
  CHECK(pictures < progress);
}
