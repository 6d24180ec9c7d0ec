// examples/own_images: pictures that a CSV lists, and the review loop: train, correct, train again.

#include <mixmatch/data/label_file.hpp>
#include <mixmatch/detail/io/csv.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/run/run_record.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "own_pictures.hpp"
#include "script_net.hpp"

namespace fs = std::filesystem;

namespace {

/// The lines of a run's split that begin with `part`, without checksums.
std::vector<std::string> lines_of_part(const fs::path& run, const std::string& part) {
  std::vector<std::string> found;
  for (const auto& line : lines_of(read_file(run / "split.txt"))) {
    if (line.starts_with(part + " \"")) {
      found.push_back(line.substr(0, line.rfind(" crc32c ")));
    }
  }
  return found;
}

std::string setting(const fs::path& run, const std::string& name) {
  const auto config = mixmatch::training::read_json_object(run / "config.json");
  const auto* value = mixmatch::training::find_setting(config, name);
  return value == nullptr ? "missing" : *value;
}

using Cells = std::vector<std::vector<std::string>>;

Cells read_cells(const fs::path& path) {
  Cells cells;
  for (const auto& record : mixmatch::detail::parse_csv(read_file(path), ',', path.string())) {
    cells.push_back(record.cells);
  }
  return cells;
}

void write_cells(const fs::path& path, const Cells& cells) {
  std::string text;
  for (const auto& row : cells) {
    for (size_t i = 0; i < row.size(); ++i) {
      text += (i == 0 ? "" : ",") + mixmatch::detail::csv_cell(row[i]);
    }
    text += "\r\n";  // as spreadsheets do
  }
  write_file(path, text);
}

bool has_line(const std::vector<std::string>& lines, const std::string& line) {
  return std::find(lines.begin(), lines.end(), line) != lines.end();
}

constexpr size_t class_cell = 1, label_cell = 7;

}  // namespace

