#pragma once

#include <c10/core/ScalarType.h>
#include <torch/arg.h>
#include <mixmatch/atomic_file.hpp>
#include <mixmatch/detail/json_cursor.hpp>
#include <mixmatch/detail/json_quote.hpp>
#include <mixmatch/detail/utf8.hpp>
#include <mixmatch/model.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace mixmatch {

namespace detail {

struct SafetensorsType {
  std::string_view name;
  at::ScalarType type;
};

inline constexpr std::array<SafetensorsType, 10> safetensors_types{{{"F64", at::kDouble},
                                                                    {"F32", at::kFloat},
                                                                    {"F16", at::kHalf},
                                                                    {"BF16", at::kBFloat16},
                                                                    {"I64", at::kLong},
                                                                    {"I32", at::kInt},
                                                                    {"I16", at::kShort},
                                                                    {"I8", at::kChar},
                                                                    {"U8", at::kByte},
                                                                    {"BOOL", at::kBool}}};
inline constexpr std::string_view safetensors_type_names =
    "F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL";

/// The format's longest header and, against sizes that LibTorch's own functions do not expect, its most
/// dimensions.
inline constexpr uint64_t safetensors_longest_header = 100'000'000;
inline constexpr size_t safetensors_most_dimensions = 64;

inline constexpr const char* safetensors_metadata_key = "__metadata__";

/// The format's name of a dtype, "" where it has none.
inline std::string_view safetensors_type_name(at::ScalarType type) {
  const auto* known = std::find_if(safetensors_types.begin(), safetensors_types.end(),
                                   [&](const auto& item) { return item.type == type; });
  return known == safetensors_types.end() ? std::string_view() : known->name;
}

/// "F32 [10, 128]"
inline std::string describe_tensor(at::ScalarType type, at::IntArrayRef shape) {
  const auto name = safetensors_type_name(type);
  return c10::str(name.empty() ? std::string(c10::toString(type)) : std::string(name), " ", shape);
}

struct SafetensorsEntry {
  std::string name;
  at::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin, end;  // bytes, from where the data begins
};

/// Entries are in the order of their data.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// Text from a file in a message: quoted, on one line, and not longer than is read with pleasure.
inline std::string quote_for_message(std::string_view text) {
  constexpr size_t longest = 120;
  return json_quote(text.substr(0, longest)) + (text.size() > longest ? "…" : "");
}

inline void check_little_endian(const std::string& context) {
  TORCH_CHECK(std::endian::native == std::endian::little, context,
              "the format is little-endian, and this machine is not");
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = mixmatch::detail::utf8_length(text);
    if (length == 0) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

/// The value that follows a tensor's name.
inline SafetensorsEntry parse_safetensors_entry(JsonCursor& json, std::string name,
                                                const std::string& context) {
  SafetensorsEntry entry{std::move(name), at::kFloat, {}, 0, 0};
  const std::string tensor = context + "tensor " + quote_for_message(entry.name) + ": ";
  std::array<bool, 3> seen{};
  json.object([&](const std::string& key) {
    constexpr std::array<std::string_view, 3> keys{"dtype", "shape", "data_offsets"};
    const auto which = static_cast<size_t>(std::find(keys.begin(), keys.end(), key) - keys.begin());
    TORCH_CHECK(which < keys.size(), tensor, "unknown key ", quote_for_message(key));
    TORCH_CHECK(!std::exchange(seen[which], true), tensor, key, " stands there twice");
    if (which == 0) {
      const std::string type = json.string();
      const auto* known = std::find_if(safetensors_types.begin(), safetensors_types.end(),
                                       [&](const auto& item) { return item.name == type; });
      TORCH_CHECK(known != safetensors_types.end(), tensor, "dtype ", quote_for_message(type),
                  " is none of those that can be read: ", safetensors_type_names);
      entry.type = known->type;
    } else if (which == 1) {
      json.array([&] {
        const uint64_t size = json.integer();
        TORCH_CHECK(size <= uint64_t{std::numeric_limits<int64_t>::max()}, tensor, "size ", size,
                    " is out of range");
        TORCH_CHECK(entry.shape.size() < safetensors_most_dimensions, tensor, "more than ",
                    safetensors_most_dimensions, " dimensions");
        entry.shape.push_back(static_cast<int64_t>(size));
      });
    } else {
      size_t count = 0;
      json.array([&] {
        const uint64_t offset = json.integer();
        TORCH_CHECK(count < 2, tensor, "data_offsets must be [begin, end], got more numbers");
        (count++ == 0 ? entry.begin : entry.end) = offset;
      });
      TORCH_CHECK(count == 2, tensor, "data_offsets must be [begin, end], got ", count, " numbers");
    }
  });
  TORCH_CHECK(seen[0] && seen[1] && seen[2], tensor, "must have dtype, shape and data_offsets");
  return entry;
}

/// Throws unless the size of the entry's data is that of its shape and dtype.
inline void check_safetensors_size(const SafetensorsEntry& entry, const std::string& context) {
  // Strides are products of sizes too, where a size of 0 counts as 1: they must not overflow either.
  uint64_t strides = c10::elementSize(entry.type);
  bool empty = false;
  for (const int64_t size : entry.shape) {
    const auto factor = static_cast<uint64_t>(std::max<int64_t>(size, 1));
    TORCH_CHECK(strides <= uint64_t{std::numeric_limits<int64_t>::max()} / factor, context, "tensor ",
                quote_for_message(entry.name), ": shape ", at::IntArrayRef(entry.shape), " is too large");
    strides *= factor;
    empty = empty || size == 0;
  }
  const uint64_t bytes = empty ? 0 : strides;
  TORCH_CHECK(entry.begin <= entry.end && entry.end - entry.begin == bytes, context, "tensor ",
              quote_for_message(entry.name), ": ", describe_tensor(entry.type, entry.shape), " takes ", bytes,
              " bytes, but data_offsets are [", entry.begin, ", ", entry.end, "]");
}

/// Parses and checks a header whose file has `data_size` bytes after it: every byte belongs to one tensor.
inline SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_size,
                                                  const std::string& context) {
  SafetensorsHeader header;
  auto& entries = header.entries;
  bool has_metadata = false;
  JsonCursor json(text, context + "header, ");
  TORCH_CHECK(text.starts_with('{'), context, "the header does not begin with '{'");
  json.object([&](std::string name) {
    if (name != safetensors_metadata_key) {
      entries.push_back(parse_safetensors_entry(json, std::move(name), context));
      return;
    }
    TORCH_CHECK(!std::exchange(has_metadata, true), context, safetensors_metadata_key, " stands there twice");
    json.object([&](std::string key) {
      const std::string shown = quote_for_message(key);
      TORCH_CHECK(header.metadata.emplace(std::move(key), json.string()).second, context,
                  safetensors_metadata_key, ": ", shown, " stands there twice");
    });
  });
  json.finish();

  std::vector<std::string_view> names;
  for (const auto& entry : entries) {
    check_safetensors_size(entry, context);
    names.push_back(entry.name);
  }
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  TORCH_CHECK(twice == names.end(), context, "tensor ", quote_for_message(*twice), " stands there twice");

  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const auto& entry : entries) {
    TORCH_CHECK(entry.end <= data_size, context, "tensor ", quote_for_message(entry.name), ": data_offsets [",
                entry.begin, ", ", entry.end, "] reach beyond the file's ", data_size, " bytes of data");
    TORCH_CHECK(entry.begin == covered, context, "tensor ", quote_for_message(entry.name),
                ": data begins at ", entry.begin, ", expected ", covered,
                ": tensors must follow each other without gap or overlap");
    covered = entry.end;
  }
  TORCH_CHECK(covered == data_size, context, data_size - covered, " bytes at the end belong to no tensor");
  return header;
}

