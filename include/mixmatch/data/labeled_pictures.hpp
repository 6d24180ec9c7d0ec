#pragma once

#include <c10/util/Exception.h>
#include <torch/types.h>
#include <mixmatch/data/label_file.hpp>
#include <mixmatch/data/list_images.hpp>
#include <mixmatch/data/picture_list.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// Pictures with the labels of label files.
struct LabeledPictures {
  PictureList list;
  std::vector<std::string> changes;  ///< what each file changed, a line for each kind, for people
};

namespace detail {

/// Puts label files on the pictures of a folder, one after the other.
class LabelPictures {
 public:
  LabelPictures(const char* loader, const std::filesystem::path& root, bool strict)
      : loader_(loader), root_(root), strict_(strict) {
    using mixmatch::detail::printable;
    TORCH_CHECK(image_folder_exists(loader, root), loader, ": no directory ", printable(root));
    std::error_code error;
    real_root_ = std::filesystem::canonical(root, error);
    TORCH_CHECK(!error, loader, ": cannot read ", printable(root), ": ", error.message());
    named_root_ = (std::filesystem::absolute(root) / "").lexically_normal().parent_path();
    list_.root = root;
    const auto has = [&](const char* part) { return std::filesystem::is_directory(root / part, error); };
    if (has("labeled") || has("train") || has("unlabeled")) {
      list_ = list_pictures(loader, root, strict, /*complete=*/false);
      const auto* label = list_.labels.data_ptr<int64_t>();
      for (size_t i = 0; i < list_.files.size(); ++i) {
        const auto name = label[i] < 0 ? "" : list_.class_names[static_cast<size_t>(label[i])];
        pictures_[add(list_.files[i])].label = name;
      }
      for (int64_t i = 0; i < list_.validation.numel(); ++i) {
        pictures_[static_cast<size_t>(list_.validation.data_ptr<int64_t>()[i])].held_out = true;
      }
    }
  }

  void apply(const LabelFile& file) {
    const bool said = !pictures_.empty();
    const auto before = count_classes();
    for (auto& picture : pictures_) {
      picture.row = nullptr;
      picture.before = picture.label;
      picture.was_held_out = picture.held_out;
    }
    for (const auto& row : file.rows) {
      if (row.label.has_value() || row.held_out.has_value()) {
        ++rows_;
        if (const auto found = find(row); found.has_value()) {
          put(row, pictures_[*found], before);
        }
      }
    }
    if (said) {
      describe_changes(file.name, before);
    }
  }

  LabeledPictures result() && {
    using mixmatch::detail::quote_for_message;
    check_strict(loader_, list_, strict_);
    const auto hint = [this] {
      return list_.left_out.empty() ? std::string() : c10::str("; ", describe(list_.left_out.front()));
    };
    const std::string root = mixmatch::detail::printable(root_);
    TORCH_CHECK(!pictures_.empty(), loader_, ": none of ", rows_, " rows names a picture in ", root, hint());
    const auto classes = count_classes();
    TORCH_CHECK(classes.size() > 1, loader_, ": the pictures in ", root, " have ",
                classes.empty() ? std::string("no label")
                                : c10::str("one label, ", quote_for_message(classes.begin()->first)),
                "; expected at least two", hint());
    std::map<std::string, int64_t> number;
    list_.class_names.clear();
    for (const auto& [name, count] : classes) {
      TORCH_CHECK(count.train > 0, loader_, ": all pictures of class ", quote_for_message(name),
                  " are held out: none is left to train with");
      number.emplace(name, list_.num_classes());
      list_.class_names.push_back(name);
    }
    // In an order that is not the rows'.
    const auto rank = [](const Picture& p) { return p.label.empty() ? 2 : p.held_out ? 1 : 0; };
    std::sort(pictures_.begin(), pictures_.end(), [&](const Picture& a, const Picture& b) {
      const int first = rank(a), second = rank(b);
      return first != second ? first < second : std::tie(a.label, a.file) < std::tie(b.label, b.file);
    });
    std::vector<int64_t> labels, held_out;
    list_.files.clear();
    for (auto& picture : pictures_) {
      if (picture.held_out) {
        held_out.push_back(list_.size());
      }
      labels.push_back(picture.label.empty() ? -1 : number.at(picture.label));
      list_.files.push_back(std::move(picture.file));
    }
    list_.labels = at::tensor(labels, at::kLong);
    list_.validation = at::tensor(held_out, at::kLong);
    return {std::move(list_), std::move(changes_)};
  }

