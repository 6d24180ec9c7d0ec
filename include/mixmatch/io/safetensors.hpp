#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/io/json_quote.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/safetensors_header.hpp>
#include <mixmatch/detail/io/safetensors_reader.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/model.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch {

/// Tensors by name, in an order.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
/// What a safetensors file says about itself: text by name.
using SafetensorsMetadata = std::map<std::string, std::string>;

namespace detail {

inline std::string_view bytes_of_tensor(const Tensor& contiguous) {
  return {static_cast<const char*>(contiguous.data_ptr()), contiguous.nbytes()};
}

/// The checksum of contiguous tensors.
inline std::string checksum_of(NamedTensors tensors, const SafetensorsMetadata& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  SafetensorsChecksum checksum(metadata);
  for (const auto& [name, tensor] : tensors) {
    checksum.add_tensor(name, safetensors_type_name(tensor.scalar_type()), tensor.sizes());
    checksum.add_bytes(bytes_of_tensor(tensor));
  }
  return checksum.text();
}

}  // namespace detail

struct WriteSafetensorsOptions {
  /// Adds a checksum of tensors and metadata to the metadata ("mixmatch_crc32c"): read_safetensors() and
  /// load_safetensors() then refuse the file if a bit of it has changed. Other readers take no notice.
  TORCH_ARG(bool, checksum) = false;
};

/// Writes a safetensors file (https://github.com/huggingface/safetensors), or leaves the old one as it was:
///
///     8 bytes      length of the header, little-endian
///     header       JSON: {"name": {"dtype": "F32", "shape": [10, 128], "data_offsets": [begin, end]}, …},
///                  with the metadata, if there are any, as "__metadata__"; spaces fill it to 8 bytes
///     data         of each tensor in row-major order, whatever its strides are here
///
/// Tensors on any device, of dtype float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8 or
/// bool. They are ordered by the size of their elements, so that each one is aligned, and as given among
/// equals. Throws c10::Error in one line on another dtype, a sparse tensor, a name that stands there twice,
/// is "__metadata__" or is no UTF-8, and where the file cannot be written.
inline void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                              const SafetensorsMetadata& metadata = {},
                              const WriteSafetensorsOptions& options = {}) {
  using detail::json_quote;
  const std::string context = "write_safetensors: " + detail::printable(path) + ": ";
  detail::check_little_endian(context);
  std::vector<std::string_view> names;
  for (const auto& [name, tensor] : tensors) {
    const std::string shown = context + "tensor " + detail::quote_for_message(name);
    TORCH_CHECK(detail::is_utf8(name), shown, ": the name is not UTF-8");
    TORCH_CHECK(name != detail::safetensors_metadata_key, shown, ": the name belongs to the metadata");
    TORCH_CHECK(tensor.defined(), shown, " is undefined");
    TORCH_CHECK(tensor.layout() == at::kStrided && !tensor.is_meta(), shown,
                " must be dense and have data, got layout ", tensor.layout(), " on ", tensor.device());
    TORCH_CHECK(!detail::safetensors_type_name(tensor.scalar_type()).empty(), shown, " is ",
                tensor.scalar_type(), "; the format takes ", detail::safetensors_type_names);
    names.push_back(name);
  }
  detail::check_tensor_names(std::move(names), context);

  NamedTensors ordered;
  for (const auto& [name, tensor] : tensors) {
    ordered.emplace_back(name, tensor.detach().to(at::kCPU).resolve_neg().contiguous());
  }
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) {
    return a.second.element_size() > b.second.element_size();
  });
  SafetensorsMetadata all_metadata = metadata;
  if (options.checksum()) {
    all_metadata[detail::safetensors_checksum_key] = detail::checksum_of(ordered, metadata);
  }
  std::string header;
  if (!all_metadata.empty()) {
    for (const auto& [key, value] : all_metadata) {
      TORCH_CHECK(detail::is_utf8(key) && detail::is_utf8(value), context, "metadata ",
                  detail::quote_for_message(key), " is not UTF-8");
      header += (header.empty() ? "" : ",") + json_quote(key) + ":" + json_quote(value);
    }
    header = json_quote(detail::safetensors_metadata_key) + ":{" + header + "}";
  }
  size_t data_size = 0;
  for (const auto& [name, tensor] : ordered) {
    const size_t begin = data_size;
    data_size += tensor.nbytes();
    std::string shape;
    for (const int64_t size : tensor.sizes()) {
      shape += (shape.empty() ? "" : ",") + std::to_string(size);
    }
    header += (header.empty() ? "" : ",") + json_quote(name) + ":{\"dtype\":\"" +
              std::string(detail::safetensors_type_name(tensor.scalar_type())) + "\",\"shape\":[" + shape +
              "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(data_size) + "]}";
  }
  header = "{" + header + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  TORCH_CHECK(header.size() <= detail::safetensors_longest_header, context, "header of ", header.size(),
              " bytes, the format takes at most ", detail::safetensors_longest_header);

  std::string bytes;
  bytes.reserve(8 + header.size() + data_size);
  for (unsigned shift = 0; shift < 64; shift += 8) {
    bytes += static_cast<char>(header.size() >> shift & 0xFF);
  }
  bytes += header;
  for (const auto& [name, tensor] : ordered) {
    bytes += detail::bytes_of_tensor(tensor);
  }
  write_file_atomically(path, bytes);
}

