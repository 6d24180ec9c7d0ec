// What a run directory holds as text, and the command line.

#include <fmt/format.h>
#include <mixmatch/data/label_file.hpp>
#include <mixmatch/data/labeled_pictures.hpp>
#include <mixmatch/data/split_file.hpp>
#include <mixmatch/program/check_options.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/report/html.hpp>
#include <mixmatch/report/line_chart.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/metrics_writer.hpp>
#include <mixmatch/run/run_record.hpp>

#include "fuzz.hpp"

namespace fs = std::filesystem;
namespace mm = mixmatch;

namespace fuzz {

namespace {

void look_at(const mm::training::Config& config) {
  for (const auto& [name, value] : config) {
    digest_text(name);
    digest_text(value);
  }
}

void look_at(const mm::training::MetricsTable& metrics) {
  for (const auto& row : metrics.rows) {
    expect(row.size() == metrics.columns.size(), "a row of another length than the header");
    for (const double value : row) {
      digest_value(value);
    }
  }
}

constexpr int64_t split_images = 12;

void check_split(const mm::data::SslSplit& split, size_t images) {
  std::vector<bool> seen(images, false);
  for (const auto& rows : {split.labeled, split.validation, split.unlabeled}) {
    for (int64_t i = 0; i < rows.numel(); ++i) {
      const auto row = static_cast<size_t>(rows.data_ptr<int64_t>()[i]);
      expect(row < images && !seen[row], "a row twice or out of range");
      seen[row] = true;
    }
  }
}

bool equal(const mm::data::SslSplit& a, const mm::data::SslSplit& b) {
  return a.labeled.equal(b.labeled) && a.unlabeled.equal(b.unlabeled) && a.validation.equal(b.validation);
}

void read_split(const fs::path& dir, const Input&) {
  const auto split = mm::data::load_split(dir / "split.txt", split_images, "0123abcd");
  check_split(split, split_images);
  mm::data::save_split(dir / "again.txt", split, split_images, "0123abcd");
  expect(equal(mm::data::load_split(dir / "again.txt", split_images), split),
         "a split that is written and read is another");
}

/// Pictures of names that need quotes; their contents do not matter here.
const mm::data::NamedImages& named_images() {
  static const mm::data::NamedImages images{scratch() / "named",
                                            {"labeled/a/1.png", "labeled/a/2 \"x\".png", "labeled/b/3\\.png",
                                             "labeled/b/\xC3\xA9.png", "unlabeled/5\n.png"},
                                            at::tensor({0, 0, 1, 1, -1}, at::kLong)};
  return images;
}

void read_named_split(const fs::path& dir, const Input&) {
  const auto& images = named_images();
  const auto split = mm::data::load_split(dir / "split.txt", images);
  check_split(split, images.files.size());
  mm::data::save_split(dir / "again.txt", split, images);
  expect(equal(mm::data::load_split(dir / "again.txt", images), split),
         "a split that is written and read is another");
}

std::string saved_named_split() {
  const auto& images = named_images();
  for (const auto& file : images.files) {
    write("named/" + file, file);
  }
  const auto rows = [](std::vector<int64_t> values) { return at::tensor(values, at::kLong); };
  mm::data::save_split(scratch() / "seed.txt", {rows({0, 2}), rows({1, 4}), rows({3})}, images);
  return read(scratch() / "seed.txt");
}

/// A folder with a layout, and a file outside it.
const fs::path& labeled_folder() {
  static const fs::path root = [] {
    for (const char* file : {"labeled/a/1.png", "labeled/b/2.png", "validation/a/3.png", "unlabeled/4.png",
                             "5.png", "../outside.png"}) {
      write(std::string("layout/folder/") + file, "x");
    }
    return scratch() / "layout" / "folder";
  }();
  return root;
}

void read_labels(const fs::path& dir, const Input&) {
  const auto& root = labeled_folder();
  const auto labeled = mm::data::label_pictures(root, {mm::data::read_label_file(dir / "labels.csv")});
  const auto& list = labeled.list;
  for (const auto& file : list.files) {
    expect(file.rfind("..", 0) != 0 && fs::exists(root / file), "a picture that is not in the folder");
    digest_text(file);
  }
  const auto* label = list.labels.data_ptr<int64_t>();
  for (int64_t i = 0; i < list.size(); ++i) {
    expect(label[i] >= -1 && label[i] < list.num_classes(), "a label out of range");
  }
  for (int64_t i = 0; i < list.validation.numel(); ++i) {
    const int64_t row = list.validation.data_ptr<int64_t>()[i];
    expect(row >= 0 && row < list.size() && label[row] >= 0, "a held-out picture without a label");
  }
  for (const auto& change : labeled.changes) {
    expect_clean(change, "what a label file changes");
  }
  for (const auto& item : list.left_out) {
    expect_clean(mm::data::describe(item), "a row left out");
  }
  mm::data::write_label_file(dir / "again.csv", list);
  const auto again = mm::data::label_pictures(root, {mm::data::read_label_file(dir / "again.csv")}).list;
  expect(again.files == list.files && again.labels.equal(list.labels) &&
             again.validation.equal(list.validation) && again.class_names == list.class_names,
         "labels that are written and read are others");
}

const std::vector<std::string> metric_columns{"step", "loss", "test_error"};

void read_metrics(const fs::path& dir, const Input&) {
  const auto metrics = mm::training::read_metrics(dir / "metrics.csv");
  look_at(metrics);
  for (const auto& column : metrics.columns) {
    digest_text(mm::training::render_line_chart(
        {column, "step", "percent", {{"a run", metrics.column("step"), metrics.column(column)}}}));
  }
  mm::training::MetricsCsv file(dir / "metrics.csv", metric_columns);
  file.append({1, 0.5, 2});
  digest_text(file.text());
  expect(read(dir / "metrics.csv") == file.text(), "the file is not what was written");
}

void read_run(const fs::path& dir, const Input&) {
  const auto record = mm::training::read_run(dir);
  look_at(record.config);
  look_at(record.summary);
  look_at(record.metrics);
}

// The command line

/// What a program makes of its arguments and, if it goes on with a run, of that run's configuration.
mm::training::TrainingOptions parse(std::vector<std::string> arguments, const mm::training::Config* stored) {
  mm::training::TrainingOptions o(mm::presets::cifar10);
  CLI::App app("A program.", "program");
  mm::training::add_options(app, o);
  std::vector<char*> argv;
  arguments.insert(arguments.begin(), "program");
  for (auto& argument : arguments) {
    argv.push_back(argument.data());
  }
  argv.push_back(nullptr);
  try {
    app.parse(static_cast<int>(arguments.size()), argv.data());
    if (stored != nullptr) {
      mm::training::adopt_config(app, *stored, o);
    }
  } catch (const CLI::CallForHelp&) {
    throw Refused("help");
  } catch (const CLI::ParseError& error) {
    throw Refused(mm::training::detail::usage_error(error));
  }
  mm::training::check_options(o);
  mm::training::mixmatch_options(o);
  mm::training::augment_options(o);
  mm::training::train_state_options(o);
  return o;
}

void parse_options(const fs::path& dir, const Input& input) {
  std::vector<std::string> arguments;
  for (size_t begin = 0; begin < input[0].size() && arguments.size() < 64;) {
    const size_t end = std::min(input[0].find('\n', begin), input[0].size());
    arguments.push_back(input[0].substr(begin, end - begin));
    begin = end + 1;
  }
  const auto options = parse(arguments, nullptr);
  const auto config = mm::training::config_of(options);
  look_at(config);
  // The options of a run say the same when they come back from its configuration.
  const auto again = parse({"--data", "x"}, &config);
  expect(mm::training::config_of(again) == config, "a configuration that is read back is another");
  const auto stored = mm::training::read_json_object(dir / "config.json");
  look_at(mm::training::config_of(parse({"--data", "x"}, &stored)));
}

std::string stored_config() {
  mm::training::JsonObject json;
  for (const auto& [name, value] :
       mm::training::config_of(mm::training::TrainingOptions(mm::presets::cifar10))) {
    json.set(name, value);
  }
  return json.str();
}

}  // namespace

void add_run_targets(std::vector<Target>& targets) {
  targets.push_back({"split",
                     {"split.txt"},
                     {{"mixmatch split of 12 images\ndata crc32c 0123abcd\nlabeled 1 2 11\nvalidation "
                       "3\nunlabeled all others\n"},
                      {"mixmatch split of 12 images\nlabeled 0\nvalidation\nunlabeled 4 5 6\n"}},
                     {"mixmatch", " split of ", " images", "labeled", "validation", "unlabeled", "all others",
                      "\n", " ", "12", "-1", "99999999999999999999", "\x1b", "\xff", "\xc2\x9b"},
                     read_split});
  targets.push_back(
      {"named_split",
       {"split.txt"},
       {{saved_named_split()}},
       {"mixmatch split of pictures", "labeled ", "validation ", "unlabeled ", "all others", "crc32c ",
        "\"labeled/a/1.png\"", "\\x0a", "\\\"", "\\\\", "\"", "\n", " ", "\x1b", "\xff"},
       read_named_split});
  targets.push_back({"label_file",
                     {"labels.csv"},
                     {{"file,label,split\nlabeled/a/1.png,b,\nlabeled/b/2.png,a,\n5.png,\"c, d\",train\n"
                       "unlabeled/4.png,a,val\n"},
                      {"\xEF\xBB\xBF"
                       "file;class;confidence;path;label\r\n4.png;a;0,5;;b\r\n"}},
                     {"file",
                      "label",
                      "split",
                      "class",
                      "path",
                      "train",
                      "validation",
                      "unlabeled/4.png",
                      "../outside.png",
                      "/",
                      "..",
                      ",",
                      ";",
                      "\t",
                      "\"",
                      "\"\"",
                      "\n",
                      "\r\n",
                      " ",
                      "\x1b",
                      "\xff"},
                     read_labels});
  const std::vector<std::string> json_words{"{",         "}",
                                            "[",         "]",
                                            ",",         ":",
                                            "\"",        "null",
                                            "true",      "false",
                                            "1e999",     "-0",
                                            "\\u0000",   "\\ud834\\udd1e",
                                            "\\",        "\\n",
                                            "\n",        "\xef\xbb\xbf",
                                            "\x1b",      "\xff",
                                            "[[[[[[[[[["};
  targets.push_back(
      {"json",
       {"config.json"},
       {{stored_config()}, {R"({"a": null, "b": true, "c": -1.5e3, "d": "\u00e9\ud834\udd1e\n"})"}},
       json_words,
       [](const fs::path& dir, const Input&) {
         look_at(mm::training::read_json_object(dir / "config.json"));
       }});
  const std::string metrics = "step,loss,test_error\n1,0.5,\n2,1e-3,90\n3,inf,-12.5\n";
  const std::vector<std::string> csv_words{
      ",",      "\n",     "\r\n",  "\"",    "nan",  "inf",  "-inf",       "1e308",
      "-1e308", "5e-324", "1e999", "0x1p3", "step", "loss", "test_error", "ema_test_error",
      " ",      "\x1b",   "\xff"};
  targets.push_back({"metrics", {"metrics.csv"}, {{metrics}, {"step\n1\n"}}, csv_words, read_metrics});
  targets.back().seeds.pop_back();
  auto words = json_words;
  words.insert(words.end(), csv_words.begin(), csv_words.end());
  targets.push_back(
      {"run_directory",
       {"config.json", "metrics.csv", "summary.json"},
       {{stored_config(), metrics, "{\"steps\": 3, \"test_error\": 1.5, \"ema_test_error\": null}\n"}},
       words,
       read_run});
  std::vector<std::string> option_words{"\n",   "--",     "=",        "-",          "nan",     "inf",
                                        "1e3",  "0x10",   "+1",       "1,5",        "1_000",   " 1",
                                        "true", "false",  "mixmatch", "supervised", "xxy.yxy", "fp32",
                                        "auto", "--help", "--config", "--version",  "\x1b",    "\xff"};
  for (const auto& [name, value] :
       mm::training::config_of(mm::training::TrainingOptions(mm::presets::cifar10))) {
    option_words.push_back("--" + name);
    option_words.push_back("\"" + name + "\": \"");
  }
  targets.push_back(
      {"options",
       {"arguments", "config.json"},
       {{"--data\nx\n--steps\n10\n--lr\n0.002\n--mirror\nfalse\n--mix-mode\nxx.yy", stored_config()},
        {"--data=x\n--method=supervised\n--seed\n7\n--ema-decay\n0.5\n--filters\n135", stored_config()}},
       option_words,
       parse_options});
}

}  // namespace fuzz
