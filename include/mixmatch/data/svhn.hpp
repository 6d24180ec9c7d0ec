#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/io/data_files.hpp>

#include <filesystem>
#include <string>

#ifdef MIXMATCH_HAS_MATIO
#include <matio.h>
#include <mixmatch/detail/cpu/parallel.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#endif

namespace mixmatch::data {

#ifdef MIXMATCH_HAS_MATIO
namespace detail {

using SvhnFile = std::unique_ptr<mat_t, int (*)(mat_t*)>;
using SvhnVariable = std::unique_ptr<matvar_t, void (*)(matvar_t*)>;

/// The named variable's type and shape, without its data.
inline SvhnVariable find_svhn_variable(mat_t* file, const std::filesystem::path& path, const char* name) {
  SvhnVariable variable(Mat_VarReadInfo(file, name), Mat_VarFree);
  TORCH_CHECK(variable != nullptr, "load_svhn: ", mixmatch::detail::printable(path), " has no variable ",
              name, ": it is cut short, or not of SVHN's format 2 (cropped digits)");
  return variable;
}

/// What is wrong with a file that should be of MATLAB's level 5, else "": matio takes what is missing for
/// zeros, and memory for what a file claims. Such a file is a header of 128 bytes and then elements: type,
/// length, content. Other levels are not read: level 4 has no mark of its own, and 7.3 is HDF5.
inline std::string svhn_file_problem(const std::filesystem::path& path, uint64_t size) {
  mixmatch::detail::InputFile file("load_svhn", path);
  std::array<uint8_t, 128> header{};
  if (size <= header.size()) {
    return "is cut short, or no MATLAB file";
  }
  file.read(header.data(), static_cast<int64_t>(header.size()));
  const bool little_endian = header[126] == 'I' && header[127] == 'M';
  const uint8_t version = header[little_endian ? 125 : 124];
  if (!little_endian && (header[126] != 'M' || header[127] != 'I')) {
    return "is no MATLAB file of version 5 to 7";
  }
  if (version != 1) {
    return version == 2 ? "is a MATLAB 7.3 (HDF5) file; save it again in MATLAB with save(…, '-v7')"
                        : "is no MATLAB file of version 5 to 7";
  }
  uint64_t position = header.size();
  std::array<uint8_t, 8> tag{};
  const auto number = [&](size_t begin) {
    uint64_t value = 0;
    for (size_t i = 0; i < 4; ++i) {
      value |= static_cast<uint64_t>(tag[begin + i]) << (8 * (little_endian ? i : 3 - i));
    }
    return value;
  };
  while (position + tag.size() <= size) {
    file.skip_to(static_cast<int64_t>(position));
    file.read(tag.data(), static_cast<int64_t>(tag.size()));
    constexpr uint64_t matrix = 14, compressed = 15;
    if (number(0) != matrix && number(0) != compressed) {
      return "is damaged: an element of it is no variable";
    }
    position += tag.size() + number(4);
  }
  return position <= size ? "" : "is cut short, or no MATLAB file";
}

inline std::string svhn_shape(const matvar_t& variable) {
  std::string text;
  for (int i = 0; i < variable.rank; ++i) {
    text += (i == 0 ? "" : " x ") + std::to_string(variable.dims[i]);
  }
  return text;
}

/// Throws if the variable claims more than a file of that size can hold: deflate makes at most 1,032 bytes of
/// one.
inline void check_svhn_size(const matvar_t& variable, const std::filesystem::path& path, uint64_t file_size) {
  const uint64_t element = std::max<size_t>(Mat_SizeOfClass(variable.class_type), 1);
  uint64_t left = file_size * 1032 / element;
  for (int i = 0; i < variable.rank; ++i) {
    TORCH_CHECK(variable.dims[i] <= left, "load_svhn: ", variable.name, " of ",
                mixmatch::detail::printable(path), " claims ", svhn_shape(variable),
                " numbers, which the file's ", file_size, " bytes cannot hold");
    left /= std::max<size_t>(variable.dims[i], 1);
  }
}

/// All `count` numbers of the variable, of its class_type, into `out`. matio says nothing of data that end
/// early or are of an unknown kind, and leaves the rest as it was: the last bytes are marked before, and must
/// change.
inline void read_svhn_data(mat_t* file, const std::filesystem::path& path, matvar_t& variable, int64_t count,
                           void* out) {
  // Neither a label nor, all together, the end of a picture.
  constexpr std::array<uint8_t, 16> mark{0xD7, 0x91, 0xC3, 0xEE, 0xA5, 0xB9, 0xF2, 0x8D,
                                         0xDA, 0x97, 0xC6, 0xE1, 0xAB, 0xBC, 0xF8, 0x83};
  const auto bytes = static_cast<size_t>(count) * Mat_SizeOfClass(variable.class_type);
  const size_t marked = std::min(bytes, mark.size());
  auto* end = static_cast<uint8_t*>(out) + bytes;
  std::copy_n(mark.begin(), marked, end - marked);
  const bool fits = count <= std::numeric_limits<int>::max();
  TORCH_CHECK(fits && Mat_VarReadDataLinear(file, &variable, out, 0, 1, static_cast<int>(count)) == 0 &&
                  !std::equal(mark.begin(), mark.begin() + marked, end - marked),
              "load_svhn: cannot read ", variable.name, " of ", mixmatch::detail::printable(path),
              ": it is cut short or damaged");
}

/// X, uint8 32 x 32 x 3 x N in MATLAB's order (y fastest).
inline Tensor read_svhn_images(mat_t* file, const std::filesystem::path& path, uint64_t file_size) {
  constexpr int64_t side = 32;
  constexpr int64_t plane = side * side;
  auto variable = find_svhn_variable(file, path, "X");
  // MATLAB leaves a last extent of 1 out.
  const bool fits = variable->class_type == MAT_C_UINT8 && variable->isComplex == 0 &&
                    (variable->rank == 3 || variable->rank == 4) && variable->dims[0] == side &&
                    variable->dims[1] == side && variable->dims[2] == 3;
  const auto count = fits && variable->rank == 4 ? static_cast<int64_t>(variable->dims[3]) : 1;
  TORCH_CHECK(fits, "load_svhn: X of ", mixmatch::detail::printable(path),
              " must be uint8 32 x 32 x 3 x N, got ",
              variable->class_type == MAT_C_UINT8 ? "uint8 " : "another type, ", svhn_shape(*variable));
  TORCH_CHECK(count > 0, "load_svhn: ", mixmatch::detail::printable(path), " holds no images");
  check_svhn_size(*variable, path, file_size);
  Tensor images = at::empty({count, 3, side, side}, at::kByte);
  auto* bytes = images.data_ptr<uint8_t>();
  read_svhn_data(file, path, *variable, images.numel(), bytes);
  // Square planes turn in place: the extra images alone are 1.6 GB.
  mixmatch::detail::parallel_for(0, count * 3, 256, [&](int64_t begin, int64_t end) {
    for (auto* at = bytes + begin * plane; at != bytes + end * plane; at += plane) {
      for (int64_t y = 0; y < side; ++y) {
        for (int64_t x = 0; x < y; ++x) {
          std::swap(at[y * side + x], at[x * side + y]);
        }
      }
    }
  });
  return images;
}

/// y, N numbers 1 to 10 of any type, as labels: 10 stands for the digit 0.
inline Tensor read_svhn_labels(mat_t* file, const std::filesystem::path& path, uint64_t file_size) {
  auto variable = find_svhn_variable(file, path, "y");
  TORCH_CHECK(variable->rank == 2 && (variable->dims[0] == 1 || variable->dims[1] == 1) &&
                  variable->isComplex == 0 && variable->class_type >= MAT_C_DOUBLE &&
                  variable->class_type <= MAT_C_UINT64,
              "load_svhn: y of ", mixmatch::detail::printable(path), " must be N x 1 numbers, got ",
              svhn_shape(*variable));
  check_svhn_size(*variable, path, file_size);
  const auto count = static_cast<int64_t>(variable->dims[0] * variable->dims[1]);
  variable->class_type = MAT_C_DOUBLE;  // what matio converts to
  const Tensor stored = at::empty({count}, at::kDouble);
  read_svhn_data(file, path, *variable, count, stored.data_ptr());
  const auto* values = stored.data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(values[i] >= 1 && values[i] <= 10 && std::floor(values[i]) == values[i], "load_svhn: y of ",
                mixmatch::detail::printable(path), " has label ", values[i], " in row ", i,
                ", expected 1 to 10");
  }
  return stored.to(at::kLong).remainder_(10);
}

}  // namespace detail
#endif

