#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/data/decode_image.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/picture_list.hpp>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::data {

struct ImageFolderOptions {
  /// Throw at whatever would be left out, but for what is incidental (see LeftOut), instead of listing it.
  TORCH_ARG(bool, strict) = false;
  /// As DecodeImageOptions'.
  TORCH_ARG(int64_t, max_pixels) = DecodeImageOptions().max_pixels();
};

/// The pictures of a PictureList, decoded.
struct ImageFolder : ImageDataset {
  std::vector<std::string> files;          ///< One an image, relative to the folder: "labeled/cat/1.png".
  Tensor validation;                       ///< Rows that the layout holds out, as PictureList's.
  std::vector<UnreadableFile> unreadable;  ///< Pictures that were left out, and why.
  std::vector<LeftOut> left_out;           ///< Everything else that lies in the folder, by kind.
};

namespace detail {

/// The pictures of `list`, decoded; errors begin with `loader`.
inline ImageFolder load_pictures(const char* loader, PictureList list, int64_t size,
                                 const ImageFolderOptions& options) {
  using mixmatch::detail::printable;
  check_decode_options(loader, size, options.max_pixels());
  const int64_t count = list.size();
  const int64_t bytes = 3 * size * size;
  Tensor images = at::empty({count, 3, size, size}, at::kByte);
  auto* data = images.data_ptr<uint8_t>();
  std::vector<std::string> reasons(list.files.size());
  // Pictures differ in size: each thread takes the next one when it is done with its last.
  std::atomic<int64_t> next{0};
  mixmatch::detail::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) {
      auto& reason = reasons[static_cast<size_t>(i)];
      reason = decode_picture(list.root / list.files[static_cast<size_t>(i)], size, options.max_pixels(),
                              data + i * bytes);
      if (options.strict() && !reason.empty()) {
        next = count;
      }
    }
  });
  const auto kept = leave_out_unreadable(loader, list, reasons, options.strict());
  for (size_t i = 0; i < kept.size(); ++i) {
    if (kept[i] != static_cast<int64_t>(i)) {
      std::memcpy(data + static_cast<int64_t>(i) * bytes, data + kept[i] * bytes, static_cast<size_t>(bytes));
    }
  }
  ImageFolder folder;
  folder.images = images.narrow(0, 0, list.size());
  folder.labels = std::move(list.labels);
  folder.class_names = std::move(list.class_names);
  folder.files = std::move(list.files);
  folder.validation = std::move(list.validation);
  folder.unreadable = std::move(list.unreadable);
  folder.left_out = std::move(list.left_out);
  return folder;
}

}  // namespace detail

/// The pictures of `list` in its order, decoded as decode_image does, into memory. The same result with any
/// number of threads. Those that cannot be read are left out and join `unreadable`; if options.strict(), the
/// first of them throws. Throws c10::Error with one line also where a class has no readable picture.
inline ImageFolder load_pictures(PictureList list, int64_t size, const ImageFolderOptions& options = {}) {
  return detail::load_pictures("load_pictures", std::move(list), size, options);
}

/// list_pictures() and load_pictures(): a folder of one's own pictures, decoded into memory.
inline ImageFolder load_image_folder(const std::filesystem::path& dir, int64_t size,
                                     const ImageFolderOptions& options = {}) {
  constexpr const char* loader = "load_image_folder";
  detail::check_decode_options(loader, size, options.max_pixels());
  return detail::load_pictures(loader, detail::list_pictures(loader, dir, options.strict()), size, options);
}

}  // namespace mixmatch::data