 private:
  struct Picture {
    std::string file, label;  // "" = none
    bool held_out = false;
    // While a file is put on: what there was before, and its row that spoke of the picture.
    std::string before;
    bool was_held_out = false;
    const PictureLabel* row = nullptr;
  };
  struct ClassCount {
    int64_t train = 0, held_out = 0;
  };
  using ClassCounts = std::map<std::string, ClassCount>;

  ClassCounts count_classes() const {
    ClassCounts counts;
    for (const auto& picture : pictures_) {
      if (!picture.label.empty()) {
        auto& count = counts[picture.label];
        ++(picture.held_out ? count.held_out : count.train);
      }
    }
    return counts;
  }

  /// The place of the picture of that name, which joins the others where it is not among them.
  size_t add(const std::string& file) {
    const auto [place, fresh] = index_.emplace(file, pictures_.size());
    if (fresh) {
      pictures_.push_back({});
      pictures_.back().file = file;
    }
    return place->second;
  }

  std::optional<size_t> known(const std::filesystem::path& name) const {
    const auto found = index_.find(name.lexically_normal().generic_string());
    return found == index_.end() ? std::nullopt : std::optional(found->second);
  }

  std::optional<size_t> find(const PictureLabel& row) {
    namespace fs = std::filesystem;
    const fs::path name = row.file, in_unlabeled = fs::path("unlabeled") / name;
    const bool predicted = row.predicted.has_value();
    const auto first = known(predicted ? in_unlabeled : name);
    const auto found = first.has_value() ? first : known(predicted ? name : in_unlabeled);
    if (found.has_value()) {
      return found;
    }
    std::string reason, ignored;
    auto joined = join(root_ / name, reason);
    if (!joined.has_value() && !row.path.empty()) {
      joined = join(row.path, ignored);
    }
    if (!joined.has_value()) {
      leave_out(list_.left_out, {"row of a CSV", reason, 1, row.where + ": " + row.file, false});
    }
    return joined;
  }

  /// The picture at `path`, if it lies below the root.
  std::optional<size_t> join(const std::filesystem::path& path, std::string& reason) {
    namespace fs = std::filesystem;
    const auto below = [](const fs::path& inner, const fs::path& outer) {
      const auto [end, rest] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
      return end == outer.end() && rest != inner.end();
    };
    std::error_code error;
    const fs::path named = fs::absolute(path).lexically_normal();
    const bool named_below = below(named, named_root_);
    if (named_below) {
      if (const auto found = known(named.lexically_relative(named_root_)); found.has_value()) {
        return found;
      }
    }
    const fs::path real =
        fs::weakly_canonical(named_below ? root_ / named.lexically_relative(named_root_) : path, error);
    if (error || !below(real, real_root_)) {
      reason = error ? error.message() : c10::str("not in ", mixmatch::detail::printable(root_));
    } else if (!fs::is_regular_file(real, error)) {
      reason = fs::exists(real, error) ? "not a file" : "there is no such file";
    } else {
      // A link is called as it was called.
      const auto file =
          named_below ? named.lexically_relative(named_root_) : real.lexically_relative(real_root_);
      return add(file.generic_string());
    }
    return std::nullopt;
  }

  void put(const PictureLabel& row, Picture& picture, const ClassCounts& classes) {
    using mixmatch::detail::printable;
    std::optional<std::string> label = row.label;
    if (label.has_value() && classes.find(*label) == classes.end()) {
      label = std::string(trimmed(*label));
    }
    if (picture.row != nullptr) {
      const auto text = [](const std::string& name) {
        return name.empty() ? std::string("no label") : mixmatch::detail::quote_for_message(name);
      };
      TORCH_CHECK(!label.has_value() || *label == picture.label, row.where, ": ", printable(picture.file),
                  " has ", text(label.value_or("")), ", and ", text(picture.label), " in ",
                  picture.row->where);
      TORCH_CHECK(row.held_out.value_or(picture.held_out) == picture.held_out, row.where, ": ",
                  printable(picture.file), " is in another split in ", picture.row->where);
    }
    picture.row = &row;
    picture.label = label.value_or(picture.label);
    picture.held_out = row.held_out.value_or(picture.held_out && !picture.label.empty());
    TORCH_CHECK(!picture.held_out || !picture.label.empty(), row.where,
                ": a picture that is held out needs a label");
  }

