#pragma once

// What the engine (fuzz.cpp) and the targets share. A target reads changed copies of good files; each
// execution must end well or with a c10::Error of one clean line, in little time and memory.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fuzz {

/// The contents of a target's files, in the order of Target::parts.
using Input = std::vector<std::string>;

struct Target {
  std::string name;
  std::vector<std::string> parts;  ///< names of its files
  std::vector<Input> seeds;        ///< valid inputs, from which all others come
  std::vector<std::string> dictionary;
  /// Reads the files, which lie in the directory. Returns where that went well, throws c10::Error or Refused
  /// where not.
  std::function<void(const std::filesystem::path& directory, const Input&)> run;
  /// Bytes of memory that a byte of input may cost, besides 64 MB: what the format can compress.
  int64_t times_input = 200;
  /// A library below asks for as much memory as a damaged length says, and touches none of it: not looked at.
  bool reserves_memory = false;
};

/// A refusal of another type than c10::Error that a user sees as one line.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What a target found wrong besides what the engine looks for.
struct Finding : std::logic_error {
  using std::logic_error::logic_error;
};

inline void expect(bool condition, const char* what) {
  if (!condition) {
    throw Finding(what);
  }
}

/// Throws a Finding unless the text is UTF-8 of reasonable length without line breaks and control characters.
void expect_clean(std::string_view text, const char* what);

/// A directory in memory, where there is one, that is removed at the end.
const std::filesystem::path& scratch();

/// Writes a file there, or in a directory there; the same name is quick to write again.
std::filesystem::path write(const std::string& name, std::string_view bytes);

std::string read(const std::filesystem::path& path);

/// Adds a result to the run's checksum, which must not depend on what memory held before.
void digest(const void* data, size_t size);
template <class T>
void digest_value(const T& value) {
  digest(&value, sizeof value);
}
inline void digest_text(std::string_view text) { digest(text.data(), text.size()); }

std::string from_hex(std::string_view digits);

// One function a file of targets.
void add_data_targets(std::vector<Target>& targets);
void add_picture_targets(std::vector<Target>& targets);
void add_weight_targets(std::vector<Target>& targets);
void add_run_targets(std::vector<Target>& targets);

}  // namespace fuzz
