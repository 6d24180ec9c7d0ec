// Several training runs side by side: a table in the terminal, and one page with their error curves. Reads
// what the training programs leave in their run directories; finished or not.

#include <fmt/format.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mm = mixmatch;

namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN();

/// A run and the numbers that are compared; NaN where there is none.
struct Run {
  mm::training::RunRecord record;
  int64_t step = 0;  // where it is, or was stopped
  bool finished = false;
  double test_error = none, ema_test_error = none, median_error = none, validation_error = none,
         seconds_per_step = none;
};

std::string setting(const Run& run, const std::string& name) {
  const std::string* value = mm::training::find_setting(run.record.config, name);
  return value != nullptr ? *value : "-";
}

/// A number of summary.json; null is NaN, and so is one that an older run may be without.
double summary_number(const Run& run, const std::string& name, bool required = true) {
  const std::string file = (run.record.path / "summary.json").string();
  const std::string* text = mm::training::find_setting(run.record.summary, name);
  TORCH_CHECK(text != nullptr || !required, file, " has no \"", name, "\"");
  if (text == nullptr) {
    return none;
  }
  const auto value = *text == "null" ? none : mm::detail::parse_number<double>(*text);
  TORCH_CHECK(value.has_value(), file, ": \"", name, "\" must be a number, got \"", *text, "\"");
  return *value;
}

std::vector<double> known_values(const mm::training::MetricsTable& metrics, const std::string& column) {
  std::vector<double> values = metrics.column(column);
  std::erase_if(values, [](double value) { return std::isnan(value); });
  return values;
}

Run load_run(const std::string& path) {
  Run run{mm::training::read_run(path)};
  const auto whole = [](double step) { return std::isfinite(step) ? static_cast<int64_t>(step) : 0; };
  if (run.record.finished) {
    run.step = whole(summary_number(run, "steps"));
    // A run that was finished, goes on to more steps, and has not done them yet still has its old summary.
    const std::string steps = setting(run, "steps");
    run.finished = steps == "-" || steps == fmt::format("{}", run.step);
  }
  if (run.finished) {
    run.test_error = summary_number(run, "test_error");
    run.ema_test_error = summary_number(run, "ema_test_error");
    run.median_error = summary_number(run, "median_last20_test_error");
    run.validation_error = summary_number(run, "validation_error", /*required=*/false);
    run.seconds_per_step = summary_number(run, "seconds_per_step");
    return run;
  }
  // What the run has said so far: its last row, and the last evaluation up to it.
  const auto last = [&](const std::string& column) {
    const auto values = known_values(run.record.metrics, column);
    return values.empty() ? none : values.back();
  };
  run.step = whole(last("step"));
  run.test_error = last("test_error");
  run.ema_test_error = last("ema_test_error");
  run.validation_error = last("validation_error");
  run.median_error = mm::training::median_of_last(known_values(run.record.metrics, "ema_test_error"), 20);
  return run;
}

/// What may differ between the runs of a group: the seed, and what changes no more than rounding. The table
/// of runs shows it.
bool is_told_apart_by_rows(const std::string& setting) {
  return setting == "seed" || setting == "threads" || setting == "mixmatch-version" ||
         setting == "libtorch-version";
}

/// Runs whose configurations are the same but for that.
using Group = std::vector<const Run*>;

std::vector<Group> group_by_config(const std::vector<Run>& runs) {
  std::vector<std::pair<mm::training::Config, Group>> groups;
  for (const Run& run : runs) {
    mm::training::Config key = run.record.config;
    std::erase_if(key, [](const auto& entry) { return is_told_apart_by_rows(entry.first); });
    std::sort(key.begin(), key.end());
    const auto known =
        std::find_if(groups.begin(), groups.end(), [&](const auto& group) { return group.first == key; });
    if (known != groups.end()) {
      known->second.push_back(&run);
    } else {
      groups.push_back({key, {&run}});
    }
  }
  std::vector<Group> result;
  for (auto& group : groups) {
    result.push_back(std::move(group.second));
  }
  return result;
}

