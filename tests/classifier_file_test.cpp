#include <mixmatch/program/classifier_file.hpp>

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::EmaModel;
using mixmatch::EmaModelOptions;
using mixmatch::models::load_classifier;
using mixmatch::models::save_classifier;
using mixmatch::models::WideResNet;
using mixmatch::models::WideResNetOptions;
using torch::Tensor;

TEST_CASE("classifier file: the averaged weights and all that is needed to use them") {
  torch::manual_seed(1);
  TempDir dir;
  WideResNet model(WideResNetOptions(3).depth(10).filters(5).scales(2).in_channels(1));
  EmaModel ema(model, EmaModelOptions().decay(0.5));
  {
    torch::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) {
      parameter.add_(0.01 * torch::randn_like(parameter));
    }
  }
  ema.update();
  const std::vector<std::string> classes{"cat", "dög", "a \"quoted\" one"};
  save_classifier(dir / "m.safetensors", model, ema, classes, 16);
  auto loaded = load_classifier(dir / "m.safetensors");
  CHECK(loaded.class_names == classes);
  CHECK(loaded.image_size == 16);
  CHECK_FALSE(loaded.model->is_training());
  const Tensor images = torch::randn({2, 1, 16, 16});
  torch::NoGradGuard no_grad;
  CHECK(torch::equal(loaded.model->forward(images), ema.forward(images)));
}

TEST_CASE("classifier file: the rule for confidences travels with the weights") {
  TempDir dir;
  const auto path = dir / "m.safetensors";
  WideResNet model(WideResNetOptions(2).depth(10).filters(4).scales(1));
  EmaModel ema(model);
  const double infinity = std::numeric_limits<double>::infinity();
  for (const std::optional<double> threshold : {std::optional<double>(), {0.87654321987654321}, {infinity}}) {
    save_classifier(path, model, ema, {"a", "b"}, 8, {1.0 / 3, threshold, 0.9});
    const auto rule = load_classifier(path).confidence;
    CHECK(rule.temperature == 1.0 / 3);
    CHECK(rule.threshold == threshold);
    CHECK(rule.target_precision == 0.9);
  }
  // Files of before, and of others, have none.
  auto metadata = mixmatch::read_safetensors_metadata(path);
  const auto tensors = mixmatch::read_safetensors(path);
  metadata.erase("mixmatch_crc32c");
  for (const std::string key : {"temperature", "abstain_below", "target_precision"}) {
    for (const std::string value : {"-1", "nan", "", "0.5x", "-inf", "a\x1b[2J"}) {
      auto wrong = metadata;
      wrong[key] = value;
      mixmatch::write_safetensors(path, tensors, wrong);
      const std::string error = error_of([&] { load_classifier(path); });
      CHECK_THAT(error, contains(path.string() + ": its metadata's \"" + key + "\" must be a number from"));
      CHECK(error.find('\n') == std::string::npos);
      CHECK(error.find('\x1b') == std::string::npos);
    }
  }
  for (const std::string key : {"temperature", "abstain_below", "target_precision"}) {
    metadata.erase(key);
  }
  // How pictures become square, too; those of before were cut.
  using mixmatch::data::PictureFit;
  mixmatch::write_safetensors(path, tensors, metadata);
  CHECK(load_classifier(path).fit == PictureFit::crop);
  save_classifier(dir / "fit.safetensors", model, ema, {"a", "b"}, 8, {}, PictureFit::letterbox);
  CHECK(load_classifier(dir / "fit.safetensors").fit == PictureFit::letterbox);
  metadata["fit"] = "a\x1b[2J";
  mixmatch::write_safetensors(path, tensors, metadata);
  CHECK_THAT(
      error_of([&] { load_classifier(path); }),
      contains(path.string() + ": its metadata's \"fit\" must be crop or letterbox, got \"a\\x1b[2J\""));
  metadata.erase("fit");
  mixmatch::write_safetensors(path, tensors, metadata);
  CHECK(load_classifier(path).fit == PictureFit::crop);
  CHECK(load_classifier(path).confidence.temperature == 1);
  CHECK_FALSE(load_classifier(path).confidence.threshold.has_value());
}

