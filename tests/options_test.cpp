// The options of the training programs from within: what they take, what they refuse, how they are printed,
// and that a run does not depend on the locale of the program it is part of.

#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>

#include "catch.hpp"
#include "script_net.hpp"
#include "test_util.hpp"
#include "thread_group.hpp"

#if __has_include(<CLI/CLI.hpp>)
#include <mixmatch/program/command_line.hpp>
#define MIXMATCH_HAS_CLI11
#endif

#include <clocale>
#include <concepts>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <locale>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace fs = std::filesystem;
namespace mm = mixmatch;
using mm::training::TrainingData;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace {

/// `images` of 8x8 in three classes by turns; those from `known` on have no label.
mm::data::ImagePool make_pool(int64_t images, int64_t known) {
  torch::manual_seed(5);
  mm::data::ImageDataset set;
  set.labels = at::arange(images, at::kLong).remainder(3);
  set.images =
      ((set.labels * 90 + 20).view({images, 1, 1, 1}) + at::randint(0, 30, {images, 3, 8, 8})).to(at::kByte);
  set.labels.narrow(0, known, images - known).fill_(-1);
  set.class_names = {"a", "b", "d\x1bg"};
  return mm::data::ImagePool({set});
}

TrainingOptions small_options(const fs::path& out) {
  TrainingOptions o(mm::presets::cifar10);
  o.data = "the data";
  o.out = out.string();
  o.labels = 15;
  o.validation = 3;
  o.batch = 4;
  o.depth = 10;
  o.widen = 1;
  o.padding = 2;
  return o;
}

TrainingData make_data(const TrainingOptions& o, mm::data::ImagePool pool) {
  auto split = mm::training::make_split(o, pool);
  mm::data::ImageDataset validation{pool.gather(split.validation),
                                    pool.labels_of(split.validation, torch::kCPU), pool.class_names};
  return {std::move(pool), std::move(split), std::move(validation), {}};
}

}  // namespace

TEST_CASE("options: a class whose labels are all hidden or held out is named before training") {
  const TempDir dir;
  const auto refusal = [&](int64_t labels, int64_t validation, int64_t images, int64_t known) {
    auto o = small_options(dir / "run");
    o.labels = labels;
    o.validation = validation;
    return error_of([&] {
      auto data = make_data(o, make_pool(images, known));
      mm::training::adopt_data(o, data);
    });
  };
  CHECK(refusal(3, 0, 30, 30) == "");
  const std::string one = refusal(1, 0, 30, 30);
  CHECK_THAT(one, contains("--labels 1 and --validation 0 leave class \""));
  CHECK_THAT(one, contains("\" without a labeled image to train with; 10 have its label"));
  CHECK(one.find('\n') == std::string::npos);
  CHECK_THAT(refusal(2, 0, 30, 30), contains("leave class \""));
  // A class that is in the list of names and in no image is none to learn.
  CHECK(refusal(2, 0, 30, 2) == "");
  CHECK(
      refusal(6, 0, 30, 4) ==
      "--labels 6 and --validation 0: class \"b\" has 1 row, too few for 2 labeled and 0 validation rows (6 "
      "and 0 over 3 classes); lower one of them, or label more images of that class");
  CHECK_THAT(refusal(6, 0, 30, 5), contains("class \"d\\x1bg\" has 1 row"));

  auto o = small_options(dir / "run");
  o.split = (dir / "split.txt").string();
  write_file(o.split, "mixmatch split of 30 images\nlabeled 0 1\nunlabeled all others\n");
  CHECK_THAT(error_of([&] {
               auto data = make_data(o, make_pool(30, 30));
               mm::training::adopt_data(o, data);
             }),
             contains(o.split + " leaves class \"d\\x1bg\" without a labeled image to train with; 10 have"));
}

TEST_CASE("options: a split is of the images that it was made for") {
  const TempDir dir;
  auto o = small_options(dir / "run");
  const auto pool = make_pool(60, 60), other = make_pool(60, 59);
  const auto data = make_data(o, pool);
  o.split = (dir / "split.txt").string();
  mm::training::save_split(o.split, o, data);
  CHECK_THAT(read_file(o.split), contains("\ndata crc32c " + mm::data::data_checksum(pool) + "\n"));
  CHECK(mm::training::read_split(o, pool).labeled.equal(data.split.labeled));
  CHECK_THAT(error_of([&] { mm::training::read_split(o, other); }), contains("splits another data set"));

  // Files of old have no checksum; a run's config.json tells what its split is of.
  mm::data::save_split(o.split, data.split, 60);
  CHECK(mm::training::read_split(o, other).labeled.equal(data.split.labeled));
  const std::vector<std::string> files(60, "labeled/a/1.png");
  CHECK_THAT(error_of([&] { mm::training::read_split(o, pool, files); }),
             contains(o.split + " numbers its images, and which pictures those were cannot be told"));
  const auto config = [&](const std::string& checksum) {
    write_file(dir / "config.json", "{\"training-data\": \"crc32c " + checksum + "\"}");
  };
  config(mm::data::data_checksum(pool));
  CHECK(mm::training::read_split(o, pool).labeled.equal(data.split.labeled));
  CHECK(mm::training::read_split(o, pool, files).labeled.equal(data.split.labeled));
  CHECK_THAT(error_of([&] { mm::training::read_split(o, other); }),
             contains(o.split + " splits other images"));
  CHECK_THAT(error_of([&] { mm::training::read_split(o, other, files); }), contains("splits other images"));
  for (const std::string text : {"[1]", "{\"a\": {}}", "no JSON"}) {  // another program's
    write_file(dir / "config.json", text);
    CHECK(mm::training::read_split(o, other).labeled.equal(data.split.labeled));
  }
}

TEST_CASE("options: errors of the library name no option; those of programs do") {
  const TempDir dir;
  int64_t step = 0;
  {
    mm::training::TrainingRun run(mm::training::RunDirectory::create(dir / "run"),
                                  mm::training::TrainingRunOptions().steps(3), step);
    run.start();
    step = 3;
    run.record(mm::StepMeans::of_step({{"loss", 1}}));
    run.finish_step();
    run.finish();
  }
  const std::string twice = error_of([&] { mm::training::RunDirectory::create(dir / "run"); });
  CHECK_THAT(twice, contains("already holds a run"));
  CHECK(twice.find("--") == std::string::npos);
  step = 0;
  const std::string too_far = error_of([&] {
    mm::training::TrainingRun run(mm::training::RunDirectory::open(dir / "run"),
                                  mm::training::TrainingRunOptions().steps(2), step);
    run.resume();
  });
  CHECK_THAT(too_far, contains("the run has done 3 steps already, more than the 2 asked for"));
  CHECK(too_far.find("--") == std::string::npos);
  auto o = small_options(dir / "run");
  CHECK_THAT(error_of([&] { mm::training::run_directory(o, std::nullopt); }),
             contains("already holds a run: continue it with --resume, or choose another --out"));
  const auto resumed = mm::training::RunDirectory::resume(o.out);
  CHECK(mm::training::run_directory(o, resumed).path() == dir / "run");
}

