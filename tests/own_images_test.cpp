// examples/own_images and examples/predict: a folder of pictures to a model, a report and predictions.

#include <mixmatch/data/decode_image.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/program/own_pictures.hpp>
#include <mixmatch/report/html.hpp>
#include <mixmatch/run/png.hpp>
#include <mixmatch/run/run_record.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

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

/// The cells of a line of CSV.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells(1);
  bool quoted = false;
  for (const char c : line) {
    if (c == '"') {
      quoted = !quoted;  // none of these names has a quotation mark
    } else if (c == ',' && !quoted) {
      cells.emplace_back();
    } else {
      cells.back() += c;
    }
  }
  return cells;
}

/// A value of a run's summary.json.
std::string summary_of(const fs::path& run, const std::string& name) {
  const auto summary = mixmatch::training::read_json_object(run / "summary.json");
  const auto* value = mixmatch::training::find_setting(summary, name);
  return value == nullptr ? "missing" : *value;
}

}  // namespace

TEST_CASE("own_images: one command gives model, report and predictions, and predict repeats them") {
  TempDir dir;
  write_pictures(dir / "data");
  write_file(dir / "data" / "unlabeled" / "broken.jpg", "no picture");
  write_file(dir / "data" / "unlabeled" / "x.gif", "GIF89a, and no more");
  fs::create_directories(dir / "data" / "unlabelled");
  const auto finished = run(own_images(dir / "data", dir / "run", {"--validation", "6"}));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.err, contains("own_images: left out unlabeled/broken.jpg: not a picture"));
  CHECK_THAT(finished.err,
             contains("own_images: left out: 1 GIF file (not a format that is read): unlabeled/x.gif"));
  CHECK_THAT(finished.err, contains("own_images: left out: 1 folder \"unlabelled\""));
  for (const std::string file :
       {"model.safetensors", "report.html", "predictions.csv", "checkpoint.pt", "metrics.csv", "summary.json",
        "config.json", "split.txt", "label_errors.csv"}) {
    INFO(file);
    CHECK(fs::exists(dir / "run" / file));
  }
  const auto predictions = lines_of(read_file(dir / "run" / "predictions.csv"));
  CHECK(predictions[0] == "file,class,confidence,second_class,margin,abstain,path,label");
  CHECK(predictions.size() == static_cast<size_t>(pictures(dir / "data" / "unlabeled")) + 1);
  // After a hundred that stand for others, it is certainty that orders.
  double before = 0;
  for (size_t i = 1; i < predictions.size(); ++i) {
    const auto cells = cells_of(predictions[i]);
    REQUIRE(cells.size() == 8);
    const double confidence = std::stod(cells[2]);
    CHECK((i <= 101 || confidence >= before));
    before = confidence;
    CHECK(cells[7].empty());
    CHECK(cells[3] != cells[1]);
    CHECK(std::stod(cells[4]) <= confidence);
    CHECK(cells[5] == "yes");
    CHECK(fs::exists(cells[6]));
    CHECK(fs::equivalent(cells[6], dir / "data" / "unlabeled" / cells[0]));
  }
  CHECK_THAT(finished.out, contains("precision 0.95 cannot be shown with 6 held-out images: every prediction "
                                    "abstains"));
  CHECK_THAT(finished.out, contains("confidences are not calibrated: 6 held-out images, it takes 20"));
  CHECK_THAT(finished.out, contains(" % [") && contains("] of 6 images"));
  CHECK(summary_of(dir / "run", "confidence") == "not calibrated: 6 held-out images, it takes 20");
  CHECK(summary_of(dir / "run", "temperature") == "1");
  CHECK(summary_of(dir / "run", "abstain_below") == "null");
  CHECK(summary_of(dir / "run", "target_precision") == "0.95");
  const double error = std::stod(summary_of(dir / "run", "validation_error"));
  CHECK(std::stod(summary_of(dir / "run", "validation_error_low")) < error);
  CHECK(std::stod(summary_of(dir / "run", "validation_error_high")) > error);
  // Two held-out pictures of each class.
  CHECK(std::abs(std::stod(summary_of(dir / "run", "validation_balanced_accuracy")) - (100 - error)) < 1e-9);
  CHECK(summary_of(dir / "run", "validation_calibration_error") ==
        summary_of(dir / "run", "validation_calibration_error_scaled"));
  CHECK(summary_of(dir / "run", "recall of Größe") != "missing");
  CHECK(summary_of(dir / "run", "precision of round ones") != "missing");
  const std::string report = read_file(dir / "run" / "report.html");
  CHECK_THAT(report, contains("<section id=\"calibration\">"));
  for (const auto& [name, value] : mixmatch::training::read_json_object(dir / "run" / "config.json")) {
    CHECK_THAT(report,
               contains("<dt>" + name + "</dt><dd>" + mixmatch::training::escape_html(value) + "</dd>"));
  }

  const auto predicted =
      run({MIXMATCH_PREDICT, "--model", (dir / "run").string(), "--out", (dir / "p.csv").string(),
           "--threads", "1", (dir / "data" / "unlabeled").string()});
  INFO(predicted.err);
  REQUIRE(predicted.status == 0);
  CHECK_THAT(predicted.err, contains("broken.jpg"));
  CHECK_THAT(predicted.err, contains("left out: 1 GIF file (not a format that is read): x.gif"));
  check_refused(run({MIXMATCH_PREDICT, "--model", (dir / "run").string(), "--strict", "--threads", "1",
                     (dir / "data" / "unlabeled").string()}),
                "left out: 1 GIF file");
  // The same classes, file by file.
  const auto classes = [](const std::vector<std::string>& lines) {
    std::set<std::string> all;
    for (size_t i = 1; i < lines.size(); ++i) {
      const auto cells = cells_of(lines[i]);
      all.insert(fs::path(cells[0]).filename().string() + ", " + cells[1] + ", " + cells[3] + ", " +
                 cells[5]);
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

TEST_CASE("own_images: held-out pictures calibrate confidences and say which to abstain from") {
  TempDir dir;
  write_pictures(dir / "data");
  const auto finished =
      run(own_images(dir / "data", dir / "run", {"--validation", "24", "--target-precision", "0.02"}));
  INFO(finished.err << finished.out);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.out, contains("confidences are calibrated on 24 validation images"));
  CHECK_THAT(finished.out, contains("precision 0.02 is shown from confidence "));
  CHECK_THAT(lines_of(finished.out).back(), contains("verdict: ") && contains(" on 24 held-out images, "));
  CHECK(summary_of(dir / "run", "confidence") == "calibrated on 24 validation images");
  const std::string temperature = summary_of(dir / "run", "temperature");
  CHECK(temperature != "1");
  CHECK(summary_of(dir / "run", "validation_calibration_error") !=
        summary_of(dir / "run", "validation_calibration_error_scaled"));
  const auto metadata = mixmatch::read_safetensors_metadata(dir / "run" / "model.safetensors");
  CHECK(metadata.at("temperature") == temperature);
  CHECK(metadata.at("target_precision") == "0.02");
  const double threshold = std::stod(metadata.at("abstain_below"));
  CHECK(metadata.at("abstain_below") == summary_of(dir / "run", "abstain_below"));
  const auto predicted =
      run({MIXMATCH_PREDICT, "--model", (dir / "run").string(), "--out", (dir / "p.csv").string(),
           "--threads", "1", (dir / "data" / "unlabeled").string()});
  REQUIRE(predicted.status == 0);
  for (const auto& path : {dir / "run" / "predictions.csv", dir / "p.csv"}) {
    const auto lines = lines_of(read_file(path));
    REQUIRE(lines.size() > 20);
    for (size_t i = 1; i < lines.size(); ++i) {
      const auto cells = cells_of(lines[i]);
      const double confidence = std::stod(cells[2]);
      if (std::abs(confidence - threshold) > 1e-5) {
        CHECK(cells[5] == (confidence >= threshold ? "no" : "yes"));
      }
    }
  }
  // The confidence that the report gives a held-out picture is that of the model's users.
  const auto held_out = run({MIXMATCH_PREDICT, "--model", (dir / "run").string(), "--threads", "1",
                             (dir / "data" / "labeled").string()});
  REQUIRE(held_out.status == 0);
  std::string report = read_file(dir / "run" / "report.html");
  const size_t wrong = report.find("<section id=\"wrong\">");
  REQUIRE(wrong != std::string::npos);
  report = report.substr(wrong, report.find("</section>", wrong) - wrong);
  int64_t found = 0;
  for (const auto& line : lines_of(held_out.out)) {
    const auto cells = cells_of(line);
    const size_t name = report.find(fs::path(cells[0]).filename().string() + "</code>");
    if (name != std::string::npos) {
      ++found;
      const size_t begin = report.rfind("</b>, ", name) + 6;
      CHECK(std::abs(std::stod(report.substr(begin)) - 100 * std::stod(cells[2])) < 0.2);
    }
  }
  CHECK(found > 0);
  check_refused(run(own_images(dir / "data", dir / "x", {"--target-precision", "2"})), "--target-precision");
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
  check_refused(run(own_images(dir / "data", dir / "x", {"--lambda-u", "3"})),
                "--lambda-u 3 has no effect with --method supervised: it is for mixmatch, ");
  check_refused(run(own_images(dir / "data", dir / "x", {"--target-precision", "0.9"})),
                "--target-precision 0.9 has no effect where no image is held out (--validation)");
  CHECK_FALSE(fs::exists(dir / "x"));
  CHECK(read_file(dir / "run" / "predictions.csv") ==
        "file,class,confidence,second_class,margin,abstain,path,label\n");
  CHECK(summary_of(dir / "run", "confidence") == "not calibrated: there are no held-out images with a label");
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

TEST_CASE("own_images: pictures decoded on demand give the same run, which goes on with more memory") {
  TempDir dir;
  write_pictures(dir / "data");
  // In memory it is replaced as it is where it is found out when it is drawn.
  const fs::path whole = *fs::directory_iterator(dir / "data" / "unlabeled" / "ü");
  write_file(dir / "data" / "unlabeled" / "damaged.png", read_file(whole).substr(0, 300));
  const auto train = [&](const std::string& name, const std::string& memory,
                         const std::vector<std::string>& more = {}) {
    return run(own_images(dir / "data", dir / name,
                          with({"--validation", "6", "--recalibrate", "20", "--augment", "resized_crop",
                                "--color-jitter", "0.4", "--cache-memory", memory, "--lambda-u", "7",
                                "--rampup-steps", "3"},  // else they follow from --steps
                               more)));
  };
  const auto memory = train("memory", "auto"), demand = train("demand", "40K");
  INFO(memory.err << demand.err);
  REQUIRE(memory.status == 0);
  REQUIRE(demand.status == 0);
  CHECK(memory.out.find("decoded when they are drawn") == std::string::npos);
  for (const auto* finished : {&memory, &demand}) {
    CHECK_THAT(finished->err,
               contains("own_images: cannot read unlabeled/damaged.png: the picture is cut short; "
                        "unlabeled/"));
    CHECK_THAT(finished->err, contains("own_images: 1 of "));
  }
  CHECK_THAT(demand.out, contains("decoded when they are drawn; 13 of them stay in memory"));
  for (const std::string file : {"predictions.csv", "split.txt", "model.safetensors", "confusion.csv"}) {
    INFO(file);
    CHECK(read_file(dir / "memory" / file).size() > 0);
    CHECK(read_file(dir / "memory" / file) == read_file(dir / "demand" / file));
  }
  const auto first = train("resumed", "0", {"--steps", "1"});
  REQUIRE(first.status == 0);
  CHECK_THAT(first.out, contains("none of them stays in memory"));
  const auto second = train("resumed", "1G", {"--steps", "3", "--resume"});
  INFO(second.err);
  REQUIRE(second.status == 0);
  CHECK(read_file(dir / "resumed" / "model.safetensors") == read_file(dir / "memory" / "model.safetensors"));
  REQUIRE(train("back", "1G", {"--steps", "1"}).status == 0);
  const auto back = train("back", "0", {"--steps", "3", "--resume"});
  INFO(back.err);
  REQUIRE(back.status == 0);
  CHECK(read_file(dir / "back" / "model.safetensors") == read_file(dir / "memory" / "model.safetensors"));
  check_refused(train("refused", "much"), "--cache-memory: expected bytes, as 500M or 4G, or auto, got");
}

TEST_CASE("own_images: a letterboxed run says so in its model, and predict does the same") {
  TempDir dir;
  write_pictures(dir / "data");
  // Wide ones, of which a crop sees the middle alone.
  std::vector<fs::path> files;
  for (const std::string part : {"labeled/c", "unlabeled/ü"}) {
    for (const auto& entry : fs::directory_iterator(dir / "data" / part)) {
      files.push_back(entry.path());
    }
  }
  for (const auto& file : files) {
    const auto middle = mixmatch::data::decode_image(file, 32);
    write_file(file, mixmatch::training::encode_png(torch::cat({middle.flip(2), middle, middle}, 2)));
  }
  const auto crop = run(own_images(dir / "data", dir / "crop"));
  REQUIRE(crop.status == 0);
  const auto letterbox =
      run(own_images(dir / "data", dir / "run", {"--fit", "letterbox", "--precision", "fp32"}));
  INFO(letterbox.err);
  REQUIRE(letterbox.status == 0);
  const auto text = read_file(dir / "run" / "predictions.csv");
  CHECK(text != read_file(dir / "crop" / "predictions.csv"));
  CHECK(mixmatch::read_safetensors_metadata(dir / "run" / "model.safetensors").at("fit") == "letterbox");
  const auto predicted = run({MIXMATCH_PREDICT, "--model", (dir / "run").string(), "--threads", "1", "--out",
                              (dir / "p.csv").string(), (dir / "data" / "unlabeled").string()});
  INFO(predicted.err);
  REQUIRE(predicted.status == 0);
  const auto confidences = [](const std::string& csv) {
    std::multiset<std::string> all;
    for (const auto& line : lines_of(csv)) {
      all.insert(cells_of(line)[1] + cells_of(line)[2]);
    }
    return all;
  };
  CHECK(confidences(read_file(dir / "p.csv")) == confidences(text));
  check_refused(run(own_images(dir / "data", dir / "run", {"--resume", "--steps", "5", "--fit", "crop"})),
                "--fit crop is not the run's: it was started with letterbox");
}

TEST_CASE("own_images: a damaged picture that is found when it is drawn is replaced, and said") {
  TempDir dir;
  write_pictures(dir / "data");
  const fs::path damaged = dir / "data" / "unlabeled" / "damaged.png";
  const fs::path whole = *fs::directory_iterator(dir / "data" / "unlabeled" / "ü");
  write_file(damaged, read_file(whole).substr(0, 300));
  const auto train = [&](const std::string& name, const std::vector<std::string>& more = {}) {
    return run(own_images(dir / "data", dir / name, with({"--cache-memory", "0"}, more)));
  };
  const auto finished = train("run");
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.err,
             contains("own_images: cannot read unlabeled/damaged.png: the picture is cut short; "
                      "unlabeled/") &&
                 contains(" is used in its place"));
  CHECK_THAT(finished.err, contains("own_images: 1 of ") && contains(" pictures cannot be read"));
  const auto predictions = read_file(dir / "run" / "predictions.csv");
  CHECK(predictions.find("damaged.png") == std::string::npos);
  CHECK(lines_of(predictions).size() == static_cast<size_t>(pictures(dir / "data" / "unlabeled")));
  const auto strict = train("strict", {"--strict"});
  CHECK(strict.status == 2);
  CHECK_THAT(strict.err, contains("damaged.png: the picture is cut short"));
}

TEST_CASE("own_images: settings from the data are said, kept and give way to the user's; what is left out") {
  TempDir dir;
  write_pictures(dir / "data");
  // Two classes of about ten pictures, one of three.
  int64_t number = 0;
  for (const auto& entry : fs::directory_iterator(dir / "data" / "labeled" / "c")) {
    if (++number > 3) {
      fs::remove(entry.path());
    }
  }
  const auto finished = run(own_images(dir / "data", dir / "run", {"--open-set", "energy"}));
  INFO(finished.err << finished.out);
  REQUIRE(finished.status == 0);
  // 75 * 3/10 * sqrt(3 * 6 / 1048576)
  CHECK_THAT(finished.out,
             contains("--lambda-u 0.093: 75 for ten classes and 2^20 images of training; here 3 "
                      "and 18"));
  CHECK_THAT(finished.out, contains("--rampup-steps 3: "));
  CHECK_THAT(finished.out, contains("--imbalance balanced_batches: labeled classes have 3 to "));
  CHECK_THAT(finished.out, contains("--alignment labeled: labeled classes have 3 to "));
  CHECK_THAT(finished.out, contains("left out as of no class: "));
  const auto setting = [&](const std::string& run, const std::string& name) {
    const auto config = mixmatch::training::read_json_object(dir / run / "config.json");
    const auto* value = mixmatch::training::find_setting(config, name);
    return value == nullptr ? std::string("missing") : *value;
  };
  CHECK(setting("run", "lambda-u") == "0.093");
  CHECK(setting("run", "rampup-steps") == "3");
  CHECK(setting("run", "imbalance") == "balanced_batches");
  CHECK(setting("run", "alignment") == "labeled");
  const double rate = std::stod(summary_of(dir / "run", "open_set_rate"));
  CHECK(rate > 0);
  CHECK(rate < 1);
  CHECK_THAT(lines_of(read_file(dir / "run" / "metrics.csv"))[0], contains(",open_set_rate"));
  const auto resumed = run(own_images(dir / "data", dir / "run", {"--resume", "--steps", "5"}));
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  CHECK(setting("run", "lambda-u") == "0.093");
  CHECK(resumed.out.find("--lambda-u") == std::string::npos);

  const auto mine = run(own_images(dir / "data", dir / "mine",
                                   {"--lambda-u", "7", "--rampup-steps", "2", "--alignment", "none"}));
  INFO(mine.err);
  REQUIRE(mine.status == 0);
  CHECK(setting("mine", "lambda-u") == "7");
  CHECK(setting("mine", "rampup-steps") == "2");
  CHECK(setting("mine", "alignment") == "none");
  CHECK(setting("mine", "imbalance") == "balanced_batches");
  CHECK(summary_of(dir / "mine", "open_set_rate") == "missing");
  CHECK(mine.out.find("--lambda-u") == std::string::npos);
  check_refused(run(own_images(dir / "data", dir / "x", {"--alignment", "prior", "--prior", "1,2"})),
                "--prior: expected the shares of 3 classes");
  check_refused(run(own_images(dir / "data", dir / "x", {"--method", "vat", "--open-set", "energy"})),
                "--open-set energy has no effect with --method vat: it is for mixmatch, uda, fixmatch");
  check_refused(
      run(own_images(dir / "data", dir / "x", {"--method", "supervised", "--alignment", "labeled"})),
      "--alignment labeled has no effect with --method supervised: it is for mixmatch, uda, fixmatch");
  check_refused(run(own_images(dir / "data", dir / "x", {"--baseline-steps", "5"})),
                "--baseline-steps 5 has no effect where no image is held out (--validation)");
  CHECK_FALSE(fs::exists(dir / "x"));
}

TEST_CASE("own_images: pictures that are left out are counted, and classes of one picture named") {
  TempDir dir;
  write_pictures(dir / "data");
  write_file(dir / "data" / "unlabeled" / "a.jpg", "no picture");
  write_file(dir / "data" / "unlabeled" / "b.jpg", "");
  bool keep = true;
  for (const auto& entry : fs::directory_iterator(dir / "data" / "labeled" / "c")) {
    if (!std::exchange(keep, false)) {
      fs::remove(entry.path());
    }
  }
  const auto finished = run(own_images(dir / "data", dir / "run", {"--steps", "1"}));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.err, contains("own_images: left out unlabeled/b.jpg: the file is empty\n"
                                    "own_images: left out 2 of " +
                                    std::to_string(pictures(dir / "data") + 2) + " pictures\n"));
  CHECK_THAT(finished.err, contains("own_images: 1 class has one picture to train with: \"c\"\n"));
  // That there is a run already is said before pictures are looked at.
  check_refused(run(own_images(dir / "data", dir / "run")), "already holds a run");
  const std::vector<std::string> names{"a", "b", "c", "d", "e", "f"};
  using mixmatch::training::single_picture_classes;
  CHECK(single_picture_classes(names, {2, 0, 3, 2, 2, 2}).empty());
  CHECK(single_picture_classes(names, {1, 1, 1, 1, 1, 1}) ==
        R"(6 classes have one picture to train with: "a", "b", "c", "d", "e", …)");
}

