#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/io/mapped_file.hpp>
#include <mixmatch/detail/pixel_types.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mixmatch::data {

using torch::Tensor;

/// The part of a data set that a loader reads.
enum class Split { train, test, unlabeled, extra };

/// Rows of `images` by their int64 [B] indices, on the device of `images`; any dtype, kept, and a
/// channels-last layout too, any other becomes contiguous. Any number of dimensions >= 1. Throws on indices
/// of another dtype or shape, and, on the CPU, out of range.
inline Tensor gather_images(const Tensor& images, const Tensor& indices) {
  TORCH_CHECK(images.defined() && images.dim() >= 1, "gather_images: images must be [N, ...], got ",
              mixmatch::detail::sizes_text(images));
  TORCH_CHECK(indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
              "gather_images: indices must be int64 [B], got ", mixmatch::detail::type_and_sizes(indices));
  const Tensor rows = indices.to(images.device());
  if (mixmatch::detail::is_uint16(images.scalar_type())) {
    return gather_images(mixmatch::detail::movable(images), rows).view(images.scalar_type());
  }
  if (images.dim() == 4 && !images.is_contiguous() && images.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return images.permute({0, 2, 3, 1}).index_select(0, rows).permute({0, 3, 1, 2});
  }
  if (images.dim() == 4 && !images.is_contiguous() && images.transpose(2, 3).is_contiguous()) {
    // Planes stored column by column: whole images are copied as they lie, then turned.
    return images.transpose(2, 3).index_select(0, rows).transpose(2, 3).contiguous();
  }
  return images.index_select(0, rows);
}

namespace detail {

/// Rows `indices` of uint8 [N, C, H, W] images that lie in the mapped file, `offset` bytes from its start,
/// with planes row by row or column by column: read from the file past the mapping, so that nothing of it
/// stays in the process's memory. Row i goes to row places[i] of contiguous `out`, or without places to its
/// row i.
inline void read_mapped_images(Tensor& out, const mixmatch::detail::MappedFile& file, int64_t offset,
                               const Tensor& images, const Tensor& indices, const int64_t* places) {
  const Tensor on_cpu = indices.cpu().contiguous();
  const auto* index = on_cpu.data_ptr<int64_t>();
  const int64_t count = on_cpu.numel();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(index[i] >= 0 && index[i] < images.size(0), "gather: index ", index[i],
                " is out of range for ", images.size(0), " images");
  }
  const int64_t height = images.size(2);
  const int64_t width = images.size(3);
  const int64_t plane = height * width;
  const int64_t bytes = images.size(1) * plane;
  for (int64_t i = 0; i < count; ++i) {
    file.will_read(offset + index[i] * bytes, bytes);
  }
  const bool by_columns = !images.is_contiguous();
  auto* first = out.data_ptr<uint8_t>();
  std::atomic<int> error{0};
  mixmatch::detail::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> stored(by_columns ? static_cast<size_t>(bytes) : 0);
    for (int64_t i = begin; i < end; ++i) {
      auto* row = first + (places != nullptr ? places[i] : i) * bytes;
      if (const int failed =
              file.read_at(offset + index[i] * bytes, bytes, by_columns ? stored.data() : row)) {
        error = failed;
        return;
      }
      for (int64_t start = 0; by_columns && start < bytes; start += plane) {
        const auto* from = stored.data() + start;
        for (int64_t y = 0; y < height; ++y) {
          for (int64_t x = 0; x < width; ++x) {
            row[start + y * width + x] = from[x * height + y];
          }
        }
      }
    }
  });
  if (error != 0) {
    file.fail(std::strerror(error));
  }
}

}  // namespace detail

/// Images that are made when they are asked for (PictureCache decodes them). Any number of threads may ask at
/// a time.
class ImageSource {
 public:
  ImageSource() = default;
  ImageSource(const ImageSource&) = delete;
  ImageSource& operator=(const ImageSource&) = delete;
  virtual ~ImageSource() = default;

  virtual int64_t size() const = 0;
  /// C, H and W of every image.
  virtual std::vector<int64_t> image_sizes() const = 0;
  /// The images at `rows`, int64 [B] on the CPU: uint8 [B, C, H, W] there, contiguous. The same for the same
  /// rows whenever it is asked. Throws on rows out of range.
  virtual Tensor gather(const Tensor& rows) const = 0;
  /// CRC-32C of what the images at `rows` are, without making them all.
  virtual uint32_t checksum(const Tensor& rows) const = 0;
  /// Rows, ascending, in whose place gather() gave others, as they cannot be made.
  virtual std::vector<int64_t> replaced() const { return {}; }
};

/// Images with their labels. `images` is [N, C, H, W], uint8 as the loaders give it, or of one's own also
/// uint16, int16, int32 or floating-point (see augment::normalize()); `labels` int64 [N] with -1 where an
/// image has none.
///
/// A loader of a set that is larger than memory (load_stl10) maps the file instead of reading it: `images`
/// then looks like any other tensor, but is read-only (writing into it ends the program), and what is read of
/// it directly stays in memory; gather leaves nothing there.
///
/// Images that are made on demand have no tensor: `images` is undefined, and gather asks `source`. Such a set
/// is on the CPU.
struct ImageDataset {
  Tensor images;
  Tensor labels;
  std::vector<std::string> class_names;
  std::shared_ptr<const mixmatch::detail::MappedFile> mapping =
      nullptr;  ///< The file under `images`, if any.
  /// What makes the images on demand; beside `images`, what they were made by, to know them again
  /// (data_checksum).
  std::shared_ptr<const ImageSource> source = nullptr;
  Tensor source_rows = {};  ///< Which of the source's, int64 [N] on the CPU; undefined: all.