TEST_CASE("options: config.json says which library and which LibTorch wrote it") {
  const TempDir dir;
  int64_t step = 0;
  mm::training::TrainingRun run(mm::training::RunDirectory::create(dir / "run"),
                                mm::training::TrainingRunOptions().steps(1), step);
  run.start();
  const auto config = mm::training::read_json_object(run.directory().config());
  REQUIRE(mm::training::find_setting(config, "mixmatch-version") != nullptr);
  CHECK(*mm::training::find_setting(config, "mixmatch-version") == MIXMATCH_VERSION);
  CHECK(*mm::training::find_setting(config, "libtorch-version") == TORCH_VERSION);
  CHECK(std::string(MIXMATCH_VERSION) == std::to_string(MIXMATCH_VERSION_MAJOR) + "." +
                                             std::to_string(MIXMATCH_VERSION_MINOR) + "." +
                                             std::to_string(MIXMATCH_VERSION_PATCH));
}

TEST_CASE("options: those that do not fit together are refused in a line that names them") {
  const auto refusal = [](const std::function<void(TrainingOptions&)>& change) {
    TrainingOptions o = small_options("run");
    change(o);
    return error_of([&] { mm::training::check_options(o); });
  };
  CHECK(refusal([](auto&) {}).empty());
  CHECK(refusal([](auto& o) { o.batch = 3; }).empty());
  CHECK(refusal([](auto& o) { o.batch = 2; }) ==
        "--batch 2 is less than the 3 groups that MixMatch interleaves with --num-augmentations 2 and "
        "--unlabeled-ratio 1");
  CHECK_THAT(refusal([](auto& o) {
               o.num_augmentations = 3;
               o.unlabeled_ratio = 7;
             }),
             contains("--batch 4 is less than the 22 groups"));
  ThreadGroup two(std::make_shared<ThreadGroup::Shared>(2), 0);
  CHECK(refusal([&](auto& o) { o.processes = &two; }).empty());
  CHECK(refusal([&](auto& o) {
          o.processes = &two;
          o.ranks = "separate";
        }) ==
        "--batch 4 leaves each of 2 processes 2 rows, less than the 3 groups that MixMatch interleaves "
        "with --num-augmentations 2 and --unlabeled-ratio 1");
  CHECK(refusal([](auto& o) {
          o.method = "supervised";
          o.batch = 1;
        }).empty());
  CHECK_THAT(refusal([](auto& o) {
               o.resume = true;
               o.lr_schedule = "half_cosine";
               o.schedule_steps = 10;
               o.steps = 20;
             }),
             contains("--steps 20: the run's learning rate has fallen to 0 at step 10"));
  CHECK(refusal([](auto& o) { o.train = "head"; }) ==
        "--train head needs --weights: a last layer on random features learns little");
  CHECK(refusal([](auto& o) {
          o.train = "head";
          o.weights = "w";
          o.method = "fixmatch";
        }) ==
        "--train head: --method fixmatch learns from differences between augmentations, and "
        "features are not augmented; take --train all");
  CHECK_THAT(refusal([](auto& o) {
               o.learning_rate = 2;
               o.weight_decay = 0.75;
             }),
             contains("--lr 2 times --weight-decay 0.75 must be <= 1"));
  CHECK_THAT(refusal([](auto& o) {
               o.optimizer = "sgd";
               o.momentum = 1;
             }),
             contains("--momentum must be less than 1, got 1"));
  CHECK_THAT(refusal([](auto& o) {
               o.method = "vat";
               o.radius = 0;
             }),
             contains("--radius must be greater than 0, got 0"));
  TrainingOptions o = small_options("run");
  o.steps = 1000;
  o.rampup_steps = -1;
  mm::training::check_options(o);
  CHECK(o.rampup_steps == 400);
}

TEST_CASE("options: a method that needs unlabeled images and has none says what to do") {
  auto o = small_options("run");
  const auto pool = make_pool(30, 30);
  o.labels = 27;
  for (const auto& method : mm::training::method_names()) {
    o.method = method;
    const std::string error = error_of([&] { mm::training::make_split(o, pool); });
    if (method == "supervised") {
      CHECK(error.empty());
    } else {
      CHECK(error == "--labels 27 and --validation 3 leave no unlabeled image of 30, which --method " +
                         method + " needs: label fewer, or train with --method supervised");
    }
  }
  const TempDir dir;
  o.split = (dir / "split.txt").string();
  write_file(o.split, "mixmatch split of 3 images\nlabeled 0 1 2\n");
  CHECK_THAT(error_of([&] { mm::training::make_split(o, make_pool(3, 3)); }),
             contains(o.split + " leaves no unlabeled image of 3, which --method fixmatch needs"));
}

TEST_CASE("options: every method by its name, with its own numbers") {
  for (const auto& name : mm::training::method_names()) {
    INFO(name);
    auto o = small_options("run");
    o.method = name;
    mm::training::use_method_preset(o);
    o.batch = 64;
    o.precision = "fp32";
    mm::training::check_options(o);
    const bool strong = name == "fixmatch" || name == "uda";
    int64_t weak = -1, strong_views = 0;
    mm::training::with_method(o, [&](auto method) {
      weak = method.weak_views();
      if constexpr (requires { method.strong_views(); }) {
        strong_views = method.strong_views();
      }
    });
    CHECK((weak == 0) == (name == "supervised"));
    CHECK((strong_views > 0) == strong);
    const auto trainer = mm::training::trainer_options(o);
    CHECK(trainer.feed().unlabeled_ratio() == (strong ? 7 : 1));
    CHECK(static_cast<bool>(mm::training::optimizer_options(o).schedule()) == strong);
    CHECK(std::holds_alternative<mm::training::SgdRule>(mm::training::optimizer_options(o).rule()) == strong);
    CHECK(o.strong == (name == "uda" ? "uda" : "fixmatch"));
  }
  auto o = small_options("run");
  o.method = "magic";
  CHECK_THAT(error_of([&] { mm::training::with_method(o, [](auto) {}); }),
             contains("there is no method magic"));
}

TEST_CASE("options: the fast preset is FixMatch whose learning rate falls to 0 over its steps") {
  TrainingOptions o(mm::presets::cifar10);
  o.methods = mm::training::method_names();
  o.precision = "fp32";
  mm::training::use_fast_preset(o);
  mm::training::check_options(o);
  CHECK(o.method == "fixmatch");
  CHECK(o.steps == 147456);
  CHECK(o.steps % o.eval_every == 0);  // the last step is evaluated
  CHECK(o.schedule_steps == o.steps);
  CHECK(mm::training::trainer_options(o).feed().unlabeled_ratio() == 3);
  CHECK(mm::training::trainer_options(o).feed().batch_size() == 64);
  const auto optimizer = mm::training::optimizer_options(o);
  CHECK(std::holds_alternative<mm::training::AdamRule>(optimizer.rule()));
  CHECK(optimizer.learning_rate() == 2e-3);
  CHECK(optimizer.weight_decay() == 0.02);
  CHECK(optimizer.l2() == 0);
  const auto rate = [&](int64_t step) { return optimizer.schedule()(torch::tensor(step)).item<double>(); };
  CHECK(rate(0) == 1);
  CHECK(rate(o.steps / 2) == Approx(0.5));
  CHECK(rate(o.steps) == Approx(0).margin(1e-12));
  // Its steps take less than a quarter of an hour, by the line through the H200's measured 2.17 ms for 64
  // rows and 9.42 ms for 960 (docs/PERFORMANCE.md).
  const auto rows = static_cast<double>(o.batch * (1 + 2 * o.unlabeled_ratio));
  const double ms = 2.17 + (rows - 64) * (9.42 - 2.17) / (960 - 64);
  CHECK(static_cast<double>(o.steps) * ms / 1000 < 0.9 * 900);
}

