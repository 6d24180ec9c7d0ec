// Weights and checkpoints: safetensors files, classifiers, LibTorch's archives.

#include <ATen/CPUGeneratorImpl.h>
#include <torch/nn/module.h>
#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/optim/optimizer.hpp>
#include <mixmatch/program/classifier_file.hpp>
#include <mixmatch/run/checkpoint.hpp>

#include "fuzz.hpp"

namespace fs = std::filesystem;

namespace fuzz {

namespace {

void look_at(const at::Tensor& tensor) {
  const auto whole = tensor.contiguous();
  digest(whole.data_ptr(), whole.nbytes());
}

// safetensors

/// Parameters and a buffer, of which one has a level below.
struct SmallModel : torch::nn::Module {
  SmallModel() {
    auto inner = std::make_shared<torch::nn::Module>("Inner");
    weight = register_parameter("weight", at::full({2, 3}, 0.5));
    inner->register_parameter("bias", at::full({2}, 0.25));
    inner->register_buffer("count", at::full({}, 3, at::kLong));
    register_module("inner", inner);
  }
  at::Tensor forward(const at::Tensor& x) { return x.matmul(weight.t()); }
  at::Tensor weight;
};
std::shared_ptr<SmallModel> small_model() { return std::make_shared<SmallModel>(); }

void read_weights(const fs::path& dir, const Input& input) {
  const fs::path path = dir / "weights.safetensors";
  size_t bytes = 0;
  for (const auto& [name, tensor] : mixmatch::read_safetensors(path)) {
    digest_text(name);
    look_at(tensor);
    bytes += tensor.nbytes();
  }
  expect(bytes <= input[0].size(), "more bytes of tensors than of file");
  for (const auto& [key, value] : mixmatch::read_safetensors_metadata(path)) {
    digest_text(key);
    digest_text(value);
  }
}

void load_weights(const fs::path& dir, const Input&) {
  static auto model = small_model();
  const auto options = mixmatch::LoadSafetensorsOptions().allow_cast(true);
  mixmatch::load_safetensors(dir / "weights.safetensors", model,
                             mixmatch::LoadSafetensorsOptions(options).strict(false));
  for (const auto& parameter : model->parameters()) {
    look_at(parameter);
  }
  mixmatch::load_safetensors(dir / "weights.safetensors", model, options);
}

std::string saved_weights() {
  const fs::path path = scratch() / "seed.safetensors";
  auto model = small_model();
  mixmatch::save_safetensors(path, model, {{"format", "pt"}, {"note", "\xC3\xA9\n"}});
  return read(path);
}

std::string all_kinds() {
  const fs::path path = scratch() / "seed.safetensors";
  mixmatch::NamedTensors tensors;
  for (const auto& known : mixmatch::detail::safetensors_types) {
    if (known.type != at::ScalarType::Undefined) {
      tensors.emplace_back(std::string(known.name), at::ones({2, 1}, known.type));
    }
  }
  tensors.emplace_back("none", at::ones({0, 3}));
  tensors.emplace_back("scalar", at::ones({}));
  mixmatch::write_safetensors(path, tensors);
  return read(path);
}

void load_classifier(const fs::path& dir, const Input&) {
  const auto classifier = mixmatch::models::load_classifier(dir / "model.safetensors");
  expect(!classifier.class_names.empty(), "no classes");
  for (const auto& parameter : classifier.model->parameters()) {
    look_at(parameter);
  }
  for (const auto& name : classifier.class_names) {
    digest_text(name);
  }
}

/// With the checksum, which lets no changed byte pass, or without it, so that the rest is reached.
std::string saved_classifier(int64_t scales, bool with_checksum) {
  const fs::path path = scratch() / "seed.safetensors";
  torch::manual_seed(1);
  mixmatch::models::WideResNet model(
      mixmatch::models::WideResNetOptions(2).depth(10).widen_factor(1).filters(1).scales(scales));
  mixmatch::EmaModel ema(model);
  mixmatch::models::save_classifier(path, model, ema, {"cat", "dog"}, 8);
  if (!with_checksum) {
    auto metadata = mixmatch::read_safetensors_metadata(path);
    metadata.erase("mixmatch_crc32c");
    mixmatch::write_safetensors(path, mixmatch::read_safetensors(path), metadata);
  }
  return read(path);
}

// Checkpoints

/// One object of each kind that a training run registers.
struct State {
  State() { register_in(); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void register_in() {
    for (auto& parameter : model->parameters()) {
      parameter.mutable_grad() = at::ones_like(parameter);
    }
    optimizer.step();  // makes moments
    checkpoint.add("step", step)
        .add("name", name)
        .add("done", done)
        .add("sums", sums)
        .add("tensor", tensor)
        .add("generator", generator)
        .add("stream", stream)
        .add("model", model)
        .add("ema", ema)
        .add("optimizer", optimizer);
    checkpoint.set_config({{"method", "mixmatch"}, {"seed", "1"}});
  }

  int64_t step = 7;
  std::string name = "a name";
  bool done = false;
  std::vector<double> sums{1, 2.5};
  at::Tensor tensor = at::arange(6, at::kLong).view({2, 3});
  at::Generator generator = at::detail::createCPUGenerator(3);
  mixmatch::data::BatchStream stream{at::arange(5), 2, 9};
  std::shared_ptr<SmallModel> model = small_model();
  mixmatch::EmaModel<std::shared_ptr<SmallModel>> ema{model};
  mixmatch::training::Optimizer optimizer{model, ema};
  mixmatch::training::Checkpoint checkpoint{scratch() / "checkpoint.pt"};
};

State& state() {
  static State instance;
  return instance;
}

std::string saved_checkpoint() {
  state().checkpoint.save();
  return read(state().checkpoint.path());
}

/// Loads the bytes into the state, and looks at it.
void load_checkpoint(const std::string& bytes) {
  auto& s = state();
  write("checkpoint.pt", bytes);
  s.checkpoint.load([](const mixmatch::training::Config& config) {
    for (const auto& [key, value] : config) {
      digest_text(key);
      digest_text(value);
    }
  });
  digest_value(s.step);
  digest_text(s.name);
  for (const double value : s.sums) {
    digest_value(value);
  }
  look_at(s.tensor);
  look_at(s.stream.rows(int64_t{0}));
  for (const auto& tensor : s.optimizer.state()) {  // the parameters and averages too
    look_at(tensor);
  }
}

/// A checkpoint whose checksum fits is trusted as far as LibTorch's reader of archives is: that one ends in a
/// segmentation fault on damaged TorchScript and makes tensors beyond their storage. So contents are not
/// changed behind the checksum; what is shown is that nothing damaged gets past it.
void add_checkpoint_target(std::vector<Target>& targets) {
  const std::string whole = saved_checkpoint();
  targets.push_back({"checkpoint",
                     {"checkpoint.pt"},
                     {{whole}},
                     {"PK", "mixmatch checkpoint crc32c "},
                     [whole](const fs::path&, const Input& input) {
                       load_checkpoint(input[0]);
                       expect(input[0] == whole, "a changed checkpoint was taken");
                     }});
}

}  // namespace

void add_weight_targets(std::vector<Target>& targets) {
  const std::vector<std::string> words{"{",
                                       "}",
                                       "[",
                                       "]",
                                       ",",
                                       ":",
                                       "\"",
                                       "\"dtype\":\"F32\"",
                                       "\"shape\":[",
                                       "\"data_offsets\":[0,4]",
                                       "F64",
                                       "I8",
                                       "BOOL",
                                       "F8_E4M3",
                                       "U16",
                                       "__metadata__",
                                       "weight",
                                       "inner.bias",
                                       "\\u0000",
                                       "\\ud800",
                                       "1e9",
                                       "-1",
                                       "18446744073709551615",
                                       "\x1b",
                                       "\xff"};
  targets.push_back(
      {"safetensors", {"weights.safetensors"}, {{saved_weights()}, {all_kinds()}}, words, read_weights});
  targets.push_back({"load_safetensors", {"weights.safetensors"}, {{saved_weights()}}, words, load_weights});
  auto names = words;
  names.insert(names.end(), {"depth", "widen_factor", "filters", "scales", "num_classes", "image_size",
                             "class_0", "in_channels", "1000", "100000", "16384", "10"});
  targets.push_back(
      {"classifier",
       {"model.safetensors"},
       {{saved_classifier(1, false)}, {saved_classifier(3, false)}, {saved_classifier(1, true)}},
       names,
       load_classifier});
  add_checkpoint_target(targets);
}

}  // namespace fuzz
