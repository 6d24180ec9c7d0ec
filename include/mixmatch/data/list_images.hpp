#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <torch/types.h>
#include <unistd.h>
#include <mixmatch/detail/io/picture_format.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// What lies among pictures and is not read, of one kind.
struct LeftOut {
  std::string kind;     ///< Of one: "WebP file", "link to nothing", "\"@eaDir\" folder".
  std::string reason;   ///< "not a format that is read"
  int64_t count;        ///< How many there are.
  std::string example;  ///< The first of them, relative to the folder that was searched.
  /// Hidden, or made by a system beside a user's files: to be expected, and nothing that a user misses.
  bool incidental;
};

/// "left out: 3 WebP files (not a format that is read), e.g. unlabeled/x.webp", on one line.
inline std::string describe(const LeftOut& left_out) {
  std::string kind = left_out.kind;
  if (left_out.count != 1) {  // the noun is the last word, or the first of several
    const bool last = kind.ends_with("file") || kind.ends_with("folder") || kind.ends_with("picture");
    kind.insert(last ? kind.size() : std::min(kind.find(' '), kind.size()), "s");
  }
  return c10::str("left out: ", left_out.count, " ", kind, " (", left_out.reason, ")",
                  left_out.count == 1 ? ": " : ", e.g. ", mixmatch::detail::printable(left_out.example));
}

/// The pictures of a folder, and everything else in it.
struct ImageList {
  std::vector<std::string> files;
  std::vector<LeftOut> left_out;
};

namespace detail {

inline void leave_out(std::vector<LeftOut>& all, LeftOut one) {
  const auto known = std::find_if(all.begin(), all.end(), [&](const LeftOut& item) {
    return item.kind == one.kind && item.reason == one.reason;
  });
  if (known == all.end()) {
    all.push_back(std::move(one));
  } else {
    known->count += one.count;
  }
}

/// What lies in the directory, by name; throws if it cannot be read.
inline std::vector<std::filesystem::path> sorted_entries(const char* caller,
                                                         const std::filesystem::path& dir) {
  std::error_code error;
  std::vector<std::filesystem::path> entries;
  for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    entries.push_back(it->path());
  }
  TORCH_CHECK(!error, caller, ": cannot read directory ", mixmatch::detail::printable(dir), ": ",
              error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

/// The first bytes of a regular file, "" if it has none; `error` is why they cannot be read.
inline std::string read_magic(const std::filesystem::path& path, std::string& error) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    error = std::strerror(errno);
    return "";
  }
  std::array<char, mixmatch::detail::picture_magic_size> bytes{};
  const auto got = ::read(file, bytes.data(), bytes.size());
  if (got < 0) {
    error = std::strerror(errno);
  }
  ::close(file);
  return {bytes.data(), static_cast<size_t>(std::max<ssize_t>(got, 0))};
}

enum class EntryKind { folder, picture, left_out };

/// What an entry of a folder is. If it is left out, `reason` has all but its count and name.
inline EntryKind classify_entry(const std::filesystem::path& path, LeftOut& why) {
  const std::string name = path.filename().string();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  const bool is_folder = std::filesystem::is_directory(status);
  why = {"", "", 1, "", true};
  const auto left_out = [&why](std::string kind, std::string reason) {
    why.kind = std::move(kind);
    why.reason = std::move(reason);
    return EntryKind::left_out;
  };
  constexpr std::array<std::string_view, 7> systems{"@eaDir",      "#recycle",   "__MACOSX",    "Thumbs.db",
                                                    "desktop.ini", "lost+found", "$RECYCLE.BIN"};
  if (std::find(systems.begin(), systems.end(), name) != systems.end()) {
    return left_out("\"" + name + (is_folder ? "\" folder" : "\" file"), "made by a system, not by you");
  }
  if (name.front() == '.') {
    return left_out(is_folder ? "\"" + mixmatch::detail::printable(name) + "\" folder" : "hidden file",
                    "its name begins with a dot");
  }
  if (is_folder) {
    return EntryKind::folder;
  }
  why.incidental = false;
  const auto extension = mixmatch::detail::small_extension(name);
  const bool named_picture = mixmatch::detail::is_picture_extension(extension);
  if (!std::filesystem::exists(status)) {
    const auto kind = left_out("link to nothing", error && error != std::errc::no_such_file_or_directory
                                                      ? error.message()
                                                      : "the file or folder is gone");
    return named_picture ? EntryKind::picture : kind;  // a picture that is missed
  }
  if (!std::filesystem::is_regular_file(status)) {
    return left_out("special file", "a pipe, socket or device");
  }
  if (named_picture) {
    return EntryKind::picture;
  }
  std::string problem;
  const std::string begin = read_magic(path, problem);
  if (!problem.empty()) {
    return left_out("file", "cannot be read: " + problem);
  }
  if (mixmatch::detail::picture_format(begin).has_value()) {
    return EntryKind::picture;
  }
  if (const auto format = mixmatch::detail::foreign_format(begin, extension); !format.empty()) {
    return left_out(std::string(format) + " file", "not a format that is read");
  }
  return left_out(extension.empty()        ? "file without extension"
                  : extension.size() <= 16 ? "\"" + mixmatch::detail::printable(extension) + "\" file"
                                           : "other file",
                  "not a picture");
}

/// Adds the pictures under `dir` to `list`, as `prefix` and their path in `dir`. A directory that was `seen`
/// is not entered again: links may lead round in circles.
inline void add_images(const char* caller, const std::filesystem::path& dir, const std::string& prefix,
                       std::set<std::pair<dev_t, ino_t>>& seen, ImageList& list) {
  struct stat info {};
  TORCH_CHECK(::stat(dir.c_str(), &info) == 0, caller, ": cannot read directory ",
              mixmatch::detail::printable(dir), ": ", std::strerror(errno));
  if (!seen.emplace(info.st_dev, info.st_ino).second) {
    return;
  }
  for (const auto& entry : sorted_entries(caller, dir)) {
    LeftOut why;
    const std::string name = prefix + entry.filename().string();
    switch (classify_entry(entry, why)) {
      case EntryKind::folder:
        add_images(caller, entry, name + "/", seen, list);
        break;
      case EntryKind::picture:
        list.files.push_back(name);
        break;
      case EntryKind::left_out:
        why.example = name;
        leave_out(list.left_out, std::move(why));
        break;
    }
  }
}

inline ImageList list_folder(const char* caller, const std::filesystem::path& dir,
                             const std::string& prefix = "") {
  std::set<std::pair<dev_t, ino_t>> seen;
  ImageList list;
  add_images(caller, dir, prefix, seen, list);
  std::sort(list.files.begin(), list.files.end());
  return list;
}

}  // namespace detail

/// The pictures under `dir`, at any depth, as paths relative to `dir` with '/' between, in the order of their
/// bytes; and what else lies there, by kind.
///
/// A picture is a file whose name ends in png, jpg, jpeg, jpe, jfif, webp, tif, tiff, bmp, dib, ppm, pgm or
/// pnm (in upper or lower case), whatever it holds, and a file of another name that begins as one of these
/// formats. Links are followed, but no directory is entered twice. What is hidden or made by a system (".x",
/// "@eaDir", "__MACOSX", "Thumbs.db") is left out with all that lies in it. Throws c10::Error if `dir` or a
/// directory in it cannot be read.
inline ImageList find_images(const std::filesystem::path& dir) {
  return detail::list_folder("find_images", dir);
}

/// The files of find_images(), without the rest.
inline std::vector<std::string> list_images(const std::filesystem::path& dir) {
  return detail::list_folder("list_images", dir).files;
}

}  // namespace mixmatch::data
