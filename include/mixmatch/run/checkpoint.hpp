#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>
#include <mixmatch/detail/load_module.hpp>
#include <mixmatch/detail/model_access.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/run/checkpoint_file.hpp>
#include <mixmatch/run/config.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training {

namespace detail {

template <class T>
concept HasArchiveMembers = requires(const T& source, T& target, OutputArchive& output, InputArchive& input) {
  source.save(output);
  target.load(input);
};

template <class T>
concept HoldsModule = mixmatch::detail::is_any_module<T> || mixmatch::detail::is_nn_module<T> ||
    mixmatch::detail::is_module_pointer<T>;

template <class T>
concept PlainValue = std::same_as<T, int64_t> || std::same_as<T, double> || std::same_as<T, bool> ||
    std::same_as<T, std::string> || std::same_as<T, std::vector<double>>;

template <class T>
inline constexpr bool can_be_saved = HoldsModule<T> || HasArchiveMembers<T> || PlainValue<T> ||
                                     std::same_as<T, at::Generator> || std::same_as<T, at::Tensor>;

template <PlainValue T>
c10::IValue to_ivalue(const T& value) {
  if constexpr (std::same_as<T, std::vector<double>>) {
    return c10::IValue(at::tensor(value, at::TensorOptions().dtype(at::kDouble)));
  } else {
    return c10::IValue(value);
  }
}

template <PlainValue T>
T from_ivalue(const c10::IValue& value) {
  if constexpr (std::same_as<T, std::vector<double>>) {
    const auto tensor = value.toTensor().contiguous();
    TORCH_CHECK(tensor.scalar_type() == at::kDouble && tensor.dim() == 1, "expected float64 [N], got ",
                tensor.scalar_type(), " ", tensor.sizes());
    const auto* data = tensor.template data_ptr<double>();
    return std::vector<double>(data, data + tensor.numel());
  } else {
    return value.to<T>();
  }
}

inline at::Device optimizer_device(const torch::optim::Optimizer& optimizer) {
  for (const auto& group : optimizer.param_groups()) {
    for (const auto& parameter : group.params()) {
      if (parameter.defined()) {
        return parameter.device();
      }
    }
  }
  return at::kCPU;
}

inline torch::nn::Module& module_of(torch::nn::Module& module) { return module; }
template <class T>
torch::nn::Module& module_of(T& object) {
  return mixmatch::detail::nn_module(object);
}

}  // namespace detail

/// Everything a training run needs to continue bit for bit, in one file that LibTorch and PyTorch
/// (torch.jit.load) can open.
///
///     Checkpoint checkpoint(run.checkpoint());
///     checkpoint.add("model", model).add("ema", ema).add("optimizer", optimizer);
///     checkpoint.add("generator", generator).add("step", step);
///     checkpoint.save();                             // in the resumed run: checkpoint.load();
///
/// Saving is atomic: the file is the old one or the new one, whole; the old one is kept beside it
/// (checkpoint.previous.pt beside checkpoint.pt). Loading checks the file's checksum, that every entry is
/// there, and the sizes of modules and tensors before it changes anything, and takes the previous file where
/// the last is damaged or missing; tensors are filled in place, on the device they are on. Not thread-safe.
class Checkpoint {
 public:
  explicit Checkpoint(std::filesystem::path path) : path_(std::move(path)) {}

