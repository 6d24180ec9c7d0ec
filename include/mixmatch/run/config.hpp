#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Settings by name, as a program wants to find them again beside its weights.
using Config = std::vector<std::pair<std::string, std::string>>;

/// The value of that name, or null.
inline const std::string* find_setting(const Config& config, std::string_view name) {
  for (const auto& entry : config) {
    if (entry.first == name) {
      return &entry.second;
    }
  }
  return nullptr;
}

struct ChangedSetting {
  std::string name, stored, now;
};

/// The first setting that a run was started with and that has another value now. Those of the names
/// `changeable` may change, and so may what only one of the two knows.
inline std::optional<ChangedSetting> find_changed_setting(const Config& stored, const Config& now,
                                                          const std::vector<std::string>& changeable) {
  for (const auto& [name, value] : stored) {
    const std::string* mine = find_setting(now, name);
    if (mine != nullptr && *mine != value &&
        std::find(changeable.begin(), changeable.end(), name) == changeable.end()) {
      return ChangedSetting{name, value, *mine};
    }
  }
  return std::nullopt;
}

}  // namespace mixmatch::training
