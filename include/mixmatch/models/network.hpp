#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/version.hpp>
#include <mixmatch/models/efficientnet_lite.hpp>
#include <mixmatch/models/resnet.hpp>
#include <mixmatch/models/script_network.hpp>
#include <mixmatch/models/vision_transformer.hpp>
#include <mixmatch/models/wide_resnet.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::models {

/// What there is to know about one of the library's networks to make it again, as text by name;
/// "architecture" is always among it.
using NetworkDescription = std::map<std::string, std::string>;

inline NetworkDescription describe(const WideResNetOptions& options) {
  return {{"architecture", "WideResNet"},
          {"num_classes", std::to_string(options.num_classes())},
          {"depth", std::to_string(options.depth())},
          {"widen_factor", std::to_string(options.widen_factor())},
          {"filters", std::to_string(options.filters())},
          {"scales", std::to_string(options.scales())},
          {"in_channels", std::to_string(options.in_channels())}};
}

/// One of the library's networks, whichever it is: a type for what is to be compiled once for all of them.
///
/// Has the parameters, buffers, submodules and names of the network that it holds, and gives what that gives;
/// a clone holds a clone. Takes images in [-1, 1], as augment::normalize() makes them, and gives the network
/// what its published weights expect: x scale + shift a channel. In evaluation mode forward() changes
/// nothing: any number of threads may call it.
class NetworkImpl : public torch::nn::Module {
 public:
  /// `scale` and `shift`: float [C], or undefined for images as they are.
  template <class Impl>
  NetworkImpl(std::shared_ptr<Impl> network, NetworkDescription description, Tensor scale = {},
              Tensor shift = {})
      : head_name(Impl::head_name),
        module_(network),
        description_(std::move(description)),
        scale_(std::move(scale)),
        shift_(std::move(shift)),
        forward_([raw = network.get()](const Tensor& x) { return raw->forward(x); }),
        features_([raw = network.get()](const Tensor& x) { return raw->features(x); }),
        set_groups_([raw = network.get()](int64_t groups) { raw->set_batch_norm_groups(groups); }),
        make_clone_([](const torch::nn::Module& module, const NetworkImpl& self,
                       const mixmatch::detail::AtenOptional<torch::Device>& device) {
          auto copy = std::dynamic_pointer_cast<Impl>(module.clone(device));
          auto clone = std::make_shared<NetworkImpl>(copy, self.description_, self.scale_, self.shift_);
          clone->freeze(self.frozen_);
          clone->freeze_statistics(self.frozen_statistics_);
          if (device.has_value()) {
            clone->move_scale(*device);
          }
          clone->train(self.is_training());
          return clone;
        }) {
    // The same tensors and modules under the same names.
    for (const auto& parameter : network->named_parameters(/*recurse=*/false)) {
      register_parameter(parameter.key(), parameter.value(), parameter.value().requires_grad());
    }
    for (const auto& buffer : network->named_buffers(/*recurse=*/false)) {
      register_buffer(buffer.key(), buffer.value());
    }
    for (const auto& child : network->named_children()) {
      register_module(child.key(), child.value());
    }
  }

  Tensor forward(const Tensor& images) {
    return takes_features_ ? head()->forward(images.flatten(1)) : forward_(normalized(images));
  }

  /// What the last layer sees of the images, [N, D].
  Tensor features(const Tensor& images) { return features_(normalized(images)); }
  /// The last layer, a torch::nn::Linear of D inputs.
  torch::nn::Linear head() const {
    return torch::nn::Linear(std::dynamic_pointer_cast<torch::nn::LinearImpl>(named_children()[head_name]));
  }

  /// Makes forward() take features, [N, D, ...] of D numbers a row, in the place of images: the last layer
  /// alone, for training on features that were computed once. A clone takes images.
  void take_features(bool on) {
    TORCH_CHECK(!on || !head_name.empty(), "take_features: this network has no last layer that is known");
    takes_features_ = on;
  }

  /// Takes layers out of the training: their parameters need no gradient, and they stay in evaluation mode
  /// when the network is put into training mode, so that batch norms use their running statistics, which do
  /// not move, and dropout is off. `names`: of modules and parameters, with what is in them; "backbone" is
  /// all but the head. To be called before an optimiser is made. Throws on a name that the network does not
  /// have.
  void freeze(const std::vector<std::string>& names) {
    for (const auto& name : names) {
      TORCH_CHECK(name != "backbone" || !head_name.empty(),
                  "freeze: this network has no last layer that is known, and so no backbone");
      bool found = false;
      const auto is_frozen = [&](const std::string& other) {
        const bool backbone = name == "backbone";
        const std::string& prefix = backbone ? head_name : name;
        const bool in = other == prefix || other.rfind(prefix + ".", 0) == 0;
        return !other.empty() && in != backbone;
      };
      for (auto& parameter : named_parameters()) {
        if (is_frozen(parameter.key())) {
          parameter.value().set_requires_grad(false);
          found = true;
        }
      }
      for (const auto& module : named_modules()) {
        if (is_frozen(module.key())) {
          evaluating_.push_back(module.value());
        }
      }
      if (!found) {
        std::string children = "backbone";
        for (const auto& child : named_children()) {
          children += ", " + child.key();
        }
        TORCH_CHECK(false, "freeze: the network has no layer with parameters ",
                    mixmatch::detail::quote_for_message(name), "; it has ", children);
      }
      frozen_.push_back(name);
    }
    train(is_training());
  }