struct ReadSafetensorsOptions {
  /// False: tensors of a dtype that cannot be read are left out. (Their names stand in a strict error, and in
  /// what load_safetensors() with strict(false) returns.)
  TORCH_ARG(bool, strict) = true;
};

/// The tensors of a safetensors file, on the CPU and contiguous, in the order of their data.
///
/// Trusts nothing: throws c10::Error in one line that names the file, and the tensor, where the file cannot
/// be read or is cut short, where the header is longer than 100 MB or than the file or is not the JSON above,
/// where a name stands there twice, a shape's size overflows or is not that of its data, and where tensors
/// overlap or leave bytes uncovered; on a tensor whose dtype is none of write_safetensors' (F8_E4M3, U16, …),
/// unless strict(false); and where the file has a checksum (see WriteSafetensorsOptions) that does not fit.
/// Names what else the file is: a Git-LFS pointer, the index of several files, a zip archive of torch.save, …
/// Allocates no more than the file is long.
inline NamedTensors read_safetensors(const std::filesystem::path& path,
                                     const ReadSafetensorsOptions& options = {}) {
  detail::SafetensorsReader reader("read_safetensors", path);
  for (const auto& entry : reader.header().entries) {
    if (options.strict()) {
      reader.check_readable(entry);
    }
  }
  reader.verify_checksum();
  NamedTensors tensors;
  for (const auto& entry : reader.header().entries) {
    if (entry.readable()) {
      tensors.emplace_back(entry.name, reader.read_tensor(entry));
    }
  }
  return tensors;
}

/// The "__metadata__" of a safetensors file; empty if it has none. Throws as read_safetensors does, but looks
/// at the header alone, whatever the dtypes in it.
inline SafetensorsMetadata read_safetensors_metadata(const std::filesystem::path& path) {
  return detail::SafetensorsReader("read_safetensors_metadata", path).header().metadata;
}

/// Writes parameters and buffers of a model under the names of PyTorch's state_dict(), so that in Python
/// `module.load_state_dict(safetensors.torch.load_file(path))` takes them.
///
/// A tensor that the model holds under several names is written once, under its first name, as by
/// safetensors.torch.save_model, whose load_model reads that. Within the scope of
/// EmaModel::average_parameters() the averages are written. Throws as write_safetensors does. Not to be
/// confused with training::Checkpoint, which holds all that a run needs to go on.
template <class Model>
void save_safetensors(const std::filesystem::path& path, Model& model,
                      const SafetensorsMetadata& metadata = {}, const WriteSafetensorsOptions& options = {}) {
  static_assert(ModuleModel<Model>,
                "mixmatch: save_safetensors needs a module with parameters, not a plain callable");
  std::vector<detail::NamedTensor> unique;
  for (const auto& item : detail::model_state(model)) {
    detail::push_unique(unique, item.name, item.tensor);
  }
  NamedTensors tensors;
  for (auto& item : unique) {
    tensors.emplace_back(std::move(item.name), std::move(item.tensor));
  }
  write_safetensors(path, tensors, metadata, options);
}

