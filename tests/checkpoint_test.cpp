#include <torch/nn.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/run/metrics_writer.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <limits>

using mixmatch::training::Checkpoint;
using mixmatch::training::Config;
using mixmatch::training::MetricsCsv;
using mixmatch::training::read_config;
using torch::Tensor;

namespace {

struct Counter {
  int64_t value = 0;
  void save(torch::serialize::OutputArchive& archive) const { archive.write("value", c10::IValue(value)); }
  void load(torch::serialize::InputArchive& archive) {
    c10::IValue read;
    archive.read("value", read);
    value = read.toInt();
  }
};

torch::nn::Sequential make_net(int64_t hidden = 8) {
  return torch::nn::Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, hidden, 3)),
                               torch::nn::BatchNorm2d(hidden), torch::nn::ReLU(), torch::nn::Flatten(),
                               torch::nn::Linear(hidden * 4, 2));
}

struct Training {
  explicit Training(uint64_t seed = 1) {
    torch::manual_seed(seed);
    net = make_net();
    optimizer = std::make_unique<torch::optim::Adam>(net->parameters(), torch::optim::AdamOptions(0.01));
    generator = at::detail::getDefaultCPUGenerator().clone();
  }
  void add_to(Checkpoint& checkpoint) {
    checkpoint.add("model", net)
        .add("optimizer", *optimizer)
        .add("generator", generator)
        .add("step", step)
        .add("losses", losses);
  }
  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      const auto x = torch::randn({6, 3, 4, 4}, generator);
      optimizer->zero_grad();
      auto loss = (net->forward(x) - 1).pow(2).mean();
      loss.backward();
      optimizer->step();
      losses.push_back(loss.item<double>());
      ++step;
    }
  }
  torch::nn::Sequential net{nullptr};
  std::unique_ptr<torch::optim::Adam> optimizer;
  at::Generator generator;
  std::vector<double> losses;
  int64_t step = 0;
};

bool same(const torch::nn::Sequential& a, const torch::nn::Sequential& b) {
  const auto compare = [](const std::vector<Tensor>& x, const std::vector<Tensor>& y) {
    bool equal = x.size() == y.size();
    for (size_t i = 0; equal && i < x.size(); ++i) {
      equal = torch::equal(x[i], y[i]);
    }
    return equal;
  };
  return compare(a->parameters(), b->parameters()) && compare(a->buffers(), b->buffers());
}

size_t files_in(const TempDir& dir) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(dir.path()), {}));
}

}  // namespace

TEST_CASE("three steps, save, load and three steps equal six steps bit for bit", "[checkpoint]") {
  const TempDir dir;
  Training straight;
  straight.run(6);
  {
    Training first;
    Checkpoint checkpoint(dir / "checkpoint.pt");
    first.add_to(checkpoint);
    CHECK_FALSE(checkpoint.exists());
    first.run(3);
    checkpoint.save();
    CHECK(checkpoint.exists());
  }
  Training resumed(/*seed=*/99);
  resumed.run(2);  // its own state must all be replaced
  Checkpoint checkpoint(dir / "checkpoint.pt");
  resumed.add_to(checkpoint);
  checkpoint.load();
  CHECK(resumed.step == 3);
  CHECK(resumed.losses.size() == 3);
  CHECK_FALSE(same(resumed.net, straight.net));
  resumed.run(3);
  CHECK(resumed.losses == straight.losses);
  CHECK(same(resumed.net, straight.net));
  CHECK(files_in(dir) == 1);
}

