// The example programs from outside: files, exit statuses, messages, interruption and resumption.

#include <mixmatch/run/run_record.hpp>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "program_util.hpp"

namespace fs = std::filesystem;

namespace {

const fs::path& data_dir() { return cifar10_dir(); }

std::vector<std::string> cifar10(const fs::path& out, const std::vector<std::string>& more = {}) {
  return short_run(MIXMATCH_CIFAR10, data_dir(), out, more);
}

/// The metrics of a run that was never stopped, made once.
const std::string& whole_run() {
  static const std::string metrics = [] {
    TempDir dir;
    REQUIRE(run(cifar10(dir / "run")).status == 0);
    return read_file(dir / "run" / "metrics.csv");
  }();
  return metrics;
}

}  // namespace

TEST_CASE("cifar10: a run leaves its files, and can be evaluated") {
  TempDir dir;
  const auto finished = run(cifar10(dir / "run"));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const auto metrics = lines_of(read_file(dir / "run" / "metrics.csv"));
  REQUIRE(metrics.size() == 13);
  CHECK(metrics[0] ==
        "step,loss,loss_labeled,loss_unlabeled,lambda_u,guess_confidence,guess_entropy,"
        "guess_class_entropy,guess_accuracy,validation_error,test_error,ema_test_error");
  CHECK(metrics[1].rfind("1,", 0) == 0);
  CHECK(metrics[12].rfind("12,", 0) == 0);
  const std::string summary = read_file(dir / "run" / "summary.json");
  for (const std::string key :
       {"\"steps\": 12", "\"test_error\": ", "\"ema_test_error\": ", "\"median_last20_test_error\": ",
        "\"seconds_per_step\": ", "\"method\": \"mixmatch\"", "\"seed\": 1"}) {
    CHECK_THAT(summary, contains(key));
  }
  CHECK_THAT(read_file(dir / "run" / "config.json"), contains("\"labels\": \"20\""));
  CHECK(fs::exists(dir / "run" / "checkpoint.pt"));
  CHECK_THAT(read_file(dir / "run" / "split.txt"), contains("mixmatch split of 200 images\ndata crc32c "));
  CHECK_THAT(summary, contains("\"recalibrated_ema_test_error\": "));
  // One held-out image can show no precision, and a class that is never predicted has none.
  for (const auto& [name, value] : mixmatch::training::parse_json_object(summary)) {
    INFO(name);
    CHECK((value != "null" || name == "abstain_below" || name.rfind("precision of ", 0) == 0));
  }
  CHECK_THAT(summary, contains("\"ema_test_error_low\": ") && contains("\"test_balanced_accuracy\": ") &&
                          contains("\"test_calibration_error\": ") && contains("\"recall of "));
  CHECK_THAT(summary, contains("\"confidence\": \"not calibrated: 1 held-out image, it takes 20\""));
  CHECK_THAT(finished.out, contains("test error: raw ") && contains(" % [") && contains("], median of "));
  CHECK(lines_of(read_file(dir / "run" / "confusion.csv")).size() == 11);
  CHECK_THAT(read_file(dir / "run" / "report.html"), contains("<!DOCTYPE html>"));
  CHECK(fs::file_size(dir / "run" / "model.safetensors") > 4 * 77000);
  int64_t events = 0;
  for (const auto& entry : fs::directory_iterator(dir / "run")) {
    const std::string name = entry.path().filename().string();
    events += name.rfind("events.out.tfevents.", 0) == 0 ? 1 : 0;
    CHECK(name.find(".tmp") == std::string::npos);
  }
  CHECK(events == 1);

  // The averaged model's error again, from the test file alone.
  TempDir test_only;
  fs::copy(data_dir() / "test_batch.bin", test_only / "test_batch.bin");
  const auto evaluated =
      run({MIXMATCH_CIFAR10, "--data", test_only.path().string(), "--eval", (dir / "run").string()});
  INFO(evaluated.err);
  REQUIRE(evaluated.status == 0);
  const auto printed = lines_of(evaluated.out);
  REQUIRE_FALSE(printed.empty());
  const std::string last = metrics[12].substr(metrics[12].rfind(',') + 1);
  char expected[64];
  std::snprintf(expected, sizeof expected, "test error: %.2f %%", std::stod(last));
  CHECK(printed.back() == expected);
  // With test-time flips apart, beside the plain error.
  const auto flipped = run({MIXMATCH_CIFAR10, "--data", test_only.path().string(), "--eval",
                            (dir / "run").string(), "--test-time-flips"});
  CHECK(lines_of(flipped.out).size() == printed.size() + 1);
  CHECK(lines_of(flipped.out).back() == expected);
  CHECK_THAT(flipped.out, contains("averaged weights, with test-time flips: "));
  check_refused(run({MIXMATCH_CIFAR10, "--data", test_only.path().string(), "--eval", (dir / "run").string(),
                     "--precision", "fp32"}),
                "--precision has no effect with --eval");
}