  /// Registers an object, by reference: it must live as long as it is saved or loaded. Kinds:
  /// torch::nn::Module, holders and shared pointers of one; torch::optim::Optimizer; at::Generator;
  /// at::Tensor; int64_t, double, bool, std::string, std::vector<double>; and all types with
  /// `save(OutputArchive&) const` and `load(InputArchive&)`. The name is a C identifier, once.
  template <class T>
  Checkpoint& add(std::string name, T& object) {
    static_assert(detail::can_be_saved<T>,
                  "Checkpoint::add: the type needs save(OutputArchive&) const and load(InputArchive&)");
    check_name(name);
    Entry entry;
    entry.name = std::move(name);
    // To load is to check first, and then, of all entries, to apply.
    if constexpr (detail::HoldsModule<T>) {
      entry.save =
          nested_save([&object](detail::OutputArchive& out) { detail::module_of(object).save(out); });
      entry.load = nested_load([&object](detail::InputArchive& in, bool apply) {
        apply ? mixmatch::detail::load_module(detail::module_of(object), in)
              : mixmatch::detail::check_module(detail::module_of(object), in, "");
      });
    } else if constexpr (detail::HasArchiveMembers<T>) {
      entry.save = nested_save([&object](detail::OutputArchive& out) { object.save(out); });
      entry.load = nested_load([&object](detail::InputArchive& in, bool apply) {
        if (apply) {
          object.load(in);
        }
      });
      if constexpr (std::is_base_of_v<torch::optim::Optimizer, T>) {
        // Its state goes where the archive is; modules and tensors move what they read themselves.
        entry.device = [&object] { return detail::optimizer_device(object); };
      }
    } else if constexpr (std::same_as<T, at::Generator>) {
      entry.save = [&object](const std::string& key, detail::OutputArchive& out) {
        out.write(key, object.get_state(), true);
      };
      entry.load = [&object](const std::string& key, detail::InputArchive& in, bool apply) {
        const auto saved = read_tensor(key, in);
        TORCH_CHECK(saved.sizes() == object.get_state().sizes(), "the state of another kind of generator");
        if (apply) {
          object.set_state(saved.cpu());
        }
      };
    } else if constexpr (std::same_as<T, at::Tensor>) {
      entry.save = [&object, where = entry.name](const std::string& key, detail::OutputArchive& out) {
        TORCH_CHECK(object.defined(), "Checkpoint::save: the tensor '", where, "' is undefined");
        out.write(key, object.detach(), true);
      };
      entry.load = [&object](const std::string& key, detail::InputArchive& in, bool apply) {
        const at::NoGradGuard no_grad;
        const auto saved = read_tensor(key, in);
        if (object.defined()) {
          mixmatch::detail::check_same_kind("the tensor", saved, object);
        }
        if (apply && object.defined()) {
          object.copy_(saved);
        } else if (apply) {
          object = saved;
        }
      };
    } else if constexpr (detail::PlainValue<T>) {
      entry.save = [&object](const std::string& key, detail::OutputArchive& out) {
        out.write(key, detail::to_ivalue(object));
      };
      entry.load = [&object](const std::string& key, detail::InputArchive& in, bool apply) {
        c10::IValue value;
        in.read(key, value);
        auto saved = detail::from_ivalue<T>(value);
        if (apply) {
          object = std::move(saved);
        }
      };
    }
    entries_.push_back(std::move(entry));
    return *this;
  }

  /// What `read_config` gives back for the file.
  Checkpoint& set_config(Config config) {
    config_ = std::move(config);
    return *this;
  }
  const Config& config() const { return config_; }

  /// Writes the file (see write_file_atomically), and keeps the one that was there as the previous. Throws
  /// c10::Error "cannot write PATH: REASON".
  void save() {
    const std::string bytes = detail::seal_checkpoint(serialize());
    if (last_is_good_) {
      detail::keep_previous_checkpoint(path_);
    }
    write_file_atomically(path_, bytes);
    last_is_good_ = true;
  }

  /// How many bytes save() would write.
  size_t size() const { return serialize().size() + detail::checkpoint_comment_size; }