TEST_CASE("options: what is done about unequal and foreign images, and what does not fit") {
  auto o = small_options("run");
  o.precision = "fp32";
  const auto data = make_data(o, make_pool(30, 30));
  mm::training::adopt_data(o, data);
  const Tensor labels = data.pool.labels_of(data.split.labeled, torch::kCPU);
  REQUIRE(o.class_counts.size() == static_cast<size_t>(data.pool.num_classes()));
  for (size_t c = 0; c < o.class_counts.size(); ++c) {
    CHECK(o.class_counts[c] == labels.eq(static_cast<int64_t>(c)).sum().item<int64_t>());
  }
  o.class_counts = {6, 3, 1};
  CHECK(mm::training::guess_filter(o).empty());
  CHECK_FALSE(mm::training::trainer_options(o).feed().balanced());
  CHECK_FALSE(mm::training::trainer_options(o).logit_adjustment().defined());
  o.imbalance = "balanced_batches";
  CHECK(mm::training::trainer_options(o).feed().balanced());
  o.imbalance = "logit_adjustment";
  CHECK_FALSE(mm::training::trainer_options(o).feed().balanced());
  CHECK(mm::training::trainer_options(o).logit_adjustment().exp().allclose(torch::tensor({.6, .3, .1}), 1e-5,
                                                                           1e-6));
  const auto aligned = [&](const std::string& alignment, const std::string& prior) {
    o.alignment = alignment;
    o.prior = prior;
    auto filter = mm::training::guess_filter(o);
    return filter({torch::zeros({1, 3})}).probabilities[0];  // uniform, which becomes the prior
  };
  CHECK(aligned("labeled", "").allclose(torch::tensor({.6, .3, .1}), 1e-4, 1e-5));
  CHECK(aligned("uniform", "").allclose(torch::full({3}, 1.0 / 3), 1e-4, 1e-5));
  CHECK(aligned("prior", "1,0,3").allclose(torch::tensor({.25, 0., .75}), 1e-4, 1e-5));
  o.open_set = "energy";
  CHECK(mm::training::guess_filter(o).state().size() == 4);

  for (const std::string prior :
       {"", "1,2", "1,2,3,4", "1,2,x", "1,2,", "0,0,0", "1,-1,1", "1,inf,1", "nan,1,1"}) {
    INFO(prior);
    CHECK_THAT(
        error_of([&] { mm::training::parse_prior(prior, 3); }),
        contains("--prior: expected the shares of 3 classes, numbers >= 0 with commas between that are "
                 "not all 0, got " +
                 (prior.empty() ? "nothing" : prior)));
  }
  const auto refusal = [](const std::string& method, const std::string& alignment, const std::string& prior,
                          const std::string& open_set) {
    auto bad = small_options("run");
    bad.method = method;
    bad.alignment = alignment;
    bad.prior = prior;
    bad.open_set = open_set;
    return error_of([&] { mm::training::check_options(bad); });
  };
  CHECK(refusal("mixmatch", "prior", "1,2,1", "energy").empty());
  CHECK(refusal("mixmatch", "prior", "", "none") == "--alignment prior needs --prior: the classes' shares");
  CHECK(refusal("mixmatch", "labeled", "1,2", "none") ==
        "--prior is for --alignment prior, got --alignment labeled");
  o = small_options("run");
  o.alignment = "prior";
  o.prior = "1,2";
  CHECK_THAT(error_of([&] { mm::training::adopt_data(o, data); }),
             contains("--prior: expected the shares of "));
  CHECK_THAT(error_of([] { mm::training::labeled_prior(TrainingOptions()); }),
             contains("no data was adopted"));
}

TEST_CASE("options: a run's configuration is what defines it, and a part of it may change") {
  const TrainingOptions o(mm::presets::cifar10);
  const auto config = mm::training::config_of(o);
  const auto value = [&](const std::string& name) {
    const auto* found = mm::training::find_setting(config, name);
    return found == nullptr ? std::string("none") : *found;
  };
  CHECK(value("method") == "mixmatch");
  CHECK(value("lr") == "0.002");
  CHECK(value("debias") == "true");
  CHECK(value("unlabeled-ratio") == "1");
  CHECK(value("strong") == "fixmatch");
  // Where from, where to and how are no part of it.
  for (const std::string name :
       {"data", "out", "split", "device", "prefetch", "no-graph", "no-overlap", "measure-convolutions",
        "deterministic", "checkpoint-every", "recalibrate", "test-time-flips", "resume", "eval"}) {
    INFO(name);
    CHECK(value(name) == "none");
  }
  const auto changeable = mm::training::changeable_of(o);
  CHECK(changeable == std::vector<std::string>{"steps", "threads", "ranks", "sync-batch-norm"});

  const mm::training::Config stored{{"lr", "1"}, {"steps", "5"}, {"gone", "x"}};
  const auto changed = [&](const mm::training::Config& now) {
    const auto setting = mm::training::find_changed_setting(stored, now, changeable);
    return setting.has_value() ? setting->name + ": " + setting->stored + " to " + setting->now : "";
  };
  CHECK(changed(stored).empty());
  CHECK(changed({{"lr", "1"}, {"steps", "6"}, {"new", "y"}}).empty());
  CHECK(changed({{"steps", "6"}, {"lr", "2"}}) == "lr: 1 to 2");
  CHECK(changed({}).empty());
}

namespace {

struct FlagOptions : TrainingOptions {
  using TrainingOptions::TrainingOptions;
  bool loud = false, shy = true;
};

template <class O, class Visit>
requires std::same_as<std::remove_const_t<O>, FlagOptions>
void visit_options(O& o, Visit&& visit) {
  visit(mm::training::OptionText{"loud", "", mm::training::OptionRole::how}, o.loud, mm::training::On{});
  visit(mm::training::OptionText{"bold", "", mm::training::OptionRole::how}, o.shy, mm::training::Off{});
}

}  // namespace

TEST_CASE("options: the command that resumes a run repeats how it is run, and nothing that it keeps") {
  auto o = small_options("the run");
  o.program = "./cifar10";
  o.learning_rate = 1;
  const auto data = make_data(o, make_pool(30, 30));
  const auto command = [&] {
    return mm::training::training_run_options(o, data, torch::kCPU).resume_command();
  };
  CHECK(command() == "./cifar10 --data 'the data' --out 'the run' --resume");
  o.prefetch = false;
  o.graph = false;
  o.overlap = false;
  o.device = "cpu";
  o.recalibrate = 0;
  CHECK(command() ==
        "./cifar10 --data 'the data' --out 'the run' --resume --device cpu --prefetch false "
        "--no-graph --no-overlap --recalibrate 0");
  o.timeout = 5;
  o.check_replicas = 7;
  CHECK_THAT(command(), contains(" --no-graph --no-overlap --recalibrate 0 --check-replicas 7 --timeout 5"));
  o.test_time_flips = true;
  CHECK_THAT(command(), contains(" --recalibrate 0 --test-time-flips"));
  o.test_time_flips = false;
  o.data.clear();
  o.checkpoint_every = 5;
  CHECK_THAT(command(), contains("./cifar10 --out 'the run' --resume") && contains(" --checkpoint-every 5 "));
  FlagOptions flags;
  flags.program = "p";
  flags.out = "r";
  CHECK(mm::training::detail::resume_command(flags) == "p --out r --resume");
  flags.loud = true;
  CHECK(mm::training::detail::resume_command(flags) == "p --out r --resume --loud");
  flags.shy = false;
  CHECK(mm::training::detail::resume_command(flags) == "p --out r --resume --loud --bold");
  const auto options = mm::training::training_run_options(o, data, torch::kCPU);
  CHECK(options.steps() == o.steps);
  CHECK(options.label() == "mixmatch");
  CHECK(options.changeable() == mm::training::changeable_of(o));
  const auto* checksum = mm::training::find_setting(options.config(), "training-data");
  REQUIRE(checksum != nullptr);
  CHECK(*checksum == "crc32c " + mm::data::data_checksum(data.pool));
}

