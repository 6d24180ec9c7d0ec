// examples/own_images and examples/predict: a folder of pictures to a model, a report and predictions.

#include <mixmatch/run/png.hpp>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>

#include "program_util.hpp"

namespace fs = std::filesystem;

namespace {

/// A folder of PNGs of shapes: three classes with labels, and pictures without in a tree of their own.
void write_pictures(const fs::path& dir, bool unlabeled = true) {
  const auto shapes = mixmatch::data::make_shapes(200, 4);
  const std::vector<std::string> names{"round ones", "Größe", "c"};
  int64_t hidden = 0;
  for (int64_t i = 0; i < shapes.size(); ++i) {
    const int64_t label = shapes.labels[i].item<int64_t>();
    if (label >= 3) {
      continue;
    }
    const bool keep = i < 100;
    if (!keep && !unlabeled) {
      continue;
    }
    const fs::path folder = keep ? dir / "labeled" / names[static_cast<size_t>(label)]
                                 : dir / "unlabeled" / (hidden++ % 2 == 0 ? "a, b" : "ü");
    fs::create_directories(folder);
    write_file(folder / ("picture " + std::to_string(i) + ".png"),
               mixmatch::training::encode_png(shapes.images[i]));
  }
}

int64_t pictures(const fs::path& dir) {
  return std::count_if(fs::recursive_directory_iterator(dir), fs::recursive_directory_iterator(),
                       [](const auto& entry) { return entry.path().extension() == ".png"; });
}

std::vector<std::string> own_images(const fs::path& data, const fs::path& out,
                                    const std::vector<std::string>& more = {}) {
  return with({MIXMATCH_OWN_IMAGES, "--data", data.string(), "--out", out.string(), "--widen", "1", "--steps",
               "3", "--batch", "6", "--log-every", "1", "--threads", "1"},
              more);
}

}  // namespace

TEST_CASE("own_images: one command gives model, report and predictions, and predict repeats them") {
  TempDir dir;
  write_pictures(dir / "data");
  write_file(dir / "data" / "unlabeled" / "broken.jpg", "no picture");
  const std::string webp("RIFF\x9A\0\0\0WEBPVP8 ", 16);
  write_file(dir / "data" / "unlabeled" / "x.webp", webp);
  fs::create_directories(dir / "data" / "unlabelled");
  const auto finished = run(own_images(dir / "data", dir / "run", {"--validation", "6"}));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.err, contains("own_images: left out unlabeled/broken.jpg: not a picture"));
  CHECK_THAT(finished.err,
             contains("own_images: left out: 1 WebP file (not a format that is read): unlabeled/x.webp"));
  CHECK_THAT(finished.err, contains("own_images: left out: 1 folder \"unlabelled\""));
  for (const std::string file : {"model.safetensors", "report.html", "predictions.csv", "checkpoint.pt",
                                 "metrics.csv", "summary.json", "config.json", "split.txt"}) {
    INFO(file);
    CHECK(fs::exists(dir / "run" / file));
  }
  const auto predictions = lines_of(read_file(dir / "run" / "predictions.csv"));
  CHECK(predictions[0] == "file,class,confidence");
  CHECK(predictions.size() == static_cast<size_t>(pictures(dir / "data" / "unlabeled")) + 1);
  double before = 0;
  for (size_t i = 1; i < predictions.size(); ++i) {
    const double confidence = std::stod(predictions[i].substr(predictions[i].rfind(',') + 1));
    CHECK(confidence >= before);
    before = confidence;
  }

  const auto predicted =
      run({MIXMATCH_PREDICT, "--model", (dir / "run").string(), "--out", (dir / "p.csv").string(),
           "--threads", "1", (dir / "data" / "unlabeled").string()});
  INFO(predicted.err);
  REQUIRE(predicted.status == 0);
  CHECK_THAT(predicted.err, contains("broken.jpg"));
  CHECK_THAT(predicted.err, contains("left out: 1 WebP file (not a format that is read): x.webp"));
  check_refused(run({MIXMATCH_PREDICT, "--model", (dir / "run").string(), "--strict", "--threads", "1",
                     (dir / "data" / "unlabeled").string()}),
                "left out: 1 WebP file");
  // The same classes, file by file.
  const auto classes = [](const std::vector<std::string>& lines) {
    std::set<std::string> all;
    for (size_t i = 1; i < lines.size(); ++i) {
      const auto end = lines[i].rfind(',');
      all.insert(lines[i].substr(lines[i].find("picture"), end - lines[i].find("picture")));
    }
    return all;
  };
  CHECK(classes(lines_of(read_file(dir / "p.csv"))) == classes(predictions));

  const fs::path one = dir / "data" / "unlabeled" / "ü";
  const auto single = run({MIXMATCH_PREDICT, "--model", (dir / "run" / "model.safetensors").string(),
                           fs::directory_iterator(one)->path().string()});
  CHECK(single.status == 0);
  CHECK(lines_of(single.out).size() == 2);
}