TEST_CASE("own_images: corrected predictions train with their labels, and what was held out stays so") {
  TempDir dir;
  write_folder(dir / "data");
  const auto last = dir / "last", next = dir / "next";
  REQUIRE(train_on(dir / "data", last, {"--validation", "4"}).status == 0);
  auto cells = read_cells(last / "predictions.csv");
  REQUIRE(cells.size() == 11);
  REQUIRE(cells[0][label_cell] == "label");
  // Two rows of a new class, one that the folder knows, one whose class was changed in place, one accepted.
  cells[1][label_cell] = cells[2][label_cell] = "owl, \"grey\"";
  cells[3][label_cell] = " dög ";
  cells[4][class_cell] = cells[4][class_cell] == "dög" ? "c a t" : "dög";
  cells[5][label_cell] = cells[5][class_cell];
  // And one in a row of label_errors.csv, which the folder labels otherwise.
  const auto corrected = lines_of_part(last, "labeled").front();
  cells.push_back({"labeled/c a t/0 \"x\".png", "dög", "", "", "", "", "", "dög"});
  write_cells(dir / "review.csv", cells);

  const auto again = run({MIXMATCH_OWN_IMAGES, "--data", (dir / "data").string(), "--labels",
                          (dir / "review.csv").string(), "--out", next.string(), "--from", last.string(),
                          "--steps", "2", "--batch", "4", "--log-every", "1", "--threads", "1"});
  INFO(again.err << again.out);
  REQUIRE(again.status == 0);
  CHECK_THAT(again.out, contains("review.csv: a label for 5 pictures, e.g. unlabeled/"));
  CHECK_THAT(again.out,
             contains("review.csv: another label for 1 picture, labeled/c a t/0 \"x\".png: \"dög\", was "
                      "\"c a t\""));
  CHECK_THAT(again.out, contains("review.csv: new classes: \"owl, \\\"grey\\\"\" (2 pictures)"));
  CHECK_THAT(again.out,
             contains("21 pictures with a label in 3 classes (4 of them for validation), 5 without"));
  const auto labeled = lines_of_part(next, "labeled");
  for (size_t i = 1; i <= 5; ++i) {
    CHECK(has_line(labeled, "labeled \"unlabeled/" + cells[i][0] + "\""));
  }
  CHECK(lines_of_part(next, "validation") == lines_of_part(last, "validation"));
  CHECK(lines_of_part(next, "validation").size() == 4);
  // The network and the size are those of the run, and so are the weights.
  CHECK(setting(next, "widen") == "1");
  CHECK(setting(next, "size") == "16");
  CHECK(setting(next, "weights") == (last / "model.safetensors").string());
  CHECK_THAT(again.out, contains("no head of these classes; initial weights in"));
  CHECK_THAT(again.out, contains("the head starts as a linear probe on 17 labeled images"));
  CHECK(mixmatch::read_safetensors_metadata(next / "model.safetensors").at("class_2") == "owl, \"grey\"");
  CHECK(read_cells(next / "predictions.csv").size() == 6);

  // It goes on without the file and the run that it came from.
  fs::rename(dir / "review.csv", dir / "gone.csv");
  check_refused(train_on(dir / "data", next, {"--resume", "--labels", (dir / "gone.csv").string()}),
                "--resume: the run keeps the labels");
  check_refused(train_on(dir / "data", next, {"--resume", "--from", last.string()}),
                "--resume: the run keeps");
  const auto resumed = train_on(dir / "data", next, {"--resume", "--steps", "3"});
  INFO(resumed.err);
  CHECK(resumed.status == 0);
  CHECK(lines_of_part(next, "labeled") == labeled);

  // The next round adds to it. A class that another run had predicted is no correction.
  auto more = read_cells(next / "predictions.csv");
  REQUIRE(more.size() == 6);
  const std::string added = more[1][0], foreign = more[2][0];
  more[1][label_cell] = "dög";
  more[2][class_cell] = more[2][class_cell] == "dög" ? "c a t" : "dög";
  more[2][2] = "0.123456";
  write_cells(dir / "more.csv", more);
  const auto third = train_on(dir / "data", dir / "third",
                              {"--labels", (dir / "more.csv").string(), "--from", next.string()});
  INFO(third.err << third.out);
  REQUIRE(third.status == 0);
  CHECK_THAT(third.err, contains("more.csv: 1 row is predicted by another run than"));
  const auto all = lines_of_part(dir / "third", "labeled");
  CHECK(std::includes(all.begin(), all.end(), labeled.begin(), labeled.end()));
  CHECK(all.size() == labeled.size() + 1);
  CHECK(has_line(all, "labeled \"unlabeled/" + added + "\""));
  CHECK_FALSE(has_line(all, "labeled \"unlabeled/" + foreign + "\""));
  CHECK(lines_of_part(dir / "third", "validation") == lines_of_part(last, "validation"));
  // The same classes: the head goes on too.
  CHECK(third.out.find("initial weights in") == std::string::npos);

  check_refused(train_on(dir / "data", dir / "x", {"--from", last.string(), "--validation", "2"}),
                "4 pictures are held out already");
  check_refused(train_on(dir / "data", dir / "x", {"--from", last.string(), "--weights", "w"}),
                "--from and --weights");
  check_refused(train_on(dir / "data", dir / "x", {"--from", (dir / "data").string()}), "holds no run");
  fs::remove(last / "model.safetensors");
  check_refused(train_on(dir / "data", dir / "x", {"--from", last.string()}), "is not finished");
  CHECK_FALSE(fs::exists(dir / "x"));
}

TEST_CASE("own_images: a run from another one does not hold out what that has learnt from, unsaid") {
  TempDir dir;
  write_folder(dir / "data");
  REQUIRE(train_on(dir / "data", dir / "last").status == 0);
  const auto next =
      train_on(dir / "data", dir / "next", {"--from", (dir / "last").string(), "--validation", "2"});
  INFO(next.err);
  CHECK(next.status == 0);
  CHECK_THAT(next.err, contains("has learnt from the pictures that --validation 2 holds out"));
  // Of other pictures it knows nothing.
  for (const auto& entry : fs::recursive_directory_iterator(dir / "data")) {
    if (entry.is_regular_file()) {
      torch::manual_seed(1000);  // no picture of the folder is drawn by it
      write_file(entry.path(),
                 mixmatch::training::encode_png(torch::randint(0, 256, {3, 16, 16}, torch::kByte)));
    }
  }
  const auto other =
      train_on(dir / "data", dir / "other", {"--from", (dir / "last").string(), "--validation", "2"});
  CHECK(other.status == 0);
  CHECK(other.err.find("has learnt from") == std::string::npos);
}

