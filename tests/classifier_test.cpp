// The service's classifier, beside the program predict and the exported file; and the example that is a
// service.

#include <torch/script.h>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "pictures.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

namespace fs = std::filesystem;
namespace mm = mixmatch;
using mm::Classification;
using mm::Classifier;
using mm::ClassifierOptions;
using torch::Tensor;

namespace {

/// A run's directory with a classifier of three classes, as a training leaves it, and pictures.
struct Trained {
  explicit Trained(const std::string& network = "", std::optional<double> threshold = 0.4) {
    torch::manual_seed(3);
    if (network.empty()) {
      save(mm::models::wide_resnet_network(mm::models::WideResNetOptions(3).depth(10).widen_factor(1)),
           threshold);
    } else {
      save(mm::models::named_network(network, 3), threshold);
    }
    const auto shapes = mm::data::make_shapes(6, 5);
    for (int64_t i = 0; i < shapes.size(); ++i) {
      files.push_back(dir / ("picture " + std::to_string(i) + ".png"));
      write_file(files.back(), mm::training::encode_png(shapes.images[i].narrow(1, 0, 30)));
    }
  }

  void save(mm::models::Network network, std::optional<double> threshold) {
    {
      torch::NoGradGuard no_grad;
      for (auto& buffer : network->named_buffers()) {
        if (buffer.key().find("running_var") != std::string::npos) {
          buffer.value().uniform_(0.5, 2);
        }
      }
    }
    mm::EmaModel ema(network);
    mm::models::save_classifier(weights(), network, ema, {"cat", "dög", "cow"}, 24, {2.5, threshold, 0.9});
  }

  fs::path weights() const { return dir / "model.safetensors"; }
  /// By the parts: decoded pictures, network, softmax at the temperature.
  Tensor expected() const {
    std::vector<Tensor> images;
    for (const auto& file : files) {
      images.push_back(mm::data::decode_image(file, 24));
    }
    auto saved = mm::models::load_classifier(weights());
    const torch::NoGradGuard no_grad;
    const Tensor logits = saved.model->forward(torch::stack(images).to(torch::kFloat) * (2.0 / 255) - 1);
    return (logits.to(torch::kDouble) / 2.5).softmax(1);
  }

