#include <mixmatch/mixmatch.hpp>
#include <mixmatch/step/learner.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

using namespace mixmatch;
using models::EfficientNetLite;
using models::EfficientNetLiteOptions;
using models::load_pretrained;
using models::ResNet;
using models::ResNetOptions;
using models::VisionTransformer;
using models::VisionTransformerOptions;

namespace {

/// One of the networks, whichever type it has.
struct ErasedNetwork {
  std::shared_ptr<torch::nn::Module> module;
  std::function<Tensor(const Tensor&)> forward;
};

template <class Holder>
ErasedNetwork erased(const Holder& holder) {
  return {holder.ptr(), [network = holder.ptr()](const Tensor& x) { return network->forward(x); }};
}

ResNet resnet(int64_t depth, int64_t classes = 5) { return ResNet(ResNetOptions(classes).depth(depth)); }
/// Without what is drawn in training.
EfficientNetLite lite(int64_t variant, int64_t classes = 5) {
  return EfficientNetLite(EfficientNetLiteOptions(classes).variant(variant).dropout(0).drop_connect(0));
}
VisionTransformerOptions tiny_transformer(int64_t classes = 5) {
  return VisionTransformerOptions(classes).patch_size(8).image_size(24).width(12).heads(3).depth(2);
}

/// As in tests/python/backbones.py: float64 in [-1, 1) that are a function of a name and an index.
Tensor numbers(const std::string& name, at::IntArrayRef shape) {
  constexpr int64_t mask = 0xFFFFFFFF;
  int64_t seed = 0;
  for (const char letter : name) {
    seed = (seed * 31 + letter) & mask;
  }
  Tensor values = at::empty(shape, at::kDouble);
  auto* data = values.data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    auto x = static_cast<uint64_t>(i + seed) * 2654435761U & mask;
    x ^= x >> 15;
    x = x * 2246822519U & mask;
    x ^= x >> 13;
    data[i] = static_cast<double>(x) / 2147483648.0 - 1;
  }
  return values;
}

