#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/hex.hpp>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/io/atomic_file.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// The images of a folder by their files' names: what a split of them is written with.
struct NamedImages {
  std::filesystem::path dir;
  std::vector<std::string> files;  ///< one an image, relative to `dir`
  Tensor labels;                   ///< int64 [N], -1 for an image without a label
};

/// What a split file is of, as its first lines say.
struct SplitHeader {
  bool by_name = false;    ///< of a folder's pictures, not of numbered rows
  int64_t num_images = 0;  ///< of a split by rows
  std::string checksum;    ///< of their data set; "" where the file has none, as those of old
};

namespace detail {

/// CRC-32C of a file's bytes, as eight hexadecimal digits.
inline std::string file_checksum(const std::filesystem::path& path) {
  return mixmatch::detail::hex(mixmatch::detail::crc32c(mixmatch::detail::read_whole_file(path)));
}

/// The words of a line, those in quotes (see printable_quoted()) without them and to the byte; none where a
/// quote is open or an escape unknown.
inline std::optional<std::vector<std::string>> split_words(std::string_view line) {
  constexpr std::string_view blanks = " \t\r";
  std::vector<std::string> words;
  for (size_t i = 0; (i = line.find_first_not_of(blanks, i)) != line.npos;) {
    std::string word;
    if (line[i] != '"') {
      const size_t end = std::min(line.find_first_of(blanks, i), line.size());
      words.emplace_back(line.substr(i, end - i));
      i = end;
      continue;
    }
    for (++i; i < line.size() && line[i] != '"'; ++i) {
      if (line[i] != '\\') {
        word += line[i];
        continue;
      }
      const std::string_view rest = line.substr(i + 1);
      constexpr std::string_view names = "\"\\ntr", meanings = "\"\\\n\t\r";
      const size_t known = rest.empty() ? names.npos : names.find(rest.front());
      unsigned byte = 0;
      if (known != names.npos) {
        word += meanings[known];
        i += 1;
      } else if (rest.size() >= 3 && rest.front() == 'x' &&
                 std::from_chars(rest.data() + 1, rest.data() + 3, byte, 16).ptr == rest.data() + 3) {
        word += static_cast<char>(byte);
        i += 3;
      } else {
        return std::nullopt;
      }
    }
    if (i == line.size() || (i + 1 < line.size() && blanks.find(line[i + 1]) == blanks.npos)) {
      return std::nullopt;
    }
    words.push_back(std::move(word));
    ++i;
  }
  return words;
}

/// Words of a file for a message: of a long one the beginning.
inline std::string quote_word(const std::string& word) {
  constexpr size_t most = 80;
  return c10::str('"', mixmatch::detail::printable_beginning(word, most), '"');
}

/// What a split file says, before it is known of which images.
struct SplitText : SplitHeader {
  struct Line {
    int64_t number;
    std::vector<std::string> words;  ///< the first is labeled, validation or unlabeled
  };
  bool all_others = false;
  std::vector<Line> lines;
};

inline SplitText read_split_text(const std::filesystem::path& path) {
  const std::string file = mixmatch::detail::printable(path);
  const std::string bytes = mixmatch::detail::read_whole_file(path);
  SplitText text;
  std::string_view rest = bytes;
  for (int64_t number = 1; number == 1 || !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    const auto words = split_words(line);
    if (number == 1) {
      const bool fits = words.has_value() && words->size() >= 4 && (*words)[0] == "mixmatch" &&
                        (*words)[1] == "split" && (*words)[2] == "of";
      text.by_name = fits && words->size() == 4 && (*words)[3] == "pictures";
      const auto images = fits && words->size() == 5 && (*words)[4] == "images"
                              ? mixmatch::detail::parse_number<int64_t>((*words)[3])
                              : std::nullopt;
      TORCH_CHECK(text.by_name || (images.has_value() && *images >= 0), file,
                  " is no split file: it does not begin with \"mixmatch split of N images\" or \"mixmatch "
                  "split of pictures\"");
      text.num_images = images.value_or(0);
      continue;
    }
    TORCH_CHECK(words.has_value(), file, " line ", number, ": a name in quotes does not end, or holds an ",
                "escape other than \\\" \\\\ \\n \\t \\r \\xHH");
    if (words->empty()) {
      continue;
    }
    const std::string& name = words->front();
    if (name == "data" && !text.by_name && words->size() == 3 && (*words)[1] == "crc32c") {
      text.checksum = (*words)[2];
      continue;
    }
    TORCH_CHECK(name == "labeled" || name == "validation" || name == "unlabeled", file, " line ", number,
                ": expected labeled, validation or unlabeled, got ", quote_word(name));
    if (*words == std::vector<std::string>{"unlabeled", "all", "others"}) {
      text.all_others = true;
    } else {
      text.lines.push_back({number, *words});
    }
  }
  return text;
}

/// The rows of each part of a split, each once.
class SplitRows {
 public:
  SplitRows(std::string file, int64_t num_images)
      : file_(std::move(file)), part_of_(static_cast<size_t>(num_images), nullptr) {}

