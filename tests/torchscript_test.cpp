// The example program torchscript from outside, on models that are written here, without Python.

#include <torch/script.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/io/safetensors.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include "catch.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

namespace fs = std::filesystem;
using torch::Tensor;

namespace {

/// A small convolutional network with a batch norm, as torch.jit.script would write it.
torch::jit::Module small_net(int64_t in_channels = 3, int64_t classes = 10, bool trainable = true) {
  torch::manual_seed(1);
  torch::jit::Module net("SmallNet");
  const auto parameter = [&](const std::string& name, const Tensor& value) {
    net.register_parameter(name, value.clone().set_requires_grad(trainable), false);
  };
  parameter("kernel", 0.2 * torch::randn({16, in_channels, 3, 3}));
  parameter("scale", torch::ones({16}));
  parameter("shift", torch::zeros({16}));
  parameter("weight", 0.2 * torch::randn({classes, 16}));
  parameter("bias", torch::zeros({classes}));
  net.register_buffer("running_mean", torch::zeros({16}));
  net.register_buffer("running_var", torch::ones({16}));
  net.register_buffer("num_batches_tracked", torch::tensor(int64_t{0}));
  net.register_attribute("training", c10::BoolType::get(), true);
  net.define(R"(
    def forward(self, x):
      if self.training:
        self.num_batches_tracked = self.num_batches_tracked + 1
      x = torch.conv2d(x, self.kernel, None, [2, 2], [1, 1])
      x = torch.batch_norm(x, self.scale, self.shift, self.running_mean, self.running_var, self.training, 0.1, 1e-3, False)
      return torch.linear(torch.relu(x).mean([2, 3]), self.weight, self.bias)
  )");
  return net;
}

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
  const auto finished =
      run(torchscript(in, out, {"--steps", "40", "--lr", "0.01", "--safetensors", weights.string()}));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  const auto lines = lines_of(finished.out);
  REQUIRE(lines.size() == 2);
  double first = 0, last = 0, error = 0;
  REQUIRE(std::sscanf(lines[0].c_str(), "labeled loss: %lf in the first tenth, %lf in the last", &first,
                      &last) == 2);
  CHECK(last < first - 0.05);
  REQUIRE(std::sscanf(lines[1].c_str(), "test error: %lf %%", &error) == 1);

  auto trained = torch::jit::load(out.string());
  // What is printed is the written model's.
  const auto test = mixmatch::data::make_shapes(1000, 2);
  const Tensor predicted =
      trained.forward({mixmatch::augment::normalize(test.images)}).toTensor().argmax(1);
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
  refused("--model " + in.string() + ": there is no such file");
  write_file(in, "no zip archive");
  refused("--model " + in.string() + " is no TorchScript module: ");
  small_net(3, 7).save(in.string());
  refused("must return logits [2, 10] for the data's 10 classes, got [2, 7]");
  small_net(4).save(in.string());
  refused("forward of images [2, 3, 32, 32] fails: ");
  defined("def forward(self, x):\n  return (x, x)\n");
  refused("forward must return logits, got a Tuple");
  defined("def apply(self, x):\n  return x\n");
  refused("fails: ");
  small_net(3, 10, false).save(in.string());
  refused("has no parameter that takes a gradient");
  small_net().save(in.string());
  refused("cs.toronto.edu/~kriz/cifar.html", {"--data", (dir / "nowhere").string()});
  refused("leaves no unlabeled image of 4000", {"--labels", "4000"});
  refused("--steps", {"--steps", "0"});
  refused("--device", {"--device", "tpu"});
  refused("cannot write", {"--safetensors", (dir / "no" / "a.safetensors").string()});
  check_refused(run(torchscript(in, dir / "no" / "trained.pt")), "its directory does not exist");
  check_refused(run(torchscript(in, dir.path())), "it is a directory");
  CHECK(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()) == 1);
}
