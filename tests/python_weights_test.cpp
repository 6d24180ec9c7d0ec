// Weights to and from the real Python packages: safetensors, numpy and PyTorch, torchvision, timm and
// efficientnet-lite-pytorch. tests/python/weights.py and backbones.py are the other half.

#include <torch/script.h>
#include <mixmatch/mixmatch.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
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

const std::string source_dir = MIXMATCH_SOURCE_DIR;

std::string interpreter() { return python_or_skip("torch, safetensors, numpy"); }

Finished finished_python(const std::string& python, const std::string& script,
                         const std::vector<std::string>& arguments) {
  std::vector<std::string> command{python, "-B", "-W", "ignore", source_dir + script};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return run(command);
}

/// Runs a script, and returns what it prints; its traceback is the test's message.
std::string run_python(const std::string& python, const std::string& script,
                       const std::vector<std::string>& arguments) {
  const auto finished = finished_python(python, script, arguments);
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  return finished.out;
}

void weights_py(const std::string& python, const std::vector<std::string>& arguments) {
  run_python(python, "/tests/python/weights.py", arguments);
}

const mm::SafetensorsMetadata metadata{{"format", "pt"}, {"note", "quoted \"é\" \\ \n \U0001f600"}};

/// What weights.py calls `expected`.
std::map<std::string, Tensor> expected_tensors(bool with_bfloat16 = true) {
  std::map<std::string, Tensor> tensors;
  const std::vector<std::pair<std::string, at::ScalarType>> types{
      {"f64", at::kDouble}, {"f32", at::kFloat}, {"f16", at::kHalf},  {"bf16", at::kBFloat16},
      {"i64", at::kLong},   {"i32", at::kInt},   {"i16", at::kShort}, {"i8", at::kChar},
      {"u8", at::kByte},    {"bool", at::kBool}};
  for (const auto& [name, type] : types) {
    if (type == at::kBFloat16 && !with_bfloat16) {
      continue;
    }
    Tensor values = torch::empty({2, 3, 4, 2}, at::kDouble);
    auto* data = values.data_ptr<double>();
    for (int i = 0; i < 48; ++i) {
      data[i] = type == at::kBool ? (i % 3 == 0 ? 1 : 0) : at::isFloatingType(type) ? 0.25 * i - 2.5 : i;
    }
    tensors[name] = values.to(type);
    tensors[name + ".scalar"] = tensors[name][1][2][3][1].clone();
    tensors[name + ".empty"] = torch::empty({0, 3}, type);
  }
  tensors["name é \n"] = torch::tensor({1.F, 2.F});
  return tensors;
}

void check_tensors(const fs::path& path, const std::map<std::string, Tensor>& expected) {
  const auto read = mm::read_safetensors(path);
  CHECK(read.size() == expected.size());
  for (const auto& [name, tensor] : read) {
    INFO(name);
    REQUIRE(expected.count(name) == 1);
    CHECK(tensor.scalar_type() == expected.at(name).scalar_type());
    CHECK(torch::equal(tensor, expected.at(name)));
  }
}

Tensor tensor_of(const fs::path& path, const std::string& name) {
  for (const auto& [known, tensor] : mm::read_safetensors(path)) {
    if (known == name) {
      return tensor;
    }
  }
  FAIL("no " << name);
  return {};
}

/// Equal within 1e-5, and not all the same.
void check_logits(const Tensor& found, const Tensor& expected) {
  INFO("largest difference " << (found - expected).abs().max().item<double>());
  CHECK(torch::allclose(found, expected, 1e-5, 1e-5));
  CHECK(expected.std().item<double>() > 1e-3);
}

mm::models::WideResNet network() {
  return mm::models::WideResNet(
      mm::models::WideResNetOptions(10).depth(16).widen_factor(2).batch_norm_momentum(0.1));
}

template <class M>
Tensor evaluate(M& model, const Tensor& images) {
  torch::NoGradGuard no_grad;
  mm::detail::EvaluationModeGuard evaluation(model);
  return mm::forward(model, images);
}

}  // namespace

TEST_CASE("tensors of every dtype from C++ in Python") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  TempDir dir;
  mm::NamedTensors tensors;
  for (const auto& [name, tensor] : expected_tensors()) {
    // Python must not see strides.
    tensors.emplace_back(name,
                         tensor.dim() == 4 ? tensor.contiguous(at::MemoryFormat::ChannelsLast) : tensor);
  }
  mm::write_safetensors(dir / "a.safetensors", tensors, metadata);
  weights_py(python, {"check", (dir / "a.safetensors").string()});
}