/// The settings besides those that every table shows, or none, in which the runs differ: what is being
/// compared.
std::vector<std::string> differing_settings(const std::vector<Run>& runs) {
  std::vector<std::string> names;
  for (const Run& run : runs) {
    for (const auto& [name, value] : run.record.config) {
      const bool shown =
          name == "method" || name == "seed" || name == "labels" || name == "steps" || name == "threads";
      const auto other = [&, &name = name](const Run& one) {
        return setting(one, name) != setting(runs[0], name);
      };
      if (!shown && std::find(names.begin(), names.end(), name) == names.end() &&
          std::any_of(runs.begin(), runs.end(), other)) {
        names.push_back(name);
      }
    }
  }
  return names;
}

/// The errors that the tables show. A validation error stands in where a run has no test error.
struct ErrorColumn {
  const char* name;
  double Run::*error;
};

std::vector<ErrorColumn> error_columns(const std::vector<Run>& runs) {
  std::vector<ErrorColumn> columns{{"test_error", &Run::test_error},
                                   {"ema_test_error", &Run::ema_test_error},
                                   {"median_last20_test_error", &Run::median_error}};
  if (std::any_of(runs.begin(), runs.end(), [](const Run& run) {
        return std::isnan(run.ema_test_error) && !std::isnan(run.validation_error);
      })) {
    columns.push_back({"validation_error", &Run::validation_error});
  }
  return columns;
}

std::string number(double value, int digits) {
  return std::isnan(value) ? "-" : fmt::format("{:.{}f}", value, digits);
}

/// Mean and, of two values or more, sample standard deviation.
std::string mean_and_deviation(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  if (values.empty()) {
    return "-";
  }
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) {
    squares += (value - mean) * (value - mean);
  }
  return values.size() == 1 ? number(mean, 2)
                            : fmt::format("{:.2f} \u00B1 {:.2f}", mean, std::sqrt(squares / (count - 1)));
}

struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
};

