#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/read_file.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// The rows of a metrics.csv: every row has a number a column, NaN where there is none.
struct MetricsTable {
  std::vector<std::string> columns;
  std::vector<std::vector<double>> rows;

  /// The values of a column from the first row to the last; empty if there is no such column.
  std::vector<double> column(std::string_view name) const {
    std::vector<double> values;
    const auto found = std::find(columns.begin(), columns.end(), name);
    if (found != columns.end()) {
      for (const auto& row : rows) {
        values.push_back(row[static_cast<size_t>(found - columns.begin())]);
      }
    }
    return values;
  }
};

namespace detail {

inline std::vector<std::string_view> split_cells(std::string_view line) {
  std::vector<std::string_view> cells;
  for (;;) {
    const size_t comma = line.find(',');
    cells.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) {
      return cells;
    }
    line.remove_prefix(comma + 1);
  }
}

}  // namespace detail

/// What MetricsCsv wrote, `name` being the file's: a line of column names, then lines of numbers between
/// commas; an empty cell is NaN. A last line without its line break is a row that is being written, and left
/// out. Throws c10::Error in one line that names the file, and the line where it can: no header, a column
/// without a name or twice, a row with another number of cells, a cell that is no number.
inline MetricsTable parse_metrics(std::string_view rest, const std::string& name) {
  const auto shown = [](std::string_view cell) { return mixmatch::detail::printable_beginning(cell, 60); };
  MetricsTable table;
  for (int64_t number = 1; rest.find('\n') != std::string_view::npos; ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(line.size() + 1);
    const auto cells = detail::split_cells(line);
    if (number == 1) {
      for (const auto cell : cells) {
        TORCH_CHECK(!cell.empty(), name, " line 1: a column has no name");
        TORCH_CHECK(std::find(table.columns.begin(), table.columns.end(), cell) == table.columns.end(), name,
                    " line 1: column \"", shown(cell), "\" is there twice");
        table.columns.emplace_back(cell);
      }
      continue;
    }
    TORCH_CHECK(cells.size() == table.columns.size(), name, " line ", number, ": expected ",
                table.columns.size(), " cells, got ", cells.size());
    std::vector<double> row;
    for (size_t i = 0; i < cells.size(); ++i) {
      double value = std::numeric_limits<double>::quiet_NaN();
      if (!cells[i].empty()) {
        const auto parsed = mixmatch::detail::parse_number<double>(cells[i]);
        TORCH_CHECK(parsed.has_value(), name, " line ", number, ": ", shown(table.columns[i]),
                    " must be a number or nothing, got \"", shown(cells[i]), "\"");
        value = *parsed;
      }
      row.push_back(value);
    }
    table.rows.push_back(std::move(row));
  }
  TORCH_CHECK(!table.columns.empty(), name, " has no header line of column names");
  return table;
}

/// The same from the file. Throws also where it cannot be read.
inline MetricsTable read_metrics(const std::filesystem::path& path) {
  return parse_metrics(mixmatch::detail::read_whole_file(path), path.string());
}

}  // namespace mixmatch::training
