#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <mixmatch/detail/io/json_cursor.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace mixmatch::detail {

/// A dtype of the format; `type` is Undefined where LibTorch 1.13 has none of that kind, or no use for it.
struct SafetensorsType {
  std::string_view name;
  uint64_t bits;
  at::ScalarType type = at::ScalarType::Undefined;
};

inline constexpr std::array<SafetensorsType, 22> safetensors_types{{{"F64", 64, at::kDouble},
                                                                    {"F32", 32, at::kFloat},
                                                                    {"F16", 16, at::kHalf},
                                                                    {"BF16", 16, at::kBFloat16},
                                                                    {"I64", 64, at::kLong},
                                                                    {"I32", 32, at::kInt},
                                                                    {"I16", 16, at::kShort},
                                                                    {"I8", 8, at::kChar},
                                                                    {"U8", 8, at::kByte},
                                                                    {"BOOL", 8, at::kBool},
                                                                    {"C64", 64},
                                                                    {"U64", 64},
                                                                    {"U32", 32},
                                                                    {"U16", 16},
                                                                    {"F8_E4M3", 8},
                                                                    {"F8_E5M2", 8},
                                                                    {"F8_E8M0", 8},
                                                                    {"F8_E4M3FNUZ", 8},
                                                                    {"F8_E5M2FNUZ", 8},
                                                                    {"F6_E2M3", 6},
                                                                    {"F6_E3M2", 6},
                                                                    {"F4", 4}}};
inline constexpr std::string_view safetensors_type_names =
    "F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL";

/// The format's longest header and, against sizes that LibTorch's own functions do not expect, its most
/// dimensions.
inline constexpr uint64_t safetensors_longest_header = 100'000'000;
inline constexpr size_t safetensors_most_dimensions = 64;

inline constexpr const char* safetensors_metadata_key = "__metadata__";

/// The dtype of that name, null where the format has none.
inline const SafetensorsType* find_safetensors_type(std::string_view name) {
  const auto* known = std::find_if(safetensors_types.begin(), safetensors_types.end(),
                                   [&](const auto& item) { return item.name == name; });
  return known == safetensors_types.end() ? nullptr : known;
}

/// The format's name of a dtype, "" where it has none.
inline std::string_view safetensors_type_name(at::ScalarType type) {
  const auto* known = std::find_if(safetensors_types.begin(), safetensors_types.end(),
                                   [&](const auto& item) { return item.type == type; });
  return known == safetensors_types.end() || type == at::ScalarType::Undefined ? "" : known->name;
}

struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  at::ScalarType type = at::ScalarType::Undefined;  // if its values cannot be read
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from where the data begins

  bool readable() const { return type != at::ScalarType::Undefined; }
};

/// Entries are in the order of their data.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
};

/// "F8_E4M3 [10, 128]"
inline std::string describe_tensor(const SafetensorsEntry& entry) {
  const bool known = find_safetensors_type(entry.dtype) != nullptr;
  return c10::str(known ? entry.dtype : quote_for_message(entry.dtype), " ", at::IntArrayRef(entry.shape));
}

inline void check_little_endian(const std::string& context) {
  TORCH_CHECK(std::endian::native == std::endian::little, context,
              "the format is little-endian, and this machine is not");
}

/// Throws where a name stands there twice.
inline void check_tensor_names(std::vector<std::string_view> names, const std::string& context) {
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  TORCH_CHECK(twice == names.end(), context, "tensor ", quote_for_message(*twice), " stands there twice");
}

/// The value that follows a tensor's name.
inline SafetensorsEntry parse_safetensors_entry(JsonCursor& json, std::string name,
                                                const std::string& context) {
  SafetensorsEntry entry;
  entry.name = std::move(name);
  const std::string tensor = context + "tensor " + quote_for_message(entry.name) + ": ";
  std::array<bool, 3> seen{};
  json.object([&](const std::string& key) {
    constexpr std::array<std::string_view, 3> keys{"dtype", "shape", "data_offsets"};
    const auto which = static_cast<size_t>(std::find(keys.begin(), keys.end(), key) - keys.begin());
    TORCH_CHECK(which < keys.size(), tensor, "unknown key ", quote_for_message(key));
    TORCH_CHECK(!std::exchange(seen[which], true), tensor, key, " stands there twice");
    if (which == 0) {
      entry.dtype = json.string();
      const auto* known = find_safetensors_type(entry.dtype);
      entry.type = known == nullptr ? at::ScalarType::Undefined : known->type;
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

/// Throws unless the size of the entry's data is that of its shape and dtype, if the dtype is known.
inline void check_safetensors_size(const SafetensorsEntry& entry, const std::string& context) {
  const auto* known = find_safetensors_type(entry.dtype);
  const uint64_t bits = known == nullptr ? 8 : known->bits;
  // Strides are products of sizes too, where a size of 0 counts as 1: they must not overflow either.
  uint64_t strides = std::max<uint64_t>(bits / 8, 1);
  bool empty = false;
  for (const int64_t size : entry.shape) {
    const auto factor = static_cast<uint64_t>(std::max<int64_t>(size, 1));
    TORCH_CHECK(strides <= uint64_t{std::numeric_limits<int64_t>::max()} / factor, context, "tensor ",
                quote_for_message(entry.name), ": shape ", at::IntArrayRef(entry.shape), " is too large");
    strides *= factor;
    empty = empty || size == 0;
  }
  const uint64_t bytes = empty ? 0 : bits < 8 ? strides / 8 * bits + (strides % 8 * bits + 7) / 8 : strides;
  TORCH_CHECK(entry.begin <= entry.end && (known == nullptr || entry.end - entry.begin == bytes), context,
              "tensor ", quote_for_message(entry.name), ": ", describe_tensor(entry), " takes ", bytes,
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
  check_tensor_names(std::move(names), context);

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

}  // namespace mixmatch::detail
