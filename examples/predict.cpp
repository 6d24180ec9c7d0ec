// Classifies pictures with a trained model (a run directory, its model.safetensors, or what export made of it
// as TorchScript): pictures, or folders of them. Prints a line
// "file,class,confidence,second_class,margin,abstain" a picture.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <algorithm>
#include <cstddef>
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
  const mm::Classifier classifier(
      o.model, mm::ClassifierOptions().device(mm::training::parse_device(o.device)).batch_size(o.batch));
  const auto files = find_pictures(o.inputs, o.strict);
  if (!o.out.empty()) {
    const auto folder = fs::absolute(o.out).parent_path();
    TORCH_CHECK(fs::is_directory(folder), "--out: there is no directory ", folder.string());
  }

  std::vector<std::string> readable;
  std::vector<Tensor> probabilities;
  const auto batch = static_cast<size_t>(o.batch);
  for (size_t begin = 0; begin < files.size(); begin += batch) {
    const std::vector<fs::path> some(
        files.begin() + static_cast<std::ptrdiff_t>(begin),
        files.begin() + static_cast<std::ptrdiff_t>(std::min(begin + batch, files.size())));
    const auto found = classifier.classify(some);
    for (size_t i = 0; i < found.size(); ++i) {
      if (found[i].error.empty()) {
        readable.push_back(files[begin + i]);
        probabilities.push_back(torch::tensor(found[i].probabilities, torch::kDouble));
        continue;
      }
      TORCH_CHECK(!o.strict, "cannot read ", files[begin + i], ": ", found[i].error);
      mm::training::print_message(stderr, "predict: cannot read {}: {}\n",
                                  mm::detail::printable(files[begin + i]), found[i].error);
    }
  }
  if (readable.size() < files.size()) {
    mm::training::print_message(stderr, "predict: left out {} of {} pictures\n",
                                files.size() - readable.size(), files.size());
  }
  TORCH_CHECK(!readable.empty(), "none of ", files.size(), " pictures could be read");
  const mm::training::Predictions predictions{readable, torch::stack(probabilities), classifier.class_names(),
                                              classifier.confidence()};
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
  app.add_option("--model", options.model,
                 "Run directory, a model.safetensors of one, or TorchScript of export")
      ->required();
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
    if (mm::training::left_to_rank_0()) {
      return 0;
    }
    mm::training::set_threads(options.threads);
    return predict(options);
  });
}