void fill(torch::nn::Module& module) {
  const torch::NoGradGuard no_grad;
  const auto ends_with = [](const std::string& name, const std::string& end) {
    return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  for (const auto& item : mixmatch::detail::model_state(module)) {
    Tensor tensor = item.tensor;
    if (ends_with(item.name, "num_batches_tracked") || item.name == "mask_token") {
      tensor.zero_();
      continue;
    }
    const Tensor u = numbers(item.name, tensor.sizes());
    if (ends_with(item.name, "running_var") || ends_with(item.name, "gamma")) {
      tensor.copy_(1 + 0.5 * u);
    } else if (ends_with(item.name, "_token") || ends_with(item.name, "_tokens") ||
               ends_with(item.name, "pos_embed")) {
      tensor.copy_(0.5 * u);
    } else if (tensor.dim() == 1) {
      tensor.copy_(ends_with(item.name, "weight") ? 1 + 0.2 * u : 0.1 * u);
    } else {
      tensor.copy_(
          u * std::sqrt(6.0 * static_cast<double>(tensor.size(0)) / static_cast<double>(tensor.numel())));
    }
  }
}

struct Sums {
  double plain, weighted;
};

/// To a thousandth of what is summed.
void check_sums(const Tensor& logits, const Sums& expected) {
  const Tensor flat = logits.to(at::kDouble).flatten();
  const auto check = [](const Tensor& terms, double sum) {
    CHECK(terms.sum().item<double>() ==
          Approx(sum).epsilon(0).margin(1e-3 * terms.abs().sum().item<double>()));
  };
  check(flat, expected.plain);
  check(flat * at::arange(1, flat.numel() + 1, at::kDouble), expected.weighted);
}

template <class Holder>
int64_t parameters_of(const Holder& network) {
  int64_t count = 0;
  for (const auto& parameter : network->parameters()) {
    count += parameter.numel();
  }
  return count;
}

/// What every block of the library does with a model. `images` float64 [6, 3, H, W].
template <class Holder>
void check_as_model(Holder model, const Tensor& images) {
  model->to(at::kDouble);
  training::to_channels_last(model);
  const auto parts = images.contiguous(at::MemoryFormat::ChannelsLast).chunk(3);
  const auto statistics = [&] {
    std::vector<Tensor> buffers;
    for (const auto& buffer : model->buffers()) {
      buffers.push_back(buffer.clone());
    }
    return buffers;
  };
  const auto same = [](const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Tensor& x, const Tensor& y) {
      return torch::allclose(x.to(at::kDouble), y.to(at::kDouble), 1e-9, 1e-12);
    });
  };
  // In groups as in passes of their own, of which the first alone moves the statistics.
  static_assert(GroupedModel<Holder>);
  auto twin = std::dynamic_pointer_cast<typename Holder::ContainedType>(model->clone());
  REQUIRE(twin);
  std::vector<Tensor> separate;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i == 0) {
      separate.push_back(twin->forward(parts[i]));
    } else {
      const BatchNormFreeze frozen(twin);
      separate.push_back(twin->forward(parts[i]));
    }
  }
  const auto grouped = forward_each(model, parts);
  CHECK(same(grouped, separate));
  CHECK(same(statistics(), twin->buffers()));

  const auto before = statistics();
  {
    const BatchNormFreeze frozen(model);
    model->forward(parts[0]);
  }
  CHECK(same(statistics(), before));

  // A step of training: every parameter has a gradient, and the average follows.
  EmaModel<Holder> ema(model, EmaModelOptions().decay(0.5));
  training::Learner<Holder> learner(model, ema);
  {
    const auto scope = learner.training_step(torch::tensor(int64_t{0}));
    forward(learner, parts[0]).square().sum().backward();
  }
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model->named_parameters()) {
    INFO(parameter.key());
    REQUIRE(parameter.value().grad().defined());
    CHECK(parameter.value().grad().abs().sum().template item<double>() > 0);
    parameter.value().add_(1e-3 * torch::randn_like(parameter.value()));
  }
  model->eval();
  const Tensor average_before = ema.forward(parts[0]), live = model->forward(parts[0]);
  CHECK_FALSE(torch::allclose(average_before, live, 1e-9, 1e-12));
  ema.update();
  CHECK_FALSE(torch::allclose(ema.forward(parts[0]), average_before, 1e-9, 1e-12));
}

/// A state with `change` made to it, in a file.
std::string file_with(const TempDir& dir, torch::nn::Module& module,
                      const std::function<void(NamedTensors&)>& change) {
  NamedTensors tensors;
  for (const auto& item : mixmatch::detail::model_state(module)) {
    tensors.emplace_back(item.name, item.tensor.detach());
  }
  change(tensors);
  const auto path = dir / "weights.safetensors";
  write_safetensors(path, tensors);
  return path.string();
}

void drop(NamedTensors& tensors, const std::string& end) {
  std::erase_if(tensors, [&](const auto& item) {
    return item.first.size() >= end.size() &&
           item.first.compare(item.first.size() - end.size(), end.size(), end) == 0;
  });
}

}  // namespace

TEST_CASE("backbones: the published numbers of parameters") {
  CHECK(parameters_of(resnet(18, 1000)) == 11'689'512);
  CHECK(parameters_of(resnet(34, 1000)) == 21'797'672);
  CHECK(parameters_of(resnet(50, 1000)) == 25'557'032);
  CHECK(parameters_of(lite(0, 1000)) == 4'652'008);
  CHECK(parameters_of(lite(1, 1000)) == 5'416'680);
  CHECK(parameters_of(lite(2, 1000)) == 6'092'072);
  CHECK(parameters_of(lite(3, 1000)) == 8'197'096);
  CHECK(parameters_of(lite(4, 1000)) == 13'006'568);
  CHECK(parameters_of(VisionTransformer(VisionTransformerOptions::small(1000))) == 22'050'664);
  CHECK(parameters_of(VisionTransformer(VisionTransformerOptions::base(1000))) == 86'567'656);
  // DINOv2's have no dense layer, and count the mask token: 22,056,576 and 86,580,480.
  CHECK(parameters_of(VisionTransformer(VisionTransformerOptions::dinov2_small(1))) - 385 + 384 ==
        22'056'576);
  CHECK(parameters_of(VisionTransformer(VisionTransformerOptions::dinov2_base(1))) - 769 + 768 == 86'580'480);
}