/// A safetensors file whose header has been read and checked.
class SafetensorsReader {
 public:
  SafetensorsReader(const std::string& function, const std::filesystem::path& path)
      : context_(function + ": " + path.string() + ": ") {
    check_little_endian(context_);
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    TORCH_CHECK(std::filesystem::exists(status), context_, "there is no such file");
    TORCH_CHECK(std::filesystem::is_regular_file(status), context_, "not a regular file");
    file_.open(path, std::ios::binary);
    const uint64_t size = std::filesystem::file_size(path, error);
    TORCH_CHECK(file_ && !error, context_, "cannot be read");
    TORCH_CHECK(size >= 8, context_, "cut short: ", size, " bytes, expected 8 for the header's length");
    std::array<unsigned char, 8> length_bytes{};
    read(length_bytes.data(), length_bytes.size());
    uint64_t length = 0;
    for (size_t i = 8; i-- > 0;) {
      length = length << 8 | length_bytes[i];
    }
    TORCH_CHECK(length <= safetensors_longest_header, context_, "header of ", length,
                " bytes, expected at most ", safetensors_longest_header, "; is it a safetensors file?");
    TORCH_CHECK(length <= size - 8, context_, "cut short, or no safetensors file: header of ", length,
                " bytes, but only ", size - 8, " follow");
    std::string text(length, '\0');
    read(text.data(), length);
    data_begin_ = 8 + length;
    header_ = parse_safetensors_header(text, size - data_begin_, context_);
  }

