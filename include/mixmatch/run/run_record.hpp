#pragma once

#include <mixmatch/detail/io/json_cursor.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/run/config.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/run_directory.hpp>

#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace mixmatch::training {

/// What a run left in its directory, for those who look at it later.
struct RunRecord {
  std::filesystem::path path;
  Config config;          ///< config.json
  bool finished = false;  ///< whether there is a summary.json
  Config summary;         ///< summary.json, empty for a run that is not finished
  MetricsTable metrics;   ///< metrics.csv, empty if a finished run has none
};

/// A flat JSON object as JsonObject writes it, in the text's order: texts as they are, numbers as they were
/// written, true, false, null. Throws c10::Error in one line: no JSON, no object, a name twice, a value that
/// is an array or object.
inline Config parse_json_object(std::string_view text) {
  mixmatch::detail::JsonCursor json(text, "JSON ");
  Config config;
  json.object([&](std::string name) {
    const char first = json.peek();
    TORCH_CHECK(find_setting(config, name) == nullptr, "\"", name, "\" comes twice");
    TORCH_CHECK(first != '[' && first != '{', "\"", name, "\" must be a text, number or boolean, got an ",
                first == '[' ? "array" : "object");
    std::string value;
    if (first == '"') {
      value = json.string();
    } else if (first == '-' || (first >= '0' && first <= '9')) {
      value = json.number();
    } else {
      for (const char* word : {"true", "false", "null"}) {
        if (value.empty() && json.word(word)) {
          value = word;
        }
      }
      if (value.empty()) {
        json.fail("a value");
      }
    }
    config.emplace_back(std::move(name), std::move(value));
  });
  json.finish();
  return config;
}

/// parse_json_object() of a file, which errors name.
inline Config read_json_object(const std::filesystem::path& path) {
  const std::string text = mixmatch::detail::read_whole_file(path);
  try {
    return parse_json_object(text);
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, path.string(), ": ", error.what_without_backtrace());
  }
}

/// Reads a run directory, finished or not. Throws c10::Error in one line that names what is missing or cannot
/// be read; an unfinished run needs its metrics.csv, a finished one does not.
inline RunRecord read_run(const std::filesystem::path& path) {
  const RunDirectory run = RunDirectory::open(path);
  RunRecord record;
  record.path = path;
  record.config = read_json_object(run.config());
  std::error_code ignored;
  record.finished = std::filesystem::exists(run.summary(), ignored);
  if (record.finished) {
    record.summary = read_json_object(run.summary());
  }
  if (!record.finished || std::filesystem::exists(run.metrics(), ignored)) {
    record.metrics = read_metrics(run.metrics());
  }
  return record;
}

}  // namespace mixmatch::training