TEST_CASE("classifier file: a network by its name, under the names of its own") {
  torch::manual_seed(4);
  TempDir dir;
  const auto path = dir / "m.safetensors";
  const torch::NoGradGuard no_grad;
  for (const auto& [name, first] : {std::pair<std::string, std::string>{"resnet18", "conv1.weight"},
                                    {"efficientnet_lite0", "_conv_stem.weight"},
                                    {"vit_s16", "cls_token"}}) {
    INFO(name);
    auto model = mixmatch::models::named_network(name, 3);
    EmaModel ema(model, EmaModelOptions().decay(0.5));
    for (auto& parameter : model->parameters()) {
      parameter.add_(0.01 * torch::randn_like(parameter));
    }
    ema.update();
    save_classifier(path, model, ema, {"a", "b", "c"}, 32);
    bool found = false;
    for (const auto& [tensor, value] : mixmatch::read_safetensors(path)) {
      found = found || tensor == first;
    }
    CHECK(found);
    auto loaded = load_classifier(path);
    CHECK(loaded.model->description() == model->description());
    CHECK_FALSE(loaded.model->module()->is_training());
    const Tensor images = torch::rand({2, 3, 32, 32}) * 2 - 1;
    CHECK(torch::equal(loaded.model->forward(images), ema.forward(images)));
  }
  auto metadata = mixmatch::read_safetensors_metadata(path);
  metadata.erase("mixmatch_crc32c");
  metadata["architecture"] = "resnet18";
  mixmatch::write_safetensors(path, {}, metadata);
  CHECK_THAT(
      error_of([&] { load_classifier(path); }),
      contains("holds 0 numbers, but the network that its metadata describes has 11187671 (resnet18)"));
}

TEST_CASE("classifier file: other files are refused in one line that names the file") {
  TempDir dir;
  const auto path = dir / "m.safetensors";
  const auto refused = [&] {
    const std::string error = error_of([&] { load_classifier(path); });
    CHECK_THAT(error, contains(path.string()));
    CHECK(error.find('\n') == std::string::npos);
    return error;
  };
  CHECK_FALSE(refused().empty());
  mixmatch::write_safetensors(path, {{"x", torch::ones({1})}});
  CHECK_THAT(refused(), contains("is no classifier of this library"));
  std::map<std::string, std::string> metadata{
      {"architecture", "WideResNet"}, {"image_size", "32"}, {"num_classes", "-2"}};
  mixmatch::write_safetensors(path, {{"x", torch::ones({1})}}, metadata);
  CHECK_THAT(refused(), contains("\"num_classes\" must be a number from 1 to 100000, got \"-2\""));
  metadata["architecture"] = "Transformer";
  mixmatch::write_safetensors(path, {{"x", torch::ones({1})}}, metadata);
  CHECK_THAT(refused(), contains("holds a Transformer, expected a WideResNet or one of resnet18, "));
}

TEST_CASE("classifier file: a network of gigabytes in a few bytes is refused before it is built") {
  TempDir dir;
  const auto path = dir / "m.safetensors";
  const std::map<std::string, std::string> metadata{{"architecture", "WideResNet"},
                                                    {"num_classes", "2"},
                                                    {"class_0", "a"},
                                                    {"class_1", "b"},
                                                    {"depth", "1000"},
                                                    {"widen_factor", "20"},
                                                    {"filters", "0"},
                                                    {"scales", "3"},
                                                    {"in_channels", "3"},
                                                    {"image_size", "32"}};
  mixmatch::write_safetensors(path, {}, metadata);
  const std::string error = error_of([&] { load_classifier(path); });
  CHECK(error.find('\n') == std::string::npos);
  CHECK_THAT(error,
             contains(path.string() + " holds 0 numbers, but the network that its metadata describes has "));
  CHECK_THAT(error, contains("(depth 1000, widen_factor 20, filters 0, scales 3)"));
  auto largest = metadata;
  largest["widen_factor"] = "100";
  largest["scales"] = "10";
  largest["filters"] = "4096";
  mixmatch::write_safetensors(path, {}, largest);
  CHECK_THAT(error_of([&] { load_classifier(path); }), contains("holds 0 numbers"));
  for (const std::string key : {"depth", "widen_factor", "scales", "in_channels", "image_size"}) {
    for (const std::string value : {"0", "-1", "99999999999999999999", "1e3", "", "a\x1b[2J"}) {
      auto wrong = metadata;
      wrong[key] = value;
      mixmatch::write_safetensors(path, {}, wrong);
      CHECK_THAT(error_of([&] { load_classifier(path); }), contains("\"" + key + "\" must be a number from"));
      CHECK(error_of([&] { load_classifier(path); }).find('\x1b') == std::string::npos);
    }
  }
}