TEST_CASE("tensors of every dtype from Python in C++") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  TempDir dir;
  const fs::path from_torch = dir / "torch.safetensors", from_numpy = dir / "numpy.safetensors";
  weights_py(python, {"write", from_torch.string(), from_numpy.string()});
  check_tensors(from_torch, expected_tensors());
  check_tensors(from_numpy, expected_tensors(/*with_bfloat16=*/false));
  CHECK(mm::read_safetensors_metadata(from_torch) == metadata);
  CHECK(mm::read_safetensors_metadata(from_numpy).empty());
}

TEST_CASE("a module under two names, there and back") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  struct Shared : torch::nn::Module {
    Shared() {
      first = register_module("first", torch::nn::Linear(3, 3));
      register_module("again", first);
    }
    Tensor forward(const Tensor& x) { return first(x); }
    torch::nn::Linear first{nullptr};
  } model;
  const Tensor weight = torch::arange(1, 10, at::kFloat).view({3, 3});
  {
    torch::NoGradGuard no_grad;
    model.first->weight.copy_(weight);
    model.first->bias.fill_(0.5);
  }
  TempDir dir;
  const fs::path to = dir / "to.safetensors", from = dir / "from.safetensors";
  mm::save_safetensors(to, model);
  weights_py(python, {"shared", to.string(), from.string()});
  mm::load_safetensors(from, model);
  CHECK(torch::equal(model.first->weight, 2 * weight));
  CHECK(torch::equal(model.first->bias, torch::ones({3})));
}

TEST_CASE("a Wide ResNet that C++ trained gives the same logits in Python, with its averages too") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  torch::manual_seed(1);
  auto generator = seeded(1);
  auto model = network();
  mm::EmaModel ema(model, mm::EmaModelOptions().decay(0.5));
  mm::training::Optimizer optimizer(model, ema, mm::training::OptimizerOptions(0.01).weight_decay(0.02));
  mm::RampedLoss criterion(mm::RampedLossOptions().lambda_u(75).rampup_steps(10));
  mm::augment::RandomCropFlip augment(mm::augment::RandomCropFlipOptions(), generator);
  const auto data = mm::data::make_shapes(24, 1);
  for (int64_t step = 0; step < 4; ++step) {
    const auto batch =
        mm::mixmatch_batch(model, augment, data.images.narrow(0, 0, 8), data.labels.narrow(0, 0, 8),
                           data.images.narrow(0, 8, 8), {}, generator);
    criterion(model->forward(batch.labeled_inputs), batch.labeled_targets,
              model->forward(batch.unlabeled_inputs), batch.unlabeled_targets, step)
        .total.backward();
    optimizer.step();
  }

  TempDir dir;
  const fs::path weights = dir / "weights.safetensors", images = dir / "images.safetensors",
                 result = dir / "result.safetensors";
  const Tensor x = mm::augment::normalize(data.images.narrow(0, 16, 8));
  mm::write_safetensors(images, {{"images", x}});
  const auto python_logits = [&] {
    weights_py(python, {"logits", weights.string(), images.string(), result.string()});
    return tensor_of(result, "logits");
  };
  const Tensor live = evaluate(model, x), average = ema.forward(x);
  CHECK_FALSE(torch::allclose(live, average, 1e-3, 1e-3));
  mm::save_safetensors(weights, *model);
  check_logits(python_logits(), live);
  {
    auto scope = ema.average_parameters();
    mm::save_safetensors(weights, model);
  }
  check_logits(python_logits(), average);
}

TEST_CASE("a Wide ResNet from Python gives the same logits in C++") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  TempDir dir;
  const fs::path weights = dir / "weights.safetensors", result = dir / "result.safetensors";
  weights_py(python, {"make", weights.string(), result.string()});
  auto model = network();
  mm::training::to_channels_last(model);
  mm::load_safetensors(weights, model);
  CHECK(model->bn1->num_batches_tracked.item<int64_t>() == 12);
  check_logits(evaluate(model, tensor_of(result, "images")), tensor_of(result, "logits"));
}