TEST_CASE("train: guesses that run together into one class are warned of, once") {
  const auto warnings = [](const std::vector<std::string>& settings) {
    TempDir dir;
    const auto finished = run(with({MIXMATCH_TRAIN,
                                    "--dataset",
                                    "shapes",
                                    "--out",
                                    (dir / "run").string(),
                                    "--labels",
                                    "10",
                                    "--batch",
                                    "16",
                                    "--depth",
                                    "10",
                                    "--widen",
                                    "1",
                                    "--steps",
                                    "30",
                                    "--log-every",
                                    "5",
                                    "--eval-every",
                                    "30",
                                    "--threads",
                                    "1",
                                    "--precision",
                                    "fp32",
                                    "--recalibrate",
                                    "0"},
                                   settings));
    INFO(finished.err);
    CHECK(finished.status == 0);
    const auto lines = lines_of(finished.err);
    return std::count_if(lines.begin(), lines.end(), [](const std::string& line) {
      return line.find("the guessed labels run together into few classes") != std::string::npos;
    });
  };
  // A weight and a learning rate that no run survives: soon every guess is the same class, with certainty.
  CHECK(warnings({"--lr", "0.05", "--lambda-u", "1000", "--rampup-steps", "30", "--temperature", "0.1"}) ==
        1);
  CHECK(warnings({"--lambda-u", "1", "--rampup-steps", "30"}) == 0);
}

TEST_CASE("train: a ramp that ends before the model is better than chance is warned of, once") {
  const auto warnings = [](const std::vector<std::string>& settings) {
    TempDir dir;
    std::vector<std::string> found;
    const auto train = [&](const std::vector<std::string>& more) {
      const auto finished = run(
          with({MIXMATCH_TRAIN, "--dataset", "shapes", "--out", (dir / "run").string(), "--recalibrate", "0"},
               more));
      INFO(finished.err);
      CHECK(finished.status == 0);
      for (const auto& line : lines_of(finished.err)) {
        if (line.find("no better than chance") != std::string::npos) {
          found.push_back(line.substr(line.find("warning")));
        }
      }
    };
    train(with({"--labels",    "100",  "--batch",     "20", "--depth",        "10", "--widen",   "1",
                "--steps",     "30",   "--log-every", "5",  "--eval-every",   "30", "--threads", "1",
                "--precision", "fp32", "--lr",        "0",  "--weight-decay", "0"},
               settings));
    train({"--resume", "--steps", "40"});
    return found;
  };
  const auto short_ramp = warnings({"--rampup-steps", "12"});
  REQUIRE(short_ramp.size() == 1);  // and not again when the run goes on
  CHECK_THAT(short_ramp[0], contains("warning at step 12: the model is no better than chance, right on ") &&
                                contains(" of 100 labeled images of 10 classes, where lambda_u has stopped "
                                         "rising; a smaller --lambda-u, a longer --rampup-steps or "));
  const auto long_ramp = warnings({"--rampup-steps", "35"});
  REQUIRE(long_ramp.size() == 2);
  CHECK_THAT(long_ramp[0], contains("warning at step 30: ") && contains(", where the run is over; ") &&
                               contains("more --steps or "));
  CHECK_THAT(long_ramp[1], contains("warning at step 35: ") && contains("stopped rising"));
  CHECK(warnings({"--rampup-steps", "12", "--debias", "false"}).empty());
  CHECK(warnings({"--method", "supervised"}).empty());
  CHECK(warnings({"--rampup-steps", "30", "--lr", "0.002"}).empty());
}