struct LoadSafetensorsOptions {
  /// Every tensor of the model must be in the file, and the other way round. False: those in both are loaded,
  /// but for those in the file whose dtype cannot be read, which count as missing and as unexpected.
  TORCH_ARG(bool, strict) = true;
  /// Converts dtypes: between floating-point ones with rounding, others where every value stays what it is.
  /// (LibTorch's Module::to(dtype), unlike PyTorch's, makes num_batches_tracked floating point as well.)
  TORCH_ARG(bool, allow_cast) = false;
  /// The model's last layer by its name ("fc"), for weights that were trained for other classes: if the file
  /// has none or one of another shape, the model's stays as it is, and the result says so. Empty: no
  /// exception for any layer.
  TORCH_ARG(std::string, head) = "";
  /// False: the file may lack batch norms' num_batches_tracked, as in PyTorch's load_state_dict (files of
  /// before 2018 do); they stay as they are, and the result names them as missing.
  TORCH_ARG(bool, batch_counts) = true;
};

/// As load_state_dict's in PyTorch; all are empty after a strict load without options.
struct LoadSafetensorsResult {
  std::vector<std::string> missing;     ///< in the model, not in the file
  std::vector<std::string> unexpected;  ///< in the file, not in the model
  /// Tensors of the head (LoadSafetensorsOptions::head) that stayed as they were.
  std::vector<std::string> kept_head;
};

namespace detail {

/// "F32 [10, 128]"
inline std::string describe_tensor(const Tensor& tensor) {
  const auto name = safetensors_type_name(tensor.scalar_type());
  return c10::str(name.empty() ? std::string(c10::toString(tensor.scalar_type())) : std::string(name), " ",
                  tensor.sizes());
}

/// "tensor "a" (F32 [3]) PROBLEM, and 2 more: "b", "c""; "" if there are none.
inline std::string describe_names(const std::vector<std::string>& names, const std::string& kind,
                                  const char* problem) {
  if (names.empty()) {
    return "";
  }
  std::string text = "tensor " + quote_for_message(names.front()) + " (" + kind + ") " + problem;
  constexpr size_t most = 4;
  for (size_t i = 1; i < std::min(names.size(), most); ++i) {
    text += i == 1 ? c10::str(", and ", names.size() - 1, " more: ") : std::string(", ");
    text += quote_for_message(names[i]);
  }
  return names.size() > most ? text + ", …" : text;
}

/// Whether `name` is that of a tensor in the layer `head`.
inline bool is_in_head(std::string_view name, const std::string& head) {
  return !head.empty() && name.size() > head.size() && name.substr(0, head.size()) == head &&
         name[head.size()] == '.';
}

inline bool is_batch_count(std::string_view name) {
  constexpr std::string_view leaf = "num_batches_tracked";
  return name.size() >= leaf.size() && name.substr(name.size() - leaf.size()) == leaf;
}

inline bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         (a.nbytes() == 0 || std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()) == 0);
}

