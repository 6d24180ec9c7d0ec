// examples/stl10 on an archive in the official layout.

#include <filesystem>
#include <string>

#include "program_util.hpp"

namespace fs = std::filesystem;

namespace {

/// Shapes as STL-10 stores images: each plane column by column, labels from 1.
void write_stl10(const fs::path& dir, const std::string& name, int64_t count, uint64_t seed, bool labels) {
  const auto shapes = mixmatch::data::make_shapes(count, seed);
  const auto columns =
      shapes.images.repeat_interleave(3, 2).repeat_interleave(3, 3).transpose(2, 3).contiguous();
  write_file(dir / (name + "_X.bin"), std::string(reinterpret_cast<const char*>(columns.data_ptr<uint8_t>()),
                                                  static_cast<size_t>(columns.numel())));
  if (labels) {
    std::string bytes;
    for (int64_t i = 0; i < count; ++i) {
      bytes += static_cast<char>(shapes.labels[i].item<int64_t>() + 1);
    }
    write_file(dir / (name + "_y.bin"), bytes);
  }
}

void write_archive(const fs::path& dir) {
  fs::create_directories(dir);
  write_stl10(dir, "train", 60, 1, true);
  write_stl10(dir, "test", 20, 2, true);
  write_stl10(dir, "unlabeled", 50, 3, false);
  write_file(dir / "class_names.txt", "airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n");
  std::string folds;
  for (int fold = 0; fold < 10; ++fold) {
    for (int i = 0; i < 20; ++i) {
      folds += std::to_string((fold * 3 + i) % 60) + " ";
    }
    folds += "\n";
  }
  write_file(dir / "fold_indices.txt", folds);
}

}  // namespace

TEST_CASE("stl10: trains end to end on an official fold, resumes, and evaluates") {
  TempDir dir;
  write_archive(dir / "data" / "stl10_binary");
  const auto stl10 = [&](const std::string& out, const std::vector<std::string>& more) {
    return run(with(
        {MIXMATCH_STL10, "--data", (dir / "data").string(), "--out", (dir / out).string(), "--batch", "4",
         "--depth", "10", "--widen", "1", "--eval-every", "2", "--log-every", "1", "--threads", "1"},
        more));
  };
  auto finished = stl10("run", {"--steps", "4", "--fold", "2", "--validation", "5"});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const auto split = lines_of(read_file(dir / "run" / "split.txt"));
  REQUIRE(split.size() >= 3);
  CHECK(split[0] == "mixmatch split of 110 images");
  CHECK_THAT(split[1], contains("data crc32c "));
  CHECK(split[2] == "labeled 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25");
  const std::string config = read_file(dir / "run" / "config.json");
  for (const std::string entry :
       {"\"scales\": \"4\"", "\"padding\": \"12\"", "\"lambda-u\": \"50\"", "\"fold\": \"2\""}) {
    CHECK_THAT(config, contains(entry));
  }
  // Of the unlabeled images some are training images, whose labels tell how good the guesses are.
  CHECK(lines_of(read_file(dir / "run" / "metrics.csv")).size() == 5);

  REQUIRE(stl10("half", {"--steps", "2", "--fold", "2", "--validation", "5"}).status == 0);
  REQUIRE(stl10("half", {"--steps", "4", "--resume"}).status == 0);
  CHECK(read_file(dir / "half" / "metrics.csv") == read_file(dir / "run" / "metrics.csv"));

  const auto evaluated =
      run({MIXMATCH_STL10, "--data", (dir / "data").string(), "--eval", (dir / "run").string()});
  INFO(evaluated.err);
  CHECK(evaluated.status == 0);
  CHECK_THAT(lines_of(evaluated.out).back(), contains("test error: "));

  REQUIRE(
      stl10("drawn", {"--steps", "1", "--fold", "-1", "--labels", "30", "--method", "supervised"}).status ==
      0);
  check_refused(stl10("bad", {"--steps", "1", "--fold", "10"}), "--fold");
  check_refused(stl10("bad", {"--steps", "1", "--validation", "55"}), "stl10: --validation 55: class \"");
  check_refused(
      stl10("bad", {"--steps", "1", "--labels", "30"}),
      "--labels 30 has no effect with an official --fold, whose images are labeled; take --fold -1");
  const std::string split_file = (dir / "run" / "split.txt").string();
  check_refused(stl10("bad", {"--steps", "1", "--fold", "2", "--split", split_file}),
                "--fold 2 has no effect with --split");
  fs::resize_file(dir / "data" / "stl10_binary" / "unlabeled_X.bin", 27648 * 3 + 1);
  check_refused(stl10("bad", {"--steps", "1"}), "unlabeled_X.bin");
  CHECK_FALSE(fs::exists(dir / "bad"));
}