  const SafetensorsHeader& header() const { return header_; }
  const std::string& context() const { return context_; }

  Tensor read_tensor(const SafetensorsEntry& entry) {
    const bool is_bool = entry.type == at::kBool;
    const Tensor tensor = at::empty(entry.shape, is_bool ? at::kByte : entry.type);
    file_.seekg(static_cast<std::streamoff>(data_begin_ + entry.begin));
    read(tensor.data_ptr(), entry.end - entry.begin);
    // A bool of another byte than 0 and 1 is undefined behaviour.
    return is_bool ? tensor.ne(0) : tensor;
  }

 private:
  void read(void* to, uint64_t bytes) {
    if (bytes > 0) {
      file_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    }
    TORCH_CHECK(file_.good(), context_, "cannot be read");
  }

  std::string context_;
  std::ifstream file_;
  SafetensorsHeader header_;
  uint64_t data_begin_ = 0;
};

}  // namespace detail

/// Tensors by name, in an order.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
/// What a safetensors file says about itself: text by name.
using SafetensorsMetadata = std::map<std::string, std::string>;

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
                              const SafetensorsMetadata& metadata = {}) {
  using detail::json_quote;
  const std::string context = "write_safetensors: " + path.string() + ": ";
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
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  TORCH_CHECK(twice == names.end(), context, "tensor ", detail::quote_for_message(*twice),
              " stands there twice");

  std::vector<const NamedTensors::value_type*> ordered;
  for (const auto& item : tensors) {
    ordered.push_back(&item);
  }
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto* a, const auto* b) {
    return a->second.element_size() > b->second.element_size();
  });

  std::string header;
  if (!metadata.empty()) {
    for (const auto& [key, value] : metadata) {
      TORCH_CHECK(detail::is_utf8(key) && detail::is_utf8(value), context, "metadata ",
                  detail::quote_for_message(key), " is not UTF-8");
      header += (header.empty() ? "" : ",") + json_quote(key) + ":" + json_quote(value);
    }
    header = json_quote(detail::safetensors_metadata_key) + ":{" + header + "}";
  }
  size_t data_size = 0;
  for (const auto* item : ordered) {
    const Tensor& tensor = item->second;
    const size_t begin = data_size;
    data_size += static_cast<size_t>(tensor.numel()) * static_cast<size_t>(tensor.element_size());
    std::string shape;
    for (const int64_t size : tensor.sizes()) {
      shape += (shape.empty() ? "" : ",") + std::to_string(size);
    }
    header += (header.empty() ? "" : ",") + json_quote(item->first) + ":{\"dtype\":\"" +
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
  for (const auto* item : ordered) {
    const Tensor values = item->second.detach().to(at::kCPU).resolve_neg().contiguous();
    bytes.append(static_cast<const char*>(values.data_ptr()), values.nbytes());
  }
  write_file_atomically(path, bytes);
}

