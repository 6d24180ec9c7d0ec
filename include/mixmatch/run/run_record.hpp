#pragma once

#include <mixmatch/detail/io/json_reader.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/run/config.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/run_directory.hpp>

#include <filesystem>
#include <string>
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

/// A flat JSON object as JsonObject writes it, in the file's order: texts as they are, numbers as they were
/// written, true, false, null. Throws c10::Error in one line that names the file: not readable, no JSON, no
/// object, a value that is an array or object.
inline Config read_json_object(const std::filesystem::path& path) {
  using mixmatch::detail::JsonValue;
  const std::string text = mixmatch::detail::read_whole_file(path);
  JsonValue value;
  try {
    value = mixmatch::detail::parse_json(text);
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, path.string(), ": ", error.what_without_backtrace());
  }
  TORCH_CHECK(value.kind == JsonValue::Kind::object, path.string(), ": expected a JSON object");
  Config config;
  for (auto& [name, member] : value.members) {
    switch (member.kind) {
      case JsonValue::Kind::null:
        config.emplace_back(name, "null");
        break;
      case JsonValue::Kind::boolean:
        config.emplace_back(name, member.boolean ? "true" : "false");
        break;
      case JsonValue::Kind::number:
      case JsonValue::Kind::string:
        config.emplace_back(name, member.text);
        break;
      default:
        TORCH_CHECK(false, path.string(), ": \"", name, "\" must be a text, number or boolean, got ",
                    member.kind == JsonValue::Kind::array ? "an array" : "an object");
    }
  }
  return config;
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