TEST_CASE("classifier file: the count of a network's numbers is that of the network") {
  for (const auto& options : {WideResNetOptions(10), WideResNetOptions(3).depth(10).widen_factor(1),
                              WideResNetOptions(2).depth(16).filters(5),
                              WideResNetOptions(7).depth(10).filters(16).scales(1).in_channels(1),
                              WideResNetOptions(4).depth(10).filters(8).scales(4)}) {
    WideResNet model(options);
    int64_t numbers = 0;
    for (const auto& item : mixmatch::detail::model_state(model)) {
      numbers += item.tensor.numel();
    }
    CHECK(mixmatch::models::detail::wide_resnet_numbers(options) == numbers);
  }
}

TEST_CASE("classifier file: the count of a named network's numbers is that of the network") {
  for (const auto& name : mixmatch::models::network_names()) {
    INFO(name);
    auto network = mixmatch::models::named_network(name, 7);
    int64_t numbers = 0;
    for (const auto& item : mixmatch::detail::model_state(network)) {
      numbers += item.tensor.numel();
    }
    CHECK(mixmatch::models::network_numbers(name, 7) == numbers);
  }
  CHECK_THAT(error_of([] { mixmatch::models::network_numbers("lenet", 7); }),
             contains("there is no network \"lenet\""));
}

TEST_CASE("classifier file: changed weights are refused, and those that are not finite") {
  torch::manual_seed(2);
  TempDir dir;
  const auto path = dir / "m.safetensors";
  WideResNet model(WideResNetOptions(2).depth(10).filters(4).scales(1));
  EmaModel ema(model);
  save_classifier(path, model, ema, {"a", "b"}, 8);
  CHECK(mixmatch::read_safetensors_metadata(path).count("mixmatch_crc32c") == 1);
  const std::string whole = read_file(path);
  for (const size_t from_end : {size_t{1}, size_t{100}, whole.size() / 2}) {
    std::string bytes = whole;
    bytes[bytes.size() - from_end] = static_cast<char>(bytes[bytes.size() - from_end] ^ 4);
    write_file(path, bytes);
    const std::string error = error_of([&] { load_classifier(path); });
    CHECK_THAT(error, contains(path.string() + ": damaged: its content does not fit its checksum"));
    CHECK(error.find('\n') == std::string::npos);
  }
  // A class's name is part of what is checked.
  std::string renamed = whole;
  renamed[renamed.find("\"class_0\":\"a\"") + 11] = 'c';
  write_file(path, renamed);
  CHECK_THAT(error_of([&] { load_classifier(path); }), contains("damaged"));

  // Files of before, and of others, have no checksum.
  write_file(path, whole);
  auto metadata = mixmatch::read_safetensors_metadata(path);
  auto tensors = mixmatch::read_safetensors(path);
  metadata.erase("mixmatch_crc32c");
  mixmatch::write_safetensors(path, tensors, metadata);
  CHECK(load_classifier(path).class_names == std::vector<std::string>{"a", "b"});
  for (auto& [name, tensor] : tensors) {
    if (name == "fc.bias") {
      tensor[1] = NAN;
    }
  }
  mixmatch::write_safetensors(path, tensors, metadata);
  CHECK_THAT(error_of([&] { load_classifier(path); }),
             contains(path.string() + ": tensor \"fc.bias\" holds a value that is not finite"));
}