  /// `text` is what the file calls the row.
  void add(const std::string& part, int64_t row, const std::string& text) {
    auto*& taken = part_of_[static_cast<size_t>(row)];
    TORCH_CHECK(taken == nullptr, file_, ": ", text, " stands there twice");
    taken = part == "labeled" ? &labeled_ : part == "validation" ? &validation_ : &unlabeled_;
    taken->push_back(row);
  }
  bool has(int64_t row) const { return part_of_[static_cast<size_t>(row)] != nullptr; }

  SslSplit split() && {
    TORCH_CHECK(!labeled_.empty(), file_, " has no labeled rows");
    return {ascending(std::move(labeled_)), ascending(std::move(unlabeled_)),
            ascending(std::move(validation_))};
  }

 private:
  std::string file_;
  std::vector<std::vector<int64_t>*> part_of_;
  std::vector<int64_t> labeled_, unlabeled_, validation_;
};

}  // namespace detail

/// Writes a split as text that people can read, exchange and edit:
///
///     mixmatch split of 50000 images
///     data crc32c 1f2e3d4c
///     labeled 12 105 …
///     validation 3
///     unlabeled all others
///
/// or the unlabeled rows themselves where they are not all others. `checksum` is data_checksum() of the
/// images: without, the split says of how many images it is, and not of which. Throws "cannot write PATH:
/// REASON".
inline void save_split(const std::filesystem::path& path, const SslSplit& split, int64_t num_images,
                       const std::string& checksum = "") {
  const auto line = [](const std::string& name, const Tensor& rows) {
    std::string text = name;
    const Tensor on_cpu = rows.cpu().contiguous();
    for (int64_t i = 0; i < on_cpu.numel(); ++i) {
      text += ' ';
      text += std::to_string(on_cpu.data_ptr<int64_t>()[i]);
    }
    return text + "\n";
  };
  const bool whole = split.labeled.numel() + split.validation.numel() + split.unlabeled.numel() == num_images;
  write_file_atomically(
      path, "mixmatch split of " + std::to_string(num_images) + " images\n" +
                (checksum.empty() ? "" : "data crc32c " + checksum + "\n") + line("labeled", split.labeled) +
                line("validation", split.validation) +
                (whole ? std::string("unlabeled all others\n") : line("unlabeled", split.unlabeled)));
}

/// Writes the split of a folder's pictures by their names, so that it stays true when pictures come, go or
/// get a label:
///
///     mixmatch split of pictures
///     labeled "labeled/cat/1.png" crc32c 1f2e3d4c
///     validation "labeled/dog/4.png" crc32c 5b6a7988
///     unlabeled all others
///
/// each with the CRC-32C of its file. Pictures that have a label and train without are named; "all others"
/// are those without a label. In a name in quotes a quote is \", a backslash \\, and a byte that is no text
/// \xHH. Throws "cannot write PATH: REASON", and where a picture cannot be read.
inline void save_split(const std::filesystem::path& path, const SslSplit& split, const NamedImages& images) {
  const Tensor labels = images.labels.cpu().contiguous();
  std::string text = "mixmatch split of pictures\n";
  const auto add = [&](const std::string& part, const Tensor& rows, bool hidden_only) {
    const Tensor on_cpu = rows.cpu().contiguous();
    for (int64_t i = 0; i < on_cpu.numel(); ++i) {
      const int64_t row = on_cpu.data_ptr<int64_t>()[i];
      const auto& name = images.files[static_cast<size_t>(row)];
      if (!hidden_only || labels.data_ptr<int64_t>()[row] >= 0) {
        text += part + " " + mixmatch::detail::printable_quoted(name) + " crc32c " +
                detail::file_checksum(images.dir / name) + "\n";
      }
    }
  };
  const auto rows = split.labeled.numel() + split.validation.numel() + split.unlabeled.numel();
  const bool whole = rows == static_cast<int64_t>(images.files.size());
  add("labeled", split.labeled, false);
  add("validation", split.validation, false);
  add("unlabeled", split.unlabeled, whole);
  write_file_atomically(path, text + (whole ? "unlabeled all others\n" : ""));
}

/// Throws as load_split().
inline SplitHeader read_split_header(const std::filesystem::path& path) {
  return detail::read_split_text(path);
}