TEST_CASE("a checkpoint keeps values of every kind exactly", "[checkpoint]") {
  const TempDir dir;
  int64_t integer = std::numeric_limits<int64_t>::min();
  double real = 0.1;
  bool flag = true;
  std::string text = "h\xc3\xa9llo\n\"x\"";
  std::vector<double> list = {1e300, -0.0, 0.3, std::numeric_limits<double>::infinity()};
  std::vector<double> empty;
  Counter counter{42};
  auto tensor = torch::arange(6, torch::kInt).reshape({2, 3}).t();
  Tensor fresh = torch::tensor({1.5, 2.5});
  auto linear = std::make_shared<torch::nn::LinearImpl>(2, 2);
  const auto weight = linear->weight.detach().clone();
  Checkpoint checkpoint(dir / "c.pt");
  checkpoint.add("integer", integer).add("real", real).add("flag", flag).add("text", text).add("list", list);
  checkpoint.add("empty", empty).add("counter", counter).add("tensor", tensor).add("fresh", fresh);
  checkpoint.add("pointer", linear).add("class", *linear);  // a keyword is a name like any other
  checkpoint.save();
  const auto saved_list = list;
  const auto saved_tensor = tensor.clone();
  integer = 0;
  real = 0;
  flag = false;
  text.clear();
  list = {7};
  empty = {7};
  counter.value = 0;
  tensor.zero_();
  fresh = Tensor();
  torch::NoGradGuard no_grad;
  linear->weight.zero_();
  checkpoint.load();
  CHECK(integer == std::numeric_limits<int64_t>::min());
  CHECK(real == 0.1);
  CHECK(flag);
  CHECK(text == "h\xc3\xa9llo\n\"x\"");
  CHECK(list == saved_list);
  CHECK(std::signbit(list[1]));
  CHECK(empty.empty());
  CHECK(counter.value == 42);
  CHECK(torch::equal(tensor, saved_tensor));
  CHECK(torch::equal(fresh, torch::tensor({1.5, 2.5})));
  CHECK(torch::equal(linear->weight, weight));
}

