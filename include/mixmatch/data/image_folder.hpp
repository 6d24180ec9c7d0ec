#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/data/decode_image.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/list_images.hpp>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::data {

struct ImageFolderOptions {
  /// Throw at whatever would be left out, but for what is incidental (see LeftOut), instead of listing it.
  TORCH_ARG(bool, strict) = false;
  /// As DecodeImageOptions'.
  TORCH_ARG(int64_t, max_pixels) = DecodeImageOptions().max_pixels();
};

struct UnreadableFile {
  std::string file;  ///< Relative to the folder that was loaded.
  std::string reason;
};

/// "left out labeled/x.png: REASON", on one line.
inline std::string describe(const UnreadableFile& file) {
  return "left out " + mixmatch::detail::printable(file.file) + ": " + file.reason;
}

/// Pictures with a label, class by class, and then those without (-1).
struct ImageFolder : ImageDataset {
  std::vector<std::string> files;          ///< One an image, relative to the folder: "labeled/cat/1.png".
  std::vector<UnreadableFile> unreadable;  ///< Pictures that were left out, and why.
  std::vector<LeftOut> left_out;           ///< Everything else that lies in the folder, by kind.
};

namespace detail {

/// The pictures `files` of `dir`, decoded on all threads; those that cannot be read are left out of `files`
/// and `labels` too and go to `unreadable`.
inline Tensor decode_pictures(const std::filesystem::path& dir, int64_t size,
                              const ImageFolderOptions& options, std::vector<std::string>& files,
                              std::vector<int64_t>& labels, std::vector<UnreadableFile>& unreadable) {
  const auto count = static_cast<int64_t>(files.size());
  const int64_t bytes = 3 * size * size;
  Tensor images = at::empty({count, 3, size, size}, at::kByte);
  auto* data = images.data_ptr<uint8_t>();
  std::vector<std::string> reasons(files.size());
  // Pictures differ in size: each thread takes the next one when it is done with its last.
  std::atomic<int64_t> next{0};
  mixmatch::detail::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) {
      auto& reason = reasons[static_cast<size_t>(i)];
      reason =
          decode_picture(dir / files[static_cast<size_t>(i)], size, options.max_pixels(), data + i * bytes);
      if (options.strict() && !reason.empty()) {
        next = count;
      }
    }
  });
  size_t kept = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!reasons[i].empty()) {
      TORCH_CHECK(!options.strict(), "load_image_folder: cannot read ",
                  mixmatch::detail::printable(dir / files[i]), ": ", reasons[i]);
      unreadable.push_back({files[i], reasons[i]});
      continue;
    }
    if (kept != i) {
      std::memcpy(data + static_cast<int64_t>(kept) * bytes, data + static_cast<int64_t>(i) * bytes,
                  static_cast<size_t>(bytes));
      files[kept] = std::move(files[i]);
      labels[kept] = labels[i];
    }
    ++kept;
  }
  files.resize(kept);
  labels.resize(kept);
  return images.narrow(0, 0, static_cast<int64_t>(kept));
}

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

/// What lies beside "labeled" and "unlabeled": nothing of it is read.
inline void leave_out_siblings(const char* loader, const std::filesystem::path& dir, ImageFolder& folder) {
  for (const auto& entry : sorted_entries(loader, dir)) {
    const std::string name = entry.filename().string();
    std::error_code error;
    if (name == "labeled" || (name == "unlabeled" && !is_dangling(entry))) {
      continue;
    }
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
      why.reason = is_run ? "no pictures of this folder" : R"(neither "labeled" nor "unlabeled")";
      why.incidental = is_run;
    } else if (kind == EntryKind::picture || !why.incidental) {
      why.kind = kind == EntryKind::picture ? "picture" : why.kind;
      why.reason = kind == EntryKind::picture ? "in neither \"labeled\" nor \"unlabeled\"" : why.reason;
      why.incidental = false;
    }
    leave_out(folder.left_out, std::move(why));
  }
}

}  // namespace detail