TEST_CASE("own_images: a run is known by all its pictures; what it says of one that changed is not taken") {
  TempDir dir;
  write_folder(dir / "data");
  const fs::path last = dir / "last", data = dir / "data";
  write_file(dir / "labels.csv", "file,label\nunlabeled/40.png,dög\nunlabeled/41.png,dög\n");
  REQUIRE(train_on(data, last, {"--validation", "6", "--labels", (dir / "labels.csv").string()}).status == 0);
  const auto held_out = lines_of_part(last, "validation");
  REQUIRE(held_out.size() == 6);
  // The folder's name for the picture of a line, which has no escape but for quotes.
  const auto path_of = [&](const std::string& line) {
    auto name = line.substr(line.find('"') + 1);
    name.pop_back();
    for (size_t at = 0; (at = name.find('\\', at)) != name.npos; ++at) {
      name.replace(at, 2, name[at + 1] == 'n' ? "\n" : name.substr(at + 1, 1));
    }
    return data / name;
  };
  const auto replace = [](const fs::path& file) {
    torch::manual_seed(1000);  // no picture of the folder is drawn by it
    write_file(file, mixmatch::training::encode_png(torch::randint(0, 256, {3, 16, 16}, torch::kByte)));
  };
  const std::vector<std::string> from{"--from", last.string()};
  const auto same = train_on(data, dir / "same", from);
  INFO(same.err);
  REQUIRE(same.status == 0);
  CHECK(lines_of_part(dir / "same", "validation") == held_out);
  CHECK(same.err.find("is not taken") == std::string::npos);

  // The first that it names, the last that was held out, and one whose label came from the file.
  const auto first = path_of(lines_of_part(last, "labeled").front());
  const std::string labeled_by_hand = "labeled \"unlabeled/40.png\"";
  replace(first);
  replace(path_of(held_out.back()));
  const bool by_hand_was_held_out = !has_line(lines_of_part(last, "labeled"), labeled_by_hand);
  replace(data / "unlabeled" / "40.png");
  const auto changed = train_on(data, dir / "changed", from);
  INFO(changed.err);
  REQUIRE(changed.status == 0);
  const size_t others = by_hand_was_held_out && path_of(held_out.back()).filename() == "40.png" ? 2 : 3;
  CHECK_THAT(changed.err, contains("own_images: " + last.string() +
                                   ": of 18 pictures that it trained or was judged with, " +
                                   std::to_string(others) + " are changed since, e.g. labeled/"));
  auto expected = held_out;
  std::erase_if(expected, [&](const auto& line) {
    return line == held_out.back() || line == "validation \"unlabeled/40.png\"";
  });
  CHECK(lines_of_part(dir / "changed", "validation") == expected);
  CHECK_FALSE(has_line(lines_of_part(dir / "changed", "labeled"), labeled_by_hand));
  check_refused(train_on(data, dir / "x", with(from, {"--strict"})), "are changed since");

  fs::remove(first);
  const auto gone = train_on(data, dir / "gone", from);
  INFO(gone.err);
  REQUIRE(gone.status == 0);
  CHECK_THAT(gone.err, contains("1 is no longer there, e.g. labeled/c a t/0 \"x\".png: what it says"));
}

