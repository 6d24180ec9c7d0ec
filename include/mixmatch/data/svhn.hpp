#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/data_files.hpp>

#include <filesystem>
#include <string>

#ifdef MIXMATCH_HAS_MATIO
#include <matio.h>
#include <mixmatch/detail/parallel.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>
#endif

namespace mixmatch::data {

#ifdef MIXMATCH_HAS_MATIO
namespace detail {

using SvhnFile = std::unique_ptr<mat_t, int (*)(mat_t*)>;
using SvhnVariable = std::unique_ptr<matvar_t, void (*)(matvar_t*)>;

/// The named variable's type and shape, without its data.
inline SvhnVariable find_svhn_variable(mat_t* file, const std::filesystem::path& path, const char* name) {
  SvhnVariable variable(Mat_VarReadInfo(file, name), Mat_VarFree);
  TORCH_CHECK(variable != nullptr, "load_svhn: ", path.string(), " has no variable ", name,
              ": it is cut short, or not of SVHN's format 2 (cropped digits)");
  return variable;
}

/// Whether the file is as long as its parts claim: matio takes what is missing for zeros. A MATLAB 5 file is
/// a header of 128 bytes and then elements: type, length, content. Others (HDF5) are left to matio.
inline bool svhn_file_is_whole(const std::filesystem::path& path) {
  mixmatch::detail::InputFile file("load_svhn", path);
  std::error_code ignored;
  const auto size = static_cast<uint64_t>(std::filesystem::file_size(path, ignored));
  std::array<uint8_t, 128> header{};
  if (size <= header.size()) {
    return false;
  }
  file.read(header.data(), static_cast<int64_t>(header.size()));
  const bool little_endian = header[126] == 'I';
  if (header[little_endian ? 125 : 124] != 1) {
    return true;
  }
  uint64_t position = header.size();
  std::array<uint8_t, 8> tag{};
  while (position + tag.size() <= size) {
    file.skip_to(static_cast<int64_t>(position));
    file.read(tag.data(), static_cast<int64_t>(tag.size()));
    uint64_t length = 0;
    for (size_t i = 0; i < 4; ++i) {
      length |= static_cast<uint64_t>(tag[4 + i]) << (8 * (little_endian ? i : 3 - i));
    }
    position += tag.size() + length;
  }
  return position <= size;
}

inline std::string svhn_shape(const matvar_t& variable) {
  std::string text;
  for (int i = 0; i < variable.rank; ++i) {
    text += (i == 0 ? "" : " x ") + std::to_string(variable.dims[i]);
  }
  return text;
}

inline void read_svhn_data(mat_t* file, const std::filesystem::path& path, matvar_t& variable) {
  TORCH_CHECK(Mat_VarReadDataAll(file, &variable) == 0 && variable.data != nullptr, "load_svhn: cannot read ",
              variable.name, " of ", path.string(), ": it is cut short or damaged");
}

/// X, uint8 32 x 32 x 3 x N in MATLAB's order (y fastest), as a tensor over the library's own memory.
inline Tensor read_svhn_images(mat_t* file, const std::filesystem::path& path) {
  constexpr int64_t side = 32;
  constexpr int64_t plane = side * side;
  auto variable = find_svhn_variable(file, path, "X");
  // MATLAB leaves a last extent of 1 out.
  const bool fits = variable->class_type == MAT_C_UINT8 && variable->isComplex == 0 &&
                    (variable->rank == 3 || variable->rank == 4) && variable->dims[0] == side &&
                    variable->dims[1] == side && variable->dims[2] == 3;
  const auto count = fits && variable->rank == 4 ? static_cast<int64_t>(variable->dims[3]) : 1;
  TORCH_CHECK(fits, "load_svhn: X of ", path.string(), " must be uint8 32 x 32 x 3 x N, got ",
              variable->class_type == MAT_C_UINT8 ? "uint8 " : "another type, ", svhn_shape(*variable));
  TORCH_CHECK(count > 0, "load_svhn: ", path.string(), " holds no images");
  read_svhn_data(file, path, *variable);
  auto* bytes = static_cast<uint8_t*>(variable->data);
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
  const std::shared_ptr<matvar_t> owner(std::move(variable));
  return at::from_blob(
      bytes, {count, 3, side, side}, [owner](void*) {}, at::TensorOptions().dtype(at::kByte));
}

/// y, N numbers 1 to 10 of any type, as labels: 10 stands for the digit 0.
inline Tensor read_svhn_labels(mat_t* file, const std::filesystem::path& path) {
  auto variable = find_svhn_variable(file, path, "y");
  TORCH_CHECK(variable->rank == 2 && (variable->dims[0] == 1 || variable->dims[1] == 1) &&
                  variable->isComplex == 0 && variable->class_type >= MAT_C_DOUBLE &&
                  variable->class_type <= MAT_C_UINT64,
              "load_svhn: y of ", path.string(), " must be N x 1 numbers, got ", svhn_shape(*variable));
  read_svhn_data(file, path, *variable);
  const auto count = static_cast<int64_t>(variable->dims[0] * variable->dims[1]);
  Tensor labels = at::empty({count}, at::kLong);
  auto* label = labels.data_ptr<int64_t>();
  const auto take = [&](const auto* values) {
    for (int64_t i = 0; i < count; ++i) {
      const auto value = static_cast<double>(values[i]);
      TORCH_CHECK(value >= 1 && value <= 10 && std::floor(value) == value, "load_svhn: y of ", path.string(),
                  " has label ", value, " in row ", i, ", expected 1 to 10");
      label[i] = static_cast<int64_t>(value) % 10;
    }
  };
  const void* data = variable->data;
  switch (variable->class_type) {
    case MAT_C_DOUBLE:
      take(static_cast<const double*>(data));
      break;
    case MAT_C_SINGLE:
      take(static_cast<const float*>(data));
      break;
    case MAT_C_INT8:
      take(static_cast<const int8_t*>(data));
      break;
    case MAT_C_UINT8:
      take(static_cast<const uint8_t*>(data));
      break;
    case MAT_C_INT16:
      take(static_cast<const int16_t*>(data));
      break;
    case MAT_C_UINT16:
      take(static_cast<const uint16_t*>(data));
      break;
    case MAT_C_INT32:
      take(static_cast<const int32_t*>(data));
      break;
    case MAT_C_UINT32:
      take(static_cast<const uint32_t*>(data));
      break;
    case MAT_C_INT64:
      take(static_cast<const int64_t*>(data));
      break;
    default:
      take(static_cast<const uint64_t*>(data));
  }
  return labels;
}

}  // namespace detail
#endif

/// SVHN (Netzer et al. 2011), format 2: 3 x 32 x 32 images of cropped digits in the file's order, classes "0"
/// to "9".
///
/// Reads train_32x32.mat, test_32x32.mat or extra_32x32.mat (Split::extra, 531,131 images in 1.6 GB of
/// memory) from `dir` or `dir`/svhn: MATLAB files with X, uint8 32 x 32 x 3 x N, and y, N labels 1 to 10 of
/// which 10 stands for the digit 0. Any positive N.
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
  mixmatch::detail::count_records(loader, path, 1, "");
  TORCH_CHECK(detail::svhn_file_is_whole(path), loader, ": ", path.string(),
              " is cut short, or no MATLAB file");
  const detail::SvhnFile file(Mat_Open(path.c_str(), MAT_ACC_RDONLY), Mat_Close);
  TORCH_CHECK(file != nullptr, loader, ": ", path.string(), " is no MATLAB file");
  ImageDataset dataset;
  dataset.labels = detail::read_svhn_labels(file.get(), path);
  dataset.images = detail::read_svhn_images(file.get(), path);
  TORCH_CHECK(dataset.labels.size(0) == dataset.size(), loader, ": ", path.string(), " has ", dataset.size(),
              " images in X, but ", dataset.labels.size(0), " labels in y");
  dataset.class_names = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
  return dataset;
#else
  TORCH_CHECK(
      false, loader, ": cannot read ", dir.string(),
      ": this program was built without the matio library; install Debian's libmatio-dev and configure "
      "again");
#endif
}

}  // namespace mixmatch::data