Table run_table(const std::vector<Run>& runs) {
  const auto differing = differing_settings(runs);
  Table table{{"run", "method", "seed", "labels"}, {}};
  table.header.insert(table.header.end(), differing.begin(), differing.end());
  table.header.emplace_back("steps");
  const auto errors = error_columns(runs);
  for (const auto& column : errors) {
    table.header.emplace_back(column.name);
  }
  table.header.emplace_back("seconds_per_step");
  for (const Run& run : runs) {
    std::vector<std::string> row{run.record.path.string(), setting(run, "method"), setting(run, "seed"),
                                 setting(run, "labels")};
    for (const auto& name : differing) {
      row.push_back(setting(run, name));
    }
    row.push_back(run.finished ? fmt::format("{}", run.step)
                               : fmt::format("{} of {}, unfinished", run.step, setting(run, "steps")));
    for (const auto& column : errors) {
      row.push_back(number(run.*column.error, 2));
    }
    row.push_back(number(run.seconds_per_step, 4));
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// One row a group, over its finished runs: the mean of each run's own result, however many evaluations it
/// is from. A run that has no such error does not count.
Table group_table(const std::vector<Run>& runs, const std::vector<Group>& groups) {
  auto differing = differing_settings(runs);
  std::erase_if(differing, is_told_apart_by_rows);
  Table table{{"method", "labels"}, {}};
  table.header.insert(table.header.end(), differing.begin(), differing.end());
  table.header.emplace_back("steps");
  table.header.emplace_back("seeds");
  const auto errors = error_columns(runs);
  for (const auto& column : errors) {
    table.header.emplace_back(column.name);
  }
  for (const Group& group : groups) {
    std::string seeds;
    std::vector<std::vector<double>> values(errors.size());
    for (const Run* run : group) {
      if (run->finished) {
        seeds += (seeds.empty() ? "" : ", ") + setting(*run, "seed");
        for (size_t i = 0; i < errors.size(); ++i) {
          const double error = run->*errors[i].error;
          if (!std::isnan(error)) {
            values[i].push_back(error);
          }
        }
      }
    }
    if (seeds.empty()) {
      continue;
    }
    std::vector<std::string> row{setting(*group[0], "method"), setting(*group[0], "labels")};
    for (const auto& name : differing) {
      row.push_back(setting(*group[0], name));
    }
    row.push_back(setting(*group[0], "steps"));
    row.push_back(seeds);
    for (const auto& of_column : values) {
      row.push_back(mean_and_deviation(of_column));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// Columns as wide as their longest cell; UTF-8's continuation bytes take no room.
void print_table(const Table& table) {
  const auto width = [](const std::string& text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  };
  std::vector<std::ptrdiff_t> widths;
  for (size_t i = 0; i < table.header.size(); ++i) {
    widths.push_back(width(table.header[i]));
    for (const auto& row : table.rows) {
      widths[i] = std::max(widths[i], width(row[i]));
    }
  }
  const auto print_row = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i] + std::string(static_cast<size_t>(widths[i] - width(row[i])) + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    mm::training::print_result("{}\n", line);
  };
  print_row(table.header);
  for (const auto& row : table.rows) {
    print_row(row);
  }
}

std::string comparison_page(const std::vector<Run>& runs, const Table& table, const Table& groups) {
  std::string charts;
  for (const auto& [column, title] : std::vector<std::pair<std::string, std::string>>{
           {"ema_test_error", "Test error, EMA weights"},
           {"test_error", "Test error, raw weights"},
           {"validation_error", "Validation error, EMA weights"}}) {
    mm::training::LineChart chart{title, "step", "percent", {}};
    for (const Run& run : runs) {
      chart.curves.push_back(
          {run.record.path.string(), run.record.metrics.column("step"), run.record.metrics.column(column)});
      chart.curves.back().y.resize(chart.curves.back().x.size(), none);
    }
    charts += mm::training::render_line_chart(chart);
  }
  std::string body = fmt::format("<header><h1>{} training runs</h1></header>\n<main>\n", runs.size());
  body += "<section><h2>Runs</h2>\n" + mm::training::html_table(table.header, table.rows) + "</section>\n";
  if (!groups.rows.empty()) {
    body += "<section><h2>Over seeds: mean \u00B1 sample standard deviation</h2>\n" +
            mm::training::html_table(groups.header, groups.rows) + "</section>\n";
  }
  body += "<section><h2>Error curves</h2>\n";
  body +=
      charts.empty() ? "<p>No run has an error yet.</p>\n" : "<div class=\"charts\">\n" + charts + "</div>\n";
  return mm::training::html_page("Training runs", body + "</section>\n</main>\n");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> paths;
  std::string out;
  CLI::App app("Compares training runs: a table of their results, means over seeds, and error curves.",
               "compare");
  app.add_option("RUNDIR", paths, "Run directories")->required();
  app.add_option("--out", out, "HTML page to write with the tables and the error curves");
  return mm::training::run_program(app, argc, argv, [&] {
    if (mm::training::left_to_rank_0()) {
      return 0;
    }
    std::vector<Run> runs;
    std::set<std::filesystem::path> seen;
    for (const auto& path : paths) {
      runs.push_back(load_run(path));
      TORCH_CHECK(seen.insert(std::filesystem::canonical(path)).second, path, " is given twice");
    }
    const Table table = run_table(runs);
    const Table groups = group_table(runs, group_by_config(runs));
    print_table(table);
    if (!groups.rows.empty()) {
      mm::training::print_result("\nOver seeds: mean \u00B1 sample standard deviation\n");
      print_table(groups);
    }
    if (!out.empty()) {
      mm::write_file_atomically(out, comparison_page(runs, table, groups));
    }
    return 0;
  });
}
