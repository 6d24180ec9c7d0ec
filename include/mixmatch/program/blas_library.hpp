#pragma once

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

namespace mixmatch::training {

/// The file of the BLAS library by which LibTorch multiplies matrices on the CPU, links resolved; "" where
/// that is within LibTorch, as in PyPI's.
inline std::string blas_library() {
  Dl_info found{};
  void* product = dlsym(RTLD_DEFAULT, "sgemm_");
  if (product == nullptr || dladdr(product, &found) == 0 || found.dli_fname == nullptr) {
    return "";
  }
  std::error_code error;
  const auto path = std::filesystem::canonical(found.dli_fname, error);
  return error ? "" : path.string();
}

/// Whether that file is the reference BLAS, which is many times slower than others, by the folder where
/// Debian's package puts it.
inline bool is_reference_blas(std::string_view path) {
  return path.find("/blas/libblas.so") != std::string_view::npos;
}

}  // namespace mixmatch::training