  /// Restores every entry, in the order they were added, from the last checkpoint, or from the previous one
  /// where the last is missing, cut short, corrupt or of another format; returns why, empty if it was the
  /// last. Throws one line of c10::Error that names the file: neither can be read, an entry is missing or
  /// does not fit; the objects are then unchanged, except where a type's own load() is what refuses. Entries
  /// of the file that were not added are ignored. `check`, if given, sees the file's config first, and may
  /// throw.
  std::string load(const std::function<void(const Config&)>& check = {}) {
    auto file = detail::read_checkpoint(path_);
    const auto& path = file.path;
    std::map<std::string, detail::InputArchive> archives;  // by device
    archives.emplace(at::Device(at::kCPU).str(), std::move(file.archive));
    const auto archive_on = [&](at::Device device) -> detail::InputArchive& {
      auto found = archives.find(device.str());
      if (found == archives.end()) {
        found = archives.emplace(device.str(), detail::parse_checkpoint(file.path, file.bytes, device)).first;
      }
      return found->second;
    };
    const auto archive_for = [&](const Entry& entry) -> detail::InputArchive& {
      return archive_on(entry.device ? entry.device() : at::Device(at::kCPU));
    };
    if (check) {
      check(detail::parse_config(path, archive_on(at::kCPU)));
    }
    for (const auto& entry : entries_) {
      auto& archive = archive_for(entry);
      const std::string key = key_of(entry);
      const auto keys = archive.keys();
      TORCH_CHECK(std::find(keys.begin(), keys.end(), key) != keys.end(), path.string(), " has no entry '",
                  entry.name, "'");
      guarded(path, entry, [&] { entry.load(key, archive, /*apply=*/false); });
    }
    for (const auto& entry : entries_) {
      guarded(path, entry, [&] { entry.load(key_of(entry), archive_for(entry), /*apply=*/true); });
    }
    last_is_good_ = file.last_error.empty();
    return file.last_error;
  }

  bool exists() const {
    std::error_code no_error;
    return std::filesystem::exists(path_, no_error);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  using Save = std::function<void(const std::string&, detail::OutputArchive&)>;
  using Load = std::function<void(const std::string&, detail::InputArchive&, bool apply)>;
  struct Entry {
    std::string name;
    Save save;
    Load load;
    std::function<at::Device()> device;  // empty: CPU
  };

  // An archive's keys become attributes of a TorchScript class, where a bare name could be a keyword.
  static std::string key_of(const Entry& entry) { return "entry_" + entry.name; }

  void check_name(const std::string& name) const {
    const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    TORCH_CHECK(!name.empty() && letter(name[0]) &&
                    std::all_of(name.begin(), name.end(), [&](char c) { return letter(c) || digit(c); }),
                "Checkpoint::add: a name must be letters, digits and underscores, got '", name, "'");
    for (const auto& entry : entries_) {
      TORCH_CHECK(entry.name != name, "Checkpoint::add: the name '", name, "' is taken");
    }
  }

  std::string serialize() const {
    detail::OutputArchive archive;
    detail::write_format_and_config(archive, config_);
    for (const auto& entry : entries_) {
      entry.save(key_of(entry), archive);
    }
    std::string bytes;
    archive.save_to([&bytes](const void* data, size_t size) {
      bytes.append(static_cast<const char*>(data), size);
      return size;
    });
    return bytes;
  }

  template <class F>
  static Save nested_save(F body) {
    return [body = std::move(body)](const std::string& key, detail::OutputArchive& out) {
      detail::OutputArchive inner(out.compilation_unit());
      body(inner);
      out.write(key, inner);
    };
  }
  template <class F>
  static Load nested_load(F body) {
    return [body = std::move(body)](const std::string& key, detail::InputArchive& in, bool apply) {
      detail::InputArchive inner;
      in.read(key, inner);
      body(inner, apply);
    };
  }

  static at::Tensor read_tensor(const std::string& key, detail::InputArchive& in) {
    at::Tensor tensor;
    in.read(key, tensor, /*is_buffer=*/true);
    return tensor;
  }

  template <class F>
  static void guarded(const std::filesystem::path& path, const Entry& entry, F&& body) {
    try {
      body();
    } catch (const std::exception& error) {
      TORCH_CHECK(false, path.string(), ": entry '", entry.name, "': ", detail::message_of(error));
    }
  }

  std::filesystem::path path_;
  std::vector<Entry> entries_;
  Config config_;
  bool last_is_good_ = true;  ///< whether the last checkpoint may take the place of the previous
};

}  // namespace mixmatch::training