  bool on_demand() const { return !images.defined() && source != nullptr; }
  int64_t size() const {
    return images.defined()        ? images.size(0)
           : source_rows.defined() ? source_rows.size(0)
           : source != nullptr     ? source->size()
                                   : 0;
  }
  int64_t num_classes() const { return static_cast<int64_t>(class_names.size()); }
  /// C, H and W.
  std::vector<int64_t> image_sizes() const {
    return on_demand() ? source->image_sizes() : images.sizes().slice(1).vec();
  }
  at::ScalarType dtype() const { return images.defined() ? images.scalar_type() : at::kByte; }
  /// Where gather gives the images.
  torch::Device device() const { return images.defined() ? images.device() : torch::Device(torch::kCPU); }

  /// gather_images(images, indices), the way to draw batches: of a mapped file too, in any order,
  /// without its pages becoming part of the process's memory; and of images that are made on demand.
  Tensor gather(const Tensor& indices) const {
    if (on_demand()) {
      return source->gather(rows_of_source(indices));
    }
    const auto offset = offset_in_file(indices);
    if (!offset.has_value()) {
      return gather_images(images, indices);
    }
    auto sizes = images.sizes().vec();
    sizes[0] = indices.numel();
    Tensor out = at::empty(sizes, at::kByte);
    detail::read_mapped_images(out, *mapping, *offset, images, indices, nullptr);
    return out;
  }

 private:
  friend class ImagePool;
  friend ImageDataset take(const ImageDataset& dataset, const Tensor& indices);

  /// Rows `indices` into rows `places` of `out`, whose images are of the same sizes and device; both int64
  /// [B] on the CPU, contiguous and in range.
  void gather_into(Tensor& out, const Tensor& indices, const Tensor& places) const {
    const auto offset = offset_in_file(indices);
    const auto* place = places.data_ptr<int64_t>();
    if (offset.has_value() && out.is_contiguous()) {
      detail::read_mapped_images(out, *mapping, *offset, images, indices, place);
    } else if (images.defined() && images.is_cpu() && images.is_contiguous() && out.is_contiguous()) {
      const auto* index = indices.data_ptr<int64_t>();
      const auto* from = static_cast<const uint8_t*>(images.data_ptr());
      auto* to = static_cast<uint8_t*>(out.data_ptr());
      const int64_t bytes = images[0].numel() * static_cast<int64_t>(images.element_size());
      mixmatch::detail::parallel_for(0, indices.numel(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          std::copy_n(from + index[i] * bytes, bytes, to + place[i] * bytes);
        }
      });
    } else {
      mixmatch::detail::movable(out).index_copy_(0, places.to(out.device()),
                                                 mixmatch::detail::movable(gather(indices)));
    }
  }

  /// The source's rows of these, int64 [B].
  Tensor rows_of_source(const Tensor& indices) const {
    TORCH_CHECK(indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
                "gather: indices must be int64 [B], got ", mixmatch::detail::type_and_sizes(indices));
    const Tensor on_cpu = indices.cpu();
    return source_rows.defined() ? gather_images(source_rows, on_cpu) : on_cpu.contiguous();
  }

  /// Where in the mapped file the images begin, if rows of that file can be read in their place.
  std::optional<int64_t> offset_in_file(const Tensor& indices) const {
    if (mapping == nullptr || !images.defined() || !images.is_cpu() || images.dim() != 4 ||
        images.scalar_type() != at::kByte || !indices.defined() || indices.dim() != 1 ||
        indices.scalar_type() != at::kLong ||
        (!images.is_contiguous() && !images.transpose(2, 3).is_contiguous())) {
      return std::nullopt;
    }
    // They may be some of the file's, or have moved to other memory since.
    const auto begin = reinterpret_cast<uintptr_t>(mapping->data());
    const auto first = reinterpret_cast<uintptr_t>(images.data_ptr<uint8_t>());
    if (first < begin ||
        first - begin + static_cast<uintptr_t>(images.numel()) > static_cast<uintptr_t>(mapping->size())) {
      return std::nullopt;
    }
    return static_cast<int64_t>(first - begin);
  }
};

/// The data set on `device`; where it is there already it is shared, and else read into that device's memory.
/// One whose images are made on demand stays on the CPU.
inline ImageDataset to_device(const ImageDataset& dataset, torch::Device device) {
  if (dataset.on_demand()) {
    return dataset;
  }
  ImageDataset moved{dataset.images.to(device), dataset.labels.to(device), dataset.class_names};
  moved.source = dataset.source;
  moved.source_rows = dataset.source_rows;
  if (moved.images.is_same(dataset.images)) {
    moved.mapping = dataset.mapping;
  }
  return moved;
}

/// The images at `indices` (int64 [B]) with their labels, in that order, copied; those that are made on
/// demand still are.
inline ImageDataset take(const ImageDataset& dataset, const Tensor& indices) {
  ImageDataset taken{{}, gather_images(dataset.labels, indices), dataset.class_names};
  if (dataset.source != nullptr) {
    taken.source = dataset.source;
    taken.source_rows = dataset.rows_of_source(indices);
  }
  if (!dataset.on_demand()) {
    taken.images = dataset.gather(indices);
  }
  return taken;
}

}  // namespace mixmatch::data