TEST_CASE("own_images: a TorchScript network is reviewed, and goes on with its own classes alone") {
  TempDir dir;
  write_folder(dir / "data");
  small_net(3, 2).save((dir / "net.pt").string());
  const auto finished =
      train_on(dir / "data", dir / "last", {"--model", "torchscript:" + (dir / "net.pt").string()});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  auto cells = read_cells(dir / "last" / "predictions.csv");
  REQUIRE(cells.size() == 11);
  cells[1][label_cell] = "dög";
  write_cells(dir / "review.csv", cells);
  const std::vector<std::string> from{"--from", (dir / "last").string(), "--labels",
                                      (dir / "review.csv").string()};
  const auto next = train_on(dir / "data", dir / "next", from);
  INFO(next.err);
  CHECK(next.status == 0);
  CHECK(lines_of_part(dir / "next", "labeled").size() == 17);
  check_refused(train_on(dir / "data", dir / "x", with(from, {"--model", "torchscript:other.pt"})),
                "--model torchscript:other.pt has no effect with --from ");
  fs::rename(dir / "data" / "labeled" / "c a t", dir / "data" / "labeled" / "cat");
  const auto other_classes =
      train_on(dir / "data", dir / "x", from);  // a line of the pictures that moved, too
  CHECK(other_classes.status == 2);
  CHECK(lines_of(other_classes.err).size() == 2);
  CHECK_THAT(other_classes.err, contains("is of other classes, and which layer of a TorchScript"));
  CHECK_FALSE(fs::exists(dir / "x"));
}

TEST_CASE("own_images: a CSV lists pictures anywhere below a folder, with those held out") {
  TempDir dir;
  write_noise(dir / "data" / "a", 0, 6);
  write_noise(dir / "data" / "b" / "deep", 10, 6);
  write_noise(dir / "data", 20, 6);
  std::string csv =
      "\xEF\xBB\xBF"
      "file,label,split\r\n";
  for (int i = 0; i < 6; ++i) {
    const std::string split = i < 2 ? ",validation\r\n" : i < 4 ? ",train\r\n" : ",\r\n";
    csv += "a/" + std::to_string(i) + ".png,first" + split + "b/deep/" + std::to_string(10 + i) +
           ".png,\"second, one\"" + split + std::to_string(20 + i) + ".png,,\r\n";
  }
  write_file(dir / "labels.csv", csv + "gone.png,first,\r\n../labels.csv,first,\r\n");
  const std::vector<std::string> labels{"--labels", (dir / "labels.csv").string()};
  const auto finished = train_on(dir / "data", dir / "run", labels);
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.err, contains("own_images: left out: 1 row of a CSV (there is no such file): "));
  CHECK_THAT(finished.err, contains("own_images: left out: 1 row of a CSV (not in "));
  CHECK_THAT(finished.out,
             contains("12 pictures with a label in 2 classes (4 of them for validation), 6 without"));
  CHECK_THAT(finished.out, contains("] of 4 images"));
  CHECK(lines_of_part(dir / "run", "validation") ==
        std::vector<std::string>{"validation \"a/0.png\"", "validation \"a/1.png\"",
                                 "validation \"b/deep/10.png\"", "validation \"b/deep/11.png\""});
  const auto predictions = read_cells(dir / "run" / "predictions.csv");
  REQUIRE(predictions.size() == 7);
  for (size_t i = 1; i < predictions.size(); ++i) {
    CHECK(fs::exists(dir / "data" / predictions[i][0]));
    CHECK(fs::exists(predictions[i][6]));
  }
  std::string report = read_file(dir / "run" / "report.html");
  for (size_t at = report.find("<wbr>"); at != std::string::npos; at = report.find("<wbr>", at)) {
    report.erase(at, 5);
  }
  CHECK_THAT(report, contains("<code>" + predictions[1][0] + "</code>"));
  // Of two classes, some of the four that are held out are wrong after two steps, and named.
  CHECK((finished.out.find("EMA 0.00 %") != std::string::npos ||
         report.find("<code>a/0.png</code>") != std::string::npos ||
         report.find("<code>a/1.png</code>") != std::string::npos ||
         report.find("<code>b/deep/10.png</code>") != std::string::npos ||
         report.find("<code>b/deep/11.png</code>") != std::string::npos));
  fs::remove(dir / "labels.csv");
  const auto resumed = train_on(dir / "data", dir / "run", {"--resume", "--steps", "3"});
  INFO(resumed.err);
  CHECK(resumed.status == 0);

  // What the program wrote is such a list too, and a number beside it says how many keep their label.
  const std::string written = (dir / "run" / "labels.csv").string();
  const auto again = train_on(dir / "data", dir / "again", {"--labels", written, "--labels", "4"});
  INFO(again.err);
  CHECK(again.status == 0);
  CHECK_THAT(again.out,
             contains("8 pictures with a label in 2 classes (4 of them for validation), 10 without"));
  CHECK(lines_of_part(dir / "again", "validation") == lines_of_part(dir / "run", "validation"));

  write_file(dir / "labels.csv", csv);
  check_refused(train_on(dir / "data", dir / "x", with(labels, {"--validation", "2"})),
                "--validation 2: 4 pictures are held out already, the first of them a/0.png");
  write_file(dir / "labels.csv", csv + "gone.png,first,\r\n");
  check_refused(train_on(dir / "data", dir / "x", with(labels, {"--strict"})),
                "labels.csv line 20: gone.png");
  write_file(dir / "labels.csv", csv + "a/0.png,first,later\r\n");
  check_refused(train_on(dir / "data", dir / "x", labels),
                "labels.csv line 20: split must be train or validation");
  write_file(dir / "labels.csv", "file,label\na/0.png,first\nb/deep/10.png,first\n");
  check_refused(train_on(dir / "data", dir / "x", labels), "one label, \"first\"; expected at least two");
  // A class with one picture trains, and cannot be held out.
  write_file(dir / "labels.csv", "file,label\na/0.png,first\na/1.png,first\nb/deep/10.png,second\n");
  check_refused(train_on(dir / "data", dir / "x", with(labels, {"--validation", "2"})), "class \"second\"");
  check_refused(train_on(dir / "data", dir / "x", {"--labels", (dir / "none.csv").string()}), "none.csv");
  check_refused(train_on(dir / "data", dir / "x", {"--labels", "-3"}),
                "--labels: expected a number >= 0 or a file");
  check_refused(train_on(dir / "data", dir / "x"), "has no directory \"labeled\" or \"train\"");
  CHECK_FALSE(fs::exists(dir / "x"));
  const auto single = train_on(dir / "data", dir / "x", labels);
  INFO(single.err);
  CHECK(single.status == 0);
}