TEST_CASE("a TorchScript model from Python: forward, weights, training, and back") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  TempDir dir;
  const fs::path exported = dir / "model.pt", trained_path = dir / "trained.pt";
  const fs::path weights = dir / "weights.safetensors", images = dir / "images.safetensors",
                 result = dir / "result.safetensors";
  const Tensor x = mm::augment::normalize(mm::data::make_shapes(8, 3).images);
  mm::write_safetensors(images, {{"images", x}});
  run_python(python, "/examples/python/export_model.py", {exported.string()});
  const auto check_in_python = [&](const fs::path& script, torch::jit::Module& model) {
    weights_py(python, {"check_script", script.string(), weights.string(), images.string(), result.string()});
    check_logits(tensor_of(result, "logits"), evaluate(model, x));
  };

  // Untrained: the same function, and the names of the Python module.
  auto model = torch::jit::load(exported.string());
  CHECK(model.is_training());
  mm::save_safetensors(weights, model);
  model.eval();
  model.save((dir / "evaluation.pt").string());
  check_in_python(dir / "evaluation.pt", model);

  // Trained by the example program.
  const auto finished = run({MIXMATCH_TORCHSCRIPT, "--model", exported.string(), "--out",
                             trained_path.string(), "--safetensors", weights.string(), "--steps", "20",
                             "--batch", "16", "--lr", "0.004", "--threads", "2", "--precision", "fp32"});
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  double first = 0, last = 0;
  REQUIRE(std::sscanf(lines_of(finished.out).at(1).c_str(),
                      "labeled loss: %lf in the first tenth, %lf in the last", &first, &last) == 2);
  CHECK(last < first - 0.05);
  auto trained = torch::jit::load(trained_path.string());
  check_in_python(trained_path, trained);
  for (const auto& parameter : model.named_parameters()) {
    INFO(parameter.name);
    for (const auto& after : trained.named_parameters()) {
      if (after.name == parameter.name) {
        CHECK_FALSE(torch::equal(after.value, parameter.value));
      }
    }
  }

  // The trained weights into the untrained module, and into the library's own network.
  mm::load_safetensors(weights, model);
  check_logits(evaluate(model, x), evaluate(trained, x));
  mm::models::WideResNet own(mm::models::WideResNetOptions(10).depth(10).widen_factor(1));
  mm::load_safetensors(weights, own);
  check_logits(evaluate(own, x), evaluate(trained, x));
}

TEST_CASE(
    "networks with random weights of torchvision, timm and efficientnet-lite-pytorch do here what they do "
    "there") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  TempDir dir;
  run_python(python, "/tests/python/backbones.py", {"make", dir.path().string()});
  const auto check = [&](const std::string& name, auto model) {
    INFO(name);
    mm::load_safetensors(dir / (name + ".safetensors"), *model);
    std::map<std::string, Tensor> expected;
    for (const auto& [key, tensor] : mm::read_safetensors(dir / (name + ".result.safetensors"))) {
      expected[key] = tensor;
    }
    const auto check_output = [](const Tensor& found, const Tensor& wanted) {
      const double difference = ((found - wanted).abs().max() / wanted.abs().max()).item<double>();
      INFO("largest difference " << difference << " of the largest output");
      CHECK(difference < 1e-4);
      CHECK(wanted.std().item<double>() > 1e-3);
    };
    const torch::NoGradGuard no_grad;
    model->eval();
    check_output(model->forward(expected["images"]), expected["evaluated"]);
    model->train();
    // Channels-last: the fused paths.
    check_output(model->forward(expected["images"].contiguous(at::MemoryFormat::ChannelsLast)),
                 expected["trained"]);
    for (const auto& buffer : model->named_buffers()) {
      if (buffer.key() != "mask_token") {
        INFO(buffer.key());
        REQUIRE(expected.count("after." + buffer.key()) == 1);
        CHECK(torch::allclose(buffer.value(), expected["after." + buffer.key()], 1e-3, 1e-4));
      }
    }
  };
  using namespace mm::models;
  for (const int64_t depth : {18, 34, 50}) {
    check("resnet" + std::to_string(depth), ResNet(ResNetOptions(5).depth(depth)));
  }
  for (int64_t variant = 0; variant < 5; ++variant) {
    check("efficientnet_lite" + std::to_string(variant),
          EfficientNetLite(EfficientNetLiteOptions(5).variant(variant).dropout(0).drop_connect(0)));
  }
  check("vit_s16", VisionTransformer(VisionTransformerOptions::small(5).image_size(48)));
  check("vit_b16", VisionTransformer(VisionTransformerOptions::base(5).image_size(48).depth(2)));
  const auto dinov2 = VisionTransformerOptions::dinov2_small(5).image_size(42);
  check("dinov2_s14", VisionTransformer(dinov2));
  check("dinov2_s14_registers", VisionTransformer(VisionTransformerOptions(dinov2).registers(4)));
}

