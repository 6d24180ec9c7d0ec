#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/safetensors_header.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace mixmatch::detail {

/// A file that is given for a safetensors file, by its first bytes, and what to do; "" if it is none of them.
inline std::string_view other_weights_file(std::string_view begin) {
  using std::string_view_literals::operator""sv;
  if (begin.starts_with("version https://git-lfs"sv)) {
    return "a Git-LFS pointer in place of the weights: fetch them (git lfs pull, or download the file "
           "itself)";
  }
  if (begin.starts_with("PK\3\4"sv)) {
    return "a zip archive, as torch.save and Keras write it: is it a safetensors file? In Python, "
           "safetensors.torch.save_file(state_dict, FILE) writes one";
  }
  if (begin.size() > 1 && begin[0] == '\x80' && begin[1] >= 2 && begin[1] <= 5) {
    return "a pickle, as torch.save wrote it: in Python, safetensors.torch.save_file(state_dict, FILE) "
           "writes a "
           "safetensors file";
  }
  if (begin.starts_with("\x89HDF\r\n\x1A\n"sv)) {
    return "an HDF5 file: in Python, safetensors.torch.save_file(state_dict, FILE) writes a safetensors file";
  }
  if (begin.starts_with("GGUF"sv)) {
    return "a GGUF file, expected safetensors";
  }
  const size_t first = begin.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && (begin[first] == '{' || begin[first] == '[')) {
    return "a JSON file, as the index of a model in several files (model.safetensors.index.json): give the "
           ".safetensors file";
  }
  if (first != std::string_view::npos && begin[first] == '<') {
    return "an HTML or XML page, as a download leaves it that was refused: get the .safetensors file";
  }
  return "";
}

inline constexpr const char* safetensors_checksum_key = "mixmatch_crc32c";

/// CRC-32C of all that a safetensors file says, whatever the order of its tensors and the blanks of its
/// header: of the metadata by key (but for the checksum), and then of name, dtype, shape and data of each
/// tensor by name.
class SafetensorsChecksum {
 public:
  explicit SafetensorsChecksum(const std::map<std::string, std::string>& metadata) {
    for (const auto& [key, value] : metadata) {
      if (key != safetensors_checksum_key) {
        add_text(key);
        add_text(value);
      }
    }
  }

  void add_tensor(std::string_view name, std::string_view dtype, at::IntArrayRef shape) {
    add_text(name);
    add_text(dtype);
    add_text(c10::str(shape));
  }
  void add_bytes(std::string_view bytes) { crc_ = crc32c(bytes, crc_); }

  std::string text() const { return hex(crc_); }

 private:
  void add_text(std::string_view text) {
    add_bytes(std::to_string(text.size()) + ":");
    add_bytes(text);
  }

  uint32_t crc_ = 0;
};

/// A safetensors file whose header has been read and checked.
class SafetensorsReader {
 public:
  SafetensorsReader(const std::string& function, const std::filesystem::path& path)
      : context_(function + ": " + printable(path) + ": ") {
    check_little_endian(context_);
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    TORCH_CHECK(std::filesystem::exists(status), context_, "there is no such file");
    TORCH_CHECK(std::filesystem::is_regular_file(status), context_, "not a regular file");
    file_.open(path, std::ios::binary);
    const uint64_t size = std::filesystem::file_size(path, error);
    TORCH_CHECK(file_ && !error, context_, "cannot be read");
    std::string begin(std::min<uint64_t>(size, 64), '\0');
    read(begin.data(), begin.size());
    uint64_t length = 0;
    for (size_t i = std::min<size_t>(begin.size(), 8); i-- > 0;) {
      length = length << 8 | static_cast<unsigned char>(begin[i]);
    }
    if (size < 8 || length > size - 8) {
      const std::string_view other = other_weights_file(begin);
      TORCH_CHECK(other.empty(), context_, other);
    }
    TORCH_CHECK(size >= 8, context_, "cut short: ", size, " bytes, expected 8 for the header's length");
    TORCH_CHECK(length <= safetensors_longest_header, context_, "header of ", length,
                " bytes, expected at most ", safetensors_longest_header, "; is it a safetensors file?");
    TORCH_CHECK(length <= size - 8, context_, "cut short, or no safetensors file: header of ", length,
                " bytes, but only ", size - 8, " follow");
    std::string text(length, '\0');
    file_.seekg(8);
    read(text.data(), length);
    data_begin_ = 8 + length;
    header_ = parse_safetensors_header(text, size - data_begin_, context_);
  }

  const SafetensorsHeader& header() const { return header_; }
  const std::string& context() const { return context_; }

  void check_readable(const SafetensorsEntry& entry) const {
    TORCH_CHECK(entry.readable(), context_, "tensor ", quote_for_message(entry.name), ": dtype ",
                quote_for_message(entry.dtype),
                " is none of those that can be read: ", safetensors_type_names);
  }

  at::Tensor read_tensor(const SafetensorsEntry& entry) {
    check_readable(entry);
    const bool is_bool = entry.type == at::kBool;
    const at::Tensor tensor = at::empty(entry.shape, is_bool ? at::kByte : entry.type);
    file_.seekg(static_cast<std::streamoff>(data_begin_ + entry.begin));
    read(tensor.data_ptr(), entry.end - entry.begin);
    // A bool of another byte than 0 and 1 is undefined behaviour.
    return is_bool ? tensor.ne(0) : tensor;
  }

  /// Throws if the file has a checksum (see SafetensorsChecksum) and another content than it was written
  /// with.
  void verify_checksum() {
    const auto stored = header_.metadata.find(safetensors_checksum_key);
    if (stored == header_.metadata.end()) {
      return;
    }
    SafetensorsChecksum checksum(header_.metadata);
    std::vector<const SafetensorsEntry*> sorted;
    for (const auto& entry : header_.entries) {
      sorted.push_back(&entry);
    }
    std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
    std::string part;
    for (const auto* entry : sorted) {
      checksum.add_tensor(entry->name, entry->dtype, entry->shape);
      file_.seekg(static_cast<std::streamoff>(data_begin_ + entry->begin));
      for (uint64_t left = entry->end - entry->begin; left > 0; left -= part.size()) {
        part.resize(std::min(left, uint64_t{1} << 20));
        read(part.data(), part.size());
        checksum.add_bytes(part);
      }
    }
    TORCH_CHECK(checksum.text() == stored->second, context_,
                "damaged: its content does not fit its checksum (if it was changed on purpose, take \"",
                safetensors_checksum_key, "\" out of its metadata)");
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

}  // namespace mixmatch::detail