TEST_CASE("own_images: torchvision's train and val, where val is what is held out") {
  TempDir dir;
  write_noise(dir / "data" / "train" / "cat", 0, 4);
  write_noise(dir / "data" / "train" / "dog", 10, 4);
  write_noise(dir / "data" / "val" / "cat", 20, 2);
  write_noise(dir / "data" / "val" / "dog", 30, 1);
  write_noise(dir / "data" / "unlabeled", 40, 5);
  const auto finished = train_on(dir / "data", dir / "run");
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK_THAT(finished.out,
             contains("11 pictures with a label in 2 classes (3 of them for validation), 5 without"));
  CHECK_THAT(finished.out, contains("verdict: ") && contains(" on 3 held-out images"));
  CHECK(lines_of_part(dir / "run", "validation") ==
        std::vector<std::string>{"validation \"val/cat/20.png\"", "validation \"val/cat/21.png\"",
                                 "validation \"val/dog/30.png\""});
  CHECK_FALSE(fs::exists(dir / "run" / "labels.csv"));
  CHECK(train_on(dir / "data", dir / "run", {"--resume", "--steps", "3"}).status == 0);
  check_refused(train_on(dir / "data", dir / "x", {"--validation", "2"}), "3 pictures are held out already");
  const auto fewer = train_on(dir / "data", dir / "fewer", {"--labels", "4"});
  INFO(fewer.err);
  CHECK(fewer.status == 0);
  CHECK_THAT(fewer.out,
             contains("7 pictures with a label in 2 classes (3 of them for validation), 9 without"));
}