TEST_CASE(
    "the published EfficientNet-Lite0, through convert_weights.py, gives the logits that it gives in "
    "Python") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  TempDir dir;
  std::string published = run_python(python, "/tests/python/backbones.py", {"published_path"});
  published.erase(published.find_last_not_of('\n') + 1);
  const fs::path weights = dir / "lite0.safetensors", result = dir / "result.safetensors";
  const auto printed =
      run_python(python, "/examples/python/convert_weights.py", {published, weights.string()});
  CHECK(printed == weights.string() + ": 296 tensors, 4,694,073 numbers\n");
  run_python(python, "/tests/python/backbones.py", {"published", result.string()});
  mm::models::EfficientNetLite model(mm::models::EfficientNetLiteOptions(1000));
  const auto loaded = mm::models::load_pretrained(weights, model);
  CHECK((loaded.missing.empty() && loaded.unexpected.empty() && loaded.kept_head.empty()));
  CHECK(model->image_size() == 224);
  const Tensor logits = evaluate(model, tensor_of(result, "images"));
  CHECK(torch::allclose(logits, tensor_of(result, "logits"), 1e-4, 1e-4));
  CHECK(logits.std().item<double>() > 0.5);

  mm::models::EfficientNetLite other(mm::models::EfficientNetLiteOptions(4));
  CHECK(mm::models::load_pretrained(weights, other).kept_head ==
        std::vector<std::string>{"_fc.weight", "_fc.bias"});
}

TEST_CASE(
    "convert_weights.py: a checkpoint's state dict, what is left out, and one line for what it cannot read") {
  const auto python = interpreter();
  if (python.empty()) {
    return;
  }
  TempDir dir;
  const fs::path checkpoint = dir / "checkpoint.pth", converted = dir / "a.safetensors";
  run_python(python, "/tests/python/backbones.py", {"checkpoint", checkpoint.string()});
  const auto convert = [&](std::vector<std::string> arguments) {
    return finished_python(python, "/examples/python/convert_weights.py", arguments);
  };
  REQUIRE(convert({checkpoint.string(), converted.string()}).status == 0);
  const Tensor half = torch::tensor({0.5, -0.5}).to(at::kHalf);
  check_tensors(converted, {{"weight", torch::arange(6, at::kFloat).view({3, 2}).t().contiguous()},
                            {"bias", half},
                            {"twin", half}});
  REQUIRE(
      convert({checkpoint.string(), converted.string(), "--drop", "twin", "--key", "state_dict"}).status ==
      0);
  CHECK(mm::read_safetensors(converted).size() == 2);
  REQUIRE(convert({checkpoint.string(), converted.string(), "--prefix", "wei"}).status == 0);
  CHECK(torch::equal(tensor_of(converted, "ght"), torch::arange(6, at::kFloat).view({3, 2}).t()));
  CHECK(convert({"--help"}).out.find("--key KEY") != std::string::npos);

  write_file(dir / "text.pth", "no weights");
  const auto refused = [&](const std::vector<std::string>& arguments, const std::string& expected) {
    const auto finished = convert(arguments);
    INFO(finished.err);
    CHECK(finished.status == 2);
    CHECK(finished.out.empty());
    CHECK(std::count(finished.err.begin(), finished.err.end(), '\n') == 1);
    CHECK_THAT(finished.err, contains("convert_weights.py: " + expected));
  };
  const std::string out = (dir / "b.safetensors").string();
  refused({(dir / "none.pth").string(), out}, (dir / "none.pth").string() + ": No such file");
  refused({(dir / "text.pth").string(), out}, (dir / "text.pth").string() + " is no state dict");
  refused(
      {checkpoint.string(), out, "--key", "model"},
      checkpoint.string() + " has no state dict under 'model'; it holds 'epoch', 'state_dict', 'optimizer'");
  refused({checkpoint.string(), out, "--drop", "head"},
          "--drop head: " + checkpoint.string() + " has no such");
  refused({checkpoint.string(), out, "--prefix", "x."}, checkpoint.string() + " has no tensors below 'x.'");
  refused({checkpoint.string(), (dir / "none" / "b").string()}, (dir / "none" / "b").string() + ": ");
  CHECK_FALSE(fs::exists(out));
}