  /// Keeps all batch norms in evaluation mode in the same way, while their scales and shifts are trained.
  void freeze_statistics(bool on = true) {
    frozen_statistics_ = on;
    train(is_training());
  }

  /// As WideResNetImpl's.
  void set_batch_norm_groups(int64_t groups) { set_groups_(groups); }

  void train(bool on = true) override {
    Module::train(on);
    module_->train(on);
    for (const auto& module : evaluating_) {
      module->eval();
    }
    if (frozen_statistics_) {
      apply([](torch::nn::Module& module) {
        if (auto* norm = module.as<BatchNormLeakyReLU>()) {
          norm->eval();
        }
      });
    }
  }

  // Scale and shift are no buffers, which files would have to hold.
  using Module::to;
  void to(torch::Device device, bool non_blocking = false) override {
    Module::to(device, non_blocking);
    move_scale(device);
  }
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override {
    Module::to(device, dtype, non_blocking);
    move_scale(device);
  }

  std::shared_ptr<torch::nn::Module> clone(
      const mixmatch::detail::AtenOptional<torch::Device>& device = {}) const override {
    return make_clone_(*module_, *this, device);
  }

  const NetworkDescription& description() const { return description_; }
  /// The network itself.
  const std::shared_ptr<torch::nn::Module>& module() const { return module_; }

  /// The name of the last layer, for load_pretrained().
  std::string head_name;

 private:
  /// As the published weights expect the images.
  Tensor normalized(const Tensor& images) {
    if (!scale_.defined()) {
      return images;
    }
    if (scale_.device() == images.device() && scale_.scalar_type() == images.scalar_type()) {
      return at::addcmul(shift_, images, scale_);
    }
    return at::addcmul(shift_.to(images.options()), images, scale_.to(images.options()));
  }

  /// As a part of a module that is cloned.
  void clone_(torch::nn::Module& other,
              const mixmatch::detail::AtenOptional<torch::Device>& device) override {
    const auto copy = std::dynamic_pointer_cast<NetworkImpl>(other.clone(device));
    TORCH_CHECK(copy != nullptr, "Network: a module of another type was to be cloned into it");
    *this = *copy;
  }

  void move_scale(torch::Device device) {
    if (scale_.defined()) {
      scale_ = scale_.to(device);
      shift_ = shift_.to(device);
    }
  }

  std::shared_ptr<torch::nn::Module> module_;
  NetworkDescription description_;
  Tensor scale_, shift_;  // [C, 1, 1]
  std::vector<std::string> frozen_;
  std::vector<std::shared_ptr<torch::nn::Module>> evaluating_;  // in every mode
  bool frozen_statistics_ = false, takes_features_ = false;
  std::function<Tensor(const Tensor&)> forward_, features_;
  std::function<void(int64_t)> set_groups_;
  std::function<std::shared_ptr<torch::nn::Module>(const torch::nn::Module&, const NetworkImpl&,
                                                   const mixmatch::detail::AtenOptional<torch::Device>&)>
      make_clone_;
};
TORCH_MODULE(Network);

namespace detail {

using MakeNetwork = std::function<Network(int64_t num_classes, const NetworkDescription& description)>;

/// What named_network() knows: a line a network.
inline const std::vector<std::pair<std::string, MakeNetwork>>& named_networks() {
  const auto resnet = [](int64_t depth) -> MakeNetwork {
    return [depth](int64_t num_classes, const NetworkDescription& description) {
      // From [-1, 1]: ((x + 1) / 2 - mean) / deviation.
      const Tensor deviation = torch::tensor({0.229F, 0.224F, 0.225F}).view({3, 1, 1});
      const Tensor mean = torch::tensor({0.485F, 0.456F, 0.406F}).view({3, 1, 1});
      return Network(ResNet(ResNetOptions(num_classes).depth(depth)).ptr(), description, 0.5 / deviation,
                     (0.5 - mean) / deviation);
    };
  };
  const auto lite = [](int64_t variant) -> MakeNetwork {
    return [variant](int64_t num_classes, const NetworkDescription& description) {
      return Network(EfficientNetLite(EfficientNetLiteOptions(num_classes).variant(variant)).ptr(),
                     description);
    };
  };
  const auto transformer = [](VisionTransformerOptions (*options)(int64_t)) -> MakeNetwork {
    return [options](int64_t num_classes, const NetworkDescription& description) {
      return Network(VisionTransformer(options(num_classes)).ptr(), description);
    };
  };
  static const std::vector<std::pair<std::string, MakeNetwork>> networks{
      {"resnet18", resnet(18)},
      {"resnet34", resnet(34)},
      {"resnet50", resnet(50)},
      {"efficientnet_lite0", lite(0)},
      {"efficientnet_lite1", lite(1)},
      {"efficientnet_lite2", lite(2)},
      {"efficientnet_lite3", lite(3)},
      {"efficientnet_lite4", lite(4)},
      {"vit_s16", transformer(VisionTransformerOptions::small)},
      {"vit_b16", transformer(VisionTransformerOptions::base)}};
  return networks;
}

inline std::string list_of_networks() {
  std::string list;
  for (const auto& [name, make] : named_networks()) {
    list += (list.empty() ? "" : ", ") + name;
  }
  return list;
}

}  // namespace detail

