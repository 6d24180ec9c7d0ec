#pragma once

#include <cstdlib>
#include <string>

#include "skip.hpp"

/// The interpreter that CMake's MIXMATCH_PYTHON names (ctest hands it on in the environment). Without one the
/// test case says that it is skipped, which ctest reports, and gets "":
///
///     const auto python = python_or_skip("torch, safetensors");
///     if (python.empty()) return;
inline std::string python_or_skip(const std::string& packages) {
  const char* python = std::getenv("MIXMATCH_PYTHON");
  if (python != nullptr && *python != '\0') {
    return python;
  }
  skip("no MIXMATCH_PYTHON, an interpreter that has " + packages);
  return "";
}