TEST_CASE("--cache-memory: bytes by their usual names, or a share of the machine's") {
  using mm::training::parse_cache_memory;
  CHECK(parse_cache_memory("0") == 0);
  CHECK(parse_cache_memory("1000") == 1000);
  CHECK(parse_cache_memory("3k") == 3072);
  CHECK(parse_cache_memory("500M") == 500 * 1048576LL);
  CHECK(parse_cache_memory("1.5G") == 1610612736);
  CHECK(parse_cache_memory("2t") == 2199023255552);
  const auto quarter = parse_cache_memory("auto");
  CHECK(quarter == mm::training::machine_memory() / 4);
  CHECK(quarter > 16 << 20);
  CHECK(quarter < int64_t{1} << 50);
  for (const std::string bad : {"", "G", "-1", "4 G", "4GB", "1e30", "nan", "inf", "all"}) {
    INFO(bad);
    CHECK_THAT(error_of([&] { parse_cache_memory(bad); }),
               contains("--cache-memory: expected bytes, as 500M or 4G, or auto, got "));
  }
}

TEST_CASE("parse_number: whole texts in C's notation") {
  using mm::detail::parse_number;
  CHECK(parse_number<int64_t>("-12") == -12);
  CHECK(parse_number<int64_t>("1e3") == 1000);
  CHECK(parse_number<int64_t>("2.5e1") == 25);
  CHECK(parse_number<int>("010") == 10);
  CHECK(parse_number<uint64_t>("18446744073709551615") == UINT64_MAX);
  CHECK(parse_number<double>("2e-3") == 2e-3);
  for (const std::string text : {"", " 1", "1 ", "1,5", "0x10", "1e", "1.5", "99999999999999999999", "1e300",
                                 "nan", "inf", "+1", "1e17"}) {
    INFO(text);
    CHECK_FALSE(parse_number<int64_t>(text).has_value());
  }
  CHECK_FALSE(parse_number<uint64_t>("-1").has_value());
  CHECK_FALSE(parse_number<int>("1e10").has_value());
  CHECK_FALSE(parse_number<double>("0,002").has_value());
}

#ifdef MIXMATCH_HAS_CLI11

namespace {

TrainingOptions parse(const std::vector<std::string>& arguments, std::string* help = nullptr) {
  CLI::App app("", "program");
  TrainingOptions o(mm::presets::cifar10);
  o.methods = mm::training::method_names();
  mm::training::add_options(app, o);
  std::vector<const char*> argv{"program"};
  for (const auto& argument : arguments) {
    argv.push_back(argument.c_str());
  }
  app.parse(static_cast<int>(argv.size()), argv.data());
  if (help != nullptr) {
    *help = app.help();
  }
  return o;
}

std::string refusal(const std::string& option, const std::string& value) {
  return error_of([&] { parse({"--data", "d", option, value}); });
}

/// Numbers with a comma before the fraction and points between thousands.
struct CommaNumbers : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

/// The locale that iostreams start with, and C's, restored at the end.
class LocaleGuard {
 public:
  LocaleGuard() : cpp_(std::locale()), c_(std::setlocale(LC_ALL, nullptr)) {}
  LocaleGuard(const LocaleGuard&) = delete;
  LocaleGuard& operator=(const LocaleGuard&) = delete;
  ~LocaleGuard() {
    std::locale::global(cpp_);
    std::setlocale(LC_ALL, c_.c_str());
  }