TEST_CASE("own_images, predict: what cannot be used exits 2 with one line") {
  TempDir dir;
  const fs::path out = dir / "run";
  check_refused(run(own_images(dir / "none", out)), "none");
  fs::create_directories(dir / "empty");
  check_refused(run(own_images(dir / "empty", out)), "labeled");
  write_pictures(dir / "data");
  // What is wrong with the network and its weights is said before any picture is looked at.
  write_file(dir / "data" / "unlabeled" / "broken.jpg", "no picture");
  check_refused(run(own_images(dir / "data", out, {"--weights", (dir / "none.safetensors").string()})),
                "none.safetensors");
  mixmatch::write_safetensors(dir / "other.safetensors", {{"other.weight", torch::zeros({2, 3})}});
  check_refused(run(own_images(dir / "data", out, {"--weights", (dir / "other.safetensors").string()})),
                "other.safetensors: none of the model's tensors is in it, not \"conv1.weight\"");
  check_refused(run({MIXMATCH_OWN_IMAGES, "--data", (dir / "data").string(), "--out", out.string(), "--model",
                     "vit_s16", "--size", "40"}),
                "--model vit_s16 takes images whose size is a multiple of 16, got 40");
  check_refused(run(own_images(dir / "data", out, {"--padding", "32"})), "--padding 32 must be less than");
  fs::remove(dir / "data" / "unlabeled" / "broken.jpg");
  check_refused(run(own_images(dir / "data", out, {"--validation", "1000"})), "too few");
  check_refused(run(own_images(dir / "data", out, {"--labels", "1000"})), "too few");
  check_refused(run(own_images(dir / "data", out, {"--size", "0"})), "--size");
  const fs::path folder = dir / "data" / "unlabeled" / "ü";
  const std::string unlabeled = fs::directory_iterator(folder)->path().filename().string();
  write_file(dir / "split.txt", "mixmatch split of pictures\nlabeled \"unlabeled/ü/" + unlabeled + "\"\n");
  check_refused(run(own_images(dir / "data", out, {"--split", (dir / "split.txt").string()})),
                "has no label");
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