TEST_CASE("cifar10: the supervised baseline, bf16 and all mixing modes train") {
  for (const auto& more : std::vector<std::vector<std::string>>{
           {"--method", "supervised"},
           {"--method", "supervised", "--labels", "200", "--validation", "0"},
           {"--precision", "bf16"},
           {"--mix-mode", "xx.yy"},
           {"--unlabeled-ratio", "2"},
           {"--num-augmentations", "1"}}) {
    TempDir dir;
    const auto finished = run(with(cifar10(dir / "run", {"--debias", "false", "--validation", "10"}),
                                   with({"--steps", "2"}, more)));
    INFO(more[1] << ": " << finished.err);
    CHECK(finished.status == 0);
  }
}

TEST_CASE("cifar10: killed and resumed equals never stopped") {
  TempDir dir;
  const fs::path csv = dir / "run" / "metrics.csv";
  {
    Subprocess program(cifar10(dir / "run"));
    // Past the checkpoint of step 3, so rows must be cut back.
    REQUIRE(program.wait_until([&] { return lines_of(read_file(csv)).size() >= 6; }));
    program.send(SIGKILL);
    CHECK(program.wait().status == -SIGKILL);
  }
  CHECK_FALSE(fs::exists(dir / "run" / "summary.json"));
  const auto resumed = run({MIXMATCH_CIFAR10, "--data", data_dir().string(), "--out", (dir / "run").string(),
                            "--resume", "--checkpoint-every", "3"});
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  CHECK(read_file(csv) == whole_run());
}

TEST_CASE("cifar10: precision and threads are printed, and kept by a run that goes on") {
  TempDir dir;
  const auto started = run(cifar10(dir / "run", {"--precision", "fp32", "--steps", "3"}));
  REQUIRE(started.status == 0);
  CHECK_THAT(started.out, contains("device cpu, 1 CPU thread, precision fp32"));
  const auto resumed = run({MIXMATCH_CIFAR10, "--data", data_dir().string(), "--out", (dir / "run").string(),
                            "--resume", "--steps", "4", "--precision", "auto"});
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  CHECK_THAT(resumed.out, contains("device cpu, 1 CPU thread, precision fp32"));
  const auto wider = run({MIXMATCH_CIFAR10, "--data", data_dir().string(), "--out", (dir / "run").string(),
                          "--resume", "--steps", "5", "--threads", "2"});
  INFO(wider.err);
  REQUIRE(wider.status == 0);
  CHECK_THAT(wider.out, contains("2 CPU threads"));
  const auto chosen = run(cifar10(dir / "auto", {"--precision", "auto", "--threads", "0", "--steps", "3"}));
  REQUIRE(chosen.status == 0);
  CHECK_THAT(read_file(dir / "auto" / "config.json"),
             contains("\"precision\": \"bf16\"") || contains("\"precision\": \"fp32\""));
  CHECK_THAT(read_file(dir / "auto" / "config.json"), !contains("\"threads\": \"0\""));
}

TEST_CASE("cifar10: Ctrl-C saves, exits with 130, and the run goes on from there") {
  TempDir dir;
  const fs::path csv = dir / "run" / "metrics.csv";
  {
    Subprocess program(cifar10(dir / "run", {"--steps", "100000"}));
    REQUIRE(program.wait_until([&] { return lines_of(read_file(csv)).size() >= 3; }));
    program.send(SIGINT);
    const auto stopped = program.wait();
    INFO(stopped.err);
    CHECK(stopped.status == 130);
    CHECK_THAT(stopped.err, contains("interrupted at step"));
    CHECK_THAT(stopped.err, contains("--resume"));
  }
  const auto steps_done = lines_of(read_file(csv)).size() - 1;
  const auto resumed = run({MIXMATCH_CIFAR10, "--data", data_dir().string(), "--out", (dir / "run").string(),
                            "--resume", "--steps", std::to_string(std::max<size_t>(12, steps_done + 2))});
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  // Row by row, up to where the shorter run made its last evaluation.
  const auto rows = lines_of(read_file(csv)), whole = lines_of(whole_run());
  REQUIRE(rows.size() >= whole.size());
  CHECK(std::equal(whole.begin(), whole.end(), rows.begin()));
}