/// A folder of one's own pictures: DIR/labeled/<class>/… (at least two classes, at any depth below) and
/// DIR/unlabeled/… (at any depth; may be missing or empty), decoded as decode_image does, into memory.
///
/// Class names are the folders' names in the order of their bytes; labeled images come class by class, each
/// class and the unlabeled ones in find_images' order. The same result with any number of threads. Nothing
/// is left out unsaid: pictures that cannot be read, or lie in `labeled` beside the class folders, are listed
/// in `unreadable`, and every other entry is counted by its kind in `left_out`: files of other formats, links
/// to nothing, what lies in DIR beside `labeled` and `unlabeled`, thumbnails and hidden files. If
/// options.strict(), the first of them throws (but for what is incidental).
///
/// Throws c10::Error with one line: DIR or DIR/labeled missing, a directory that cannot be read, no class
/// folder or only one, a class folder without readable pictures (named) or of a name that is no UTF-8.
inline ImageFolder load_image_folder(const std::filesystem::path& dir, int64_t size,
                                     const ImageFolderOptions& options = {}) {
  using mixmatch::detail::printable;
  constexpr const char* loader = "load_image_folder";
  detail::check_decode_options(loader, size, options.max_pixels());
  TORCH_CHECK(detail::image_folder_exists(loader, dir), loader, ": no directory ", printable(dir));
  const auto labeled = dir / "labeled";
  ImageFolder folder;
  detail::leave_out_siblings(loader, dir, folder);
  if (!detail::image_folder_exists(loader, labeled)) {
    TORCH_CHECK(!detail::is_dangling(labeled), loader, ": ", printable(labeled), " is a link to nothing");
    const auto similar = std::find_if(folder.left_out.begin(), folder.left_out.end(),
                                      [](const LeftOut& item) { return item.kind.starts_with("folder \""); });
    TORCH_CHECK(false, loader, ": ", printable(dir),
                " has no directory \"labeled\", in which each class has a folder of pictures",
                similar == folder.left_out.end() ? "" : "; it has " + printable(similar->kind));
  }
  std::vector<std::string> names;
  for (const auto& entry : detail::sorted_entries(loader, labeled)) {
    const std::string name = entry.filename().string();
    LeftOut why;
    switch (detail::classify_entry(entry, why)) {
      case detail::EntryKind::folder:
        TORCH_CHECK(mixmatch::detail::is_utf8(name), loader, ": class folder ", printable(entry),
                    ": its name is not UTF-8; rename it");
        names.push_back(name);
        break;
      case detail::EntryKind::picture:
        TORCH_CHECK(!options.strict(), loader, ": ", printable(entry), " lies in no class folder");
        folder.unreadable.push_back({"labeled/" + name, "lies in no class folder"});
        break;
      case detail::EntryKind::left_out:
        why.example = "labeled/" + name;
        detail::leave_out(folder.left_out, std::move(why));
        break;
    }
  }
  TORCH_CHECK(!names.empty(), loader, ": ", printable(labeled), " holds no class folder");
  TORCH_CHECK(names.size() > 1, loader, ": ", printable(labeled), " holds one class folder, \"",
              printable(names[0]), "\"; expected at least two");
  std::vector<int64_t> labels;
  const auto add = [&](const std::string& part, int64_t label) {
    auto list = detail::list_folder(loader, dir / part, part + "/");
    if (list.files.empty() && label >= 0) {
      TORCH_CHECK(false, loader, ": class folder ", printable(dir / part), " holds no pictures (",
                  mixmatch::detail::picture_format_names, ")",
                  list.left_out.empty() ? "" : "; " + describe(list.left_out.front()));
    }
    folder.files.insert(folder.files.end(), list.files.begin(), list.files.end());
    labels.resize(folder.files.size(), label);
    for (auto& item : list.left_out) {
      detail::leave_out(folder.left_out, std::move(item));
    }
  };
  for (size_t i = 0; i < names.size(); ++i) {
    add("labeled/" + names[i], static_cast<int64_t>(i));
  }
  if (detail::image_folder_exists(loader, dir / "unlabeled")) {
    add("unlabeled", -1);
  }
  for (const auto& item : folder.left_out) {
    TORCH_CHECK(!options.strict() || item.incidental, loader, ": ", printable(dir), ": ", describe(item));
  }
  folder.images = detail::decode_pictures(dir, size, options, folder.files, labels, folder.unreadable);
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::find(labels.begin(), labels.end(), static_cast<int64_t>(i)) == labels.end()) {
      const std::string begin = "labeled/" + names[i] + "/";
      const auto bad =
          std::find_if(folder.unreadable.begin(), folder.unreadable.end(),
                       [&](const UnreadableFile& file) { return file.file.rfind(begin, 0) == 0; });
      TORCH_CHECK(false, loader, ": class folder ", printable(labeled / names[i]),
                  " holds no readable picture; ", printable(dir / bad->file), ": ", bad->reason);
    }
  }
  folder.labels = at::tensor(labels, at::kLong);
  folder.class_names = std::move(names);
  return folder;
}

}  // namespace mixmatch::data
