#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/data/picture_list.hpp>
#include <mixmatch/detail/io/csv.hpp>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/detail/io/utf8.hpp>
#include <mixmatch/io/atomic_file.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// What a row of a label file says of one picture.
struct PictureLabel {
  std::string where;  ///< for messages: "labels.csv line 7"
  std::string file;
  /// A class, or "" for a picture that is to have none. Without a value the row says nothing of it.
  std::optional<std::string> label = std::nullopt;
  std::optional<bool> held_out = std::nullopt;  ///< whether training must not see it
  /// What a model said, in a file that began as a list of predictions.
  std::optional<std::string> predicted = std::nullopt;
  std::optional<double> confidence = std::nullopt;  ///< in `predicted`
  std::string path = "";                            ///< where it was when that list was written
};

struct LabelFile {
  std::string name;  ///< for messages
  std::vector<PictureLabel> rows;
};

namespace detail {

/// Without the blanks that spreadsheets and people leave around a word.
inline std::string_view trimmed(std::string_view text) {
  constexpr std::string_view blanks = " \t\r\n";
  const size_t begin = std::min(text.find_first_not_of(blanks), text.size());
  const size_t last = text.find_last_not_of(blanks);
  return text.substr(begin, last == text.npos ? 0 : last + 1 - begin);
}

/// The delimiter of a CSV by its first line: a spreadsheet writes semicolons where the comma is decimal.
inline char csv_delimiter(std::string_view text) {
  const size_t found = text.find_first_of(",;\t\r\n");
  return found == text.npos || text[found] == '\r' || text[found] == '\n' ? ',' : text[found];
}

/// Columns of a label file; -1 for one that it does not have.
struct LabelColumns {
  int64_t file = -1, label = -1, split = -1, predicted = -1, confidence = -1, path = -1;

  LabelColumns(const std::string& shown, const mixmatch::detail::CsvRecord& header) {
    const std::array<std::pair<std::string_view, int64_t*>, 6> known{{{"file", &file},
                                                                      {"label", &label},
                                                                      {"split", &split},
                                                                      {"class", &predicted},
                                                                      {"confidence", &confidence},
                                                                      {"path", &path}}};
    for (size_t i = 0; i < header.cells.size(); ++i) {
      const auto name = trimmed(header.cells[i]);
      for (const auto& [column, place] : known) {
        if (name == column) {
          TORCH_CHECK(*place < 0, shown, " line ", header.line, ": two columns are named \"", column, "\"");
          *place = static_cast<int64_t>(i);
        }
      }
    }
    TORCH_CHECK(
        file >= 0 && (label >= 0 || predicted >= 0), shown, " line ", header.line,
        ": expected a header that names the columns file and label (file,label or file,label,split), "
        "got ",
        mixmatch::detail::quote_for_message(std::accumulate(
            header.cells.begin(), header.cells.end(), std::string(),
            [](const std::string& all, const auto& cell) { return all.empty() ? cell : all + "," + cell; })));
  }
};

}  // namespace detail