/// Fills the tensors of `state`, of which some may be one tensor under several names.
inline LoadSafetensorsResult load_state(SafetensorsReader& reader, const std::vector<NamedTensor>& state,
                                        const LoadSafetensorsOptions& options) {
  struct Target {
    NamedTensor item;  // under its first name
    std::vector<const SafetensorsEntry*> sources;
  };
  std::map<std::string_view, const SafetensorsEntry*> in_file;
  for (const auto& entry : reader.header().entries) {
    in_file.emplace(entry.name, &entry);
  }
  std::vector<Target> targets;
  for (const auto& item : state) {
    auto target = std::find_if(targets.begin(), targets.end(),
                               [&](const Target& known) { return known.item.tensor.is_same(item.tensor); });
    if (target == targets.end()) {
      target = targets.insert(target, {item, {}});
    }
    const auto found = in_file.find(item.name);
    if (found != in_file.end() && (found->second->readable() || options.strict())) {
      reader.check_readable(*found->second);
      target->sources.push_back(found->second);
      in_file.erase(found);
    }
  }

  LoadSafetensorsResult result;
  if (!options.head().empty()) {
    bool known = false, fits = true;
    for (const auto& [item, sources] : targets) {
      if (is_in_head(item.name, options.head())) {
        known = true;
        fits = fits && !sources.empty() && item.tensor.sizes() == at::IntArrayRef(sources.front()->shape);
      }
    }
    TORCH_CHECK(known, reader.context(), "the model has no layer ", quote_for_message(options.head()),
                " for a head");
    if (!fits) {
      targets.erase(std::remove_if(targets.begin(), targets.end(),
                                   [&](const Target& target) {
                                     const bool kept = is_in_head(target.item.name, options.head());
                                     if (kept) {
                                       result.kept_head.push_back(target.item.name);
                                     }
                                     return kept;
                                   }),
                    targets.end());
      for (auto entry = in_file.begin(); entry != in_file.end();) {
        entry = is_in_head(entry->first, options.head()) ? in_file.erase(entry) : std::next(entry);
      }
    }
  }
  std::string missing_kind, unexpected_kind;  // of the first ones
  std::vector<std::string> refused;           // of the missing
  for (const auto& target : targets) {
    if (target.sources.empty()) {
      result.missing.push_back(target.item.name);
      if (!options.batch_counts() && is_batch_count(target.item.name)) {
        continue;
      }
      refused.push_back(target.item.name);
      if (missing_kind.empty()) {
        missing_kind = describe_tensor(target.item.tensor);
      }
    }
  }
  for (const auto& [name, entry] : in_file) {
    result.unexpected.emplace_back(name);
    if (unexpected_kind.empty()) {
      unexpected_kind = describe_tensor(*entry);
    }
  }
  TORCH_CHECK(!options.strict() || refused.empty() || result.missing.size() < targets.size() ||
                  result.unexpected.empty(),
              reader.context(), "none of the model's tensors is in it, not ", quote_for_message(refused[0]),
              " (", missing_kind, ") nor any other; it has ", quote_for_message(result.unexpected[0]), " (",
              unexpected_kind, ")",
              result.unexpected.size() > 1 ? c10::str(" and ", result.unexpected.size() - 1, " more") : "",
              ": of another network?");
  TORCH_CHECK(!options.strict() || (refused.empty() && result.unexpected.empty()), reader.context(),
              describe_names(refused, missing_kind, "of the model is missing"),
              refused.empty() || result.unexpected.empty() ? "" : "; ",
              describe_names(result.unexpected, unexpected_kind, "is not in the model"));
  for (const auto& [item, sources] : targets) {
    const auto type = item.tensor.scalar_type();
    for (const auto* entry : sources) {
      const bool same_shape = item.tensor.sizes() == at::IntArrayRef(entry->shape);
      TORCH_CHECK(same_shape && (entry->type == type || options.allow_cast()), reader.context(), "tensor ",
                  quote_for_message(entry->name), " is ", describe_tensor(item.tensor), " in the model, but ",
                  describe_tensor(*entry), " in the file", same_shape ? " (allow_cast(true) converts)" : "");
    }
  }

  reader.verify_checksum();
  // The whole file is read before the first tensor changes.
  std::vector<std::pair<Tensor, Tensor>> copies;
  for (const auto& [item, sources] : targets) {
    for (const auto* entry : sources) {
      const auto type = item.tensor.scalar_type();
      const Tensor stored = reader.read_tensor(*entry);
      const Tensor value = stored.to(type);
      const bool may_round = at::isFloatingType(entry->type) && at::isFloatingType(type);
      TORCH_CHECK(may_round || same_bytes(value.to(entry->type), stored), reader.context(), "tensor ",
                  quote_for_message(entry->name), ": not all its values can be converted from ",
                  safetensors_type_name(entry->type), " to the model's ", safetensors_type_name(type));
      if (entry == sources.front()) {
        copies.emplace_back(item.tensor, value);
      } else {
        TORCH_CHECK(same_bytes(copies.back().second, value), reader.context(), "tensors ",
                    quote_for_message(sources.front()->name), " and ", quote_for_message(entry->name),
                    " are one in the model, but differ in the file");
      }
    }
  }
  const at::NoGradGuard no_grad;
  for (auto& [target, value] : copies) {
    target.copy_(value);
  }
  forget_autocast_copies();
  return result;
}

}  // namespace detail

/// Fills a model's parameters and buffers from a safetensors file, by the names of PyTorch's state_dict().
///
/// Each tensor keeps its memory, strides, device and requires_grad; nothing is recorded for autograd. A
/// tensor that the model holds under several names needs one of them in the file; where there are more, they
/// must agree. Throws c10::Error in one line that names the file, the tensor, what the model has and what the
/// file has, on a missing or unexpected name (unless strict(false)), another shape, another dtype (unless
/// allow_cast(true) and both are floating point), and as read_safetensors does; the model is then as it was.
/// For weights that others published, models::load_pretrained() has the options that they need.
template <class Model>
LoadSafetensorsResult load_safetensors(const std::filesystem::path& path, Model& model,
                                       const LoadSafetensorsOptions& options = {}) {
  static_assert(ModuleModel<Model>,
                "mixmatch: load_safetensors needs a module with parameters, not a plain callable");
  detail::SafetensorsReader reader("load_safetensors", path);
  return detail::load_state(reader, detail::model_state(model), options);
}

}  // namespace mixmatch