// The weights are a function of each tensor's name and shape, so that these hold all names too. From the
// Python originals by `tests/python/backbones.py golden`, torchvision 0.26, timm 1.0.31,
// efficientnet-lite-pytorch 0.1.0: evaluation of 75 x 64 images, then a training pass; of Vision
// Transformers, 3 x 3 patches, then 2 x 3, for which the position embedding is interpolated.
TEST_CASE("backbones: weights by formula give what torchvision, timm and efficientnet-lite-pytorch give") {
  struct Golden {
    std::string name;
    size_t tensors;
    Sums first, second;
  };
  const std::vector<Golden> table{
      {"resnet18", 122, {-193.525519, -1399.36974}, {-3.73426838, -27.3101846}},
      {"resnet34", 218, {-827.949777, -6936.0627}, {-3.4342883, -37.0855954}},
      {"resnet50", 320, {-25384.8211, -226672.99}, {-13.7820135, -106.594187}},
      {"efficientnet_lite0", 296, {16.2157639, 155.57094}, {1.65223967, 14.1240464}},
      {"efficientnet_lite1", 386, {8.9430778, 100.458618}, {1.24835768, 10.7485809}},
      {"efficientnet_lite2", 386, {2.21568232, 16.6073047}, {1.59478919, 9.03216568}},
      {"efficientnet_lite3", 440, {-3.07391438, 5.14572696}, {1.90559121, 13.0999138}},
      {"efficientnet_lite4", 548, {-0.762026958, 18.0975928}, {2.03145705, 24.2011836}},
      {"vit_s16", 152, {-14.1481759, -127.664541}, {-12.4227058, -67.4300423}},
      {"vit_b16", 152, {-6.30203812, -85.3964813}, {-3.35391516, -55.129969}},
      {"dinov2_s14", 177, {-20.8346874, -183.068805}, {-23.2203164, -176.608946}},
      {"dinov2_s14_registers", 178, {-21.6022001, -201.399046}, {-28.1490099, -226.020799}},
  };
  const auto make = [](const std::string& name) {
    if (name.rfind("resnet", 0) == 0) {
      return erased(resnet(std::stoll(name.substr(6))));
    }
    if (name.rfind("efficientnet", 0) == 0) {
      return erased(lite(name.back() - '0'));
    }
    auto options = name == "vit_s16"   ? VisionTransformerOptions::small(5)
                   : name == "vit_b16" ? VisionTransformerOptions::base(5)
                                       : VisionTransformerOptions::dinov2_small(5);
    options.image_size(3 * options.patch_size());
    options.registers(name == "dinov2_s14_registers" ? 4 : 0);
    return erased(VisionTransformer(options));
  };
  for (const auto& [name, tensors, first, second] : table) {
    INFO(name);
    const auto network = make(name);
    CHECK(mixmatch::detail::model_state(*network.module).size() == tensors);
    fill(*network.module);
    const torch::NoGradGuard no_grad;
    const bool transformer = name.rfind("efficientnet", 0) != 0 && name.rfind("resnet", 0) != 0;
    const int64_t patch = name.rfind("vit", 0) == 0 ? 16 : 14;
    const std::vector<int64_t> size =
        transformer ? std::vector<int64_t>{3, 3, 3 * patch, 3 * patch} : std::vector<int64_t>{3, 3, 75, 64};
    network.module->eval();
    check_sums(network.forward(numbers("images", size).to(at::kFloat)), first);
    network.module->train();
    std::vector<int64_t> second_size = size;
    second_size[2] = transformer ? 2 * patch : size[2];
    // Channels-last: the fused paths.
    check_sums(
        network.forward(
            numbers("images", second_size).to(at::kFloat, false, false, at::MemoryFormat::ChannelsLast)),
        second);
  }
}

