#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>
#include <torch/serialize/archive.h>
#include <unistd.h>
#include <mixmatch/detail/error_message.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/run/config.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace mixmatch::training {

namespace detail {

using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

inline constexpr int64_t checkpoint_format = 1;

/// The file is a LibTorch archive (a zip) whose zip comment says what the CRC-32C of all bytes before the
/// comment is. The archive's own checksums cover the entries but not the directory, and LibTorch does not
/// always check them.
inline constexpr std::string_view checkpoint_seal = "mixmatch checkpoint crc32c ";
inline constexpr size_t checkpoint_comment_size = checkpoint_seal.size() + 8;
inline constexpr size_t zip_end_size =
    22;  ///< the end-of-directory record; the comment's length is its last two bytes

/// The first line that says something, as it may stand in a message: LibTorch's own repeat bytes of the file.
inline std::string message_of(const std::exception& error) {
  std::string_view text = mixmatch::detail::error_message(error);
  text.remove_prefix(std::min(text.find_first_not_of(" \r\n"), text.size()));
  text = text.substr(0, text.find('\n'));
  return text.empty() ? "LibTorch gives no reason" : mixmatch::detail::printable_beginning(text, 800);
}

inline std::string seal_checkpoint(std::string bytes) {
  TORCH_CHECK(bytes.size() >= zip_end_size && bytes.compare(bytes.size() - zip_end_size, 4, "PK\5\6") == 0 &&
                  bytes.ends_with(std::string_view("\0\0", 2)),
              "Checkpoint: LibTorch wrote an archive of an unknown kind");
  bytes[bytes.size() - 2] = static_cast<char>(checkpoint_comment_size);
  const uint32_t crc = mixmatch::detail::crc32c(bytes);
  bytes.append(checkpoint_seal).append(mixmatch::detail::hex(crc));
  return bytes;
}

/// The bytes of a whole and unchanged checkpoint file.
inline std::string read_sealed_checkpoint(const std::filesystem::path& path) {
  std::error_code no_error;
  TORCH_CHECK(std::filesystem::exists(path, no_error), "no checkpoint ", path.string());
  std::ifstream in(path, std::ios::binary);
  TORCH_CHECK(in && std::filesystem::is_regular_file(path, no_error), "cannot read the checkpoint ",
              path.string());
  std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  TORCH_CHECK(!in.bad(), "cannot read the checkpoint ", path.string());
  const size_t size = bytes.size();
  TORCH_CHECK(size >= zip_end_size + checkpoint_comment_size && bytes.starts_with("PK") &&
                  bytes.compare(size - checkpoint_comment_size, checkpoint_seal.size(), checkpoint_seal) == 0,
              path.string(), " was cut short, or is no checkpoint of this library (", size, " bytes)");
  uint32_t expected = 0;
  const char* digits = bytes.data() + size - 8;
  const auto parsed = std::from_chars(digits, digits + 8, expected, 16);
  const auto found =
      mixmatch::detail::crc32c(std::string_view(bytes).substr(0, size - checkpoint_comment_size));
  TORCH_CHECK(parsed.ec == std::errc() && parsed.ptr == digits + 8 && expected == found, path.string(),
              " is corrupt: its checksum does not match");
  return bytes;
}

/// checkpoint.previous.pt beside checkpoint.pt
inline std::filesystem::path previous_checkpoint(const std::filesystem::path& path) {
  std::filesystem::path previous = path;
  previous.replace_extension("previous" + path.extension().string());
  return previous;
}

/// The file, where there is one, becomes previous_checkpoint() too, before another takes its name: at no time
/// are there fewer whole checkpoints than before. Throws where that cannot be written.
inline void keep_previous_checkpoint(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return;
  }
  const auto previous = previous_checkpoint(path);
  const auto temporary = previous.string() + ".tmp-" + std::to_string(::getpid()) + "-0";
  std::filesystem::remove(temporary, error);
  // Of the file that a symbolic link leads to; a copy where there are no hard links.
  std::filesystem::create_hard_link(std::filesystem::canonical(path, error), temporary, error);
  if (error) {
    std::filesystem::copy_file(path, temporary, error);
  }
  if (!error) {
    std::filesystem::rename(temporary, previous, error);
  }
  // Giving a file one more of the names that it has already does nothing, and this name stays.
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  if (error) {
    mixmatch::detail::throw_cannot_write(previous, error.value());
  }
}

inline InputArchive parse_checkpoint(const std::filesystem::path& path, const std::string& bytes,
                                     at::Device device) {
  InputArchive archive;
  c10::IValue format;
  try {
    archive.load_from(bytes.data(), bytes.size(), device);
    archive.read("mixmatch_checkpoint_format", format);
  } catch (const std::exception& error) {
    TORCH_CHECK(false, path.string(), " is no readable checkpoint: ", message_of(error));
  }
  TORCH_CHECK(format.isInt() && format.toInt() == checkpoint_format, path.string(),
              " is a checkpoint of format ", format.isInt() ? std::to_string(format.toInt()) : "?",
              "; this library reads format ", checkpoint_format);
  return archive;
}

/// A checkpoint file that is whole: the last, or where that is damaged or missing the one before it.
struct CheckpointFile {
  std::filesystem::path path;
  std::string bytes;
  InputArchive archive;    ///< of the bytes, on the CPU
  std::string last_error;  ///< why the last one was not taken; empty if it was
};

inline CheckpointFile read_checkpoint(const std::filesystem::path& path) {
  const auto read = [](const std::filesystem::path& file, std::string last_error) {
    std::string bytes = read_sealed_checkpoint(file);
    auto archive = parse_checkpoint(file, bytes, at::kCPU);
    return CheckpointFile{file, std::move(bytes), std::move(archive), std::move(last_error)};
  };
  try {
    return read(path, "");
  } catch (const c10::Error& error) {
    const auto previous = previous_checkpoint(path);
    std::error_code no_error;
    if (!std::filesystem::exists(previous, no_error)) {
      throw;
    }
    const std::string last_error = message_of(error);
    try {
      return read(previous, last_error);
    } catch (const c10::Error& previous_error) {
      C10_THROW_ERROR(Error, last_error + "; and " + message_of(previous_error));
    }
  }
}

/// The format and the config, which parse_checkpoint() and parse_config() read.
inline void write_format_and_config(OutputArchive& archive, const Config& config) {
  archive.write("mixmatch_checkpoint_format", c10::IValue(checkpoint_format));
  c10::List<std::string> settings;
  for (const auto& [key, value] : config) {
    settings.push_back(key);
    settings.push_back(value);
  }
  archive.write("config", c10::IValue(settings));
}

inline Config parse_config(const std::filesystem::path& path, InputArchive& archive) {
  Config config;
  try {
    c10::IValue list;
    archive.read("config", list);
    const auto values = list.toListRef();
    for (size_t i = 0; i + 1 < values.size(); i += 2) {
      config.emplace_back(values[i].toStringRef(), values[i + 1].toStringRef());
    }
  } catch (const std::exception& error) {
    TORCH_CHECK(false, path.string(), " has no config: ", message_of(error));
  }
  return config;
}

}  // namespace detail

/// The config stored with a checkpoint, without touching its entries; of the previous one where the last is
/// damaged. Throws as Checkpoint::load does.
inline Config read_config(const std::filesystem::path& path) {
  auto file = detail::read_checkpoint(path);
  return detail::parse_config(file.path, file.archive);
}

}  // namespace mixmatch::training
