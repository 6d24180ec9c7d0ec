// TorchScript models that are written here, without Python, in the example program torchscript and as --model
// of another.

#include <torch/script.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/program/classifier_file.hpp>
#include <mixmatch/serve/classifier.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include "pictures.hpp"
#include "program_util.hpp"
#include "script_net.hpp"

namespace fs = std::filesystem;
using torch::Tensor;

namespace {

std::vector<std::string> torchscript(const fs::path& model, const fs::path& out,
                                     const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{MIXMATCH_TORCHSCRIPT, "--model", model.string(), "--out", out.string(),
                                     "--threads",          "1",       "--batch",      "16"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

}  // namespace

TEST_CASE("torchscript: the loss falls, and the averaged model is written") {
  TempDir dir;
  const fs::path in = dir / "model.pt", out = dir / "trained.pt", weights = dir / "weights.safetensors";
  auto before = small_net();
  before.save(in.string());
  const auto finished = run(torchscript(
      in, out, {"--steps", "40", "--lr", "0.01", "--precision", "fp32", "--safetensors", weights.string()}));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const auto lines = lines_of(finished.out);
  REQUIRE(lines.size() == 3);
  CHECK(lines[0] == "device cpu, precision fp32");
  double first = 0, last = 0, error = 0;
  REQUIRE(std::sscanf(lines[1].c_str(), "labeled loss: %lf in the first tenth, %lf in the last", &first,
                      &last) == 2);
  CHECK(last < first - 0.05);
  REQUIRE(std::sscanf(lines[2].c_str(), "test error: %lf %%", &error) == 1);

  auto trained = torch::jit::load(out.string());
  // What is printed is the written model's.
  const auto test = mixmatch::data::make_shapes(1000, 2);
  const Tensor predicted = trained.forward({mixmatch::augment::normalize(test.images)}).toTensor().argmax(1);
  const double wrong = predicted.ne(test.labels).to(torch::kDouble).mean().item<double>();
  CHECK(error == Approx(100 * wrong).margin(0.051));
  CHECK_FALSE(trained.attr("training").toBool());
  CHECK(trained.forward({torch::zeros({1, 3, 32, 32})}).toTensor().sizes() == at::IntArrayRef({1, 10}));
  for (const auto& parameter : before.named_parameters()) {
    INFO(parameter.name);
    const Tensor after = trained.attr(parameter.name).toTensor();
    CHECK(after.isfinite().all().item<bool>());
    CHECK_FALSE(torch::allclose(after, parameter.value));
  }
  // One pass a step counts, of the views' and the K + 1 training ones.
  CHECK(trained.attr("num_batches_tracked").toTensor().item<int64_t>() == 40);
  CHECK_FALSE(torch::allclose(trained.attr("running_mean").toTensor(), torch::zeros({16})));

  const auto saved = mixmatch::read_safetensors(weights);
  CHECK(saved.size() == 8);
  for (const auto& [name, tensor] : saved) {
    INFO(name);
    CHECK(torch::equal(tensor, trained.attr(name).toTensor()));
  }
  CHECK(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()) == 3);
}

TEST_CASE("torchscript: the seed decides the result") {
  TempDir dir;
  const fs::path in = dir / "model.pt";
  small_net().save(in.string());
  const auto kernel = [&](const std::string& seed) {
    const fs::path out = dir / "trained.pt";
    REQUIRE(run(torchscript(in, out, {"--steps", "2", "--seed", seed})).status == 0);
    return torch::jit::load(out.string()).attr("kernel").toTensor();
  };
  const Tensor once = kernel("1");
  CHECK(torch::equal(kernel("1"), once));
  CHECK_FALSE(torch::equal(kernel("2"), once));
}

TEST_CASE("torchscript: bad input exits 2 with one line and writes nothing") {
  TempDir dir;
  const fs::path in = dir / "model.pt", out = dir / "trained.pt";
  const auto refused = [&](const std::string& message, const std::vector<std::string>& more = {}) {
    check_refused(run(torchscript(in, out, more)), message);
    CHECK_FALSE(fs::exists(out));
  };
  const auto defined = [&](const std::string& code) {
    torch::jit::Module net("Net");
    net.register_attribute("training", c10::BoolType::get(), true);
    net.define(code);
    net.save(in.string());
  };
  check_refused(run({MIXMATCH_TORCHSCRIPT}), "--model is required");
  refused("cannot read " + in.string() + ": No such file");
  write_file(in, "no zip archive");
  refused(in.string() + " is no TorchScript file: it is no zip archive");
  small_net(3, 7).save(in.string());
  refused(in.string() +
          ": forward of images [2, 3, 32, 32] must return logits [2, 10] for 10 classes, got [2, 7]");
  small_net(4).save(in.string());
  refused(in.string() + ": forward of images [2, 3, 32, 32] fails: ");
  defined("def forward(self, x):\n  return (x, x)\n");
  refused(in.string() + ": forward must return logits, got a Tuple");
  defined("def apply(self, x):\n  return x\n");
  refused("fails: ");
  small_net(3, 10, false).save(in.string());
  refused(in.string() + " has no parameter that takes a gradient among its 5");
  small_net().save(in.string());
  refused("cs.toronto.edu/~kriz/cifar.html", {"--data", (dir / "nowhere").string()});
  refused("leaves no unlabeled image of 4000", {"--labels", "4000"});
  refused("leaves no unlabeled image of 4000", {"--labels", "5000"});
  refused("--steps", {"--steps", "0"});
  refused("--device", {"--device", "tpu"});
  refused("--precision", {"--precision", "fp16"});
  refused("cannot write", {"--safetensors", (dir / "no" / "a.safetensors").string()});
  check_refused(run(torchscript(in, dir / "no" / "trained.pt")), "its directory does not exist");
  check_refused(run(torchscript(in, dir.path())), "it is a directory");
  CHECK(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()) == 1);
}

