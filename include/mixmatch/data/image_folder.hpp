#pragma once

#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/data/decode_image.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/picture_cache.hpp>
#include <mixmatch/data/picture_list.hpp>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::data {

struct ImageFolderOptions {
  /// Throw at whatever would be left out, but for what is incidental (see LeftOut), instead of listing it.
  TORCH_ARG(bool, strict) = false;
  /// As DecodeImageOptions'.
  TORCH_ARG(int64_t, max_pixels) = DecodeImageOptions().max_pixels();
  TORCH_ARG(PictureFit, fit) = DecodeImageOptions().fit();
  /// Bytes of decoded pictures that memory holds. Where all of them take more, they are decoded on demand,
  /// and so many of them kept (PictureCache).
  TORCH_ARG(int64_t, cache_memory) = std::numeric_limits<int64_t>::max();
  /// As PictureCacheOptions': called for each picture that is replaced, while loading or after it.
  TORCH_ARG(std::function<void(const ReplacedPicture&)>, on_replaced);
  /// Called while pictures are loaded, by one thread at a time, with how many of all have been looked at.
  TORCH_ARG(std::function<void(int64_t done)>, on_loaded);
};

/// The pictures of a PictureList, decoded or to be decoded on demand.
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
  check_decode_options(loader, size, options.max_pixels());
  const auto decode = DecodeImageOptions().max_pixels(options.max_pixels()).fit(options.fit());
  const int64_t count = list.size();
  const int64_t bytes = 3 * size * size;
  const bool on_demand = count > options.cache_memory() / bytes;
  Tensor images = on_demand ? Tensor() : at::empty({count, 3, size, size}, at::kByte);
  const auto source = std::make_shared<PictureCache>(list.root, list.files, list.labels, size,
                                                     PictureCacheOptions()
                                                         .cache_memory(on_demand ? options.cache_memory() : 0)
                                                         .strict(options.strict())
                                                         .decode(decode)
                                                         .on_replaced(options.on_replaced())
                                                         .on_looked_at(options.on_loaded()));
  const auto reasons = on_demand ? source->check_all() : source->decode_all(images);
  const auto kept = leave_out_unreadable(loader, list, reasons, options.strict());
  ImageFolder folder;
  if (!on_demand) {
    auto* data = images.data_ptr<uint8_t>();
    for (size_t i = 0; i < kept.size(); ++i) {
      if (kept[i] != static_cast<int64_t>(i)) {
        std::memcpy(data + static_cast<int64_t>(i) * bytes, data + kept[i] * bytes,
                    static_cast<size_t>(bytes));
      }
    }
    folder.images = images.narrow(0, 0, list.size());
  }
  folder.source = source;
  folder.source_rows = at::tensor(kept, at::kLong);
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
/// number of threads. Those that cannot be read are left out and join `unreadable`, but for pictures without
/// a label that are damaged behind a file's beginning (which tells of no such file, no permission, empty, not
/// a picture): these are replaced by others without a label, if there are any, and options.on_replaced()
/// told. If options.strict(), the first of them throws. Throws c10::Error with one line also where a class
/// has no readable picture.
///
/// Where all pictures decoded take more than options.cache_memory(), `images` is undefined, and gather()
/// decodes the same (ImageDataset, PictureCache). Those with a label are decoded here all the same, and are
/// the first to be kept; of the others a file's beginning is looked at here, and damage is found, replaced
/// and told when they are asked for; if options.strict(), gather() then throws.
inline ImageFolder load_pictures(PictureList list, int64_t size, const ImageFolderOptions& options = {}) {
  return detail::load_pictures("load_pictures", std::move(list), size, options);
}

/// list_pictures() and load_pictures(): a folder of one's own pictures.
inline ImageFolder load_image_folder(const std::filesystem::path& dir, int64_t size,
                                     const ImageFolderOptions& options = {}) {
  constexpr const char* loader = "load_image_folder";
  detail::check_decode_options(loader, size, options.max_pixels());
  return detail::load_pictures(loader, detail::list_pictures(loader, dir, options.strict()), size, options);
}

}  // namespace mixmatch::data
