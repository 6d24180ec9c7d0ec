#include <mixmatch/program/blas_library.hpp>

#include <torch/types.h>

#include <filesystem>
#include <string>

#include "catch.hpp"

using mixmatch::training::blas_library;
using mixmatch::training::is_reference_blas;

TEST_CASE("blas_library: a file that is there, or none") {
  const std::string path = blas_library();
  INFO(path);
  CHECK((path.empty() || std::filesystem::is_regular_file(path)));
}

TEST_CASE("is_reference_blas: by the folders of Debian's packages") {
  CHECK(is_reference_blas("/usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11.0"));
  CHECK_FALSE(is_reference_blas("/usr/lib/x86_64-linux-gnu/openblas-openmp/libblas.so.3"));
  CHECK_FALSE(is_reference_blas("/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblasp-r0.3.21.so"));
  CHECK_FALSE(is_reference_blas("/usr/lib/x86_64-linux-gnu/atlas/libblas.so.3.10.3"));
  CHECK_FALSE(is_reference_blas(""));
}