  TempDir dir;
  std::vector<fs::path> files;
};

Tensor probabilities_of(const std::vector<Classification>& all) {
  std::vector<Tensor> rows;
  for (const auto& one : all) {
    rows.push_back(torch::tensor(one.probabilities, torch::kDouble));
  }
  return torch::stack(rows);
}

double off_by(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

TEST_CASE("Classifier: classes and calibrated probabilities of files and of pictures in memory") {
  const Trained made;
  const Tensor expected = made.expected();
  CHECK(expected.std(0).min().item<double>() > 1e-3);
  for (const auto& model : {made.dir.path(), made.weights()}) {
    const Classifier classifier(model, ClassifierOptions().batch_size(4));
    CHECK(classifier.image_size() == 24);
    CHECK(classifier.class_names() == std::vector<std::string>{"cat", "dög", "cow"});
    CHECK(classifier.confidence().temperature == 1);
    CHECK(classifier.confidence().threshold == 0.4);
    const auto all = classifier.classify(made.files);
    REQUIRE(all.size() == 6);
    CHECK(off_by(probabilities_of(all), expected) < 1e-6);
    for (size_t i = 0; i < all.size(); ++i) {
      const auto row = expected[static_cast<int64_t>(i)];
      CHECK(all[i].error.empty());
      CHECK(all[i].index == row.argmax().item<int64_t>());
      CHECK(all[i].class_name == classifier.class_names()[static_cast<size_t>(all[i].index)]);
      CHECK(all[i].confidence == Approx(row.max().item<double>()).margin(1e-6));
      CHECK(all[i].abstain == (all[i].confidence < 0.4));
      const auto one = classifier.classify(made.files[i]);
      const auto from_memory = classifier.classify(bytes_of(read_file(made.files[i])));
      CHECK(one.probabilities == from_memory.probabilities);  // to the bit
      CHECK(off_by(probabilities_of({one}), row.unsqueeze(0)) < 1e-6);
    }
  }
  const Trained without({}, std::nullopt);
  CHECK_FALSE(Classifier(without.dir.path()).classify(without.files[0]).abstain.has_value());
}

TEST_CASE("Classifier: what cannot be read is said for itself, and stops nothing") {
  const Trained made;
  const Classifier classifier(made.dir.path());
  const std::string png = read_file(made.files[0]);
  const std::vector<std::string> pictures{png, "", png.substr(0, 60), "no picture\x1b[2J", "GIF89a", png};
  std::vector<std::span<const std::byte>> views;
  for (const auto& picture : pictures) {
    views.push_back(bytes_of(picture));
  }
  const auto all = classifier.classify(views);
  REQUIRE(all.size() == 6);
  CHECK(all[0].probabilities == all[5].probabilities);
  CHECK(all[0].index >= 0);
  const std::vector<std::string> reasons{
      "", "it is empty", "cut short", "not a picture of a known format", "a GIF file", ""};
  for (size_t i = 0; i < all.size(); ++i) {
    CHECK((all[i].error.empty() == reasons[i].empty()));
    CHECK_THAT(all[i].error, contains(reasons[i]));
    CHECK((all[i].index == -1) == !reasons[i].empty());
  }
  CHECK_THAT(error_of([&] { classifier.classify(views[2]); }),
             contains("Classifier: cannot read a picture in memory: the picture is cut short"));
  CHECK_THAT(error_of([&] { mm::data::decode_image(views[3], 8); }),
             contains("decode_image: cannot read a picture in memory: not a picture of a known format"));
  CHECK(torch::equal(mm::data::decode_image(views[0], 8), mm::data::decode_image(made.files[0], 8)));
  const fs::path nowhere = made.dir / "nowhere.png";
  CHECK_THAT(error_of([&] { classifier.classify(nowhere); }),
             contains("Classifier: cannot read " + nowhere.string() + ": No such file"));
  CHECK(classifier.classify(std::vector<fs::path>{}).empty());
  CHECK_THAT(error_of([&] {
               classifier.probabilities(torch::zeros({1, 3, 8, 8}, torch::kByte));
             }),
             contains("images must be uint8 [N, 3, 24, 24], got Byte [1, 3, 8, 8]"));
  const Classifier careful(made.dir.path(),
                           ClassifierOptions().decoding(mm::data::DecodeImageOptions().max_pixels(100)));
  CHECK_THAT(careful.classify(views)[0].error, contains("max_pixels"));
}

TEST_CASE("Classifier: eight threads at one object get the same bits") {
  for (const std::string network : {"", "resnet18"}) {
    INFO(network);
    const Trained made(network);
    const Classifier classifier(made.dir.path());
    const std::string bytes = read_file(made.files[1]);
    const auto alone = classifier.classify(made.files);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 5; ++i) {
          if (t % 2 == 0) {
            const auto again = classifier.classify(made.files);
            for (size_t k = 0; k < alone.size(); ++k) {
              wrong += again[k].probabilities == alone[k].probabilities ? 0 : 1;
            }
          } else {
            wrong += classifier.classify(bytes_of(bytes)).index == alone[1].index ? 0 : 1;
          }
        }
      });
    }
    for (auto& thread : threads) {
      thread.join();
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE(
    "Classifier: a file of export, and the programs predict and classify_service, give the same answers") {
  const Trained made;
  const fs::path script = made.dir / "exported.pt";
  const auto exported = run({MIXMATCH_EXPORT, "--model", made.dir.path().string(), "--to", "torchscript",
                             "--out", script.string()});
  INFO(exported.err);
  REQUIRE(exported.status == 0);
  const Classifier classifier(made.dir.path()), from_script(script);
  const auto all = classifier.classify(made.files), others = from_script.classify(made.files);
  CHECK(from_script.class_names() == classifier.class_names());
  CHECK(from_script.confidence().threshold == 0.4);
  CHECK(off_by(probabilities_of(all), probabilities_of(others)) < 1e-4);
  for (int i = 0; i < 4; ++i) {  // TorchScript's optimiser would change the third
    CHECK(from_script.classify(made.files)[0].probabilities == others[0].probabilities);
  }

  std::vector<std::string> command{MIXMATCH_PREDICT, "--threads", "1", "--model", made.dir.path().string()};
  for (const auto& file : made.files) {
    command.push_back(file.string());
  }
  const auto predicted = run(command);
  INFO(predicted.err);
  REQUIRE(predicted.status == 0);
  const auto lines = lines_of(predicted.out);
  REQUIRE(lines.size() == 7);
  for (size_t i = 0; i < all.size(); ++i) {
    CHECK_THAT(lines[i + 1], contains(fmt::format("{},{},{:.6g},", made.files[i].string(), all[i].class_name,
                                                  all[i].confidence)));
    CHECK_THAT(lines[i + 1], contains(*all[i].abstain ? ",yes" : ",no"));
  }
  command[4] = script.string();
  CHECK(run(command).status == 0);

  std::string input;
  std::set<std::string> expected;
  for (size_t i = 0; i < made.files.size(); ++i) {
    input += made.files[i].string() + "\n";
    expected.insert(to_json(classifier.classify(made.files[i]), made.files[i].string()));
  }
  const std::string nowhere = (made.dir / "nowhere \"x\".png").string();
  input += nowhere + "\n";
  write_file(made.dir / "input", input);
  const auto served = run({"/bin/sh", "-c", "exec \"$0\" \"$1\" 3 < \"$2\"", MIXMATCH_CLASSIFY_SERVICE,
                           made.dir.path().string(), (made.dir / "input").string()});
  INFO(served.err);
  REQUIRE(served.status == 0);
  const auto answers = lines_of(served.out);
  REQUIRE(answers.size() == 7);
  size_t found = 0;
  for (const auto& answer : answers) {
    found += expected.count(answer);
    if (answer.find("error") != std::string::npos) {
      CHECK_THAT(answer, contains("nowhere \\\"x\\\".png\", \"error\": \"No such file or directory\"}"));
    }
  }
  CHECK(found == 6);
  check_refused(run({MIXMATCH_CLASSIFY_SERVICE, nowhere}), "nowhere");
  CHECK(run({MIXMATCH_CLASSIFY_SERVICE}).status == 2);
}

TEST_CASE("Classifier: damaged files and those of others are refused in one line that names them") {
  const Trained made;
  const auto refused = [](const fs::path& model) {
    const std::string error = error_of([&] { Classifier classifier(model); });
    CHECK(error.find('\n') == std::string::npos);
    CHECK_THAT(error, contains(model.filename().string()));
    return error;
  };
  CHECK_THAT(refused(made.dir / "nothing.safetensors"), contains("there is no such file"));
  fs::create_directories(made.dir / "empty");
  CHECK_THAT(refused(made.dir / "empty"), contains("holds no run"));
  std::string bytes = read_file(made.weights());
  write_file(made.dir / "cut.safetensors", bytes.substr(0, bytes.size() / 2));
  refused(made.dir / "cut.safetensors");
  bytes[bytes.size() - 9] = static_cast<char>(bytes[bytes.size() - 9] ^ 1);
  write_file(made.dir / "flipped.safetensors", bytes);
  CHECK_THAT(refused(made.dir / "flipped.safetensors"), contains("checksum"));
  mm::write_safetensors(made.dir / "other.safetensors", {{"x", torch::ones({3})}});
  CHECK_THAT(refused(made.dir / "other.safetensors"), contains("is no classifier of this library"));
  // The weights of one network under another's name.
  auto metadata = mm::read_safetensors_metadata(made.weights());
  metadata.erase("mixmatch_crc32c");
  metadata["architecture"] = "vit_b16";
  mm::write_safetensors(made.dir / "vit.safetensors", mm::read_safetensors(made.weights()), metadata);
  CHECK_THAT(refused(made.dir / "vit.safetensors"), contains("85800963 (vit_b16)"));

  torch::jit::Module foreign("Net");
  foreign.define("def forward(self, x):\n  return x\n");
  foreign.save((made.dir / "foreign.pt").string());
  CHECK_THAT(refused(made.dir / "foreign.pt"), contains("is no classifier that export wrote"));
  const torch::jit::ExtraFilesMap files{{"class_0", "a"}, {"class_1", "b"}, {"image_size", "8"}};
  foreign.save((made.dir / "shapes.pt").string(), files);
  CHECK_THAT(refused(made.dir / "shapes.pt"), contains("gave [1, 3, 8, 8] for 1 pictures and 2 classes"));
  write_file(made.dir / "zip.pt", "PK\3\4nothing");
  CHECK_THAT(refused(made.dir / "zip.pt"), contains("is no TorchScript file that can be read"));

  torch::manual_seed(1);
  mm::models::WideResNet grey(mm::models::WideResNetOptions(2).depth(10).widen_factor(1).in_channels(1));
  mm::EmaModel ema(grey);
  mm::models::save_classifier(made.dir / "grey.safetensors", grey, ema, {"a", "b"}, 8);
  CHECK_THAT(refused(made.dir / "grey.safetensors"),
             contains("takes images of 1 channels, and pictures have 3"));
}

TEST_CASE("to_json: one line, whatever the names") {
  Classification c;
  c.index = 1;
  c.class_name = "a \"b\"\n";
  c.confidence = 0.75;
  c.probabilities = {0.25, 0.75};
  CHECK(
      to_json(c) ==
      R"({"class": "a \"b\"\n", "index": 1, "confidence": 0.75, "abstain": null, "probabilities": [0.25, 0.75]})");
  c.abstain = true;
  c.confidence = c.probabilities[0] = NAN;
  CHECK(
      to_json(c, "p\\q") ==
      R"({"file": "p\\q", "class": "a \"b\"\n", "index": 1, "confidence": null, "abstain": true, "probabilities": [null, 0.75]})");
  c.error = "no";
  CHECK(to_json(c, "x") == R"({"file": "x", "error": "no"})");
}