 private:
  std::locale cpp_;
  std::string c_;
};

bool has_decimal_comma() { return std::strtod("0,5", nullptr) == 0.5; }

/// As a program does that wants its user's locale; makes one with a decimal comma where none is installed.
bool set_comma_locale(const fs::path& dir) {
  for (const char* name : {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE.utf8"}) {
    if (std::setlocale(LC_ALL, name) != nullptr && has_decimal_comma()) {
      return true;
    }
  }
  const std::string made = (dir / "de_DE.UTF-8").string();
  if (std::system(("localedef -i de_DE -f UTF-8 '" + made + "' >/dev/null 2>&1").c_str()) < 0) {
    return false;
  }
  ::setenv("LOCPATH", dir.c_str(), 1);
  const bool set = std::setlocale(LC_ALL, "de_DE.UTF-8") != nullptr && has_decimal_comma();
  ::unsetenv("LOCPATH");
  return set;
}

/// With the options of train_classifier(), as `train` has them.
struct AllOptions : TrainingOptions {
  using TrainingOptions::TrainingOptions;
};

template <class O, class Visit>
requires std::same_as<std::remove_const_t<O>, AllOptions>
void visit_options(O& o, Visit&& visit) {
  mm::training::visit_training_options(o, visit);
  mm::training::visit_train_classifier_options(o, visit);
}

/// A run of four steps with `more` options, stopped after `first` of them and resumed; its files as one text.
/// Before it goes on, the file `gone` is removed.
std::string run_in_parts(const fs::path& out, int64_t first, const std::vector<std::string>& more = {},
                         const fs::path& gone = {}) {
  for (const int64_t steps : {first, int64_t{4}}) {
    AllOptions o(mm::presets::cifar10);
    o.methods = mm::training::method_names();
    CLI::App app("", "program");
    mm::training::add_options(app, o);
    std::vector<std::string> arguments{
        "program",       "--data", "the data", "--out", out.string(), "--steps", std::to_string(steps),
        "--recalibrate", "0"};
    if (fs::exists(out)) {
      fs::remove(gone);
      arguments.push_back("--resume");
    } else {
      for (const std::string argument :
           {"--labels",       "15",  "--validation", "3",      "--batch",    "4",   "--lr",         "0.00125",
            "--alpha",        "0.7", "--ema-decay",  "0.9375", "--lambda-u", "7.5", "--eval-every", "2",
            "--log-every",    "1",   "--threads",    "1",      "--device",   "cpu", "--precision",  "fp32",
            "--rampup-steps", "1600"}) {
        arguments.push_back(argument);
      }
      const auto has = [&](const char* word) {
        return std::find(more.begin(), more.end(), word) != more.end();
      };
      for (const std::string argument : {"--depth", "10", "--widen", "1"}) {
        if (!has("--model")) {
          arguments.push_back(argument);
        }
      }
      if (has("head")) {
        o.padding = 2;  // of images of 8 pixels, which the features have been
      } else {
        arguments.insert(arguments.end(), {"--padding", "2"});
      }
      arguments.insert(arguments.end(), more.begin(), more.end());
    }
    std::vector<const char*> argv;
    for (const auto& argument : arguments) {
      argv.push_back(argument.c_str());
    }
    app.parse(static_cast<int>(argv.size()), argv.data());
    const auto resumed = mm::training::adopt_run(app, o);
    CHECK(o.learning_rate == 0.00125);
    mm::training::check_options(o);
    const auto device = mm::training::choose_device(o);
    const auto data = make_data(o, make_pool(1500, 1200));
    mm::training::adopt_data(o, data);
    mm::training::TrainState state(mm::training::make_network(o, data, device),
                                   mm::training::train_state_options(o));
    CHECK(mm::training::train_classifier(o, data, state, mm::training::run_directory(o, resumed)) == 0);
  }
  const auto record = mm::training::read_run(out);
  CHECK(record.metrics.rows.size() == 4);
  CHECK(mm::models::load_classifier(out / "model.safetensors").class_names.size() == 3);
  std::string files;
  for (const std::string name : {"metrics.csv", "split.txt", "config.json", "confusion.csv"}) {
    files += read_file(out / name);
  }
  return files;
}

}  // namespace

TEST_CASE("options: numbers in range, and in a notation that is a number") {
  CHECK(parse({"--data", "d", "--steps", "1e3"}).steps == 1000);
  CHECK(parse({"--data", "d", "--steps", "010"}).steps == 10);
  CHECK(parse({"--data", "d", "--lr", "2e-3"}).learning_rate == 0.002);
  CHECK(parse({"--data", "d", "--seed", "18446744073709551615"}).seed == UINT64_MAX);
  CHECK(parse({"--data", "d", "--threads", "1", "--threads", "2"}).threads == 2);
  CHECK_THAT(refusal("--seed", "-1"), contains("--seed: expected a whole number >= 0, got -1"));
  CHECK_THAT(
      refusal("--seed", "99999999999999999999"),
      contains("--seed: expected a whole number >= 0 and <= 18446744073709551615, got 99999999999999999999"));
  CHECK_THAT(refusal("--steps", "1.5"), contains("--steps: expected a whole number >= 1, got 1.5"));
  CHECK_THAT(refusal("--steps", "ten"), contains("got ten"));
  CHECK_THAT(refusal("--steps", ""), contains("--steps"));
  CHECK_THAT(refusal("--steps", "9223372036854775808"), contains("and <= 9223372036854775807, got"));
  CHECK_THAT(refusal("--batch", "65537"),
             contains("--batch: expected a whole number in [1, 65536], got 65537"));
  CHECK_THAT(refusal("--ema-decay", "1.5"),
             contains("--ema-decay: expected a finite number in [0, 1], got 1.5"));
  CHECK_THAT(refusal("--lr", "0,002"), contains("--lr: expected a finite number >= 0, got 0,002"));
  CHECK_THAT(refusal("--lr", "inf"), contains("got inf"));
  CHECK_THAT(refusal("--lr", "1\n2"), contains("got 1\\n2"));
}

TEST_CASE("options: what a method is told, out of range, is refused in a line that names the option") {
  const auto one_line = [](const std::string& option, const std::string& value, const std::string& expected) {
    const std::string error = refusal(option, value);
    INFO(error);
    CHECK_THAT(error, contains(option) && contains(expected));
    CHECK(error.find('\n') == std::string::npos);
  };
  one_line("--method", "magic", "magic");
  one_line("--threshold", "1.5", "expected a finite number in [0, 1], got 1.5");
  one_line("--threshold", "-0.1", "in [0, 1], got -0.1");
  one_line("--unlabeled-ratio", "0", "expected a whole number in [1, 1024], got 0");
  one_line("--num-augmentations", "0", "in [1, 1024], got 0");
  one_line("--labels", "0", "expected a whole number >= 1, got 0");
  one_line("--annealing", "quadratic", "quadratic");
  one_line("--optimizer", "lbfgs", "lbfgs");
  one_line("--lr-schedule", "step", "step");
  one_line("--strong", "none", "none");
  one_line("--mix-mode", "yy", "yy");
  one_line("--radius", "-1", "expected a finite number >= 0, got -1");
  one_line("--debias", "perhaps", "perhaps");
  CHECK_THAT(refusal("--warmup", "true"), contains("--warmup"));  // its name of old

  // The methods that a program knows.
  CLI::App app("", "program");
  TrainingOptions o(mm::presets::cifar10);
  o.methods = mm::training::method_names();
  mm::training::add_options(app, o);
  for (const auto& name : mm::training::method_names()) {
    const char* argv[] = {"program", "--data", "d", "--method", name.c_str()};
    app.parse(5, argv);
    CHECK(o.method == name);
  }
}

TEST_CASE("options: every one is set by its name, and comes back from a configuration") {
  const auto o = parse({"--data",
                        "d",
                        "--out",
                        "r",
                        "--batch",
                        "8",
                        "--unlabeled-ratio",
                        "7",
                        "--optimizer",
                        "sgd",
                        "--lr-schedule",
                        "cosine",
                        "--momentum",
                        "0.5",
                        "--l2",
                        "0.25",
                        "--debias",
                        "false",
                        "--mirror",
                        "false",
                        "--prefetch",
                        "false",
                        "--no-graph",
                        "--strong",
                        "uda",
                        "--annealing",
                        "exp",
                        "--threshold",
                        "0.75",
                        "--rampup-steps",
                        "-1",
                        "--precision",
                        "fp32"});
  CHECK(o.batch == 8);
  CHECK(o.unlabeled_ratio == 7);
  CHECK_FALSE(o.debias);
  CHECK_FALSE(o.mirror);
  CHECK_FALSE(o.prefetch);
  CHECK_FALSE(o.graph);
  CHECK(o.rampup_steps == -1);
  const auto trainer = mm::training::trainer_options(o);
  CHECK(trainer.feed().batch_size() == 8);
  CHECK_FALSE(trainer.feed().augmentation().mirror());
  CHECK_FALSE(trainer.graph());
  CHECK_FALSE(trainer.prefetch());
  CHECK_FALSE(trainer.learner().warmup());
  CHECK(static_cast<bool>(mm::training::optimizer_options(o).schedule()));
  CHECK(std::get<mm::training::SgdRule>(mm::training::optimizer_options(o).rule()).momentum == 0.5);
  CHECK_FALSE(mm::training::optimizer_options(o).muon().has_value());
  auto muon = o;
  muon.optimizer = "muon";
  CHECK(mm::training::optimizer_options(muon).muon()->momentum() == 0.5);
  CHECK(std::holds_alternative<mm::training::AdamRule>(mm::training::optimizer_options(muon).rule()));

  const auto config = mm::training::config_of(o);
  const auto again = mm::training::with_config(TrainingOptions(mm::presets::cifar10), config);
  CHECK(mm::training::config_of(again) == config);
  CHECK(again.prefetch);

  // What the command line leaves open; what it changes is refused, but for what may change.
  const auto adopt = [&](const std::vector<const char*>& more) {
    CLI::App app("", "program");
    TrainingOptions mine(mm::presets::cifar10);
    mine.methods = mm::training::method_names();
    mm::training::add_options(app, mine);
    std::vector<const char*> argv{"program", "--data", "d"};
    argv.insert(argv.end(), more.begin(), more.end());
    app.parse(static_cast<int>(argv.size()), argv.data());
    const std::string error = error_of([&] { mm::training::adopt_config(app, config, mine); });
    CHECK((!error.empty() || mine.batch == 8));
    return error;
  };
  CHECK(adopt({}).empty());
  CHECK(adopt({"--steps", "77", "--threads", "3", "--prefetch", "false"}).empty());
  CHECK(adopt({"--batch", "8"}).empty());
  CHECK(adopt({"--batch", "9"}) == "--batch 9 is not the run's: it was started with 8");
  CHECK(adopt({"--debias", "true"}) == "--debias true is not the run's: it was started with false");
}

TEST_CASE("options: --help says ranges that a person reads") {
  std::string help;
  parse({"--data", "d"}, &help);
  CHECK_THAT(help, contains("--steps INT (>= 1)"));
  CHECK_THAT(help, contains("--seed INT (>= 0)"));
  CHECK_THAT(help, contains("--batch INT (1 to 65536)"));
  CHECK_THAT(help, contains("--lr NUMBER (>= 0)"));
  CHECK_THAT(help, contains("--ema-decay NUMBER (0 to 1)"));
  for (const std::string value :
       {"64", "0.002", "0.999"}) {  // the defaults, as this version of CLI11 writes them
    INFO(value);
    CHECK((help.find("=" + value) != help.npos || help.find("[" + value + "]") != help.npos));
  }
  // A program does not offer what it has no method for.
  CLI::App app("", "program");
  TrainingOptions two(mm::presets::cifar10);
  mm::training::add_options(app, two);
  for (const std::string option :
       {"--threshold", "--annealing", "--radius", "--entropy-weight", "--strong"}) {
    CHECK_THAT(help, contains(option));
    CHECK(app.help().find(option) == std::string::npos);
  }
  CHECK(help.find("9223372036854775807") == std::string::npos);
  CHECK(help.find("18446744073709551615") == std::string::npos);
}

namespace {

/// The weights that three steps on the same images come to.
Tensor trained(AllOptions o) {
  o.given.clear();
  const auto data = make_data(o, make_pool(60, 60));
  mm::training::adopt_data(o, data);
  mm::training::TrainState state(mm::training::make_network(o, data, torch::kCPU, /*quiet=*/true),
                                 mm::training::train_state_options(o));
  const mm::training::TrainedOn seen(o, state.model, data, torch::kCPU);
  return mm::training::with_method(o, [&](auto method) {
    mm::training::Trainer trainer(state, std::move(method), seen.data(), mm::training::trainer_options(o));
    while (state.step < o.steps) {
      trainer.run(o.steps - state.step);
    }
    std::vector<Tensor> weights;
    for (const auto& parameter : state.model->parameters()) {
      weights.push_back(parameter.detach().flatten());
    }
    return at::cat(weights);
  });
}

AllOptions small_run(const std::string& method) {
  AllOptions o(mm::presets::cifar10);
  static_cast<TrainingOptions&>(o) = small_options("run");
  o.methods = mm::training::method_names();
  o.method = method;
  mm::training::use_method_preset(o);
  o.steps = 3;
  o.batch = 5;  // for MixMatch's groups with two unlabeled images for each
  o.precision = "fp32";
  o.unlabeled_ratio = 1;
  o.threshold = 0.3;  // of three classes nothing is below
  o.rampup_steps = 2;
  o.prefetch = false;
  o.recalibrate = 0;
  return o;
}

using Given = std::vector<std::pair<std::string, std::string>>;

/// Each option is refused where a run with it is the same to the bit, and there alone.
void check_refused_where_idle(const AllOptions& usual, const Given& options) {
  const Tensor expected = trained(usual);
  for (const auto& [name, value] : options) {
    INFO(usual.method << ", --train " << usual.train << ": " << name << " " << value);
    AllOptions o = usual;
    CLI::App app("", "program");
    mm::training::add_options(app, o);
    const std::string option = "--" + name;
    const char* argv[] = {"program", "--data", "d", option.c_str(), value.c_str()};
    app.parse(5, argv);
    REQUIRE(o.given.size() == 2);
    AllOptions checked = o;
    const std::string error = error_of([&] { mm::training::check_options(checked); });
    CHECK((error.empty() || error.starts_with(option + " " + value + " has no effect")));
    const bool same = torch::equal(trained(o), expected);
    // Of guesses that are aligned FixMatch takes the class alone, which may stay what it was.
    CHECK((error.empty() != same || (error.empty() && name == "alignment")));
    // The settings of a run that goes on are those of its start, whoever says them again.
    checked.resume = true;
    CHECK(error_of([&] { mm::training::check_options(checked); }).empty());
  }
}

}  // namespace

TEST_CASE("options: what has no effect beside the others is refused, and nothing else") {
  for (const auto& method : mm::training::method_names()) {
    check_refused_where_idle(small_run(method), {{"unlabeled-ratio", "2"},
                                                 {"lambda-u", "3"},
                                                 {"rampup-steps", "7"},
                                                 {"threshold", "0.99"},
                                                 {"annealing", "log"},
                                                 {"radius", "1"},
                                                 {"entropy-weight", "0.5"},
                                                 {"alpha", "0.2"},
                                                 {"temperature", "0.9"},
                                                 {"num-augmentations", "1"},
                                                 {"mix-mode", "xx.yy"},
                                                 {"strong", method == "uda" ? "fixmatch" : "uda"},
                                                 {"momentum", "0.5"},
                                                 {"schedule-steps", "2"},
                                                 {"alignment", "uniform"}});
  }
  const Given of_all{{"backbone-rate", "0.5"},
                     {"freeze", "backbone"},
                     {"freeze-statistics", "true"},
                     {"augment", "resized_crop"},
                     {"padding", "1"},
                     {"crop-scale", "0.5"},
                     {"mirror", "false"},
                     {"color-jitter", "0.5"},
                     {"lr", "0.001"},
                     {"imbalance", "balanced_batches"},
                     {"warmup-steps", "3"},
                     {"lr-schedule", "cosine"}};
  auto usual = small_run("mixmatch");
  check_refused_where_idle(usual, of_all);
  check_refused_where_idle(usual, {{"widen", "2"}, {"scales", "2"}, {"filters", "12"}, {"depth", "16"}});
  usual.augment = "resized_crop";
  check_refused_where_idle(usual, {{"padding", "1"}, {"crop-scale", "0.5"}});
  usual.filters = 12;
  check_refused_where_idle(usual, {{"widen", "2"}});
  const TempDir dir;
  auto head = small_run("mixmatch");
  auto published = mm::training::make_network(head, 3, torch::kCPU);
  mm::save_safetensors(dir / "weights.safetensors", published);
  head.weights = (dir / "weights.safetensors").string();
  head.train = "head";
  check_refused_where_idle(head, of_all);
}

TEST_CASE("options: an option without effect, and what it is for") {
  const auto error = [](const auto& set, const std::vector<std::string>& given) {
    AllOptions o(mm::presets::cifar10);
    o.methods = mm::training::method_names();
    o.given = given;
    set(o);
    return error_of([&] { mm::training::check_given_options(o); });
  };
  CHECK(
      error([](auto& o) { o.method = "vat"; }, {"alignment", "open-set", "prior"}).empty());  // none of them
  CHECK(error(
            [](auto& o) {
              o.method = "vat";
              o.open_set = "energy";
            },
            {"open-set"}) ==
        "--open-set energy has no effect with --method vat: it is for mixmatch, uda, fixmatch");
  CHECK(error(
            [](auto& o) {
              o.method = "supervised";
              o.alignment = "labeled";
            },
            {"seed", "alignment"}) ==
        "--alignment labeled has no effect with --method supervised: it is for mixmatch, uda, fixmatch");
  CHECK(
      error([](auto& o) { o.train = "head"; }, {"augment"}) ==
      "--augment crop_flip has no effect with --train head, for which images are not augmented; take --train "
      "all");
  CHECK(error([](auto& o) { o.model = "resnet18"; }, {"depth"}) ==
        "--depth 28 has no effect with --model resnet18, which is no wide_resnet");
  CHECK(error([](auto& o) { o.model = "vit_s16"; }, {"freeze-statistics"}) ==
        "--freeze-statistics false has no effect with --model vit_s16, which has no batch norm");
  CHECK(error([](auto& o) { o.freeze_statistics = true; }, {"recalibrate"}) ==
        "--recalibrate 16384 has no effect with --freeze-statistics");
  CHECK(error(
            [](auto& o) {
              o.freeze_statistics = o.resume = true;  // how it is run is not the run's
            },
            {"recalibrate"}) == "--recalibrate 16384 has no effect with --freeze-statistics");
  CHECK(error(
            [](auto& o) {
              o.freeze_statistics = true;
              o.recalibrate = 0;
            },
            {"recalibrate"})
            .empty());
  CHECK(error(
            [](auto& o) {
              o.method = "uda";
              o.annealing = "none";
            },
            {"schedule-steps"}) ==
        "--schedule-steps -1 has no effect with --lr-schedule constant and --annealing none");
  CHECK(error(
            [](auto& o) {
              o.class_counts = {3, 3};
              o.validation = 0;
            },
            {"target-precision"}) ==
        "--target-precision 0.95 has no effect where no image is held out (--validation)");
  const std::string one =
      " has no effect in one process that no launcher (torchrun, mpirun, srun) has started";
  CHECK(error([](auto&) {}, {"ranks"}) == "--ranks joint" + one);
  CHECK(error([](auto&) {}, {"check-replicas"}) == "--check-replicas 1000" + one);
  CHECK(error([](auto& o) { o.resume = true; }, {"timeout"}) == "--timeout 60" + one);
  CHECK(error([](auto& o) { o.resume = true; }, {"sync-batch-norm"}) == "--sync-batch-norm false" + one);
  CHECK(
      error([](auto& o) { o.launcher = "Slurm"; }, {"ranks", "sync-batch-norm", "check-replicas", "timeout"})
          .empty());
  CHECK(error(
            [](auto& o) {
              o.launcher = "Slurm";
              o.model = "vit_s16";
            },
            {"sync-batch-norm"}) ==
        "--sync-batch-norm false has no effect with --model vit_s16, which has no batch norm");
}

namespace {

/// Images in memory that count how often each is asked for.
class CountedImages : public mm::data::ImageSource {
 public:
  explicit CountedImages(Tensor images)
      : images_(std::move(images)), counts_(at::zeros({images_.size(0)}, at::kLong)) {}
  int64_t size() const override { return images_.size(0); }
  std::vector<int64_t> image_sizes() const override { return {3, 8, 8}; }
  Tensor gather(const Tensor& rows) const override {
    counts_.index_add_(0, rows, at::ones_like(rows));
    return images_.index_select(0, rows);
  }
  uint32_t checksum(const Tensor&) const override { return 7; }
  /// Of each row since the last call.
  Tensor take_counts() { return std::exchange(counts_, at::zeros_like(counts_)); }