/// Reads which labels pictures have from a CSV (RFC 4180), the least of which is
///
///     file,label
///     cats/1.jpg,cat
///     holiday.jpg,
///
/// The first line names the columns, in any order; others than these are not looked at:
///
/// - `file`: the picture;
/// - `label`: its class. Empty: it is to have none, or, where there is a column `class`, nothing is said;
/// - `split`: train, validation (or val) for a picture that is held out, or empty;
/// - `class`, `confidence`, `path`: as the programs write them in predictions.csv, which is such a file with
/// its column
///   `label` filled in.
///
/// In UTF-8, with or without a byte order mark, and lines that end in LF, CRLF or CR; where the header has
/// semicolons or tabs, these are the delimiters. Blanks around a label are taken away, unless there is such a
/// class. Throws c10::Error with one line that names the file and the line: no such header, a row of another
/// number of cells, without a file, with another split, a label that is no UTF-8 or longer than 255 bytes, a
/// cell that does not end.
inline LabelFile read_label_file(const std::filesystem::path& path) {
  const std::string shown = mixmatch::detail::printable(path);
  const std::string bytes = mixmatch::detail::read_whole_file(path);
  std::string_view text = bytes;
  TORCH_CHECK(!text.starts_with("\xFF\xFE") && !text.starts_with("\xFE\xFF"), shown,
              " is written in UTF-16: save it as CSV in UTF-8");
  if (text.starts_with("\xEF\xBB\xBF")) {
    text.remove_prefix(3);
  }
  TORCH_CHECK(text.find('\0') == text.npos, shown, " is no CSV: it holds a zero byte");
  const auto records = mixmatch::detail::parse_csv(text, detail::csv_delimiter(text), shown);
  TORCH_CHECK(!records.empty(), shown, " is empty: expected a header, file,label, and a line a picture");
  const detail::LabelColumns columns(shown, records.front());
  LabelFile file{shown, {}};
  file.rows.reserve(records.size() - 1);
  for (size_t i = 1; i < records.size(); ++i) {
    const auto& cells = records[i].cells;
    PictureLabel row;
    row.where = c10::str(shown, " line ", records[i].line);
    TORCH_CHECK(cells.size() == records.front().cells.size(), row.where, " has ", cells.size(),
                cells.size() == 1 ? " cell" : " cells", ", the header ", records.front().cells.size());
    const auto cell = [&](int64_t column) -> const std::string& {
      static const std::string none;
      return column < 0 ? none : cells[static_cast<size_t>(column)];
    };
    row.file = cell(columns.file);
    row.path = cell(columns.path);
    TORCH_CHECK(!row.file.empty(), row.where, ": no file is named");
    const std::string& label = cell(columns.label);
    const bool labeled = !detail::trimmed(label).empty();
    TORCH_CHECK(mixmatch::detail::is_utf8(label), row.where,
                ": the label is not UTF-8: ", mixmatch::detail::quote_for_message(label));
    constexpr size_t longest = 255;  // as a folder's name
    TORCH_CHECK(label.size() <= longest, row.where, ": a label of ", label.size(),
                " bytes, expected at most ", longest);
    if (columns.predicted >= 0) {
      row.predicted = cell(columns.predicted);
      std::string number = cell(columns.confidence);
      std::replace(number.begin(), number.end(), ',', '.');  // as spreadsheets may have written it
      row.confidence = mixmatch::detail::parse_number<double>(number);
    }
    if (columns.label >= 0 && (labeled || columns.predicted < 0)) {
      row.label = labeled ? label : "";
    }
    if (const auto split = detail::trimmed(cell(columns.split)); !split.empty()) {
      TORCH_CHECK(split == "train" || split == "validation" || split == "val", row.where,
                  ": split must be train or validation, got ", mixmatch::detail::quote_for_message(split));
      row.held_out = split != "train";
    }
    file.rows.push_back(std::move(row));
  }
  return file;
}

/// Writes all pictures of `list` as a label file, file,label,split. Throws "cannot write PATH: REASON".
inline void write_label_file(const std::filesystem::path& path, const PictureList& list) {
  using mixmatch::detail::csv_cell;
  std::vector<bool> held_out(list.files.size(), false);
  for (int64_t i = 0; i < list.validation.numel(); ++i) {
    held_out[static_cast<size_t>(list.validation.data_ptr<int64_t>()[i])] = true;
  }
  std::string text = "file,label,split\n";
  const auto* label = list.labels.data_ptr<int64_t>();
  for (size_t i = 0; i < list.files.size(); ++i) {
    text += csv_cell(list.files[i]) + ",";
    text += label[i] < 0 ? "" : csv_cell(list.class_names[static_cast<size_t>(label[i])]);
    text += held_out[i] ? ",validation\n" : ",train\n";
  }
  write_file_atomically(path, text);
}

}  // namespace mixmatch::data