TEST_CASE("modules are loaded into the memory they have", "[checkpoint]") {
  const TempDir dir;
  auto source = make_net();
  auto target = make_net();
  auto weight = target->parameters()[0];
  {
    torch::NoGradGuard no_grad;
    weight.set_data(weight.detach().contiguous(at::MemoryFormat::ChannelsLast));
    source->buffers()[0].fill_(3);
  }
  const auto* address = weight.data_ptr();
  Checkpoint(dir / "c.pt").add("model", source).save();
  Checkpoint(dir / "c.pt").add("model", target).load();
  CHECK(same(source, target));
  CHECK(target->parameters()[0].data_ptr() == address);
  CHECK(target->parameters()[0].is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(target->parameters()[0].requires_grad());
  target->forward(torch::ones({2, 3, 4, 4})).sum().backward();
  CHECK(target->parameters()[0].grad().defined());
}

TEST_CASE("a generator continues where it was", "[checkpoint]") {
  const TempDir dir;
  auto generator = at::detail::getDefaultCPUGenerator().clone();
  generator.set_current_seed(5);
  torch::randn({3}, generator);
  Checkpoint checkpoint(dir / "c.pt");
  checkpoint.add("generator", generator).save();
  const auto expected = torch::randn({5}, generator);
  checkpoint.load();
  CHECK(torch::equal(torch::randn({5}, generator), expected));
}

TEST_CASE("the config can be read without the objects", "[checkpoint]") {
  const TempDir dir;
  const Config config = {{"depth", "28"}, {"data", "/a b/\xc3\xa9"}, {"empty", ""}};
  int64_t step = 1;
  Checkpoint(dir / "c.pt").set_config(config).add("step", step).save();
  CHECK(read_config(dir / "c.pt") == config);
  Checkpoint(dir / "d.pt").add("step", step).save();
  CHECK(read_config(dir / "d.pt").empty());
  CHECK_THAT(error_of([&] { read_config(dir / "none.pt"); }),
             contains("no checkpoint") && contains("none.pt"));
}

TEST_CASE("saving again replaces the file, and keeps it when it fails", "[checkpoint]") {
  const TempDir dir;
  int64_t step = 1;
  Checkpoint checkpoint(dir / "c.pt");
  checkpoint.add("step", step);
  checkpoint.save();
  step = 2;
  checkpoint.save();
  step = 0;
  checkpoint.load();
  CHECK(step == 2);
  Tensor undefined;
  checkpoint.add("tensor", undefined);
  CHECK_THAT(error_of([&] { checkpoint.save(); }), contains("'tensor' is undefined"));
  Checkpoint again(dir / "c.pt");
  again.add("step", step).load();
  CHECK(step == 2);
  CHECK(files_in(dir) == 2);  // the last and the previous
  Checkpoint nowhere(dir / "missing" / "c.pt");
  nowhere.add("step", step);
  CHECK_THAT(error_of([&] { nowhere.save(); }), contains("cannot write") && contains("No such file"));
}

TEST_CASE("a damaged checkpoint is refused and changes nothing", "[checkpoint]") {
  const TempDir dir;
  const auto path = dir / "c.pt";
  auto net = make_net();
  int64_t step = 7;
  Checkpoint checkpoint(path);
  checkpoint.add("model", net).add("step", step);
  checkpoint.save();
  const std::string good = read_file(path);
  auto other = make_net();
  const auto before = other->parameters()[0].detach().clone();
  int64_t other_step = 1;
  Checkpoint loading(path);
  loading.add("step", other_step).add("model", other);
  const auto message = [&] { return error_of([&] { loading.load(); }); };
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{30}, good.size() / 2, good.size() - 36, good.size() - 1}) {
    write_file(path, good.substr(0, size));
    CHECK_THAT(message(), contains("cut short") && contains(path.string()));
  }
  for (size_t position = 100; position < good.size(); position += good.size() / 60) {
    for (const int bit : {1, 128}) {
      auto bad = good;
      bad[position] = static_cast<char>(bad[position] ^ bit);
      write_file(path, bad);
      const auto error = message();
      INFO("byte " << position << " of " << good.size() << ": " << error);
      CHECK((error.find("corrupt") != std::string::npos || error.find("cut short") != std::string::npos));
      CHECK(error.find('\n') == std::string::npos);
    }
  }
  write_file(path, good + "x");
  CHECK_THAT(message(), contains("cut short, or is no checkpoint"));
  write_file(path, std::string(5000, 'a'));
  CHECK_THAT(message(), contains("is no checkpoint"));
  std::filesystem::remove(path);
  CHECK_THAT(message(), contains("no checkpoint " + path.string()));
  std::filesystem::create_directory(path);
  CHECK_THAT(message(), contains("cannot read the checkpoint"));
  CHECK(other_step == 1);
  CHECK(torch::equal(other->parameters()[0], before));
  std::filesystem::remove(path);
  write_file(path, good);
  loading.load();
  CHECK(other_step == 7);
  CHECK(same(net, other));
}

TEST_CASE("a checkpoint that does not fit is refused before anything changes", "[checkpoint]") {
  const TempDir dir;
  const auto path = dir / "c.pt";
  auto net = make_net(8);
  int64_t step = 7;
  auto tensor = torch::zeros({3});
  Checkpoint(path).add("step", step).add("model", net).add("tensor", tensor).save();
  step = 1;

  auto wider = make_net(16);
  const auto before = wider->parameters()[0].detach().clone();
  const auto error = error_of([&] { Checkpoint(path).add("step", step).add("model", wider).load(); });
  CHECK_THAT(error, contains(path.string()) && contains("'model'") && contains("0.weight"));
  CHECK_THAT(error, contains("[16, 3, 3, 3]") && contains("[8, 3, 3, 3]"));
  CHECK(error.find('\n') == std::string::npos);
  CHECK(torch::equal(wider->parameters()[0], before));
  CHECK(step == 1);

  auto deeper = make_net(8);
  deeper->push_back(torch::nn::Linear(2, 2));
  CHECK_THAT(error_of([&] { Checkpoint(path).add("step", step).add("model", deeper).load(); }),
             contains("5 is missing"));
  int64_t extra = 0;
  CHECK_THAT(error_of([&] { Checkpoint(path).add("step", step).add("extra", extra).load(); }),
             contains("has no entry 'extra'"));
  std::string text = "kept";
  CHECK_THAT(error_of([&] { Checkpoint(path).add("step", text).load(); }), contains("entry 'step'"));
  CHECK(text == "kept");
  auto longer = torch::ones({4});
  CHECK_THAT(error_of([&] { Checkpoint(path).add("step", step).add("tensor", longer).load(); }),
             contains("[4]") && contains("[3]"));
  auto generator = at::detail::getDefaultCPUGenerator().clone();
  CHECK_THAT(error_of([&] { Checkpoint(path).add("tensor", generator).load(); }),
             contains("another kind of generator"));
  CHECK(step == 1);
}