/// Reads a split by rows for a data set of `num_images`, with data_checksum() `checksum` if that is known.
/// Throws one line that names the file: not readable, no split, of pictures by name, of another number of
/// images, of another data set, a row twice or out of range, no labeled row.
inline SslSplit load_split(const std::filesystem::path& path, int64_t num_images,
                           const std::string& checksum = "") {
  const std::string file = mixmatch::detail::printable(path);
  const auto text = detail::read_split_text(path);
  TORCH_CHECK(!text.by_name, file, " splits pictures by their names, and this data set has none");
  TORCH_CHECK(text.num_images == num_images, file, " splits ", text.num_images, " images, the data set has ",
              num_images);
  TORCH_CHECK(text.checksum.empty() || checksum.empty() || text.checksum == checksum, file,
              " splits another data set: it is of images with crc32c ",
              mixmatch::detail::printable(text.checksum.substr(0, 8)), ", these have ", checksum);
  detail::SplitRows rows(file, num_images);
  bool unlabeled_rows = false;
  for (const auto& line : text.lines) {
    const std::string& part = line.words.front();
    for (size_t i = 1; i < line.words.size(); ++i) {
      const auto row = mixmatch::detail::parse_number<int64_t>(line.words[i]);
      TORCH_CHECK(row.has_value() && *row >= 0 && *row < num_images, file, ": ", part, " has ",
                  detail::quote_word(line.words[i]), ", expected a row in [0, ", num_images, ")");
      rows.add(part, *row, "row " + std::to_string(*row));
      unlabeled_rows = unlabeled_rows || part == "unlabeled";
    }
  }
  if (text.all_others) {
    TORCH_CHECK(!unlabeled_rows, file, " has unlabeled rows beside \"unlabeled all others\"");
    for (int64_t row = 0; row < num_images; ++row) {
      if (!rows.has(row)) {
        rows.add("unlabeled", row, "");
      }
    }
  }
  return std::move(rows).split();
}

/// Reads the split of a folder's pictures. Names decide; a picture that has a label and is not named is
/// refused, as its label would be lost. A name may be without its checksum. Throws one line that names the
/// file: not readable, no split, a split by rows, a picture that the folder does not hold, that is another
/// one now, that is labeled and has no label, or that stands there twice; no labeled picture.
inline SslSplit load_split(const std::filesystem::path& path, const NamedImages& images) {
  const std::string file = mixmatch::detail::printable(path);
  const auto text = detail::read_split_text(path);
  TORCH_CHECK(text.by_name, file, " numbers its images, and which pictures those were cannot be told");
  const Tensor labels = images.labels.cpu().contiguous();
  const auto* label = labels.data_ptr<int64_t>();
  std::unordered_map<std::string_view, int64_t> row_of;
  for (size_t i = 0; i < images.files.size(); ++i) {
    row_of.emplace(images.files[i], static_cast<int64_t>(i));
  }
  const auto size = static_cast<int64_t>(images.files.size());
  detail::SplitRows rows(file, size);
  for (const auto& [number, words] : text.lines) {
    for (size_t i = 1; i < words.size();) {
      const std::string& name = words[i++];
      const auto found = row_of.find(name);
      TORCH_CHECK(found != row_of.end(), file, " line ", number, ": there is no readable picture ",
                  detail::quote_word(name), " in ", mixmatch::detail::printable(images.dir));
      TORCH_CHECK(words[0] == "unlabeled" || label[found->second] >= 0, file, " line ", number, ": ",
                  words[0], " picture ", detail::quote_word(name), " has no label");
      if (i + 1 < words.size() && words[i] == "crc32c") {
        const std::string checksum = detail::file_checksum(images.dir / name);
        TORCH_CHECK(words[i + 1] == checksum, file, " line ", number, ": ", detail::quote_word(name),
                    " is another picture now: its crc32c is ", checksum, ", not ",
                    detail::quote_word(words[i + 1]));
        i += 2;
      }
      rows.add(words[0], found->second, detail::quote_word(name));
    }
  }
  int64_t first_lost = -1, lost = 0;
  for (int64_t row = 0; row < size; ++row) {
    if (!rows.has(row) && label[row] >= 0) {
      first_lost = lost++ == 0 ? row : first_lost;
    } else if (!rows.has(row) && text.all_others) {
      rows.add("unlabeled", row, "");
    }
  }
  TORCH_CHECK(lost == 0, file, " does not name ",
              detail::quote_word(images.files[static_cast<size_t>(std::max<int64_t>(first_lost, 0))]),
              lost > 1 ? " and " + std::to_string(lost - 1) + " more pictures" : std::string(),
              lost > 1 ? " that have a label" : ", which has a label",
              ": add a line for each, as labeled, validation or unlabeled");
  return std::move(rows).split();
}

}  // namespace mixmatch::data
