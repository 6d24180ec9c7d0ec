#include <mixmatch/detail/cuda/cuda_augment.hpp>
#include <mixmatch/detail/cuda/cuda_compiler.hpp>
#include <mixmatch/detail/cuda/cuda_guess_quality.hpp>
#include <mixmatch/detail/cuda/cuda_interleave.hpp>
#include <mixmatch/detail/cuda/cuda_losses.hpp>
#include <mixmatch/detail/cuda/cuda_meter.hpp>
#include <mixmatch/detail/cuda/cuda_mixup.hpp>
#include <mixmatch/detail/cuda/cuda_norm.hpp>
#include <mixmatch/detail/cuda/cuda_optimizer.hpp>
#include <mixmatch/detail/cuda/cuda_rand_augment.hpp>
#include <mixmatch/detail/cuda/cuda_sharpen.hpp>
#include <mixmatch/detail/cuda/cuda_shuffle.hpp>
#include <mixmatch/detail/cuda/cuda_statistics.hpp>

#include "catch.hpp"
#include "skip.hpp"
#include "test_util.hpp"

#include <string>
#include <utility>
#include <vector>

using mixmatch::detail::CudaCompiler;
using mixmatch::detail::CudaSource;

namespace {

/// Wherever a CUDA toolkit is usually installed.
std::vector<std::string> nvrtc_places() {
  auto libraries = mixmatch::detail::nvrtc_libraries();
  for (const char* folder : {"/usr/local/cuda/lib64/", "/usr/local/cuda/lib/"}) {
    libraries.push_back(std::string(folder) + "libnvrtc.so");
  }
  return libraries;
}

const CudaCompiler& compiler() {
  static const CudaCompiler instance(nvrtc_places());
  return instance;
}

bool skip_without_nvrtc() {
  if (!compiler().can_compile()) {
    skip("no NVRTC on this machine: " + compiler().why_not());
  }
  return !compiler().can_compile();
}

std::vector<std::pair<CudaSource, std::string>> all_kernels() {
  using namespace mixmatch::detail;
  std::vector<std::pair<CudaSource, std::string>> kernels;
  for (const auto& [type, width] :
       {std::pair<std::string, int>{"float", 4}, {"double", 2}, {"BFloat16", 8}, {"Half", 8}}) {
    const std::string wide = type == "double" ? "double" : "float";
    kernels.emplace_back(cuda_sharpen_source, "sharpen_views<" + type + ", " + wide + ">");
    kernels.emplace_back(cuda_sharpen_source, "sharpen_views<" + type + ", " + type + ">");
    kernels.emplace_back(cuda_mixup_source, "mix_rows<" + type + ", 1>");
    kernels.emplace_back(cuda_mixup_source, "mix_rows<" + type + ", " + std::to_string(width) + ">");
    kernels.emplace_back(cuda_mixup_source, "join_targets<" + type + ">");
    kernels.emplace_back(cuda_augment_source, "crop_flip<" + type + ">");
    kernels.emplace_back(cuda_augment_source, "crop_views<" + type + ">");
    kernels.emplace_back(cuda_interleave_source, "interleave_rows<" + type + ">");
    kernels.emplace_back(cuda_guess_quality_source, "guess_quality<" + type + ">");
    for (const char* squared : {", true>", ", false>"}) {
      kernels.emplace_back(cuda_losses_source, "class_loss<" + type + squared);
      kernels.emplace_back(cuda_losses_source, "class_loss_gradient<" + type + squared);
    }
    for (const std::string& packs : {type + ", 1", type + ", " + std::to_string(width)}) {
      for (const char* adds : {", false>", ", true>"}) {
        kernels.emplace_back(cuda_norm_source, "norm_moments<" + packs + adds);
        kernels.emplace_back(cuda_norm_source, "norm_input_gradient<" + packs + adds);
      }
      kernels.emplace_back(cuda_norm_source, "norm_activate<" + packs + ">");
      kernels.emplace_back(cuda_norm_source, "norm_gradient_sums<" + packs + ">");
    }
  }
  for (const std::string type : {"float", "double"}) {
    kernels.emplace_back(cuda_optimizer_source, "adam_step<" + type + ">");
    kernels.emplace_back(cuda_optimizer_source, "sgd_step<" + type + ">");
    kernels.emplace_back(cuda_optimizer_source, "gather_gradients<" + type + ">");
    kernels.emplace_back(cuda_mixup_source, "beta_of_draws<" + type + ">");
    kernels.emplace_back(cuda_losses_source, "ramped_total<" + type + ">");
    kernels.emplace_back(cuda_statistics_source, "move_statistics<" + type + ">");
  }
  kernels.emplace_back(cuda_optimizer_source, "begin_step<double>");
  kernels.emplace_back(cuda_meter_source, "add_numbers<double>");
  kernels.emplace_back(cuda_shuffle_source, "sorted_places<i64>");
  kernels.emplace_back(cuda_augment_source, "crop_flip<u8>");
  kernels.emplace_back(cuda_augment_source, "crop_views<u8>");
  kernels.emplace_back(cuda_shuffle_source, "stream_rows<i64>");
  kernels.emplace_back(cuda_shuffle_source, "counter_words<i64>");
  kernels.emplace_back(cuda_rand_augment_source, "rand_augment<u8>");
  return kernels;
}

}  // namespace

TEST_CASE("NVRTC compiles every kernel for three generations of devices") {
  if (skip_without_nvrtc()) {
    return;
  }
  for (const auto& kernel : all_kernels()) {
    const auto& source = kernel.first;
    const auto& entry = kernel.second;
    for (const int capability : {75, 80, 90}) {
      INFO(source.name << ": " << entry << " for " << capability);
      CudaCompiler::Program program;
      CHECK(error_of([&] { program = compiler().compile(source, entry, capability); }) == "");
      CHECK(
          program.code.starts_with("\x7f"
                                   "ELF"));
      CHECK(program.entry.find(entry.substr(0, entry.find('<'))) != std::string::npos);
    }
  }
}

TEST_CASE("the first NVRTC that compiles serves") {
  if (skip_without_nvrtc()) {
    return;
  }
  auto libraries = nvrtc_places();
  libraries.insert(libraries.begin(), MIXMATCH_BROKEN_NVRTC);
  CHECK(CudaCompiler(libraries).can_compile());
}

TEST_CASE("a device newer than NVRTC gets PTX") {
  if (skip_without_nvrtc()) {
    return;
  }
  const auto program =
      compiler().compile(mixmatch::detail::cuda_augment_source, "crop_flip<float>", /*capability=*/999);
  CHECK_THAT(program.code, contains(".target sm_"));
}

TEST_CASE("an error in a kernel shows NVRTC's log") {
  if (skip_without_nvrtc()) {
    return;
  }
  const CudaSource wrong{"wrong.cu",
                         "template <class T> __global__ void wrong(T* out) { out[0] = nothing; }"};
  const auto error = error_of([&] { compiler().compile(wrong, "wrong<float>", 90); });
  CHECK_THAT(error, contains("does not compile wrong.cu, kernel wrong<float>, for sm_90"));
  CHECK_THAT(error, contains("\"nothing\" is undefined"));
}