 private:
  Tensor images_;
  mutable Tensor counts_;
};

}  // namespace

TEST_CASE(
    "verdict: neither features nor predictions that the run has are computed again, and it is the same") {
  const TempDir dir;
  auto o = small_run("mixmatch");
  auto published = mm::training::make_network(o, 10, torch::kCPU);  // of other classes: a probe is the head
  mm::save_safetensors(dir / "weights.safetensors", published);
  o.weights = (dir / "weights.safetensors").string();
  o.train = "head";
  o.head = "probe";
  o.threads = 1;
  o.validation = 12;
  o.out = (dir / "run").string();
  const auto in_memory = make_pool(60, 60);
  const auto source = std::make_shared<CountedImages>(in_memory.gather(at::arange(60, at::kLong)));
  const mm::data::ImageDataset images{Tensor(), in_memory.labels, in_memory.class_names, nullptr, source};
  auto split = mm::training::make_split(o, mm::data::ImagePool({images}));
  auto validation = mm::data::take(images, split.validation);
  const TrainingData data{mm::data::ImagePool({images}), std::move(split), std::move(validation), {}};
  mm::training::adopt_data(o, data);
  mm::training::check_options(o);
  mm::training::RunTensors shared;
  mm::training::TrainState state(mm::training::make_network(o, data, torch::kCPU, /*quiet=*/true, &shared),
                                 mm::training::train_state_options(o));
  REQUIRE(shared.labeled_features.size(0) == 15);
  REQUIRE(mm::training::train_classifier(o, data, state, mm::training::run_directory(o, std::nullopt),
                                         &shared) == 0);
  REQUIRE(shared.held_out_probabilities.size(0) == 12);
  source->take_counts();
  const auto text = mm::training::verdict(o, data, state, torch::kCPU, 3, shared);
  const Tensor counts = source->take_counts();
  CHECK(counts.index_select(0, data.split.labeled).eq(0).all().item<bool>());
  CHECK(counts.index_select(0, data.split.validation).eq(2).all().item<bool>());  // probe and baseline
  CHECK_THAT(text,
             contains("verdict: ") && contains(" on 12 held-out images") && contains("; a linear probe: "));
  CHECK(mm::training::verdict(o, data, state, torch::kCPU, 3) == text);
  const Tensor alone = source->take_counts();
  CHECK(alone.index_select(0, data.split.labeled).eq(1).all().item<bool>());
  CHECK(alone.index_select(0, data.split.validation).eq(3).all().item<bool>());
  // To the bit what the network says of them.
  auto network = mm::training::make_network(o, data, torch::kCPU, /*quiet=*/true);
  CHECK(shared.labeled_features.equal(
      mm::training::features_of_rows(network, data.pool, data.split.labeled,
                                     mm::training::evaluate_options(o, torch::kCPU), [](int64_t) {})));
  CHECK(shared.held_out_probabilities.equal(
      mm::training::predict_probabilities([&](const Tensor& x) { return state.ema.forward(x); },
                                          data.validation, mm::training::evaluate_options(o, torch::kCPU))));
}

TEST_CASE("options: a locale with a decimal comma changes nothing, resuming included") {
  const TempDir dir;
  const LocaleGuard guard;
  const std::string expected = run_in_parts(dir / "plain", 4);
  CHECK_THAT(expected, contains("\"lr\": \"0.00125\""));
  std::locale::global(std::locale(std::locale::classic(), new CommaNumbers));
  CHECK(c10::str(1.5) == "1,5");
  CHECK(parse({"--data", "d", "--lr", "0.002"}).learning_rate == 0.002);
  CHECK(run_in_parts(dir / "streams", 2) == expected);
  std::locale::global(std::locale::classic());
  if (!set_comma_locale(dir.path())) {
    std::cout << "not tried with setlocale(): no locale with a decimal comma, and localedef makes none\n";
    return;
  }
  CHECK(parse({"--data", "d", "--lr", "0.002"}).learning_rate == 0.002);
  CHECK(run_in_parts(dir / "c", 2) == expected);
}

TEST_CASE("options: --model torchscript:FILE is resumed to the bit, from the run's own copy") {
  TempDir dir;
  small_net(3, 3).save((dir / "net.pt").string());
  const std::vector<std::string> options{"--model", "torchscript:" + (dir / "net.pt").string()};
  CHECK(run_in_parts(dir / "whole", 4, options) == run_in_parts(dir / "parts", 2, options));

  // Nothing is known of a script's layers.
  const auto refusal_of = [](const auto& set) {
    TrainingOptions o(mm::presets::cifar10);
    o.model = "torchscript:net.pt";
    set(o);
    return error_of([&] { mm::training::check_options(o); });
  };
  CHECK(refusal_of([](auto&) {}).empty());
  CHECK(refusal_of([](auto& o) { o.head = "probe"; }) ==
        "--model torchscript:net.pt has no last layer that is known: --head must be random, got probe");
  CHECK_THAT(refusal_of([](auto& o) { o.freeze_statistics = true; }),
             contains("it cannot --freeze-statistics"));
  CHECK_THAT(refusal_of([](auto& o) { o.backbone_rate = 0.5; }),
             contains("--backbone-rate must be 1, got 0.5"));
  // Weights by its names start it, with the settings of fine-tuning that need no known layers.
  TrainingOptions tuned(mm::presets::cifar10);
  tuned.model = options.back();
  auto network = mm::models::script_network(dir / "net.pt", 3);
  {
    torch::NoGradGuard no_grad;
    network->named_parameters()["bias"].fill_(5);
  }
  mm::save_safetensors(dir / "weights.safetensors", network);
  tuned.weights = (dir / "weights.safetensors").string();
  mm::training::use_fine_tuning_preset(tuned);
  mm::training::check_options(tuned);
  CHECK(
      mm::training::make_network(tuned, 3, torch::kCPU)->named_parameters()["bias"].eq(5).all().item<bool>());
  for (const auto& [model, train] :
       {std::pair<std::string, std::string>{"resnet18", "head"}, {options.back(), "all"}}) {
    std::vector<std::string> words{"program", "--weights", tuned.weights, "--model", model};
    std::vector<char*> argv;
    for (auto& word : words) {
      argv.push_back(word.data());
    }
    TrainingOptions given(mm::presets::cifar10);
    mm::training::use_weights_preset(static_cast<int>(argv.size()), argv.data(), given, /*has_train=*/true);
    CHECK(given.train == train);
  }
  tuned.freeze = "backbone";
  CHECK_THAT(error_of([&] { mm::training::make_network(tuned, 3, torch::kCPU); }), contains("no backbone"));
  tuned.freeze = "kernel";
  CHECK_FALSE(
      mm::training::make_network(tuned, 3, torch::kCPU)->named_parameters()["kernel"].requires_grad());
}

TEST_CASE("options: --model and --weights; a network with dropout that is resumed") {
  CHECK_THAT(error_of([] { parse({"--data", "d", "--model", "resnet19"}); }), contains("--model"));
  TempDir dir;
  torch::manual_seed(5);
  auto published = mm::models::named_network("efficientnet_lite0", 1000);
  mm::save_safetensors(dir / "lite0.safetensors", published);
  const std::vector<std::string> options{"--model", "efficientnet_lite0", "--weights",
                                         (dir / "lite0.safetensors").string()};
  CHECK(run_in_parts(dir / "whole", 4, options) == run_in_parts(dir / "parts", 2, options));
  std::vector<std::string> fine_tuning = options;
  for (const std::string option : {"--head", "probe", "--freeze", "_conv_stem,_bn0,_blocks.0",
                                   "--freeze-statistics", "true", "--backbone-rate", "0.1", "--warmup-steps",
                                   "3", "--lr-schedule", "half_cosine", "--schedule-steps", "4"}) {
    fine_tuning.push_back(option);
  }
  CHECK(run_in_parts(dir / "tuned", 4, fine_tuning) == run_in_parts(dir / "tuned parts", 2, fine_tuning));
  // What is frozen is the file's still, to the bit; what is not has moved.
  auto tuned = mm::models::load_classifier(dir / "tuned" / "model.safetensors").model;
  const auto tensors = tuned->named_parameters();
  for (const auto& item : published->named_parameters()) {
    const bool frozen = item.key().rfind("_conv_stem", 0) == 0 || item.key().rfind("_bn0", 0) == 0 ||
                        item.key().rfind("_blocks.0.", 0) == 0;
    if (frozen || item.key() == "_conv_head.weight") {
      CHECK(torch::equal(tensors[item.key()], item.value()) == frozen);
    }
  }
  CHECK(torch::equal(tuned->named_buffers()["_bn1.running_mean"],
                     published->named_buffers()["_bn1.running_mean"]));

  // The last layer alone, on features: nothing else moves.
  std::vector<std::string> head = options;
  for (const std::string option : {"--train", "head", "--head", "probe"}) {
    head.push_back(option);
  }
  const std::string whole = run_in_parts(dir / "head", 4, head);
  fs::copy_file(options.back(), dir / "other.safetensors");
  CHECK(run_in_parts(dir / "head parts", 2, head, options.back()) == whole);  // the checkpoint has them
  fs::rename(dir / "other.safetensors", options.back());
  auto trained = mm::models::load_classifier(dir / "head" / "model.safetensors").model;
  for (const auto& item : trained->named_parameters()) {
    if (item.key().rfind("_fc.", 0) != 0) {
      CHECK(torch::equal(item.value(), published->named_parameters()[item.key()]));
    }
  }
  for (const auto& item : trained->named_buffers()) {
    if (item.value().is_floating_point()) {
      CHECK(torch::equal(item.value(), published->named_buffers()[item.key()]));
    }
  }

  TrainingOptions o(mm::presets::cifar10);
  o.model = "efficientnet_lite0";
  o.weights = options.back();
  o.precision = "fp32";
  CHECK_FALSE(mm::training::trainer_options(o).learner().warmup());  // which would forget the statistics
  auto network = mm::training::make_network(o, 3, torch::kCPU);
  CHECK(torch::equal(network->named_parameters()["_conv_stem.weight"],
                     published->named_parameters()["_conv_stem.weight"]));
  CHECK(network->named_parameters()["_fc.weight"].size(0) == 3);
  // A linear probe as the head: on these images it is right from the start.
  mm::training::use_fine_tuning_preset(o);
  CHECK(o.head == "probe");
  o.labels = 30;
  const auto shades = make_data(o, make_pool(300, 300));
  auto probed = mm::training::make_network(o, shades, torch::kCPU);
  CHECK(probed->is_training());
  probed->eval();
  const Tensor classes =
      mm::training::predict_probabilities([&](const Tensor& x) { return probed->forward(x); },
                                          shades.pool.gather(shades.split.unlabeled))
          .argmax(1);
  const Tensor truth = shades.pool.labels_of(shades.split.unlabeled, torch::kCPU);
  CHECK(classes.eq(truth).to(at::kFloat).mean().item<float>() > 0.95F);
  o.resume = true;  // a checkpoint has a head of its own
  CHECK(torch::equal(mm::training::make_network(o, shades, torch::kCPU)->head()->weight,
                     network->head()->weight));
  o.resume = false;
  auto data = make_data(small_options(dir / "none"), make_pool(60, 60));
  o.padding = 0;
  o.model = "vit_s16";
  CHECK(error_of([&] { mm::training::adopt_data(o, data); }) ==
        "--model vit_s16 takes images whose size is a multiple of 16, got 8");
  o.model = "efficientnet_lite1";
  CHECK_THAT(
      error_of([&] { mm::training::make_network(o, 3, torch::kCPU); }),
      contains(
          o.weights +
          ": tensor \"_blocks.16._expand_conv.weight\" (F32 [1152, 192, 1, 1]) of the model is missing"));
}

#endif