TEST_CASE("backbones: models to every block of the library") {
  torch::manual_seed(1);
  const Tensor images = torch::randn({6, 3, 40, 32}, at::kDouble);
  // float64 has no fast convolutions.
  check_as_model(resnet(18), images.narrow(2, 0, 20).narrow(3, 0, 16));
  check_as_model(resnet(50), images.narrow(2, 0, 9).narrow(3, 0, 16));
  check_as_model(lite(0), images.narrow(2, 0, 20));
  check_as_model(VisionTransformer(tiny_transformer().layer_scale(0.1).registers(2).mask_token(true)),
                 images);
}

TEST_CASE("backbones: under autocast to bfloat16 and on images without rows") {
  const torch::NoGradGuard no_grad;
  const auto check = [](auto model) {
    model->eval();
    const Tensor images = torch::randn({2, 3, 32, 32});
    const Tensor expected = model->forward(images);
    const training::Autocast autocast(torch::kCPU, at::kBFloat16);
    CHECK(torch::allclose(model->forward(images).to(at::kFloat), expected, 0.1, 0.1));
    CHECK(model->forward(images.narrow(0, 0, 0)).sizes() == at::IntArrayRef({0, 5}));
  };
  torch::manual_seed(3);
  check(resnet(18));
  check(lite(0));
  check(VisionTransformer(tiny_transformer()));
}

TEST_CASE(
    "Network: the network that it holds, by its names and in its modes, with images as its weights expect") {
  torch::manual_seed(9);
  check_as_model(models::named_network("resnet18", 5), torch::randn({6, 3, 20, 16}, at::kDouble));
  auto network = models::named_network("vit_s16", 5);
  auto own = std::dynamic_pointer_cast<models::VisionTransformerImpl>(network->module());
  REQUIRE(own);
  const auto names = [](torch::nn::Module& module) {
    std::vector<std::string> list;
    for (const auto& item : mixmatch::detail::model_state(module)) {
      list.push_back(item.name);
    }
    return list;
  };
  CHECK(names(*network) == names(*own));
  network->eval();
  CHECK_FALSE(own->is_training());
  network->to(at::kDouble);
  const Tensor images = torch::randn({2, 3, 32, 32}, at::kDouble);
  const torch::NoGradGuard no_grad;
  CHECK(torch::equal(network->forward(images), own->forward(images)));

  auto normalising = models::named_network("resnet18", 5);
  normalising->eval();
  const Tensor x = torch::rand({2, 3, 32, 32});
  const Tensor mean = torch::tensor({0.485, 0.456, 0.406}).view({3, 1, 1});
  const Tensor deviation = torch::tensor({0.229, 0.224, 0.225}).view({3, 1, 1});
  auto resnet18 = std::dynamic_pointer_cast<models::ResNetImpl>(normalising->module());
  CHECK(torch::allclose(normalising->forward(2 * x - 1), resnet18->forward((x - mean) / deviation), 1e-4,
                        1e-5));

  for (const auto& name : models::network_names()) {
    if (name != "vit_b16" && name != "efficientnet_lite4") {  // large
      CHECK(models::named_network(name, 2)->description().at("architecture") == name);
    }
  }
  CHECK_THAT(error_of([] { models::named_network("resnet19", 2); }),
             contains("there is no network \"resnet19\"; there are resnet18, resnet34, "));
}

TEST_CASE("Network: features and the head make the output, in every network") {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(4);
  const Tensor images = torch::randn({2, 3, 32, 32});
  const auto check = [&](models::Network network, const std::string& head) {
    network->eval();
    CHECK(network->head_name == head);
    CHECK(torch::equal(network->head()->forward(network->features(images)), network->forward(images)));
    CHECK(network->features(images).size(1) == network->head()->options.in_features());
  };
  check(models::wide_resnet_network(models::WideResNetOptions(3).depth(10)), "fc");
  for (const std::string name : {"resnet18", "efficientnet_lite0", "vit_s16"}) {
    check(models::named_network(name, 3), models::head_name(name));
  }
}