/// The names that named_network() knows.
inline const std::vector<std::string>& network_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const auto& [name, make] : detail::named_networks()) {
      list.push_back(name);
    }
    return list;
  }();
  return names;
}

/// A network of the field by its name, for colour images in [-1, 1]; a ResNet gets them normalised by
/// ImageNet's mean and deviation, as torchvision's weights expect. Throws on a name that is none of
/// network_names().
inline Network named_network(const std::string& name, int64_t num_classes) {
  for (const auto& [known, make] : detail::named_networks()) {
    if (known == name) {
      return make(num_classes, {{"architecture", name}, {"num_classes", std::to_string(num_classes)}});
    }
  }
  TORCH_CHECK(false, "there is no network ", mixmatch::detail::quote_for_message(name), "; there are ",
              detail::list_of_networks());
}

/// The name of the last layer of a network of that architecture.
inline std::string head_name(const std::string& name) {
  return name.rfind("vit_", 0) == 0                ? VisionTransformerImpl::head_name
         : name.rfind("efficientnet_lite", 0) == 0 ? EfficientNetLiteImpl::head_name
                                                   : ResNetImpl::head_name;  // and WideResNetImpl's
}

/// Height and width of the images that a network's published weights were trained on; 0 for a name that is
/// none of network_names().
inline int64_t published_image_size(const std::string& name) {
  const auto& names = network_names();
  return std::find(names.begin(), names.end(), name) == names.end() ? 0
         : name.rfind("efficientnet_lite", 0) == 0
             ? detail::efficientnet_lite_scale(name.back() - '0').image_size
             : 224;
}

/// How many numbers the parameters and buffers of such a network hold, without building it. Throws as
/// named_network().
inline int64_t network_numbers(const std::string& name, int64_t num_classes) {
  struct Count {
    const char* name;
    int64_t body, features;  // all but the last layer, and what that takes
  };
  static constexpr std::array counts{Count{"resnet18", 11186132, 512},
                                     Count{"resnet34", 21301732, 512},
                                     Count{"resnet50", 23561205, 2048},
                                     Count{"efficientnet_lite0", 3413073, 1280},
                                     Count{"efficientnet_lite1", 4189408, 1280},
                                     Count{"efficientnet_lite2", 4869232, 1280},
                                     Count{"efficientnet_lite3", 6992841, 1280},
                                     Count{"efficientnet_lite4", 11838027, 1280},
                                     Count{"vit_s16", 21665664, 384},
                                     Count{"vit_b16", 85798656, 768}};
  const auto found =
      std::find_if(counts.begin(), counts.end(), [&](const Count& count) { return name == count.name; });
  TORCH_CHECK(found != counts.end(), "there is no network ", mixmatch::detail::quote_for_message(name));
  return found->body + (found->features + 1) * num_classes;
}

/// What height and width of a network's images must be multiples of; 1 for those that take any.
inline int64_t image_size_multiple(const std::string& name) { return name.rfind("vit_", 0) == 0 ? 16 : 1; }

/// The FILE of a network's name "torchscript:FILE"; "" for other names.
inline std::string script_file_of(const std::string& name) {
  const std::string prefix = "torchscript:";
  return name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : std::string();
}

/// The network in a TorchScript file as a Network (see ScriptNetwork), on `device`; its description has the
/// file's checksum. Throws as read_script_file().
inline Network script_network(const std::filesystem::path& path, int64_t num_classes,
                              torch::Device device = torch::kCPU) {
  const auto file = read_script_file(path, device);
  return Network(ScriptNetwork(file.module, num_classes, path.string()).ptr(),
                 NetworkDescription{{"architecture", "torchscript"},
                                    {"num_classes", std::to_string(num_classes)},
                                    {"network_checksum", file.checksum}});
}

/// A Wide ResNet as a Network.
inline Network wide_resnet_network(const WideResNetOptions& options) {
  return Network(WideResNet(options).ptr(), describe(options));
}

}  // namespace mixmatch::models