TEST_CASE("a file of another format is refused", "[checkpoint]") {
  const TempDir dir;
  const auto path = dir / "c.pt";
  int64_t step = 1;
  for (const bool versioned : {false, true}) {
    torch::serialize::OutputArchive archive;
    archive.write("entry_step", c10::IValue(int64_t{3}));
    if (versioned) {
      archive.write("mixmatch_checkpoint_format", c10::IValue(int64_t{99}));
    }
    std::ostringstream out;
    archive.save_to(out);
    write_file(path, out.str());  // no seal: any LibTorch archive
    CHECK_THAT(error_of([&] { Checkpoint(path).add("step", step).load(); }),
               contains("no checkpoint of this library"));
    write_file(path, mixmatch::training::detail::seal_checkpoint(out.str()));
    CHECK_THAT(error_of([&] { Checkpoint(path).add("step", step).load(); }),
               contains(versioned ? "format 99" : "no readable checkpoint"));
  }
  CHECK(step == 1);
}

TEST_CASE("a checkpoint stays a LibTorch archive", "[checkpoint]") {
  const TempDir dir;
  int64_t step = 5;
  Checkpoint(dir / "c.pt").add("step", step).save();
  torch::serialize::InputArchive archive;
  archive.load_from((dir / "c.pt").string());
  c10::IValue value;
  archive.read("entry_step", value);
  CHECK(value.toInt() == 5);
}

TEST_CASE("the checkpoint cuts metrics back to what it saw", "[checkpoint][metrics]") {
  const TempDir dir;
  const auto write = [&](bool crash) {
    MetricsCsv metrics(dir / "metrics.csv", {"step", "loss"});
    Checkpoint checkpoint(dir / "c.pt");
    checkpoint.add("metrics", metrics);
    if (crash) {
      metrics.append({1, 0.5});
      checkpoint.save();
      metrics.append({2, 0.25});
    } else {
      checkpoint.load();
      metrics.append({2, 0.75});
    }
  };
  write(true);
  CHECK(read_file(dir / "metrics.csv") == "step,loss\n1,0.5\n2,0.25\n");
  write(false);
  CHECK(read_file(dir / "metrics.csv") == "step,loss\n1,0.5\n2,0.75\n");
  write_file(dir / "metrics.csv", "step,loss\n");  // what a power cut may leave
  write(false);
  CHECK(read_file(dir / "metrics.csv") == "step,loss\n1,0.5\n2,0.75\n");
}

TEST_CASE("the previous checkpoint is another file, also behind a link, and nothing else is left",
          "[checkpoint]") {
  const TempDir dir;
  std::filesystem::create_directory(dir / "big");
  std::filesystem::create_symlink("big/real.pt", dir / "c.pt");
  int64_t step = 1;
  Checkpoint checkpoint(dir / "c.pt");
  checkpoint.add("step", step).save();
  CHECK(checkpoint.size() == read_file(dir / "c.pt").size());
  const std::string first = read_file(dir / "c.pt");
  step = 2;
  checkpoint.save();
  CHECK(std::filesystem::is_symlink(dir / "c.pt"));
  CHECK(read_file(dir / "c.previous.pt") == first);
  CHECK(read_file(dir / "big" / "real.pt") != first);
  // Killed between the two: both names are one file.
  std::filesystem::remove(dir / "c.previous.pt");
  std::filesystem::create_hard_link(dir / "big" / "real.pt", dir / "c.previous.pt");
  step = 3;
  checkpoint.save();
  CHECK(files_in(dir) == 3);  // c.pt, c.previous.pt, big
  CHECK(read_file(dir / "c.previous.pt") != read_file(dir / "c.pt"));
}

