// A trained classifier for programs without this library: ONNX or TorchScript, from pixels to probabilities.

#include <fmt/format.h>
#include <torch/script.h>
#include <torch/torch.h>
#include <mixmatch/io/onnx.hpp>
#include <mixmatch/io/torchscript.hpp>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <filesystem>
#include <map>
#include <sstream>
#include <string>

namespace fs = std::filesystem;
namespace mm = mixmatch;
using torch::Tensor;

namespace {

struct Options {
  std::string model, to = "onnx", out;
};

/// What a user of the file must know, in the file.
std::map<std::string, std::string> metadata_of(const mm::models::SavedClassifier& classifier) {
  auto metadata = mm::training::classifier_metadata(
      {classifier.class_names, classifier.image_size, classifier.confidence, classifier.fit});
  metadata.erase("temperature");  // the probabilities have it
  metadata["input"] =
      classifier.fit == mm::data::PictureFit::crop
          ? "uint8 RGB [N, 3, image_size, image_size]: the shorter side resized to image_size (bilinear, "
            "antialiased), the middle of the longer side"
          : "uint8 RGB [N, 3, image_size, image_size]: the longer side resized to image_size (bilinear, "
            "antialiased), in the middle of grey 127";
  metadata["output"] = "float32 [N, classes]: probabilities, calibrated where pictures were held out";
  return metadata;
}

void export_classifier(const Options& o) {
  auto classifier = mm::models::load_classifier(mm::training::weights_file(o.model));
  auto& network = classifier.model;
  // Normalisation, temperature and softmax travel in the file.
  const auto forward = [&](const Tensor& pixels) {
    const Tensor logits = network->forward(pixels.to(at::kFloat).mul(2.0 / 255).sub(1));
    return logits.div(classifier.confidence.temperature).softmax(1);
  };
  // Two images: a size that is 1 could be taken for one that never changes.
  const Tensor example = torch::zeros({2, 3, classifier.image_size, classifier.image_size}, at::kByte);
  const auto module = mm::trace_module(*network, forward, example);
  const auto metadata = metadata_of(classifier);
  if (o.to == "torchscript") {
    const torch::jit::ExtraFilesMap files(metadata.begin(), metadata.end());
    std::ostringstream bytes;
    module.save(bytes, files);
    mm::write_file_atomically(o.out, bytes.str());
  } else {
    mm::save_onnx(o.out, module, example, mm::OnnxOptions().output("probabilities").metadata(metadata));
  }
  mm::training::print_message(stdout, "{}: images uint8 [N, 3, {}, {}] to the probabilities of {} classes\n",
                              o.out, classifier.image_size, classifier.image_size,
                              classifier.class_names.size());
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Writes a trained classifier as ONNX or TorchScript: from pixels to probabilities.", "export");
  app.add_option("--model", o.model, "Run directory, or a model.safetensors of one")->required();
  app.add_option("--to", o.to, "Kind of file")
      ->check(CLI::IsMember({"onnx", "torchscript"}))
      ->capture_default_str();
  app.add_option("--out", o.out, "File to write; model.onnx or model.pt by default");
  return mm::training::run_program(app, argc, argv, [&] {
    if (mm::training::left_to_rank_0()) {
      return 0;
    }
    if (o.out.empty()) {
      o.out = o.to == "onnx" ? "model.onnx" : "model.pt";
    }
    export_classifier(o);
    return 0;
  });
}
