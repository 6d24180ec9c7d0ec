// Classifies pictures with a trained model: a run directory or its model.safetensors, and pictures or folders
// of them. Prints a line "file,class,confidence,second_class,margin,abstain" a picture.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

namespace fs = std::filesystem;
namespace mm = mixmatch;
using torch::Tensor;

namespace {

struct Options {
  std::string model, out, device = "auto";
  std::vector<std::string> inputs;
  int64_t batch = 256;
  int threads = 0;
  bool strict = false;
};

/// The pictures that the arguments name: files as they are, folders by what they hold.
std::vector<std::string> find_pictures(const std::vector<std::string>& inputs, bool strict) {
  std::vector<std::string> files;
  for (const auto& input : inputs) {
    if (!fs::is_directory(input)) {
      files.push_back(input);
      continue;
    }
    const auto found = mm::data::find_images(input);
    for (const auto& entries : found.left_out) {
      TORCH_CHECK(!strict || entries.incidental, input, ": ", mm::data::describe(entries));
      mm::training::print_message(stderr, "predict: {}: {}\n", mm::detail::printable(input),
                                  mm::data::describe(entries));
    }
    TORCH_CHECK(!found.files.empty(), input, " holds no pictures");
    for (const auto& file : found.files) {
      files.push_back((fs::path(input) / file).string());
    }
  }
  return files;
}

int predict(const Options& o) {
  auto classifier = mm::models::load_classifier(mm::training::weights_file(o.model));
  const auto device = mm::training::parse_device(o.device);
  classifier.model->to(device);
  mm::training::to_channels_last(classifier.model);
  const auto files = find_pictures(o.inputs, o.strict);
  if (!o.out.empty()) {
    const auto folder = fs::absolute(o.out).parent_path();
    TORCH_CHECK(fs::is_directory(folder), "--out: there is no directory ", folder.string());
  }

  const auto decoding = mm::data::DecodeImageOptions().fit(classifier.fit);
  std::vector<std::string> readable;
  std::vector<Tensor> probabilities{torch::empty({0, static_cast<int64_t>(classifier.class_names.size())})};
  // Decoded pictures wait for their batch: at most 256 MB of them.
  const int64_t bytes = 3 * classifier.image_size * classifier.image_size;
  const auto batch = static_cast<size_t>(std::clamp<int64_t>((int64_t{1} << 28) / bytes, 1, o.batch));
  for (size_t begin = 0; begin < files.size(); begin += batch) {
    std::vector<Tensor> images;
    for (size_t i = begin; i < std::min(begin + batch, files.size()); ++i) {
      try {
        images.push_back(mm::data::decode_image(files[i], classifier.image_size, decoding));
        readable.push_back(files[i]);
      } catch (const c10::Error& error) {
        TORCH_CHECK(!o.strict, error.what_without_backtrace());
        mm::training::print_message(stderr, "predict: {}\n", error.what_without_backtrace());
      }
    }
    if (!images.empty()) {
      probabilities.push_back(mm::training::predict_probabilities(
          [&](const Tensor& x) { return classifier.model->forward(x); }, torch::stack(images),
          mm::training::EvaluateOptions().device(device).batch_size(o.batch)));
    }
  }
  if (readable.size() < files.size()) {
    mm::training::print_message(stderr, "predict: left out {} of {} pictures\n",
                                files.size() - readable.size(), files.size());
  }
  TORCH_CHECK(!readable.empty(), "none of ", files.size(), " pictures could be read");
  const Tensor all = torch::cat(probabilities);
  const mm::training::Predictions predictions{readable, all, classifier.class_names, classifier.confidence};
  if (!o.out.empty()) {
    mm::training::write_predictions(o.out, predictions);
    return 0;
  }
  mm::training::print_result(mm::training::format_predictions(predictions));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Classifies pictures: file,class,confidence,second_class,margin,abstain on the standard output.",
      "predict");
  app.add_option("--model", options.model, "Run directory, or a model.safetensors of one")->required();
  app.add_option("pictures", options.inputs, "Pictures, or folders of them")
      ->required()
      ->check(CLI::ExistingPath);
  app.add_option("--out", options.out, "Write to this file, the least certain first");
  mm::training::add_number<int64_t>(app, "--batch", options.batch, "Pictures at a time", 1);
  app.add_option("--device", options.device)
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  mm::training::add_number(app, "--threads", options.threads, "CPU threads; 0 = one a processor, at most 16",
                           0, 1024);
  app.add_flag("--strict", options.strict, "Stop at whatever would be left out");
  return mm::training::run_program(app, argc, argv, [&] {
    mm::training::set_threads(options.threads);
    return predict(options);
  });
}