TEST_CASE("Network: layers that are frozen stay as they are, in a clone too") {
  torch::manual_seed(5);
  const Tensor images = torch::randn({3, 3, 32, 32});
  const auto trained = [&](models::Network network) {
    std::vector<std::string> moving;
    network->train();
    const auto before = network->clone();
    network->forward(images).square().sum().backward();
    for (const auto& parameter : network->named_parameters()) {
      if (parameter.value().grad().defined()) {
        moving.push_back(parameter.key());
      }
    }
    for (const auto& buffer : network->named_buffers()) {
      if (!torch::equal(buffer.value(), before->named_buffers()[buffer.key()])) {
        moving.push_back(buffer.key());
      }
    }
    return moving;
  };
  const auto make = [] { return models::named_network("resnet18", 3); };
  const size_t all = 62 + 60;  // parameters and buffers
  CHECK(trained(make()).size() == all);

  auto probe = make();
  probe->freeze({"backbone"});
  CHECK(trained(probe) == std::vector<std::string>{"fc.weight", "fc.bias"});
  CHECK_FALSE(probe->named_modules()["layer1.0.bn1"]->is_training());
  CHECK(probe->named_modules()["fc"]->is_training());

  auto partly = make();
  partly->freeze({"conv1", "bn1", "layer1.0", "layer2.0.conv1.weight"});
  for (const auto& network :
       {partly, models::Network(std::dynamic_pointer_cast<models::NetworkImpl>(partly->clone()))}) {
    const auto moving = trained(network);
    CHECK(moving.size() == all - 3 - 6 - 1 - 3 - 6);
    for (const auto& name : moving) {
      CHECK(name.rfind("layer1.0.", 0) != 0);
      CHECK(name.rfind("bn1.", 0) != 0);
    }
  }

  auto statistics = make();
  statistics->freeze_statistics();
  CHECK(trained(statistics).size() == 62);
  CHECK_FALSE(statistics->named_modules()["bn1"]->is_training());
  CHECK(statistics->is_training());
  statistics->freeze_statistics(false);
  CHECK(statistics->named_modules()["bn1"]->is_training());

  CHECK(error_of([&] { make()->freeze({"layer"}); }) ==
        "freeze: the network has no layer with parameters \"layer\"; it has backbone, conv1, bn1, layer1, "
        "layer2, layer3, layer4, fc");
}

TEST_CASE("EfficientNetLite: dropout and drop connect in training mode alone") {
  torch::manual_seed(4);
  EfficientNetLite model(EfficientNetLiteOptions(5));
  CHECK(model->dropout() == 0.2);
  CHECK(EfficientNetLite(EfficientNetLiteOptions(5).variant(2))->dropout() == 0.3);
  const Tensor images = torch::randn({4, 3, 32, 32});
  CHECK_FALSE(torch::equal(model->forward(images), model->forward(images)));
  model->eval();
  CHECK(torch::equal(model->forward(images), model->forward(images)));

  // A row has its residual twice, or not at all.
  const EfficientNetLiteOptions options(5);
  models::EfficientNetLiteBlock plain(8, 8, 3, 1, 6, 0.0, options), dropping(8, 8, 3, 1, 6, 0.5, options);
  {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < plain->parameters().size(); ++i) {
      dropping->parameters()[i].copy_(plain->parameters()[i]);
    }
  }
  const Tensor x = torch::randn({64, 8, 5, 5});
  const Tensor residual = plain(x) - x, found = dropping(x) - x;
  int64_t kept = 0;
  for (int64_t row = 0; row < 64; ++row) {
    const bool keeps = found[row].abs().max().item<double>() > 0;
    kept += keeps ? 1 : 0;
    CHECK(torch::allclose(found[row], keeps ? 2 * residual[row] : torch::zeros_like(x[row]), 1e-4, 1e-5));
  }
  CHECK((kept > 12 && kept < 52));
}

TEST_CASE(
    "VisionTransformer: the position embedding of other sizes, and registers that change nothing else") {
  torch::manual_seed(5);
  VisionTransformer model(tiny_transformer());
  // Constant positions are the same interpolated, and each patch then counts alike wherever it is.
  {
    const torch::NoGradGuard no_grad;
    model->pos_embed.fill_(0.3);
  }
  const Tensor image = torch::randn({1, 3, 8, 40});
  const Tensor turned = at::roll(image, 8, 3);
  CHECK(torch::allclose(model->forward(image), model->forward(turned), 1e-4, 1e-5));
  CHECK(model->forward(torch::randn({2, 3, 48, 16})).sizes() == at::IntArrayRef({2, 5}));
}

