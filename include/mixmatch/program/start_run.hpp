#pragma once

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/detail/io/shell_quote.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/program/blas_library.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/same_run.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/run/training_run.hpp>

#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training {

namespace detail {

/// The command that continues the run: the data, and how it is run, which the checkpoint does not have.
template <class Options>
std::string resume_command(const Options& o) {
  using mixmatch::detail::shell_quote;
  std::string command =
      fmt::format("{}{}{} --out {} --resume", shell_quote(o.program), o.data.empty() ? "" : " --data ",
                  o.data.empty() ? "" : shell_quote(o.data), shell_quote(o.out));
  struct Setting {
    std::string name, value;
    bool is_flag;
  };
  const auto how = [](const Options& options) {
    std::vector<Setting> settings;
    visit_options(options, [&](const OptionText& text, const auto& value, const auto&... limits) {
      if (text.role == OptionRole::how) {
        constexpr bool is_flag =
            ((std::is_same_v<decltype(limits), const Off&> || std::is_same_v<decltype(limits), const On&>) ||
             ...);
        settings.push_back({text.name, fmt::format("{}", value), is_flag});
      }
    });
    return settings;
  };
  const auto usual = how(Options()), mine = how(o);
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i].value != usual[i].value) {
      command += fmt::format(" --{}", mine[i].name);
      command += mine[i].is_flag ? "" : " " + shell_quote(mine[i].value);
    }
  }
  return command;
}

}  // namespace detail

/// With the errors that every program's metrics.csv has. The data's checksum joins the configuration, so that
/// a run does not go on with other images.
template <class Options>
TrainingRunOptions training_run_options(const Options& o, const TrainingData& data, torch::Device device) {
  Config config = config_of(o);
  config.emplace_back("training-data", "crc32c " + detail::checksum_of(o, data));
  return TrainingRunOptions()
      .label(o.method)
      .steps(o.steps)
      .eval_every(o.eval_every)
      .log_every(o.log_every)
      .checkpoint_every(o.checkpoint_every)
      .errors({"validation_error", "test_error", "ema_test_error"})
      .config(std::move(config))
      .changeable(changeable_of(o))
      .surroundings({{"data", o.data},
                     {"device", device.str()},
                     {"processes", std::to_string(o.processes != nullptr ? o.processes->world_size() : 1)}})
      .processes(o.processes)
      .resume_command(detail::resume_command(o));
}

/// The device that `--device` names. Chooses the precision that `--precision auto` and the number of threads
/// that `--threads 0` leave open, once for the whole run, and prints all three: a resumed run keeps what its
/// start had chosen.
inline torch::Device choose_device(TrainingOptions& o) {
  const auto device = parse_device(o.device);
  o.threads = set_threads(o.threads);
  o.precision = choose_precision(o.precision, device);
  const int threads = at::get_num_threads();
  print_message(stdout, "device {}, {} CPU thread{}, precision {}\n", device.str(), threads,
                threads == 1 ? "" : "s", describe_precision(device, o.precision));
  // In bf16 products are oneDNN's, as convolutions are; Muon's are always float32 on the CPU.
  const bool products = o.optimizer == "muon" || (o.model.starts_with("vit") && o.precision == "fp32");
  if (device.is_cpu() && products && is_reference_blas(blas_library())) {
    print_message(stdout,
                  "matrix products by the reference BLAS, which is many times slower than OpenBLAS: apt-get "
                  "install libopenblas0-openmp\n");
  }
  if (device.is_cuda()) {
    if (o.deterministic) {
      at::globalContext().setDeterministicCuDNN(true);
    }
    const bool captured = o.graph && (o.processes == nullptr || o.processes->capturable(device));
    print_message(stdout, "convolutions {}\n",
                  o.deterministic ? "deterministic: one order of sums"
                  : captured && o.measure_convolutions
                      ? "by cuDNN's measurements: a resumed run may differ in rounding"
                      : "by cuDNN's rule");
  }
  return device;
}

/// Throws where o.out holds a run, which a new one would overwrite: before what may take long.
inline void check_new_run(const TrainingOptions& o) {
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::path(o.out) / "checkpoint.pt", ignored)) {
    static_cast<void>(RunDirectory::resume(o.out));  // that it is in use is said first
    TORCH_CHECK(!std::filesystem::exists(std::filesystem::path(o.out) / "config.json", ignored), o.out,
                " already holds a run: continue it with --resume, or choose another --out");
  }
}

/// The directory of a run: that of adopt_run() where it goes on, else o.out, made for a new one, with a copy
/// of the network of torchscript:FILE, so that the run needs that file no more.
inline RunDirectory run_directory(const TrainingOptions& o, const std::optional<RunDirectory>& resumed) {
  if (resumed.has_value()) {
    return *resumed;
  }
  check_new_run(o);
  auto directory = RunDirectory::create(o.out);
  if (const auto script = models::script_file_of(o.model); !script.empty()) {
    write_file_atomically(directory.network(), mixmatch::detail::read_whole_file(script));
  }
  return directory;
}

}  // namespace mixmatch::training