TEST_CASE("--model torchscript:FILE: trained, resumed to the bit, evaluated, used and exported") {
  TempDir dir;
  const fs::path file = dir / "net.pt";
  const auto train = [&](const std::string& out, const std::vector<std::string>& more) {
    return run(short_run(MIXMATCH_CIFAR10, cifar10_dir(), dir / out, more));
  };
  const std::vector<std::string> model{"--model", "torchscript:" + file.string()};
  small_net().save(file.string());
  const auto finished = train("whole", model);
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  REQUIRE(train("parts", with(model, {"--steps", "5"})).status == 0);
  // The run has its own copy of the network.
  fs::rename(file, dir / "moved.pt");
  CHECK(read_file(dir / "parts" / "network.pt") == read_file(dir / "moved.pt"));
  const auto resumed = run({MIXMATCH_CIFAR10, "--data", cifar10_dir().string(), "--out",
                            (dir / "parts").string(), "--resume", "--steps", "12"});
  INFO(resumed.err);
  REQUIRE(resumed.status == 0);
  for (const std::string name : {"model.safetensors", "confusion.csv"}) {
    INFO(name);
    CHECK(read_file(dir / "whole" / name) == read_file(dir / "parts" / name));
  }
  const auto trained = mixmatch::read_safetensors(dir / "whole" / "model.safetensors");
  for (const auto& [name, tensor] : trained) {
    if (name == "num_batches_tracked") {
      CHECK(tensor.item<int64_t>() == 12);  // one pass a step counts
    } else {
      CHECK_FALSE(torch::equal(tensor, small_net().attr(name).toTensor()));
    }
  }

  const auto evaluated =
      run({MIXMATCH_CIFAR10, "--data", cifar10_dir().string(), "--eval", (dir / "parts").string()});
  INFO(evaluated.err);
  REQUIRE(evaluated.status == 0);
  CHECK_THAT(finished.out, contains("EMA " + lines_of(evaluated.out).back().substr(12, 4)));

  const fs::path picture = dir / "picture.png", exported = dir / "exported.pt";
  write_file(picture, png(200, 30, 90, 32, 32));
  REQUIRE(run({MIXMATCH_EXPORT, "--model", (dir / "parts").string(), "--to", "torchscript", "--out",
               exported.string()})
              .status == 0);
  const auto a = mixmatch::Classifier(dir / "parts").classify(picture);
  const auto b = mixmatch::Classifier(exported).classify(picture);
  for (size_t i = 0; i < 10; ++i) {
    CHECK(a.probabilities[i] == Approx(b.probabilities[i]).margin(1e-5));
  }
  REQUIRE(run({MIXMATCH_EXPORT, "--model", (dir / "parts").string(), "--out", (dir / "m.onnx").string()})
              .status == 0);
  small_net(3, 10, true, 2).save((dir / "parts" / "network.pt").string());
  CHECK_THAT(error_of([&] { mixmatch::models::load_classifier(dir / "parts" / "model.safetensors"); }),
             contains("was trained with another network.pt than the one beside it"));
  fs::remove(dir / "parts" / "network.pt");
  CHECK_THAT(error_of([&] { mixmatch::models::load_classifier(dir / "parts" / "model.safetensors"); }),
             contains("needs it as network.pt beside it, which is missing"));
}

TEST_CASE("--model torchscript:FILE: what cannot be trained is refused before anything is written") {
  TempDir dir;
  const fs::path file = dir / "net.pt", out = dir / "run";
  const auto refused = [&](const std::string& message, const std::string& model) {
    check_refused(run(short_run(MIXMATCH_CIFAR10, cifar10_dir(), out, {"--model", model})), message);
    CHECK_FALSE(fs::exists(out));
  };
  const std::string script = "torchscript:" + file.string();
  refused("--model: expected one of wide_resnet, ", "torchscript:");
  refused("cannot read " + file.string(), script);
  write_file(file, "no archive");
  refused(file.string() + " is no TorchScript file: it is no zip archive", script);
  small_net(3, 7).save(file.string());
  refused(file.string() +
              ": forward of images [2, 3, 32, 32] must return logits [2, 10] for 10 classes, got [2, 7]",
          script);
  small_net(4).save(file.string());
  refused(file.string() + ": forward of images [2, 3, 32, 32] fails: ", script);
  small_net(3, 10, false).save(file.string());
  refused(file.string() + " has no parameter that takes a gradient", script);
}