TEST_CASE("backbones: bad options and sizes in one line") {
  CHECK_THAT(error_of([] { resnet(51); }), contains("ResNet: depth must be 18, 34 or 50, got 51"));
  CHECK_THAT(error_of([] { resnet(18, 0); }), contains("ResNet: num_classes must be >= 1, got 0"));
  CHECK_THAT(error_of([] {
               resnet(18)->forward(torch::zeros({2, 1, 32, 32}));
             }),
             contains("ResNet: input must be [N, 3, H, W], got [2, 1, 32, 32]"));
  CHECK_THAT(error_of([] { lite(5); }), contains("EfficientNetLite: variant must be 0, 1, 2, 3 or 4, got 5"));
  CHECK_THAT(error_of([] { EfficientNetLite(EfficientNetLiteOptions(5).dropout(1)); }),
             contains("dropout must be in [0, 1), got 1"));
  CHECK_THAT(error_of([] { EfficientNetLite(EfficientNetLiteOptions(5).drop_connect(-0.1)); }),
             contains("drop_connect must be in [0, 1), got -0.1"));
  CHECK_THAT(error_of([] {
               lite(0)->forward(torch::zeros({3, 32, 32}));
             }),
             contains("EfficientNetLite: input must be [N, 3, H, W], got [3, 32, 32]"));
  CHECK_THAT(error_of([] { VisionTransformer(tiny_transformer().heads(5)); }),
             contains("width must be a multiple of heads 5, got 12"));
  CHECK_THAT(error_of([] { VisionTransformer(tiny_transformer().image_size(30)); }),
             contains("image_size must be a multiple of patch_size 8, got 30"));
  CHECK_THAT(error_of([] { VisionTransformer(tiny_transformer().registers(-1)); }),
             contains("registers must be >= 0, got -1"));
  CHECK_THAT(error_of([] {
               VisionTransformer(tiny_transformer())->forward(torch::zeros({1, 3, 32, 30}));
             }),
             contains("height and width of the images must be multiples of the patch size 8, got 32 x 30"));
}

TEST_CASE("load_pretrained: weights for other classes leave the head as it was, and say so") {
  TempDir dir;
  torch::manual_seed(6);
  auto published = resnet(18, 7);
  const auto check = [&](const std::string& path, const std::vector<std::string>& missing = {}) {
    auto model = resnet(18, 5);
    const Tensor head = model->fc->weight.detach().clone();
    const auto loaded = load_pretrained(path, model);
    CHECK(loaded.kept_head == std::vector<std::string>{"fc.weight", "fc.bias"});
    CHECK(loaded.unexpected.empty());
    CHECK(loaded.missing == missing);
    CHECK(torch::equal(model->fc->weight, head));
    CHECK(torch::allclose(model->conv1->weight, published->conv1->weight, 1e-2, 1e-2));
  };
  check(file_with(dir, *published, [](NamedTensors&) {}));
  check(file_with(dir, *published, [](NamedTensors& tensors) { drop(tensors, "fc.weight"); }));
  check(file_with(dir, *published, [](NamedTensors& tensors) {
    drop(tensors, "fc.weight");
    drop(tensors, "fc.bias");
  }));
  check(file_with(dir, *published, [](NamedTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      tensor = tensor.is_floating_point() ? tensor.to(at::kBFloat16) : tensor;
    }
  }));
  auto small = resnet(18, 7);
  std::vector<std::string> counts;
  for (const auto& item : mixmatch::detail::model_buffers(small)) {
    if (item.name.find("num_batches_tracked") != std::string::npos) {
      counts.push_back(item.name);
    }
  }
  check(file_with(dir, *published, [](NamedTensors& tensors) { drop(tensors, "num_batches_tracked"); }),
        counts);

  // One of the same size is loaded.
  const auto path = file_with(dir, *published, [](NamedTensors&) {});
  auto same = resnet(18, 7);
  CHECK(load_pretrained(path, same).kept_head.empty());
  CHECK(torch::equal(same->fc->weight, published->fc->weight));
}

