#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/list_images.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/utf8.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::data {

struct UnreadableFile {
  std::string file;  ///< Relative to the folder that was loaded.
  std::string reason;
};

/// "left out labeled/x.png: REASON", on one line.
inline std::string describe(const UnreadableFile& file) {
  return "left out " + mixmatch::detail::printable(file.file) + ": " + file.reason;
}

/// Which pictures there are, before any is decoded: those with a label, class by class, and then those
/// without.
struct PictureList {
  std::filesystem::path root;
  std::vector<std::string> files;        ///< relative to `root`: "labeled/cat/1.png"
  Tensor labels;                         ///< int64 [N], -1 for a picture without a label
  std::vector<std::string> class_names;  ///< of the labels
  /// Rows that the pictures' own layout holds out: int64, ascending; may be empty.
  Tensor validation = at::empty({0}, at::kLong);
  std::vector<UnreadableFile> unreadable;  ///< pictures that were left out, and why
  std::vector<LeftOut> left_out;           ///< everything else that was, by kind

  int64_t size() const { return static_cast<int64_t>(files.size()); }
  int64_t num_classes() const { return static_cast<int64_t>(class_names.size()); }
};

namespace detail {

/// Whether there is a directory of that name; throws if something else is, or it cannot be found out.
inline bool image_folder_exists(const char* loader, const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  TORCH_CHECK(error != std::errc::permission_denied, loader, ": cannot read ",
              mixmatch::detail::printable(path), ": ", error.message());
  TORCH_CHECK(!std::filesystem::exists(status) || std::filesystem::is_directory(status), loader, ": ",
              mixmatch::detail::printable(path), " is not a directory");
  return std::filesystem::exists(status);
}

inline bool is_dangling(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_symlink(std::filesystem::symlink_status(path, error)) &&
         !std::filesystem::exists(path, error);
}

/// The directories of which a layout is made. A file of another name than "labeled" and "unlabeled" is none.
inline bool is_layout_part(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  std::error_code error;
  return name == "labeled" || (name == "unlabeled" && !is_dangling(path)) ||
         ((name == "train" || name == "validation" || name == "val") &&
          std::filesystem::is_directory(path, error));
}

/// What lies beside those directories: nothing of it is read.
inline void leave_out_siblings(const char* loader, const std::filesystem::path& dir, PictureList& list) {
  for (const auto& entry : sorted_entries(loader, dir)) {
    const std::string name = entry.filename().string();
    std::error_code error;
    if (is_layout_part(entry)) {
      continue;
    }
    constexpr const char* parts = R"(none of "labeled", "unlabeled", "validation", "train", "val")";
    LeftOut why;
    const auto kind = classify_entry(entry, why);
    why.example = name;
    if (kind == EntryKind::folder) {
      // A run's directory may lie there; its name is its owner's matter.
      const bool is_run = std::filesystem::exists(entry / "config.json", error);
      std::string letters = name;
      for (char& c : letters) {
        c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      }
      const bool misspelt = letters.find("lab") != std::string::npos;
      why.kind = is_run     ? "run directory"
                 : misspelt ? "folder \"" + mixmatch::detail::printable(name) + "\""
                            : "folder";
      why.reason = is_run ? "no pictures of this folder" : parts;
      why.incidental = is_run;
    } else if (kind == EntryKind::picture || !why.incidental) {
      why.kind = kind == EntryKind::picture ? "picture" : why.kind;
      why.reason = kind == EntryKind::picture ? std::string("in ") + parts : why.reason;
      why.incidental = false;
    }
    leave_out(list.left_out, std::move(why));
  }
}

/// The class folders of `dir`/`part`, by name.
inline std::vector<std::string> class_folders(const char* loader, const std::filesystem::path& dir,
                                              const std::string& part, bool strict, PictureList& list) {
  using mixmatch::detail::printable;
  std::vector<std::string> names;
  for (const auto& entry : sorted_entries(loader, dir / part)) {
    const std::string name = entry.filename().string();
    LeftOut why;
    switch (classify_entry(entry, why)) {
      case EntryKind::folder:
        TORCH_CHECK(mixmatch::detail::is_utf8(name), loader, ": class folder ", printable(entry),
                    ": its name is not UTF-8; rename it");
        names.push_back(name);
        break;
      case EntryKind::picture:
        TORCH_CHECK(!strict, loader, ": ", printable(entry), " lies in no class folder");
        list.unreadable.push_back({part + "/" + name, "lies in no class folder"});
        break;
      case EntryKind::left_out:
        why.example = part + "/" + name;
        leave_out(list.left_out, std::move(why));
        break;
    }
  }
  return names;
}

/// The one of two directories that there is, "" if there is neither.
inline std::string one_part(const char* loader, const std::filesystem::path& dir, const std::string& name,
                            const std::string& other) {
  const bool first = is_layout_part(dir / name) && image_folder_exists(loader, dir / name);
  const bool second = is_layout_part(dir / other);
  TORCH_CHECK(!first || !second, loader, ": ", mixmatch::detail::printable(dir), " has both \"", name,
              "\" and \"", other, "\", and only one of them can be meant");
  return first ? name : second ? other : "";
}

/// Adds the pictures of `part`, with the label (-1: none), to `list`; `labels` grows with its files. Returns
/// what else lay there.
inline std::vector<LeftOut> add_part(const char* loader, const std::string& part, int64_t label,
                                     PictureList& list, std::vector<int64_t>& labels) {
  auto found = list_folder(loader, list.root / part, part + "/");
  list.files.insert(list.files.end(), found.files.begin(), found.files.end());
  labels.resize(list.files.size(), label);
  for (const auto& item : found.left_out) {
    leave_out(list.left_out, item);
  }
  return found.left_out;
}

inline void check_strict(const char* loader, const PictureList& list, bool strict) {
  for (const auto& item : list.left_out) {
    TORCH_CHECK(!strict || item.incidental, loader, ": ", mixmatch::detail::printable(list.root), ": ",
                describe(item));
  }
}

/// list_pictures() whose errors begin with `loader`. Where the folders are not all that gives labels
/// (`complete` false), there need be no class folders, and one class or held-out pictures alone will do.
inline PictureList list_pictures(const char* loader, const std::filesystem::path& dir, bool strict,
                                 bool complete = true) {
  using mixmatch::detail::printable;
  TORCH_CHECK(image_folder_exists(loader, dir), loader, ": no directory ", printable(dir));
  PictureList list;
  list.root = dir;
  leave_out_siblings(loader, dir, list);
  const std::string train = one_part(loader, dir, "labeled", "train");
  if (train.empty() && complete) {
    TORCH_CHECK(!is_dangling(dir / "labeled"), loader, ": ", printable(dir / "labeled"),
                " is a link to nothing");
    const auto similar = std::find_if(list.left_out.begin(), list.left_out.end(),
                                      [](const LeftOut& item) { return item.kind.starts_with("folder \""); });
    TORCH_CHECK(false, loader, ": ", printable(dir),
                " has no directory \"labeled\" or \"train\", in which each class has a folder of pictures",
                similar == list.left_out.end() ? "" : "; it has " + similar->kind);
  }
  std::vector<std::string> names;
  if (!train.empty()) {
    names = class_folders(loader, dir, train, strict, list);
  }
  TORCH_CHECK(!names.empty() || !complete, loader, ": ", printable(dir / train), " holds no class folder");
  TORCH_CHECK(names.size() > 1 || !complete, loader, ": ", printable(dir / train),
              " holds one class folder, \"", printable(names[0]), "\"; expected at least two");
  std::vector<int64_t> labels;
  for (size_t i = 0; i < names.size(); ++i) {
    const auto before = list.size();
    const auto part = train + "/" + names[i];
    const auto left_out = add_part(loader, part, static_cast<int64_t>(i), list, labels);
    TORCH_CHECK(list.size() > before, loader, ": class folder ", printable(dir / part),
                " holds no pictures (", mixmatch::detail::picture_format_names, ")",
                left_out.empty() ? std::string() : c10::str("; ", describe(left_out.front())));
  }
  const auto held_out_begin = list.size();
  if (const auto part = one_part(loader, dir, "validation", "val"); !part.empty()) {
    for (const auto& name : class_folders(loader, dir, part, strict, list)) {
      const auto label = std::find(names.begin(), names.end(), name) - names.begin();
      if (label == static_cast<std::ptrdiff_t>(names.size())) {
        TORCH_CHECK(!complete, loader, ": class folder ", printable(dir / part / name), ": there is no ",
                    printable(dir / train / name), " to train with");
        names.push_back(name);
      }
      add_part(loader, part + "/" + name, label, list, labels);
    }
  }
  list.validation = at::arange(held_out_begin, list.size(), at::kLong);
  if (image_folder_exists(loader, dir / "unlabeled")) {
    add_part(loader, "unlabeled", -1, list, labels);
  }
  check_strict(loader, list, strict);
  list.labels = at::tensor(labels, at::kLong);
  list.class_names = names;
  return list;
}

/// Takes out of `list` the pictures that cannot be read, those of `reasons` (one a picture, "" where it can),
/// and lists them in its `unreadable`; if `strict`, the first throws. Returns the rows that stay, ascending.
/// Throws where a class of `list` has none left.
inline std::vector<int64_t> leave_out_unreadable(const char* loader, PictureList& list,
                                                 const std::vector<std::string>& reasons, bool strict) {
  using mixmatch::detail::printable;
  std::vector<int64_t> kept, place(reasons.size(), -1);
  std::vector<size_t> bad(list.class_names.size(), reasons.size());  // the first of each class
  std::vector<bool> readable(list.class_names.size(), false);
  const auto* label = list.labels.data_ptr<int64_t>();
  for (size_t i = 0; i < reasons.size(); ++i) {
    const auto c = static_cast<size_t>(label[i]);  // not used where it is -1
    if (reasons[i].empty()) {
      place[i] = static_cast<int64_t>(kept.size());
      kept.push_back(static_cast<int64_t>(i));
      if (label[i] >= 0) {
        readable[c] = true;
      }
      continue;
    }
    TORCH_CHECK(!strict, loader, ": cannot read ", printable(list.root / list.files[i]), ": ", reasons[i]);
    list.unreadable.push_back({list.files[i], reasons[i]});
    if (label[i] >= 0) {
      bad[c] = std::min(bad[c], i);
    }
  }
  for (size_t c = 0; c < bad.size(); ++c) {
    TORCH_CHECK(readable[c] || bad[c] == reasons.size(), loader, ": class ", class_text(c, list.class_names),
                " has no readable picture; ", printable(list.root / list.files[bad[c]]), ": ",
                reasons[bad[c]]);
  }
  std::vector<std::string> files;
  std::vector<int64_t> held_out;
  files.reserve(kept.size());
  for (const auto row : kept) {
    files.push_back(std::move(list.files[static_cast<size_t>(row)]));
  }
  for (int64_t i = 0; i < list.validation.numel(); ++i) {
    const auto row = place[static_cast<size_t>(list.validation.data_ptr<int64_t>()[i])];
    if (row >= 0) {
      held_out.push_back(row);
    }
  }
  list.files = std::move(files);
  list.labels = list.labels.index_select(0, at::tensor(kept, at::kLong));
  list.validation = at::tensor(held_out, at::kLong);
  return kept;
}

}  // namespace detail

/// The pictures of a folder: DIR/labeled/<class>/… (at least two classes, at any depth below) and
/// DIR/unlabeled/… (at any depth; may be missing or empty), and DIR/validation/<class>/… that are held out,
/// if it is there. "train" and "val" are "labeled" and "validation" by the names that torchvision's users
/// have. None of the pictures is decoded.
///
/// Class names are the folders' names in the order of their bytes; labeled pictures come class by class, then
/// those held out, then the unlabeled ones, each in find_images' order. Nothing is left out unsaid: pictures
/// that lie beside the class folders are listed in `unreadable`, and every other entry is counted by its
/// kind in `left_out`: files of other formats, links to nothing, what lies in DIR beside those directories,
/// thumbnails and hidden files. If `strict`, the first of them throws (but for what is incidental).
///
/// Throws c10::Error with one line: DIR or DIR/labeled missing, two names for one part, a directory that
/// cannot be read, no class folder or only one, a class folder without pictures (named) or of a name that is
/// no UTF-8, a class that is held out and does not train.
inline PictureList list_pictures(const std::filesystem::path& dir, bool strict = false) {
  return detail::list_pictures("list_pictures", dir, strict);
}

}  // namespace mixmatch::data