TEST_CASE("cifar10: resuming a finished run changes nothing but says its result") {
  TempDir dir;
  REQUIRE(run(cifar10(dir / "run")).status == 0);
  const std::string summary = read_file(dir / "run" / "summary.json");
  const auto again =
      run({MIXMATCH_CIFAR10, "--data", data_dir().string(), "--out", (dir / "run").string(), "--resume"});
  CHECK(again.status == 0);
  CHECK_THAT(again.out, contains("test error: raw "));
  CHECK(read_file(dir / "run" / "metrics.csv") == whole_run());
  CHECK(read_file(dir / "run" / "summary.json") == summary);
}

TEST_CASE("cifar10: another run takes the split of the first") {
  TempDir dir;
  REQUIRE(run(cifar10(dir / "one", {"--steps", "1"})).status == 0);
  const std::string split = (dir / "one" / "split.txt").string();
  REQUIRE(run(cifar10(dir / "two", {"--steps", "1", "--seed", "9", "--split", split})).status == 0);
  check_refused(run(cifar10(dir / "x", {"--split", split, "--labels", "20"})),
                "--labels 20 has no effect with --split, which says which images are labeled and held out");
  CHECK_FALSE(fs::exists(dir / "x"));
  CHECK(read_file(dir / "two" / "split.txt") == read_file(split));
  write_file(dir / "bad.txt", "mixmatch split of 199 images\nlabeled 1\n");
  check_refused(run(cifar10(dir / "three", {"--split", (dir / "bad.txt").string()})),
                "splits 199 images, the data set has 200");
  CHECK_FALSE(fs::exists(dir / "three"));
}

TEST_CASE("train: on CIFAR-10 it is the cifar10 program") {
  TempDir dir;
  const auto finished = run(short_run(MIXMATCH_TRAIN, data_dir(), dir / "run", {"--dataset", "cifar10"}));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK(read_file(dir / "run" / "metrics.csv") == whole_run());
  check_refused(run(short_run(MIXMATCH_TRAIN, data_dir(), dir / "x", {"--dataset", "mnist"})), "--dataset");
  check_refused(
      run(short_run(MIXMATCH_TRAIN, data_dir(), dir / "x", {"--dataset", "cifar100", "--filters", "0"})),
      "cifar");
  check_refused(run(short_run(MIXMATCH_TRAIN, data_dir(), dir / "x", {"--dataset", "cifar100"})),
                "--widen 1 has no effect with --filters 135, which gives the width");
}

TEST_CASE("train: --preset fast shows its numbers, keeps them, and is for FixMatch on CIFAR-10") {
  TempDir dir;
  const auto help = run({MIXMATCH_TRAIN, "--preset", "fast", "--help"});
  CHECK(help.status == 0);
  CHECK_THAT(help.out, contains("147456"));  // --steps; how a default is shown is the parser's
  CHECK(run({MIXMATCH_TRAIN, "--help"}).out.find("147456") == std::string::npos);
  const auto finished = run(short_run(MIXMATCH_TRAIN, data_dir(), dir / "run",
                                      {"--preset", "fast", "--steps", "2", "--eval-every", "2"}));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const std::string config = read_file(dir / "run" / "config.json");
  for (const std::string line :
       {"\"preset\": \"fast\"", "\"method\": \"fixmatch\"", "\"optimizer\": \"adam\"",
        "\"lr-schedule\": \"half_cosine\"", "\"unlabeled-ratio\": \"3\""}) {
    INFO(line);
    CHECK_THAT(config, contains(line));
  }
  const auto refused = [&](const std::vector<std::string>& more) {
    check_refused(run(short_run(MIXMATCH_TRAIN, data_dir(), dir / "x", with({"--preset", "fast"}, more))),
                  "--preset fast is for --dataset cifar10 and --method fixmatch from random weights");
    CHECK_FALSE(fs::exists(dir / "x"));
  };
  refused({"--method", "mixmatch"});
  refused({"--dataset", "cifar100"});
  refused({"--weights", "w.safetensors"});
  check_refused(run(short_run(MIXMATCH_TRAIN, data_dir(), dir / "x", {"--preset", "slow"})), "--preset");
}