TEST_CASE("load_pretrained: weights of another network are refused by name, and nothing is changed") {
  TempDir dir;
  torch::manual_seed(7);
  auto model = resnet(18);
  const Tensor before = model->conv1->weight.detach().clone();
  const auto error = [&](const std::string& path) {
    const std::string message = error_of([&] { load_pretrained(path, model); });
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.rfind("load_pretrained: " + path + ": ", 0) == 0);
    CHECK(torch::equal(model->conv1->weight, before));
    return message;
  };
  auto larger = resnet(34);
  CHECK_THAT(error(file_with(dir, *larger, [](NamedTensors&) {})),
             contains("tensor \"layer1.2.bn1.bias\" (F32 [64]) is not in the model, and 95 more: "
                      "\"layer1.2.bn1.num_batches_tracked\", \"layer1.2.bn1.running_mean\", "
                      "\"layer1.2.bn1.running_var\", …"));
  CHECK_THAT(
      error(file_with(dir, *model, [](NamedTensors& tensors) { drop(tensors, "layer4.1.conv2.weight"); })),
      contains("tensor \"layer4.1.conv2.weight\" (F32 [512, 512, 3, 3]) of the model is missing"));
  CHECK_THAT(error(file_with(dir, *model,
                             [](NamedTensors& tensors) {
                               drop(tensors, "layer4.1.conv2.weight");
                               tensors.emplace_back("layer4.1.conv2.weight", torch::zeros({512, 512, 1, 1}));
                             })),
             contains("tensor \"layer4.1.conv2.weight\" is F32 [512, 512, 3, 3] in the model, but F32 "
                      "[512, 512, 1, 1] in the file"));
  // A head of another name is not taken for none.
  CHECK_THAT(error(file_with(dir, *model,
                             [](NamedTensors& tensors) {
                               for (auto& item : tensors) {
                                 if (item.first.rfind("fc.", 0) == 0) {
                                   item.first = "classifier" + item.first.substr(2);
                                 }
                               }
                             })),
             contains("tensor \"classifier.bias\" (F32 [5]) is not in the model, and 1 more: "
                      "\"classifier.weight\""));
  const auto path = file_with(dir, *model, [](NamedTensors&) {});
  CHECK_THAT(error_of([&] { load_pretrained(path, model, models::LoadPretrainedOptions().head("head")); }),
             contains("the model has no layer \"head\" for a head"));

  // Asked to, it takes what fits and names the rest.
  const auto loaded = load_pretrained(file_with(dir, *larger, [](NamedTensors&) {}), model,
                                      models::LoadPretrainedOptions().strict(false));
  CHECK(loaded.unexpected.size() == 96);
  CHECK(loaded.missing.empty());
  CHECK(torch::equal(model->conv1->weight, larger->conv1->weight));
}

TEST_CASE(
    "load_pretrained: any module, with a head by its name; a Vision Transformer of another image size") {
  TempDir dir;
  torch::manual_seed(8);
  torch::nn::Sequential net(torch::nn::Linear(3, 4), torch::nn::Linear(4, 2));
  torch::nn::Sequential published(torch::nn::Linear(3, 4), torch::nn::Linear(4, 9));
  const auto path = file_with(dir, *published, [](NamedTensors&) {});
  CHECK_THAT(error_of([&] { load_pretrained(path, net); }),
             contains("tensor \"1.weight\" is F32 [2, 4] in the model, but F32 [9, 4] in the file"));
  const auto loaded = load_pretrained(path, net, models::LoadPretrainedOptions().head("1"));
  CHECK(loaded.kept_head == std::vector<std::string>{"1.weight", "1.bias"});
  CHECK(torch::equal(net->named_parameters()["0.weight"], published->named_parameters()["0.weight"]));

  VisionTransformer small(tiny_transformer()), large(tiny_transformer().image_size(32));
  const auto transformer = file_with(dir, *large, [](NamedTensors&) {});
  CHECK_THAT(
      error_of([&] { load_pretrained(transformer, small); }),
      contains("tensor \"pos_embed\" is F32 [1, 10, 12] in the model, but F32 [1, 17, 12] in the file"));
}
