#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/io/data_files.hpp>
#include <mixmatch/detail/io/mapped_file.hpp>

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace mixmatch::data {

namespace detail {

inline std::filesystem::path find_stl10(const char* loader, const std::filesystem::path& dir,
                                        const std::vector<std::string>& files) {
  return mixmatch::detail::find_data_files(
      loader, dir, "stl10_binary", files,
      "download stl10_binary.tar.gz from https://cs.stanford.edu/~acoates/stl10/ and unpack it there "
      "(tar xzf stl10_binary.tar.gz)");
}

/// `count` images of the file, which lie there column by column, as an upright tensor over its mapping.
inline void map_stl10_images(const char* loader, const std::filesystem::path& path, int64_t count,
                             ImageDataset& dataset) {
  constexpr int64_t side = 96;
  constexpr int64_t plane = side * side;
  auto mapping = std::make_shared<const mixmatch::detail::MappedFile>(loader, path, count * 3 * plane);
  dataset.images = at::from_blob(
      mapping->data(), {count, 3, side, side}, {3 * plane, plane, 1, side}, [mapping](void*) {},
      at::TensorOptions().dtype(at::kByte));
  dataset.mapping = std::move(mapping);
}

/// The file's labels 1 to 10 as 0 to 9.
inline Tensor read_stl10_labels(const char* loader, const std::filesystem::path& path) {
  const int64_t count = mixmatch::detail::count_records(loader, path, 1, "of the binary version");
  const Tensor bytes = at::empty({count}, at::kByte);
  auto* label = bytes.data_ptr<uint8_t>();
  mixmatch::detail::InputFile(loader, path).read(label, count);
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(label[i] >= 1 && label[i] <= 10, loader, ": ", mixmatch::detail::printable(path), " record ",
                i, " has label ", static_cast<int>(label[i]), ", expected 1 to 10");
  }
  return bytes.to(at::kLong).sub_(1);
}

}  // namespace detail

/// STL-10 (Coates et al. 2011) from its binary version: 3 x 96 x 96 images in the file's order, ten classes.
///
/// Reads train_X.bin and train_y.bin, test_X.bin and test_y.bin, or unlabeled_X.bin (Split::unlabeled, labels
/// -1) from `dir` or `dir`/stl10_binary; class names from class_names.txt beside them, or the standard ones
/// where it is not there. Labels 1 to 10 become 0 to 9. A file may hold any positive number of whole records.
///
/// The images' file (2.7 GB of it unlabeled) is mapped, not read: draw batches with ImageDataset::gather,
/// which leaves none of it in memory. Its planes are stored column by column; `images` shows them upright
/// through its strides, and gather copies them row by row. The file must not be cut while the data set lives.
///
/// Throws c10::Error with one line that names the file: nothing found, one missing, not readable, empty, cut
/// short, a label that is not 1 to 10, another number of labels than of images.
inline ImageDataset load_stl10(const std::filesystem::path& dir, Split split) {
  constexpr const char* loader = "load_stl10";
  constexpr int64_t record_bytes = 3 * 96 * 96;
  TORCH_CHECK(split == Split::train || split == Split::test || split == Split::unlabeled, loader,
              ": split must be Split::train, Split::test or Split::unlabeled");
  const std::string name = split == Split::train ? "train" : split == Split::test ? "test" : "unlabeled";
  std::vector<std::string> files{name + "_X.bin"};
  if (split != Split::unlabeled) {
    files.push_back(name + "_y.bin");
  }
  const auto place = detail::find_stl10(loader, dir, files);
  const auto images = place / files[0];
  const int64_t count =
      mixmatch::detail::count_records(loader, images, record_bytes, "of the binary version");
  ImageDataset dataset;
  if (split == Split::unlabeled) {
    dataset.labels = at::full({count}, -1, at::kLong);
  } else {
    dataset.labels = detail::read_stl10_labels(loader, place / files[1]);
    TORCH_CHECK(dataset.labels.size(0) == count, loader, ": ", mixmatch::detail::printable(images), " has ",
                count, " images, but ", mixmatch::detail::printable(place / files[1]), " ",
                dataset.labels.size(0), " labels");
  }
  dataset.class_names = mixmatch::detail::read_class_names(
      loader, place / "class_names.txt",
      {"airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"});
  detail::map_stl10_images(loader, images, count, dataset);
  return dataset;
}

/// The ten official folds of STL-10's training images, for runs with 1,000 labels: int64 [n] indices into
/// load_stl10(dir, Split::train) each, in the file's order.
///
/// Reads fold_indices.txt from `dir` or `dir`/stl10_binary: ten lines of 0-based indices with blanks between
/// (1,000 each in the official file; any positive number is taken). Throws c10::Error with one line that
/// names the file and the line.
inline std::vector<Tensor> load_stl10_folds(const std::filesystem::path& dir) {
  constexpr const char* loader = "load_stl10_folds";
  const auto path = detail::find_stl10(loader, dir, {"fold_indices.txt"}) / "fold_indices.txt";
  const auto lines = mixmatch::detail::read_lines(loader, path);
  TORCH_CHECK(lines.size() == 10, loader, ": ", mixmatch::detail::printable(path),
              " must hold ten lines, one a fold, got ", lines.size());
  std::vector<Tensor> folds;
  for (const std::string_view line : lines) {
    std::vector<int64_t> fold;
    for (size_t begin = line.find_first_not_of(" \t"); begin < line.size();
         begin = line.find_first_not_of(" \t", begin)) {
      const auto word = line.substr(begin, line.find_first_of(" \t", begin) - begin);
      begin += word.size();
      int64_t index = -1;
      const auto* end = word.data() + word.size();
      const auto [parsed, error] = std::from_chars(word.data(), end, index);
      TORCH_CHECK(error == std::errc() && parsed == end && index >= 0, loader, ": ",
                  mixmatch::detail::printable(path), " line ", folds.size() + 1, " has \"",
                  mixmatch::detail::printable(word.substr(0, 40)), "\", expected indices >= 0");
      fold.push_back(index);
    }
    TORCH_CHECK(!fold.empty(), loader, ": ", mixmatch::detail::printable(path), " line ", folds.size() + 1,
                " is empty, expected indices");
    folds.push_back(at::tensor(fold, at::kLong));
  }
  return folds;
}

}  // namespace mixmatch::data