/// The tensors of a safetensors file, on the CPU and contiguous, in the order of their data.
///
/// Trusts nothing: throws c10::Error in one line that names the file, and the tensor, where the file cannot
/// be read or is cut short, where the header is longer than 100 MB or than the file or is not the JSON above,
/// where a name stands there twice, a dtype is none of write_safetensors', a shape's size overflows or is not
/// that of its data, and where tensors overlap or leave bytes uncovered. Allocates no more than the file is
/// long.
inline NamedTensors read_safetensors(const std::filesystem::path& path) {
  detail::SafetensorsReader reader("read_safetensors", path);
  NamedTensors tensors;
  for (const auto& entry : reader.header().entries) {
    tensors.emplace_back(entry.name, reader.read_tensor(entry));
  }
  return tensors;
}

/// The "__metadata__" of a safetensors file; empty if it has none. Throws as read_safetensors does.
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
                      const SafetensorsMetadata& metadata = {}) {
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
  write_safetensors(path, tensors, metadata);
}

struct LoadSafetensorsOptions {
  /// Every tensor of the model must be in the file, and the other way round. False: those in both are loaded.
  TORCH_ARG(bool, strict) = true;
  /// Converts dtypes: between floating-point ones with rounding, others where every value stays what it is.
  /// (LibTorch's Module::to(dtype), unlike PyTorch's, makes num_batches_tracked floating point as well.)
  TORCH_ARG(bool, allow_cast) = false;
};

/// As load_state_dict's in PyTorch; both are empty after a strict load.
struct LoadSafetensorsResult {
  std::vector<std::string> missing;     ///< in the model, not in the file
  std::vector<std::string> unexpected;  ///< in the file, not in the model
};

namespace detail {

/// "tensor "a" (F32 [3]) PROBLEM, and 2 more"; "" if there are none.
inline std::string describe_names(const std::vector<std::string>& names, const std::string& kind,
                                  const char* problem) {
  if (names.empty()) {
    return "";
  }
  const std::string more = names.size() > 1 ? ", and " + std::to_string(names.size() - 1) + " more" : "";
  return "tensor " + quote_for_message(names.front()) + " (" + kind + ") " + problem + more;
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
    if (const auto found = in_file.find(item.name); found != in_file.end()) {
      target->sources.push_back(found->second);
      in_file.erase(found);
    }
  }

  LoadSafetensorsResult result;
  std::string missing_kind, unexpected_kind;  // of the first ones
  for (const auto& target : targets) {
    if (target.sources.empty()) {
      result.missing.push_back(target.item.name);
      if (missing_kind.empty()) {
        missing_kind = describe_tensor(target.item.tensor.scalar_type(), target.item.tensor.sizes());
      }
    }
  }
  for (const auto& [name, entry] : in_file) {
    result.unexpected.emplace_back(name);
    if (unexpected_kind.empty()) {
      unexpected_kind = describe_tensor(entry->type, entry->shape);
    }
  }
  TORCH_CHECK(!options.strict() || (result.missing.empty() && result.unexpected.empty()), reader.context(),
              describe_names(result.missing, missing_kind, "of the model is missing"),
              result.missing.empty() || result.unexpected.empty() ? "" : "; ",
              describe_names(result.unexpected, unexpected_kind, "is not in the model"));
  for (const auto& [item, sources] : targets) {
    const auto type = item.tensor.scalar_type();
    for (const auto* entry : sources) {
      const bool same_shape = item.tensor.sizes() == at::IntArrayRef(entry->shape);
      TORCH_CHECK(same_shape && (entry->type == type || options.allow_cast()), reader.context(), "tensor ",
                  quote_for_message(entry->name), " is ", describe_tensor(type, item.tensor.sizes()),
                  " in the model, but ", describe_tensor(entry->type, entry->shape), " in the file",
                  same_shape ? " (allow_cast(true) converts)" : "");
    }
  }

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
template <class Model>
LoadSafetensorsResult load_safetensors(const std::filesystem::path& path, Model& model,
                                       const LoadSafetensorsOptions& options = {}) {
  static_assert(ModuleModel<Model>,
                "mixmatch: load_safetensors needs a module with parameters, not a plain callable");
  detail::SafetensorsReader reader("load_safetensors", path);
  return detail::load_state(reader, detail::model_state(model), options);
}

}  // namespace mixmatch