  void describe_changes(const std::string& name, const ClassCounts& before) {
    using mixmatch::detail::printable;
    using mixmatch::detail::quote_for_message;
    constexpr std::array<const char*, 5> what{"a label for ", "another label for ", "no label any more for ",
                                              "held out from training: ", "not held out any more: "};
    std::array<int64_t, what.size()> count{};
    std::array<std::string, what.size()> example;
    for (const auto& p : pictures_) {
      const auto note = [&](size_t kind, const std::string& text) {
        example[kind] = count[kind]++ == 0 ? text : example[kind];
      };
      if (p.label != p.before) {
        const std::string now =
            printable(p.file) + ": " + (p.label.empty() ? std::string("none") : quote_for_message(p.label));
        p.before.empty() ? note(0, now)
                         : note(p.label.empty() ? 2 : 1, now + ", was " + quote_for_message(p.before));
      }
      if (p.held_out != p.was_held_out) {
        note(p.held_out ? 3 : 4, printable(p.file));
      }
    }
    for (size_t i = 0; i < what.size(); ++i) {
      if (count[i] > 0) {
        changes_.push_back(c10::str(name, ": ", what[i], count[i],
                                    count[i] == 1 ? " picture, " : " pictures, e.g. ", example[i]));
      }
    }
    const auto after = count_classes();
    const auto list_missing = [](const ClassCounts& from, const ClassCounts& in) {
      std::string names;
      size_t more = 0;
      for (const auto& [label, pictures] : from) {
        if (in.find(label) != in.end()) {
          continue;
        }
        if (names.size() > 500) {
          ++more;
          continue;
        }
        const auto total = pictures.train + pictures.held_out;
        names += c10::str(names.empty() ? "" : ", ", quote_for_message(label), " (", total,
                          total == 1 ? " picture)" : " pictures)");
      }
      return more > 0 ? c10::str(names, " and ", more, " more") : names;
    };
    if (const auto fresh = list_missing(after, before); !fresh.empty()) {
      changes_.push_back(name + ": new classes: " + fresh);
    }
    if (const auto gone = list_missing(before, after); !gone.empty()) {
      changes_.push_back(name + ": classes that no picture has any more: " + gone);
    }
  }

  const char* loader_;
  std::filesystem::path root_, named_root_, real_root_;
  bool strict_;
  PictureList list_;
  std::vector<Picture> pictures_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<std::string> changes_;
  int64_t rows_ = 0;  // that say something
};

}  // namespace detail

/// The pictures of a folder with the labels of `files` (read_label_file), each of which counts above those
/// before it.
///
/// Where DIR has "labeled", "train" or "unlabeled", its pictures are those of list_pictures(), and what a row
/// says counts above that; elsewhere the rows are all pictures that there are. A row names a file relative to
/// DIR or to DIR/unlabeled, wherever below DIR that is, or by an absolute path; one that is not found so, by
/// the row's `path`. Rows that name a file outside DIR (links are what they lead to, but for those of the
/// layout itself) or none are left out, counted in `left_out`; if `strict`, the first of them throws.
///
/// Classes are those that a picture has, in the order of their bytes; pictures come class by class, then
/// those held out, then the unlabeled ones, in the order of their names. Throws c10::Error with one line as
/// list_pictures(), but that the folders need not give all classes, and where two rows of a file disagree
/// about a picture, a held-out one has no label, fewer than two classes have a picture, or all of a class are
/// held out.
inline LabeledPictures label_pictures(const std::filesystem::path& dir, const std::vector<LabelFile>& files,
                                      bool strict = false) {
  detail::LabelPictures pictures("label_pictures", dir, strict);
  for (const auto& file : files) {
    pictures.apply(file);
  }
  return std::move(pictures).result();
}

}  // namespace mixmatch::data
