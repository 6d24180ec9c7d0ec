#pragma once

#include <sys/stat.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/parallel.hpp>
#include <mixmatch/detail/resize_image.hpp>
#include <mixmatch/detail/stb_image.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::data {

namespace detail {

inline constexpr const char* no_stb_image =
    "this program was built without the stb_image library; install Debian's libstb-dev and build it again";

#ifdef MIXMATCH_HAS_STB_IMAGE

/// What stb_image reads a file through. It fills up a picture that is cut short by itself; `past_end` tells.
struct PictureFile {
  explicit PictureFile(const std::filesystem::path& path)
      : file(std::fopen(path.c_str(), "rb")), error(file == nullptr ? errno : 0) {}
  PictureFile(const PictureFile&) = delete;
  PictureFile& operator=(const PictureFile&) = delete;
  ~PictureFile() {
    if (file != nullptr) {
      std::fclose(file);
    }
  }

  std::FILE* file;
  int error;
  bool past_end = false;
};

inline constexpr mixmatch::detail::stb::stbi_io_callbacks picture_callbacks{
    [](void* user, char* out, int size) {
      auto& self = *static_cast<PictureFile*>(user);
      const auto got = static_cast<int>(std::fread(out, 1, static_cast<size_t>(size), self.file));
      if (got < size && std::ferror(self.file) != 0) {
        self.error = errno;
      }
      // It reads 128 bytes ahead, and more only where the picture has them.
      self.past_end = self.past_end || got == 0 || (got < size && size > 128);
      return got;
    },
    [](void* user, int count) { std::fseek(static_cast<PictureFile*>(user)->file, count, SEEK_CUR); },
    [](void* user) { return std::feof(static_cast<PictureFile*>(user)->file); }};

/// The picture as decode_image gives it, into 3 * size * size bytes; what is wrong with the file, else "".
inline std::string decode_picture(const std::filesystem::path& path, int64_t size, uint8_t* out) try {
  namespace stb = mixmatch::detail::stb;
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return error ? error.message() : std::strerror(ENOENT);
  }
  if (!std::filesystem::is_regular_file(status)) {  // a pipe would wait for ever
    return "not a regular file";
  }
  PictureFile file(path);
  if (file.error != 0) {
    return std::strerror(file.error);
  }
  int width = 0;
  int height = 0;
  int channels = 0;
  const std::unique_ptr<stb::stbi_uc, void (*)(void*)> pixels(
      stb::mixmatch_stbi_load_from_callbacks(&picture_callbacks, &file, &width, &height, &channels, 3),
      [](void* memory) { stb::mixmatch_stbi_image_free(memory); });
  if (file.error != 0) {
    return std::strerror(file.error);
  }
  if (std::filesystem::file_size(path, error) == 0) {
    return "the file is empty";
  }
  if (pixels == nullptr) {
    return c10::str("not a picture of a known format, or damaged (", stb::mixmatch_stbi_failure_reason(),
                    ")");
  }
  if (file.past_end) {
    return "the picture is cut short";
  }
  mixmatch::detail::resize_and_crop(pixels.get(), width, height, size, out);
  return "";
} catch (const std::bad_alloc&) {
  return "not enough memory for the picture";
}

#else

inline std::string decode_picture(const std::filesystem::path&, int64_t, uint8_t*) { return no_stb_image; }

#endif

inline bool is_hidden(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  return !name.empty() && name.front() == '.';
}

inline bool has_image_extension(const std::filesystem::path& path) {
  constexpr std::array<std::string_view, 8> extensions{".png", ".jpg", ".jpeg", ".bmp",
                                                       ".gif", ".tga", ".ppm",  ".pgm"};
  std::string extension = path.extension().string();
  for (char& c : extension) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return std::find(extensions.begin(), extensions.end(), extension) != extensions.end();
}