TEST_CASE("cifar10: --help says every option and exits 0") {
  const auto help = run({MIXMATCH_CIFAR10, "--help"});
  CHECK(help.status == 0);
  for (const std::string option :
       {"--data", "--labels", "--validation", "--steps", "--batch", "--seed", "--out", "--resume", "--device",
        "--precision", "--depth", "--widen", "--lambda-u", "--eval-every", "--eval", "--threads"}) {
    CHECK_THAT(help.out, contains(option));
  }
  // Of other methods, and of images that are read from a disk.
  for (const std::string option :
       {"--threshold", "--annealing", "--radius", "--entropy-weight", "--strong", "--prefetch"}) {
    INFO(option);
    CHECK(help.out.find(option) == std::string::npos);
  }
}

TEST_CASE("cifar10: bad options exit 2 with one line and write nothing") {
  TempDir dir;
  const fs::path out = dir / "run";
  check_refused(run({MIXMATCH_CIFAR10}), "--data");
  check_refused(run(cifar10(out, {"--no-such-option"})), "--no-such-option");
  check_refused(run(cifar10(out, {"--steps", "0"})), "--steps");
  check_refused(run(cifar10(out, {"--steps", "many"})), "--steps");
  check_refused(run(cifar10(out, {"--labels", "-1"})), "--labels");
  check_refused(run(cifar10(out, {"--labels", "1000"})), "too few");
  check_refused(run(cifar10(out, {"--labels", "100", "--validation", "100"})), "no unlabeled image");
  check_refused(run(cifar10(out, {"--seed", "1\x1b[2J\n"})), "1\\x1b[2J\\n");
  check_refused(run(cifar10(out, {"--batch", "0"})), "--batch");
  check_refused(run(cifar10(out, {"--batch", "100000000000"})), "--batch");
  check_refused(run(cifar10(out, {"--padding", "32"})),
                "--padding 32 must be less than the images' size, 32");
  check_refused(run(cifar10(out, {"--depth", "12"})), "depth must be 6 n + 4 (10, 16, 22, 28, …), got 12");
  check_refused(run(cifar10(out, {"--widen", "0"})), "--widen");
  check_refused(run(cifar10(out, {"--lambda-u", "-1"})), "--lambda-u");
  check_refused(run(cifar10(out, {"--lambda-u", "nan"})),
                "--lambda-u: expected a finite number >= 0, got nan");
  check_refused(run(cifar10(out, {"--alpha", "-1"})), "--alpha");
  check_refused(run(cifar10(out, {"--temperature", "-1"})), "--temperature");
  check_refused(run(cifar10(out, {"--ema-decay", "2"})), "--ema-decay");
  check_refused(run(cifar10(out, {"--precision", "fp16"})), "--precision");
  check_refused(run(cifar10(out, {"--device", "tpu"})), "--device");
  check_refused(run(cifar10(out, {"--mix-mode", "xyz"})), "--mix-mode: xyz");
  check_refused(run(cifar10(out, {"--method", "magic"})), "--method: magic");
  check_refused(run(cifar10(out, {"--threshold", "0.9"})), "--threshold");
  check_refused(run(cifar10(out, {"--prefetch", "false"})), "--prefetch");
  check_refused(run(cifar10(out, {"--unlabeled-ratio", "0"})), "--unlabeled-ratio");
  check_refused(run(cifar10(out, {"--batch", "2"})), "--batch 2 is less than the 3 groups");
  check_refused(run(cifar10(out, {"--labels", "2"})), "--labels 2 and --validation");
  check_refused(run(cifar10(out, {"--method", "supervised", "--lambda-u", "3"})),
                "--lambda-u 3 has no effect with --method supervised: it is for mixmatch");
  check_refused(run(cifar10(out, {"--momentum", "0.5"})),
                "--momentum 0.5 has no effect with --optimizer adam");
  check_refused(run(cifar10(out, {"--validation", "0", "--target-precision", "0.9"})),
                "--target-precision 0.9 has no effect where no image is held out (--validation)");
  check_refused(run({MIXMATCH_TRAIN, "--dataset", "shapes", "--data", "here", "--out", out.string()}),
                "--data here has no effect with --dataset shapes");
  check_refused(run(cifar10(out, {"--eval-every", "0"})), "--eval-every");
  check_refused(run(cifar10(out, {"--lr", "1e9", "--weight-decay", "1"})), "--weight-decay 1 must be <= 1");
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("cifar10: data that cannot be read exits 2, says where, and writes nothing") {
  TempDir dir;
  const fs::path out = dir / "run";
  const auto from = [&](const fs::path& data) {
    return run(
        {MIXMATCH_CIFAR10, "--data", data.string(), "--out", out.string(), "--labels", "20", "--steps", "1"});
  };
  check_refused(from(dir / "nowhere"), "cs.toronto.edu/~kriz/cifar.html");
  fs::copy(data_dir(), dir / "data");
  fs::resize_file(dir / "data" / "data_batch_3.bin", 3073 * 10 + 5);
  check_refused(from(dir / "data"), "data_batch_3.bin has 30735 bytes");
  fs::resize_file(dir / "data" / "data_batch_3.bin", 0);
  check_refused(from(dir / "data"), "data_batch_3.bin is empty");
  fs::remove(dir / "data" / "data_batch_3.bin");
  check_refused(from(dir / "data"), "data_batch_3.bin is missing");
  write_file(dir / "data" / "data_batch_3.bin", std::string(3073, '\x0a'));
  check_refused(from(dir / "data"), "has label 10");
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("cifar10: run directories that do not fit exit 2 and stay as they are") {
  TempDir dir;
  write_file(dir / "file", "");
  check_refused(run(cifar10(dir / "file" / "run")), "cannot create the run directory");
  check_refused(run(cifar10(dir / "none", {"--resume"})), "no run directory");
  CHECK_FALSE(fs::exists(dir / "none"));

  REQUIRE(run(cifar10(dir / "run", {"--steps", "3"})).status == 0);
  const auto all_files = [&] {
    std::string all;
    for (const std::string name : {"config.json", "metrics.csv", "checkpoint.pt", "summary.json"}) {
      all += read_file(dir / "run" / name);
    }
    return all;
  };
  const std::string before = all_files();
  check_refused(run(cifar10(dir / "run")), "already holds a run");
  check_refused(run(cifar10(dir / "run", {"--resume", "--widen", "2"})), "--widen 2 is not the run's");
  check_refused(run(cifar10(dir / "run", {"--resume", "--split", (dir / "file").string()})),
                "--split: a run that is resumed keeps its own");
  check_refused(run(cifar10(dir / "run", {"--resume", "--steps", "2"})),
                "the run has done 3 steps already, more than the 2 asked for");
  check_refused(run({MIXMATCH_CIFAR10, "--data", data_dir().string(), "--eval", dir.path().string()}),
                "holds no run");
  CHECK(all_files() == before);

  const std::string checkpoint = read_file(dir / "run" / "checkpoint.pt");
  write_file(dir / "run" / "checkpoint.pt", checkpoint.substr(0, checkpoint.size() / 2));
  write_file(dir / "run" / "checkpoint.previous.pt", checkpoint.substr(0, checkpoint.size() / 2));
  check_refused(run(cifar10(dir / "run", {"--resume"})), "checkpoint.pt was cut short");
  check_refused(run({MIXMATCH_CIFAR10, "--data", data_dir().string(), "--eval", (dir / "run").string()}),
                "was cut short");
}

TEST_CASE("cifar10: a loss that is not finite stops the run and names the last good checkpoint") {
  TempDir dir;
  const auto finished = run(cifar10(dir / "run", {"--lr", "1e30", "--weight-decay", "0"}));
  INFO(finished.err);
  CHECK(finished.status == 1);
  const auto lines = lines_of(finished.err);
  REQUIRE_FALSE(lines.empty());
  CHECK_THAT(lines.back(), contains("at step"));
  CHECK_THAT(lines.back(), contains((dir / "run" / "checkpoint.pt").string()));
}

TEST_CASE("quickstart: trains, and its last line is the result") {
  const auto finished = run({MIXMATCH_QUICKSTART, "--steps", "2", "--threads", "1"});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const std::string last = lines_of(finished.out).back();
  CHECK_THAT(last, contains("test error: supervised-only "));
  CHECK_THAT(last, contains(" %, MixMatch "));
  check_refused(run({MIXMATCH_QUICKSTART, "--steps", "0"}), "--steps");
}
