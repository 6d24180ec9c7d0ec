#pragma once

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/types.h>
#include <mixmatch/detail/error_message.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/read_file.hpp>

#include <exception>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <string_view>

namespace mixmatch {

/// A TorchScript file that was read.
struct ScriptFile {
  torch::jit::Module module;
  std::map<std::string, std::string> metadata;  ///< its extra files (torch.jit.save's _extra_files)
  std::string checksum;                         ///< "crc32c 01234567", of the file's bytes
};

namespace detail {

/// What went wrong in one line: TorchScript tells it after a traceback, others before one.
inline std::string script_error(const std::exception& error) {
  std::string text{error_message(error)};
  const std::string mark = "RuntimeError: ";
  if (const auto at = text.rfind(mark); at != std::string::npos) {
    text.erase(0, at + mark.size());
  }
  return printable_beginning(text.substr(0, text.find('\n')), 300);
}

inline bool is_zip(std::string_view begin) { return begin.starts_with("PK\3\4"); }

}  // namespace detail

/// Reads a TorchScript file, as torch.jit.save, torch::jit::Module::save and `export --to torchscript` write
/// it, onto `device`. Throws one line that names the file where it cannot be read or is none.
inline ScriptFile read_script_file(const std::filesystem::path& path, torch::Device device = torch::kCPU) {
  const std::string shown = detail::printable(path);
  const std::string bytes = detail::read_whole_file(path);
  TORCH_CHECK(detail::is_zip(bytes), shown, " is no TorchScript file: it is no zip archive");
  ScriptFile file;
  file.checksum = "crc32c " + detail::hex(detail::crc32c(bytes));
  try {
    std::istringstream in(bytes);
    file.module = torch::jit::load(in, device);
    in.clear();
    in.seekg(0);
    caffe2::serialize::PyTorchStreamReader reader(&in);
    const std::string folder = "extra/";
    for (const auto& name : reader.getAllRecords()) {
      if (name.rfind(folder, 0) == 0) {
        const auto [data, size] = reader.getRecord(name);
        file.metadata[name.substr(folder.size())] = std::string(static_cast<const char*>(data.get()), size);
      }
    }
  } catch (const std::exception& error) {
    TORCH_CHECK(false, shown, " is no TorchScript file that can be read: ", detail::script_error(error));
  }
  return file;
}

}  // namespace mixmatch