TEST_CASE("own_images: without unlabeled pictures it trains supervised, and says so; it resumes") {
  TempDir dir;
  write_pictures(dir / "data", /*unlabeled=*/false);
  const auto finished = run(own_images(dir / "data", dir / "run"));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.out, contains("training is supervised"));
  const auto refused = run(own_images(dir / "data", dir / "x", {"--method", "fixmatch"}));
  CHECK(refused.status == 2);
  CHECK_THAT(refused.err, contains("--method fixmatch needs unlabeled pictures"));
  CHECK_FALSE(fs::exists(dir / "x"));
  CHECK(read_file(dir / "run" / "predictions.csv") == "file,class,confidence\n");
  const auto resumed = run(own_images(dir / "data", dir / "run", {"--resume", "--steps", "5"}));
  INFO(resumed.err);
  CHECK(resumed.status == 0);
  CHECK(lines_of(read_file(dir / "run" / "metrics.csv")).size() == 6);

  // As many pictures, but one of them is another.
  const std::string metrics = read_file(dir / "run" / "metrics.csv");
  const fs::path picture = *fs::directory_iterator(dir / "data" / "labeled" / "c");
  write_file(picture, mixmatch::training::encode_png(torch::zeros({3, 32, 32}, torch::kByte)));
  const auto changed = run(own_images(dir / "data", dir / "run", {"--resume", "--steps", "7"}));
  CHECK(changed.status == 2);
  CHECK_THAT(changed.err, contains("is another picture now"));
  CHECK(read_file(dir / "run" / "metrics.csv") == metrics);
}

TEST_CASE("own_images, predict: what cannot be used exits 2 with one line") {
  TempDir dir;
  const fs::path out = dir / "run";
  check_refused(run(own_images(dir / "none", out)), "none");
  fs::create_directories(dir / "empty");
  check_refused(run(own_images(dir / "empty", out)), "labeled");
  write_pictures(dir / "data");
  check_refused(run(own_images(dir / "data", out, {"--validation", "1000"})), "too few");
  check_refused(run(own_images(dir / "data", out, {"--labels", "1000"})), "too few");
  check_refused(run(own_images(dir / "data", out, {"--size", "0"})), "--size");
  const fs::path folder = dir / "data" / "unlabeled" / "ü";
  const std::string unlabeled = fs::directory_iterator(folder)->path().filename().string();
  write_file(dir / "split.txt", "mixmatch split of pictures\nlabeled \"unlabeled/ü/" + unlabeled + "\"\n");
  check_refused(run(own_images(dir / "data", out, {"--split", (dir / "split.txt").string()})),
                "has no label");
  check_refused(run(own_images(dir / "data", out, {"--padding", "32"})), "--padding 32 must be less than");
  check_refused(run(own_images(dir / "data", out, {"--eval", out.string()})), "--eval");
  write_file(dir / "data" / "labeled" / "c" / "broken.png", "");
  check_refused(run(own_images(dir / "data", out, {"--strict"})), "broken.png");
  fs::remove(dir / "data" / "labeled" / "c" / "broken.png");
  fs::create_directory(dir / "data" / "unlabelled");
  check_refused(run(own_images(dir / "data", out, {"--strict"})), "\"unlabelled\"");
  fs::rename(dir / "data" / "unlabelled", dir / "data" / "labeled" / "gr\xfc\xdf");
  check_refused(run(own_images(dir / "data", out)), "gr\\xfc\\xdf: its name is not UTF-8");
  fs::remove(dir / "data" / "labeled" / "gr\xfc\xdf");
  CHECK_FALSE(fs::exists(out));

  const std::string picture = (dir / "data" / "labeled" / "c").string();
  check_refused(run({MIXMATCH_PREDICT, "--model", (dir / "none").string(), picture}), "none");
  check_refused(run({MIXMATCH_PREDICT, "--model", (dir / "empty").string(), picture}), "holds no run");
  fs::create_directories(dir / "unfinished");
  write_file(dir / "unfinished" / "config.json", "{}");
  check_refused(run({MIXMATCH_PREDICT, "--model", (dir / "unfinished").string(), picture}),
                "unfinished is not finished: it has no model.safetensors");
  write_file(dir / "bad.safetensors", "short");
  check_refused(run({MIXMATCH_PREDICT, "--model", (dir / "bad.safetensors").string(), picture}),
                "bad.safetensors");
  check_refused(
      run({MIXMATCH_PREDICT, "--model", (dir / "bad.safetensors").string(), (dir / "nowhere").string()}),
      "nowhere");
}