/// SVHN (Netzer et al. 2011), format 2: 3 x 32 x 32 images of cropped digits in the file's order, classes "0"
/// to "9".
///
/// Reads train_32x32.mat, test_32x32.mat or extra_32x32.mat (Split::extra, 531,131 images in 1.6 GB of
/// memory) from `dir` or `dir`/svhn: MATLAB files with X, uint8 32 x 32 x 3 x N, and y, N labels 1 to 10 of
/// which 10 stands for the digit 0. Any positive N. Of versions 5 to 7, compressed or not.
///
/// Needs the matio library (Debian: libmatio-dev): mixmatch's CMake package uses it where it finds it;
/// without CMake define MIXMATCH_HAS_MATIO and link with -lmatio. Without it this function throws and says
/// so. Throws c10::Error with one line that names the file: not found, not readable, no MATLAB file, cut
/// short, X or y of another type or shape, a label that is not 1 to 10, another number of labels than of
/// images.
inline ImageDataset load_svhn(const std::filesystem::path& dir, Split split) {
  constexpr const char* loader = "load_svhn";
  TORCH_CHECK(split == Split::train || split == Split::test || split == Split::extra, loader,
              ": split must be Split::train, Split::test or Split::extra");
#ifdef MIXMATCH_HAS_MATIO
  const std::string name = split == Split::train  ? "train_32x32.mat"
                           : split == Split::test ? "test_32x32.mat"
                                                  : "extra_32x32.mat";
  const auto path =
      mixmatch::detail::find_data_files(
          loader, dir, "svhn", {name},
          "download it from http://ufldl.stanford.edu/housenumbers/ (format 2, cropped digits)") /
      name;
  const auto size = static_cast<uint64_t>(mixmatch::detail::count_records(loader, path, 1, ""));
  const std::string problem = detail::svhn_file_problem(path, size);
  TORCH_CHECK(problem.empty(), loader, ": ", mixmatch::detail::printable(path), " ", problem);
  const detail::SvhnFile file(Mat_Open(path.c_str(), MAT_ACC_RDONLY), Mat_Close);
  TORCH_CHECK(file != nullptr, loader, ": ", mixmatch::detail::printable(path), " is no MATLAB file");
  ImageDataset dataset;
  dataset.labels = detail::read_svhn_labels(file.get(), path, size);
  dataset.images = detail::read_svhn_images(file.get(), path, size);
  TORCH_CHECK(dataset.labels.size(0) == dataset.size(), loader, ": ", mixmatch::detail::printable(path),
              " has ", dataset.size(), " images in X, but ", dataset.labels.size(0), " labels in y");
  dataset.class_names = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
  return dataset;
#else
  TORCH_CHECK(
      false, loader, ": cannot read ", mixmatch::detail::printable(dir),
      ": this program was built without the matio library; install Debian's libmatio-dev and configure "
      "again");
#endif
}

}  // namespace mixmatch::data