TEST_CASE("the previous checkpoint is taken where the last is damaged or missing", "[checkpoint]") {
  const TempDir dir;
  const auto path = dir / "c.pt";
  int64_t step = 1;
  Checkpoint checkpoint(path);
  checkpoint.set_config({{"depth", "10"}}).add("step", step).save();
  step = 2;
  checkpoint.save();
  const std::string first = read_file(dir / "c.previous.pt"), second = read_file(path);
  CHECK(checkpoint.load().empty());
  CHECK(step == 2);
  std::string flipped = second;
  flipped[flipped.size() / 2] = static_cast<char>(flipped[flipped.size() / 2] ^ 4);
  for (const std::string& bad : {flipped, second.substr(0, 100), std::string()}) {
    write_file(path, bad);
    step = 0;
    CHECK_THAT(checkpoint.load(), contains(path.string()) && (contains("corrupt") || contains("cut short")));
    CHECK(step == 1);
    CHECK(read_config(path) == Config{{"depth", "10"}});
  }
  // What is damaged does not take the place of what is whole.
  step = 3;
  checkpoint.save();
  CHECK(read_file(dir / "c.previous.pt") == first);
  step = 4;
  checkpoint.save();
  std::filesystem::remove(path);
  CHECK_THAT(checkpoint.load(), contains("no checkpoint " + path.string()));
  CHECK(step == 3);

  write_file(path, flipped);
  write_file(dir / "c.previous.pt", first.substr(0, 50));
  const auto message = error_of([&] { checkpoint.load(); });
  CHECK_THAT(message, contains("c.pt is corrupt") && contains("c.previous.pt was cut short"));
  CHECK(step == 3);
  // Another configuration is no damage.
  write_file(path, second);
  write_file(dir / "c.previous.pt", first);
  CHECK_THAT(error_of([&] { checkpoint.load([](const Config&) { TORCH_CHECK(false, "other depth"); }); }),
             contains("other depth"));
}

TEST_CASE("LibTorch's text reaches a message in one line, without controls", "[checkpoint]") {
  using mixmatch::training::detail::message_of;
  CHECK(message_of(std::runtime_error("\n expected \x1b[2J\xff here:\nmore")) ==
        "expected \\x1b[2J\\xff here:");
  CHECK(message_of(std::runtime_error("\n")) == "LibTorch gives no reason");
  CHECK(message_of(std::runtime_error(std::string(100000, 'x'))).size() < 1000);
}

TEST_CASE("names of entries are checked", "[checkpoint]") {
  Checkpoint checkpoint("unused.pt");
  int64_t step = 0;
  checkpoint.add("step", step);
  CHECK_THAT(error_of([&] { checkpoint.add("step", step); }), contains("'step' is taken"));
  for (const char* name : {"", "a.b", "a b", "1st", "h\xc3\xa9"}) {
    CHECK_THAT(error_of([&] { checkpoint.add(name, step); }), contains("letters, digits and underscores"));
  }
}

TEST_CASE("optimizers of another shape are refused with the file's name", "[checkpoint]") {
  const TempDir dir;
  auto net = make_net();
  torch::optim::SGD one(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  net->forward(torch::ones({2, 3, 4, 4})).sum().backward();
  one.step();
  Checkpoint(dir / "c.pt").add("optimizer", one).save();
  torch::optim::SGD two({torch::optim::OptimizerParamGroup(net[0]->parameters()),
                         torch::optim::OptimizerParamGroup(net[1]->parameters())},
                        torch::optim::SGDOptions(0.1));
  const auto error = error_of([&] { Checkpoint(dir / "c.pt").add("optimizer", two).load(); });
  CHECK_THAT(error, contains("c.pt") && contains("'optimizer'"));
  CHECK(error.find('\n') == std::string::npos);
}
