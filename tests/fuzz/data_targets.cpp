// The published data sets' files: CIFAR-10, CIFAR-100, STL-10, SVHN.

#include <mixmatch/data/cifar10.hpp>
#include <mixmatch/data/cifar100.hpp>
#include <mixmatch/data/stl10.hpp>
#include <mixmatch/data/svhn.hpp>

#include <array>

#include "fuzz.hpp"

namespace fuzz {

namespace {

using mixmatch::data::ImageDataset;
using mixmatch::data::Split;

/// `count` records of label bytes and then pixels.
std::string records(size_t count, const std::string& labels, size_t pixels) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    bytes += labels;
    for (size_t k = 0; k < pixels; ++k) {
      bytes += static_cast<char>(i + k * 7 % 251);
    }
  }
  return bytes;
}

/// Looks at all that was read.
void look_at(const ImageDataset& dataset) {
  const auto classes = static_cast<int64_t>(dataset.class_names.size());
  expect(dataset.images.size(0) == dataset.labels.size(0), "another number of labels than of images");
  const auto* labels = dataset.labels.data_ptr<int64_t>();
  for (int64_t i = 0; i < dataset.labels.size(0); ++i) {
    expect(labels[i] >= -1 && labels[i] < classes, "a label out of range");
    digest_value(labels[i]);
  }
  const auto images = dataset.images.contiguous();
  digest(images.data_ptr<uint8_t>(), static_cast<size_t>(images.numel()));
  for (const auto& name : dataset.class_names) {
    digest_text(name);
  }
}

std::string numbered_names(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += "n" + std::to_string(i) + "\n";
  }
  return text;
}

#ifdef MIXMATCH_HAS_MATIO

/// A number as four bytes, least first.
std::string word(size_t value) {
  std::string bytes;
  for (int shift = 0; shift < 32; shift += 8) {
    bytes += static_cast<char>(value >> shift);
  }
  return bytes;
}

/// A data element of MATLAB's level 5 format: type, length, bytes, up to the next multiple of eight.
std::string element(size_t type, const std::string& bytes) {
  return word(type) + word(bytes.size()) + bytes + std::string((8 - bytes.size() % 8) % 8, '\0');
}

std::string matrix(const std::string& name, size_t mat_class, const std::vector<size_t>& shape, size_t type,
                   const std::string& bytes) {
  std::string dimensions;
  for (const auto extent : shape) {
    dimensions += word(extent);
  }
  return element(14, element(6, word(mat_class) + word(0)) + element(5, dimensions) + element(1, name) +
                         element(type, bytes));
}

std::string mat_header() {
  std::string header = "MATLAB 5.0 MAT-file";
  header.resize(124, ' ');
  return header + std::string("\x00\x01", 2) + "IM";
}

/// The same variables as matio writes them.
std::string by_matio(matio_compression compression) {
  const auto path = scratch() / "seed.mat";
  std::string pixels(3072, '\x05');
  std::array<double, 1> label{10};
  std::array<size_t, 4> image_shape{32, 32, 3, 1};
  std::array<size_t, 2> label_shape{1, 1};
  auto* file = Mat_CreateVer(path.c_str(), nullptr, MAT_FT_MAT5);
  expect(file != nullptr, "matio writes no file");
  auto* x = Mat_VarCreate("X", MAT_C_UINT8, MAT_T_UINT8, 4, image_shape.data(), pixels.data(), 0);
  auto* y = Mat_VarCreate("y", MAT_C_DOUBLE, MAT_T_DOUBLE, 2, label_shape.data(), label.data(), 0);
  Mat_VarWrite(file, x, compression);
  Mat_VarWrite(file, y, compression);
  Mat_VarFree(x);
  Mat_VarFree(y);
  Mat_Close(file);
  std::string bytes = read(path);
  return bytes.replace(0, 116, 116, ' ');  // a text with the time
}

#endif

}  // namespace

void add_data_targets(std::vector<Target>& targets) {
  const std::vector<std::string> text{"\n", "\r\n", "\n\n", " \t", "\x1b[2J", "\xff"};
  targets.push_back({"cifar10",
                     {"test_batch.bin", "batches.meta.txt"},
                     {{records(2, "\x09", 3072), numbered_names(10)},
                      {records(1, std::string(1, '\0'), 3072), numbered_names(10) + "\r\n"}},
                     text,
                     [](const std::filesystem::path& dir, const Input&) {
                       look_at(mixmatch::data::load_cifar10(dir, Split::test));
                     }});
  targets.push_back({"cifar100",
                     {"test.bin", "fine_label_names.txt", "coarse_label_names.txt"},
                     {{records(2, "\x13\x63", 3072), numbered_names(100), numbered_names(20)}},
                     text,
                     [](const std::filesystem::path& dir, const Input&) {
                       using mixmatch::data::Cifar100Labels;
                       look_at(mixmatch::data::load_cifar100(dir, Split::test, Cifar100Labels::fine));
                       look_at(mixmatch::data::load_cifar100(dir, Split::test, Cifar100Labels::coarse));
                     }});
  targets.push_back(
      {"stl10",
       {"train_X.bin", "train_y.bin", "class_names.txt", "fold_indices.txt"},
       {{records(1, "", 3 * 96 * 96), "\x0a", numbered_names(10), "0 \n0 0\n0\n0\n0\n0\n0\n0\n0\n0 \n"}},
       text,
       [](const std::filesystem::path& dir, const Input&) {
         const auto dataset = mixmatch::data::load_stl10(dir, Split::train);
         look_at(dataset);
         const auto rows = at::arange(dataset.size());
         expect(dataset.gather(rows).equal(dataset.images), "gather gives other pixels");
         for (const auto& fold : mixmatch::data::load_stl10_folds(dir)) {
           digest(fold.data_ptr<int64_t>(), fold.nbytes());
         }
       }});
#ifdef MIXMATCH_HAS_MATIO
  const std::string pixels = records(1, "", 3072);
  Target svhn{"svhn", {"test_32x32.mat"}, {}, {}, [](const std::filesystem::path& dir, const Input&) {
                look_at(mixmatch::data::load_svhn(dir, Split::test));
              }};
  svhn.seeds = {
      {mat_header() + matrix("X", 9, {32, 32, 3, 1}, 2, pixels) + matrix("y", 9, {1, 1}, 2, "\x0a")},
      {mat_header() + matrix("y", 9, {2, 1}, 2, "\x01\x02") +
       matrix("X", 9, {32, 32, 3, 2}, 2, pixels + pixels)},
      {by_matio(MAT_COMPRESSION_NONE)},
      {by_matio(MAT_COMPRESSION_ZLIB)}};
  svhn.dictionary = {"X",
                     "y",
                     "IM",
                     "MI",
                     word(14) + word(8),
                     word(15) + word(64),
                     word(0x80000000U),
                     word(9),
                     word(6),
                     word(2),
                     word(5) + word(16),
                     word(1) + word(1)};
  svhn.reserves_memory = true;  // matio, for a compressed variable's name
  targets.push_back(std::move(svhn));
#endif
}

}  // namespace fuzz
