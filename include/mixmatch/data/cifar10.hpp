#pragma once

#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/io/cifar_records.hpp>
#include <mixmatch/detail/io/data_files.hpp>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// CIFAR-10 (Krizhevsky 2009) from its binary version: 3 x 32 x 32 images in the files' order, ten classes.
///
/// Reads data_batch_1.bin … data_batch_5.bin (Split::train) or test_batch.bin (Split::test), and no file of
/// the other split, from `dir` or `dir`/cifar-10-batches-bin; class names from batches.meta.txt beside them,
/// if it is there. A file may hold any positive number of whole records (one label byte, then 1,024 bytes
/// each of red, green and blue). Throws c10::Error with one line that names the file: nothing found, one
/// missing, not readable, empty, cut short, a label above 9.
inline ImageDataset load_cifar10(const std::filesystem::path& dir, Split split) {
  constexpr const char* loader = "load_cifar10";
  TORCH_CHECK(split == Split::train || split == Split::test, loader,
              ": split must be Split::train or Split::test");
  const auto files = split == Split::test ? std::vector<std::string>{"test_batch.bin"}
                                          : std::vector<std::string>{"data_batch_1.bin", "data_batch_2.bin",
                                                                     "data_batch_3.bin", "data_batch_4.bin",
                                                                     "data_batch_5.bin"};
  const auto place =
      mixmatch::detail::find_data_files(loader, dir, "cifar-10-batches-bin", files,
                                        "download the \"CIFAR-10 binary version\" from "
                                        "https://www.cs.toronto.edu/~kriz/cifar.html and unpack it "
                                        "there (tar xzf cifar-10-binary.tar.gz)");
  std::vector<std::filesystem::path> paths;
  for (const auto& file : files) {
    paths.push_back(place / file);
  }
  auto names = mixmatch::detail::read_class_names(
      loader, place / "batches.meta.txt",
      {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"});
  auto dataset = mixmatch::detail::read_cifar_records(loader, paths, {{"", 10}}, 0);
  dataset.class_names = std::move(names);
  return dataset;
}

}  // namespace mixmatch::data