/// What lies in the directory, by name, without hidden things; throws if it cannot be read.
inline std::vector<std::filesystem::path> sorted_entries(const char* caller,
                                                         const std::filesystem::path& dir) {
  std::error_code error;
  std::vector<std::filesystem::path> entries;
  for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    if (!is_hidden(it->path())) {
      entries.push_back(it->path());
    }
  }
  TORCH_CHECK(!error, caller, ": cannot read directory ", dir.string(), ": ", error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

/// Adds the images under `dir` to `files`, as `prefix` and their path in `dir`. A directory that was `seen`
/// is not entered again: links may lead round in circles.
inline void add_images(const char* caller, const std::filesystem::path& dir, const std::string& prefix,
                       std::set<std::pair<dev_t, ino_t>>& seen, std::vector<std::string>& files) {
  struct stat info {};
  TORCH_CHECK(::stat(dir.c_str(), &info) == 0, caller, ": cannot read directory ", dir.string(), ": ",
              std::strerror(errno));
  if (!seen.emplace(info.st_dev, info.st_ino).second) {
    return;
  }
  for (const auto& entry : sorted_entries(caller, dir)) {
    std::error_code error;
    const auto status = std::filesystem::status(entry, error);
    const std::string name = prefix + entry.filename().string();
    if (std::filesystem::is_directory(status)) {
      add_images(caller, entry, name + "/", seen, files);
    } else if (has_image_extension(entry) && !std::filesystem::is_other(status)) {
      files.push_back(name);  // a link to nothing too, so that it is missed
    }
  }
}

inline void check_image_size(const char* caller, int64_t size) {
  TORCH_CHECK(size >= 1 && size <= 16384, caller, ": size must be in [1, 16384], got ", size);
}

}  // namespace detail

/// The picture in a file as uint8 [3, size, size], RGB, on the CPU: resized so that its shorter side is
/// `size` (bilinear, antialiased where it shrinks), and the middle of its longer side cut out.
///
/// JPEG, PNG, BMP, GIF (first picture), TGA, PPM and PGM, and what else stb_image reads, by content and not
/// by name. Grey becomes RGB, transparency is dropped, 16 bits a channel become 8; an EXIF orientation is not
/// looked at. Needs the stb_image library (Debian: libstb-dev, headers alone) when the program is built, and
/// throws without it. Throws c10::Error "decode_image: cannot read PATH: REASON": no such file, no
/// permission, not a picture, cut short.
inline Tensor decode_image(const std::filesystem::path& path, int64_t size) {
  detail::check_image_size("decode_image", size);
  Tensor image = at::empty({3, size, size}, at::kByte);
  const std::string reason = detail::decode_picture(path, size, image.data_ptr<uint8_t>());
  TORCH_CHECK(reason.empty(), "decode_image: cannot read ", path.string(), ": ", reason);
  return image;
}

/// The files under `dir`, at any depth, whose names end in png, jpg, jpeg, bmp, gif, tga, ppm or pgm (in
/// upper or lower case): paths relative to `dir` with '/' between, in the order of their bytes.
///
/// Links are followed, but no directory is entered twice. Names that begin with a dot are left out. Throws
/// c10::Error if `dir` or a directory in it cannot be read.
inline std::vector<std::string> list_images(const std::filesystem::path& dir) {
  std::set<std::pair<dev_t, ino_t>> seen;
  std::vector<std::string> files;
  detail::add_images("list_images", dir, "", seen, files);
  std::sort(files.begin(), files.end());
  return files;
}

struct ImageFolderOptions {
  /// Throw at the first file that is not a readable picture, instead of leaving it out.
  TORCH_ARG(bool, strict) = false;
};

struct UnreadableFile {
  std::string file;  ///< Relative to the folder that was loaded.
  std::string reason;
};

/// Pictures with a label, class by class, and then those without (-1).
struct ImageFolder : ImageDataset {
  std::vector<std::string> files;          ///< One an image, relative to the folder: "labeled/cat/1.png".
  std::vector<UnreadableFile> unreadable;  ///< What was left out, and why.
};

namespace detail {

/// The pictures `files` of `dir`, decoded on all threads; those that cannot be read are left out of `files`
/// and `labels` too and go to `unreadable`.
inline Tensor decode_pictures(const std::filesystem::path& dir, int64_t size, bool strict,
                              std::vector<std::string>& files, std::vector<int64_t>& labels,
                              std::vector<UnreadableFile>& unreadable) {
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
      reason = decode_picture(dir / files[static_cast<size_t>(i)], size, data + i * bytes);
      if (strict && !reason.empty()) {
        next = count;
      }
    }
  });
  size_t kept = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!reasons[i].empty()) {
      TORCH_CHECK(!strict, "load_image_folder: cannot read ", (dir / files[i]).string(), ": ", reasons[i]);
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

}  // namespace detail

