#include <mixmatch/models/classifier_file.hpp>

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
  CHECK_THAT(refused(), contains("\"num_classes\" must be a number up to 100000, got \"-2\""));
  metadata["architecture"] = "Transformer";
  mixmatch::write_safetensors(path, {{"x", torch::ones({1})}}, metadata);
  CHECK_THAT(refused(), contains("holds a Transformer, expected a WideResNet"));
}
