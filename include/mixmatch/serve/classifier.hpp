#pragma once

#include <fmt/format.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/decode_image.hpp>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/io/json_quote.hpp>
#include <mixmatch/io/script_file.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/serve/saved_classifier.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch {

struct ClassifierOptions {
  /// Where the network computes.
  TORCH_ARG(torch::Device, device) = torch::kCPU;
  /// Most pictures that are decoded and go through the network at a time.
  TORCH_ARG(int64_t, batch_size) = 64;
  /// Which pictures are refused; how they become square is the file's choice.
  TORCH_ARG(data::DecodeImageOptions, decoding) = {};
};

/// What a Classifier says of a picture.
struct Classification {
  int64_t index = -1;      ///< of the class that is most probable, the first of equals; -1 with an error
  std::string class_name;  ///< its name
  double confidence = 0;   ///< its probability
  /// Whether the confidence is below the one from which on the training run's held-out pictures show the
  /// precision that was asked for; nullopt where nothing was held out.
  std::optional<bool> abstain;
  std::vector<double> probabilities;  ///< of every class, calibrated; their sum is 1
  std::string error;                  ///< why the picture cannot be read; "" where it can
};

/// A line of JSON, without its end: {"file": …, "class": …, "index": …, "confidence": …, "abstain": …,
/// "probabilities": […]}, or {"file": …, "error": …}. `file` is what the answer is to be told from others by;
/// empty: left out. What JSON cannot express (no threshold, a NaN) is null.
inline std::string to_json(const Classification& c, std::string_view file = "") {
  const auto number = [](double value) { return std::isfinite(value) ? fmt::format("{}", value) : "null"; };
  std::string text = file.empty() ? "{" : "{\"file\": " + detail::json_quote(file) + ", ";
  if (!c.error.empty()) {
    return text + "\"error\": " + detail::json_quote(c.error) + "}";
  }
  text +=
      fmt::format("\"class\": {}, \"index\": {}, \"confidence\": {}, \"abstain\": {}, \"probabilities\": [",
                  detail::json_quote(c.class_name), c.index, number(c.confidence),
                  !c.abstain.has_value() ? "null"
                  : *c.abstain           ? "true"
                                         : "false");
  for (size_t i = 0; i < c.probabilities.size(); ++i) {
    text += (i == 0 ? "" : ", ") + number(c.probabilities[i]);
  }
  return text + "]}";
}

/// A trained classifier for services: from pictures, in files or in memory, to classes with calibrated
/// probabilities.
///
///     const mixmatch::Classifier classifier("runs/pictures");
///     const auto found = classifier.classify("holiday.jpg");        // found.class_name, found.confidence
///     const auto other = classifier.classify(std::as_bytes(std::span(request_body)));
///
/// Takes a run's directory, its model.safetensors, or a TorchScript file of `export`, and prepares pictures
/// as that says: decode_image() at its size. Same answers as the program predict's, to the bit from a run, to
/// rounding from TorchScript.
///
/// Every member is const and may be called by any number of threads at a time; equal calls give equal bits,
/// whatever other threads do. A batch is decoded by LibTorch's threads: a service with worker threads of its
/// own has the least to wait for with at::set_num_threads(1). No gradient, no autocast; draws nothing.
/// Needs no code of training.
class Classifier {
 public:
  /// Throws one line that names the file where it cannot be read, is damaged or no classifier; and where its
  /// network does not take colour pictures.
  explicit Classifier(const std::filesystem::path& model, const ClassifierOptions& options = {})
      : options_(options) {
    TORCH_CHECK(options.batch_size() >= 1, "Classifier: batch_size must be >= 1, got ", options.batch_size());
    data::detail::check_decode_options("Classifier", 1, options.decoding().max_pixels());
    const auto file = training::weights_file(model);
    std::string begin(4, '\0');
    if (std::ifstream(file, std::ios::binary).read(begin.data(), 4) && detail::is_zip(begin)) {
      load_script(file);
    } else {
      load_network(file);
    }
    options_.decoding().fit(terms_.fit);
  }

  /// The picture in a file. Throws "Classifier: cannot read PATH: REASON", and what the network throws.
  Classification classify(const std::filesystem::path& file) const {
    return only(classify(std::vector<std::filesystem::path>{file}), detail::printable(file));
  }
  /// The picture that a file of these bytes has. Throws "Classifier: cannot read a picture in memory:
  /// REASON".
  Classification classify(std::span<const std::byte> bytes) const {
    return only(classify(std::vector<std::span<const std::byte>>{bytes}), "a picture in memory");
  }

  /// Of each file, in their order. One that cannot be read does not stop the others: its Classification has
  /// the reason as its error.
  std::vector<Classification> classify(const std::vector<std::filesystem::path>& files) const {
    return classify_all(files.size(), [&](size_t i, uint8_t* out) {
      return data::detail::decode_picture(files[i], terms_.image_size, options_.decoding(), out);
    });
  }
  std::vector<Classification> classify(const std::vector<std::span<const std::byte>>& pictures) const {
    return classify_all(pictures.size(), [&](size_t i, uint8_t* out) {
      return data::detail::decode_picture(data::detail::text_of(pictures[i]), "", terms_.image_size,
                                          options_.decoding(), out);
    });
  }

