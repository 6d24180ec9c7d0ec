// Networks for programs without this library: TorchScript by the tracer, ONNX from it, and the program that
// writes both. tests/python/exported.py has the other half of the last test.

#include <torch/script.h>
#include <mixmatch/io/onnx.hpp>
#include <mixmatch/io/torchscript.hpp>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>

#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "python.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

namespace fs = std::filesystem;
namespace mm = mixmatch;
using torch::Tensor;

namespace {

/// What other networks are made of: [N, 3, 12, 12] to [N, 4].
struct ManyCallsImpl : torch::nn::Module {
  ManyCallsImpl() {
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({8})));
    stem =
        register_module("stem", torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 8, 3).stride(2).bias(false)));
    depthwise = register_module("depthwise",
                                torch::nn::Conv2d(torch::nn::Conv2dOptions(8, 8, 3).groups(8).padding(1)));
    bn = register_module("bn", torch::nn::BatchNorm2d(8));
    qkv = register_module("qkv", torch::nn::Linear(8, 24));
    head = register_module("head", torch::nn::Linear(torch::nn::LinearOptions(8, 4).bias(false)));
    token = register_parameter("token", torch::randn({1, 1, 8}));
    torch::NoGradGuard no_grad;
    bn->running_mean.normal_();
    bn->running_var.uniform_(0.5, 2);
  }

  Tensor forward(Tensor x) {
    x = torch::constant_pad_nd(x, {0, 1, 0, 1}, 0.5);
    x = bn(stem(x)).clamp(0, 6);
    x = torch::max_pool2d(torch::relu(depthwise(x) + 0.25 * x), 3, 1, 1);
    const Tensor pooled = torch::adaptive_avg_pool2d(torch::silu(x), {1, 1}).flatten(1);
    x = x.flatten(2).transpose(1, 2);
    x = torch::cat({token.expand_as(x.narrow(1, 0, 1)), x}, 1);
    const Tensor parts = qkv(norm(x)).unflatten(-1, {3, 2, 4}).permute({2, 0, 3, 1, 4});
    const Tensor query = parts.select(0, 0), key = parts.select(0, 1), value = parts.select(0, 2);
    const Tensor attention = (torch::matmul(query, key.transpose(-2, -1)) / 2).softmax(-1);
    x = x - torch::gelu(torch::matmul(attention, value).transpose(1, 2).flatten(2));
    return head(x.slice(1, 0, 1).squeeze(1) + pooled.sigmoid());
  }

  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Conv2d stem{nullptr}, depthwise{nullptr};
  torch::nn::BatchNorm2d bn{nullptr};
  torch::nn::Linear qkv{nullptr}, head{nullptr};
  Tensor token;
};
TORCH_MODULE(ManyCalls);

/// A trained classifier's file, and pictures.
struct Exported {
  Exported() {
    torch::manual_seed(3);
    mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
    {
      torch::NoGradGuard no_grad;
      for (auto& buffer : model->named_buffers()) {
        if (buffer.key().find("running_var") != std::string::npos) {
          buffer.value().uniform_(0.5, 2);
        }
      }
    }
    mm::EmaModel ema(model);
    mm::models::save_classifier(weights(), model, ema, {"cat", "dög", "cow"}, 24, {2.5, 0.7, 0.9});
  }
  fs::path weights() const { return dir / "model.safetensors"; }
  Tensor probabilities() const {
    auto classifier = mm::models::load_classifier(weights());
    torch::NoGradGuard no_grad;
    return (classifier.model->forward(mm::augment::normalize(images)) / 2.5).softmax(1);
  }

  TempDir dir;
  Tensor images = torch::randint(256, {5, 3, 24, 24}, at::kByte);
};

std::vector<std::string> export_to(const std::string& kind, const fs::path& model, const fs::path& out) {
  return {MIXMATCH_EXPORT, "--model", model.string(), "--to", kind, "--out", out.string()};
}

