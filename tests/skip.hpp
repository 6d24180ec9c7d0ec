#pragma once

#include <algorithm>
#include <string>
#include <vector>

/// Why test cases could not run here.
inline std::vector<std::string>& skip_reasons() {
  static std::vector<std::string> reasons;
  return reasons;
}

/// Notes that the test case cannot run here; it must return then. The test's process says so at its end
/// (test_main.cpp), and only if nothing failed: ctest counts what says "SKIPPED: " as skipped, whatever its
/// exit status.
inline void skip(const std::string& reason) {
  auto& reasons = skip_reasons();
  if (std::find(reasons.begin(), reasons.end(), reason) == reasons.end()) {
    reasons.push_back(reason);
  }
}