  /// Calibrated probabilities, float64 [N, L] on the CPU, of images that are decoded already: uint8
  /// [N, 3, image_size(), image_size()] on any device, all at once. Throws on others.
  Tensor probabilities(const Tensor& images) const {
    const int64_t size = terms_.image_size;
    TORCH_CHECK(images.defined() && images.scalar_type() == at::kByte && images.dim() == 4 &&
                    images.size(1) == 3 && images.size(2) == size && images.size(3) == size,
                "Classifier: images must be uint8 [N, 3, ", size, ", ", size, "], got ",
                detail::type_and_sizes(images));
    const torch::NoGradGuard no_grad;
    const Tensor plain = probabilities_(images.to(options_.device()));
    return training::scale_temperature(plain.cpu(), temperature_);
  }

  /// Names of the classes in the order of the probabilities.
  const std::vector<std::string>& class_names() const { return terms_.class_names; }
  /// Height and width in pixels to which pictures are brought.
  int64_t image_size() const { return terms_.image_size; }
  /// When predictions abstain. Its temperature is 1: the probabilities have theirs already.
  const training::ConfidenceRule& confidence() const { return terms_.confidence; }

 private:
  void load_network(const std::filesystem::path& file) {
    auto saved = models::load_classifier(file);
    const auto& description = saved.model->description();
    const auto channels = description.find("in_channels");
    TORCH_CHECK(channels == description.end() || channels->second == "3", detail::printable(file),
                ": its network takes images of ", channels->second, " channels, and pictures have 3");
    saved.model->to(options_.device());
    training::to_channels_last(saved.model);
    terms_ = {std::move(saved.class_names), saved.image_size, saved.confidence, saved.fit};
    temperature_ = std::exchange(terms_.confidence.temperature, 1.0);
    probabilities_ = [network = saved.model.ptr()](const Tensor& images) {
      return network->forward(augment::normalize(images)).to(at::kFloat).softmax(1);
    };
  }

  void load_script(const std::filesystem::path& path) {
    const std::string shown = detail::printable(path);
    auto file = read_script_file(path, options_.device());
    int64_t classes = 0;
    while (file.metadata.count("class_" + std::to_string(classes)) > 0) {
      ++classes;
    }
    TORCH_CHECK(classes > 0, shown, " is no classifier that export wrote: it has no \"class_0\"");
    terms_ = training::classifier_terms_of(file.metadata, classes, shown);
    file.module.eval();
    probabilities_ = [module = file.module, shown, classes](const Tensor& images) {
      // As written: TorchScript's optimiser would round the first passes and later ones differently.
      const torch::jit::GraphOptimizerEnabledGuard as_written(false);
      Tensor found;
      try {
        found = torch::jit::Module(module).forward({images}).toTensor();
      } catch (const std::exception& error) {
        TORCH_CHECK(false, shown, ": images ", images.sizes(), ": ", detail::script_error(error));
      }
      TORCH_CHECK(found.dim() == 2 && found.size(0) == images.size(0) && found.size(1) == classes, shown,
                  " gave ", found.sizes(), " for ", images.size(0), " pictures and ", classes, " classes");
      return found;
    };
    // That it does so is seen now, not at the first picture.
    probabilities(at::zeros({1, 3, terms_.image_size, terms_.image_size}, at::kByte));
  }

  /// decode(i, out): the picture i into 3 * size * size bytes; what is wrong, else "".
  template <class Decode>
  std::vector<Classification> classify_all(size_t count, const Decode& decode) const {
    std::vector<Classification> all(count);
    const int64_t size = terms_.image_size, bytes = 3 * size * size;
    // At most 256 MB of decoded pictures wait for each other.
    const auto batch =
        static_cast<size_t>(std::clamp<int64_t>((int64_t{1} << 28) / bytes, 1, options_.batch_size()));
    for (size_t begin = 0; begin < count; begin += batch) {
      const auto pictures = static_cast<int64_t>(std::min(batch, count - begin));
      Tensor images = at::empty({pictures, 3, size, size}, at::kByte);
      auto* data = images.data_ptr<uint8_t>();
      detail::parallel_for(0, pictures, 1, [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end; ++i) {
          const size_t picture = begin + static_cast<size_t>(i);
          all[picture].error = decode(picture, data + i * bytes);
        }
      });
      std::vector<int64_t> read;
      for (int64_t i = 0; i < pictures; ++i) {
        if (all[begin + static_cast<size_t>(i)].error.empty()) {
          read.push_back(i);
        }
      }
      if (read.empty()) {
        continue;
      }
      if (static_cast<int64_t>(read.size()) < pictures) {
        images = images.index_select(0, at::tensor(read, at::kLong));
      }
      const Tensor found = probabilities(images).contiguous();
      for (size_t row = 0; row < read.size(); ++row) {
        const double* p = found.data_ptr<double>() + static_cast<int64_t>(row) * found.size(1);
        fill(all[begin + static_cast<size_t>(read[row])], {p, p + found.size(1)});
      }
    }
    return all;
  }

  void fill(Classification& c, std::vector<double> p) const {
    c.index = std::max_element(p.begin(), p.end()) - p.begin();
    c.class_name = terms_.class_names[static_cast<size_t>(c.index)];
    c.confidence = p[static_cast<size_t>(c.index)];
    if (terms_.confidence.threshold.has_value()) {
      c.abstain = !(c.confidence >= *terms_.confidence.threshold);
    }
    c.probabilities = std::move(p);
  }

  static Classification only(std::vector<Classification> one, const std::string& name) {
    TORCH_CHECK(one.front().error.empty(), "Classifier: cannot read ", name, ": ", one.front().error);
    return std::move(one.front());
  }

  ClassifierOptions options_;
  training::ClassifierTerms terms_;
  double temperature_ = 1;
  std::function<Tensor(const Tensor&)> probabilities_;  // uint8 on the device to softmax, float32
};

}  // namespace mixmatch
