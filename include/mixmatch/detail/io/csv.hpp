#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch::detail {

/// A cell of a CSV file (RFC 4180): quoted where it must be.
inline std::string csv_cell(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) {
    return std::string(text);
  }
  std::string quoted = "\"";
  for (const char c : text) {
    quoted += c;
    if (c == '"') {
      quoted += c;
    }
  }
  return quoted + '"';
}

struct CsvRecord {
  int64_t line;  ///< where it begins; the first is 1
  std::vector<std::string> cells;
};

/// The records of a CSV (RFC 4180), with lines that end in LF, CRLF or CR; empty lines are none. A quotation
/// mark within a cell that does not begin with one is a letter. Throws "FILE line N: …" where a quoted cell
/// does not end, or text follows its end.
inline std::vector<CsvRecord> parse_csv(std::string_view text, char delimiter, const std::string& file) {
  std::vector<CsvRecord> records;
  CsvRecord record{1, {}};
  std::string cell;
  bool was_quoted = false;
  int64_t line = 1;
  const auto end_cell = [&] {
    record.cells.push_back(std::move(cell));
    cell.clear();
  };
  const auto end_record = [&] {
    if (!record.cells.empty() || !cell.empty() || was_quoted) {
      end_cell();
      records.push_back(std::move(record));
    }
    was_quoted = false;
    record = {line, {}};
  };
  const auto ends_line = [&](size_t i) { return text[i] == '\n' || text[i] == '\r'; };
  // The last character of the end of a line at i.
  const auto end_of_line = [&](size_t i) {
    ++line;
    return text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n' ? i + 1 : i;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == delimiter) {
      end_cell();
      was_quoted = false;
    } else if (ends_line(i)) {
      i = end_of_line(i);
      end_record();
    } else if (text[i] != '"' || !cell.empty() || was_quoted) {
      TORCH_CHECK(!was_quoted, file, " line ", line, ": text after the quotation mark that ends a cell");
      cell += text[i];
    } else {
      const int64_t begin = line;
      was_quoted = true;
      for (++i; i < text.size(); ++i) {
        if (text[i] == '"') {
          if (i + 1 == text.size() || text[i + 1] != '"') {
            break;
          }
          ++i;
        } else if (ends_line(i)) {
          const size_t last = end_of_line(i);
          cell += text.substr(i, last - i);
          i = last;
        }
        cell += text[i];
      }
      TORCH_CHECK(i < text.size(), file, " line ", begin, ": a cell in quotation marks does not end");
    }
  }
  end_record();
  return records;
}

}  // namespace mixmatch::detail