double largest_difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

}  // namespace

TEST_CASE("trace_module: the same answers for any number of images, weights by name and shared") {
  torch::manual_seed(1);
  ManyCalls net;
  const auto forward = [&net](const Tensor& x) { return net->forward(x); };
  auto script = mm::trace_module(*net, forward, torch::randn({2, 3, 12, 12}));
  CHECK_FALSE(net->is_training());
  const torch::NoGradGuard no_grad;
  const Tensor two = torch::randn({2, 3, 12, 12});
  CHECK(largest_difference(script.forward({two}).toTensor(), net->forward(two)) == 0);
  std::map<std::string, Tensor> state;
  for (const auto& parameter : script.named_parameters()) {
    state[parameter.name] = parameter.value;
  }
  CHECK(state.size() == net->named_parameters().size());
  for (const auto& parameter : net->named_parameters()) {
    INFO(parameter.key());
    REQUIRE(state.count(parameter.key()) == 1);
    CHECK(state[parameter.key()].data_ptr() == parameter.value().data_ptr());
  }
  std::stringstream file;
  script.save(file);
  auto loaded = torch::jit::load(file);
  loaded.eval();
  const Tensor five = torch::randn({5, 3, 12, 12});
  CHECK(largest_difference(loaded.forward({five}).toTensor(), net->forward(five)) < 1e-6);

  mm::models::WideResNet wide(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
  auto traced = mm::trace_module(
      *wide, [&wide](const Tensor& x) { return wide->forward(x); }, torch::randn({2, 3, 16, 16}));
  const Tensor seven = torch::randn({7, 3, 16, 16});
  CHECK(largest_difference(traced.forward({seven}).toTensor(), wide->forward(seven)) < 1e-6);
}

TEST_CASE("export --to torchscript: from pixels to probabilities, and what a user must know") {
  const Exported made;
  const fs::path out = made.dir / "m.pt";
  const auto finished = run(export_to("torchscript", made.weights(), out));
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  CHECK(finished.out.find("uint8 [N, 3, 24, 24] to the probabilities of 3 classes") != std::string::npos);
  torch::jit::ExtraFilesMap files{{"class_1", ""}, {"image_size", ""}, {"abstain_below", ""}};
  auto module = torch::jit::load(out.string(), torch::kCPU, files);
  CHECK(files["class_1"] == "dög");
  CHECK(files["image_size"] == "24");
  CHECK(files["abstain_below"] == "0.7");
  const torch::NoGradGuard no_grad;
  const Tensor found = module.forward({made.images}).toTensor();
  CHECK(largest_difference(found, made.probabilities()) < 1e-6);
  CHECK(found.std().item<double>() > 1e-3);
}

TEST_CASE("export: bad input in one line") {
  const Exported made;
  const auto refuse = [](const std::vector<std::string>& command, const std::string& reason) {
    const auto finished = run(command);
    INFO(finished.err);
    CHECK(finished.status == 2);
    CHECK(finished.err.find(reason) != std::string::npos);
    CHECK(std::count(finished.err.begin(), finished.err.end(), '\n') == 1);
  };
  refuse(export_to("torchscript", made.dir / "none.safetensors", made.dir / "o"), "none.safetensors");
  refuse(export_to("tflite", made.weights(), made.dir / "o"), "--to");
  refuse(export_to("torchscript", made.weights(), made.dir / "no" / "o.pt"), "cannot write");
  write_file(made.dir / "cut.safetensors", read_file(made.weights()).substr(0, 1000));
  refuse(export_to("torchscript", made.dir / "cut.safetensors", made.dir / "o"), "cut.safetensors");
  CHECK_FALSE(fs::exists(made.dir / "o"));
}

TEST_CASE("save_onnx: weights by their names, once, and what it is told") {
  torch::manual_seed(1);
  TempDir dir;
  mm::models::WideResNet wide(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
  const Tensor example = torch::randn({2, 3, 16, 16});
  const auto module = mm::trace_module(
      *wide, [&wide](const Tensor& x) { return wide->forward(x); }, example);
  mm::save_onnx(dir / "m.onnx", module, example,
                mm::OnnxOptions().input("pixels").output("scores").metadata({{"note", "é"}}));
  const std::string file = read_file(dir / "m.onnx");
  size_t bytes = 0;
  for (const auto& parameter : wide->named_parameters()) {
    INFO(parameter.key());
    const auto& values = parameter.value();
    const std::string content(static_cast<const char*>(values.data_ptr()), values.nbytes());
    CHECK(file.find(parameter.key()) != std::string::npos);
    CHECK(file.find(content) != std::string::npos);
    bytes += content.size();
  }
  CHECK(file.size() > bytes);
  CHECK(file.size() < bytes + 20000);  // no weight twice
  for (const char* text : {"pixels", "scores", "note", "é"}) {
    CHECK(file.find(text) != std::string::npos);
  }
}

TEST_CASE("save_onnx: a call without a counterpart is named, and nothing is written") {
  TempDir dir;
  torch::nn::Linear linear(4, 4);
  const Tensor example = torch::randn({2, 4});
  const auto module = mm::trace_module(
      *linear, [&linear](const Tensor& x) { return torch::cumsum(linear(x), 1); }, example);
  CHECK(error_of([&] { mm::save_onnx(dir / "m.onnx", module, example); }) ==
        "save_onnx: the network calls aten::cumsum, which is not written as ONNX");
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("exported networks in onnxruntime and in Python's PyTorch") {
  const auto python = python_or_skip("torch, safetensors, onnxruntime");
  if (python.empty()) {
    return;
  }
  const Exported made;
  const auto check = [&](const fs::path& onnx, const fs::path& script, const Tensor& input,
                         const Tensor& expected) {
    const fs::path tensors = made.dir / "io.safetensors";
    mm::write_safetensors(tensors, {{"input", input}, {"expected", expected}}, {});
    const auto finished =
        run({python, "-B", "-W", "ignore", std::string(MIXMATCH_SOURCE_DIR) + "/tests/python/exported.py",
             onnx.string(), script.string(), tensors.string()});
    INFO(finished.err);
    CHECK(finished.status == 0);
  };
  for (const char* kind : {"onnx", "torchscript"}) {
    const auto finished = run(export_to(kind, made.weights(), made.dir / kind));
    INFO(finished.err);
    REQUIRE(finished.status == 0);
  }
  check(made.dir / "onnx", made.dir / "torchscript", made.images, made.probabilities());

  const auto check_network = [&](auto net, int64_t size) {
    const auto forward = [&net](const Tensor& x) { return net->forward(x); };
    const Tensor example = torch::randn({2, 3, size, size});
    const auto module = mm::trace_module(*net, forward, example);
    mm::save_onnx(made.dir / "net.onnx", module, example);
    const torch::NoGradGuard no_grad;
    const Tensor five = torch::randn({5, 3, size, size});
    const Tensor expected = net->forward(five);
    CHECK(largest_difference(torch::jit::Module(module).forward({five}).toTensor(), expected) < 1e-4);
    check(made.dir / "net.onnx", "", five, expected);
  };
  torch::manual_seed(1);
  namespace models = mm::models;
  check_network(ManyCalls(), 12);
  check_network(models::named_network("resnet18", 7), 64);  // normalises by itself
  check_network(models::EfficientNetLite(models::EfficientNetLiteOptions(7)), 65);
  const auto transformer = models::VisionTransformerOptions(7).image_size(32).width(32).depth(2).heads(2);
  check_network(models::VisionTransformer(transformer), 32);
  check_network(models::VisionTransformer(transformer), 48);  // another size than its positions are for
  check_network(
      models::VisionTransformer(models::VisionTransformerOptions(transformer).layer_scale(1e-1).registers(2)),
      32);
}