/// A folder of one's own pictures: DIR/labeled/<class>/… (at least two classes, at any depth below) and
/// DIR/unlabeled/… (at any depth; may be missing or empty), decoded as decode_image does, into memory.
///
/// Class names are the folders' names in the order of their bytes; labeled images come class by class, each
/// class and the unlabeled ones in list_images' order. The same result with any number of threads. A file
/// that is no readable picture, or lies in `labeled` beside the class folders, is left out and listed in
/// `unreadable`, or throws if options.strict().
///
/// Throws c10::Error with one line: DIR or DIR/labeled missing, a directory that cannot be read, no class
/// folder or only one, a class folder without readable pictures (named), no stb_image (see decode_image).
inline ImageFolder load_image_folder(const std::filesystem::path& dir, int64_t size,
                                     const ImageFolderOptions& options = {}) {
  constexpr const char* loader = "load_image_folder";
#ifndef MIXMATCH_HAS_STB_IMAGE
  TORCH_CHECK(false, loader, ": cannot read ", dir.string(), ": ", detail::no_stb_image);
#endif
  detail::check_image_size(loader, size);
  std::error_code error;
  const auto is_directory = [&](const std::filesystem::path& path) {
    const auto status = std::filesystem::status(path, error);
    TORCH_CHECK(error != std::errc::permission_denied, loader, ": cannot read ", path.string(), ": ",
                error.message());
    TORCH_CHECK(!std::filesystem::exists(status) || std::filesystem::is_directory(status), loader, ": ",
                path.string(), " is not a directory");
    return std::filesystem::exists(status);
  };
  TORCH_CHECK(is_directory(dir), loader, ": no directory ", dir.string());
  const auto labeled = dir / "labeled";
  const auto unlabeled = dir / "unlabeled";
  TORCH_CHECK(is_directory(labeled), loader, ": ", dir.string(),
              " has no directory \"labeled\", in which each class has a folder of pictures");

  ImageFolder folder;
  std::vector<std::string> names;
  for (const auto& entry : detail::sorted_entries(loader, labeled)) {
    if (std::filesystem::is_directory(entry, error)) {
      names.push_back(entry.filename().string());
    } else if (detail::has_image_extension(entry)) {
      TORCH_CHECK(!options.strict(), loader, ": ", entry.string(), " lies in no class folder");
      folder.unreadable.push_back({"labeled/" + entry.filename().string(), "lies in no class folder"});
    }
  }
  TORCH_CHECK(!names.empty(), loader, ": ", labeled.string(), " holds no class folder");
  TORCH_CHECK(names.size() > 1, loader, ": ", labeled.string(), " holds one class folder, \"", names[0],
              "\"; expected at least two");
  std::vector<int64_t> labels;
  const auto add = [&](const std::string& part, int64_t label) {
    std::set<std::pair<dev_t, ino_t>> seen;
    const size_t before = folder.files.size();
    detail::add_images(loader, dir / part, part + "/", seen, folder.files);
    std::sort(folder.files.begin() + static_cast<std::ptrdiff_t>(before), folder.files.end());
    labels.resize(folder.files.size(), label);
    return folder.files.size() > before;
  };
  for (size_t i = 0; i < names.size(); ++i) {
    TORCH_CHECK(add("labeled/" + names[i], static_cast<int64_t>(i)), loader, ": class folder ",
                (labeled / names[i]).string(),
                " holds no pictures (png, jpg, jpeg, bmp, gif, tga, ppm, pgm)");
  }
  if (is_directory(unlabeled)) {
    add("unlabeled", -1);
  }
  folder.images =
      detail::decode_pictures(dir, size, options.strict(), folder.files, labels, folder.unreadable);
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::find(labels.begin(), labels.end(), static_cast<int64_t>(i)) == labels.end()) {
      const std::string begin = "labeled/" + names[i] + "/";
      const auto bad =
          std::find_if(folder.unreadable.begin(), folder.unreadable.end(),
                       [&](const UnreadableFile& file) { return file.file.rfind(begin, 0) == 0; });
      TORCH_CHECK(false, loader, ": class folder ", (labeled / names[i]).string(),
                  " holds no readable picture; ", (dir / bad->file).string(), ": ", bad->reason);
    }
  }
  folder.labels = at::tensor(labels, at::kLong);
  folder.class_names = std::move(names);
  return folder;
}

}  // namespace mixmatch::data
