#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/io/mapped_file.hpp>

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

/// Rows of `images` by their int64 [B] indices, on the device of `images`; dtype kept, and a channels-last
/// layout too, any other becomes contiguous. Any number of dimensions >= 1. Throws on indices of another
/// dtype or shape, and, on the CPU, out of range.
inline Tensor gather_images(const Tensor& images, const Tensor& indices) {
  TORCH_CHECK(images.defined() && images.dim() >= 1, "gather_images: images must be [N, ...], got ",
              mixmatch::detail::sizes_text(images));
  TORCH_CHECK(indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
              "gather_images: indices must be int64 [B], got ", mixmatch::detail::type_and_sizes(indices));
  const Tensor rows = indices.to(images.device());
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

/// Images with their labels. `images` is uint8 [N, C, H, W], `labels` int64 [N] with -1 where an image has
/// none.
///
/// A loader of a set that is larger than memory (load_stl10) maps the file instead of reading it: `images`
/// then looks like any other tensor, but is read-only (writing into it ends the program), and what is read of
/// it directly stays in memory; gather leaves nothing there.
struct ImageDataset {
  Tensor images;
  Tensor labels;
  std::vector<std::string> class_names;
  std::shared_ptr<const mixmatch::detail::MappedFile> mapping =
      nullptr;  ///< The file under `images`, if any.

  int64_t size() const { return images.defined() ? images.size(0) : 0; }
  int64_t num_classes() const { return static_cast<int64_t>(class_names.size()); }

  /// gather_images(images, indices), the way to draw batches: of a mapped file too, in any order,
  /// without its pages becoming part of the process's memory.
  Tensor gather(const Tensor& indices) const {
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

  /// Rows `indices` into rows `places` of `out`, whose images are of the same sizes and device; both int64
  /// [B] on the CPU, contiguous and in range.
  void gather_into(Tensor& out, const Tensor& indices, const Tensor& places) const {
    const auto offset = offset_in_file(indices);
    const auto* place = places.data_ptr<int64_t>();
    if (offset.has_value() && out.is_contiguous()) {
      detail::read_mapped_images(out, *mapping, *offset, images, indices, place);
    } else if (images.is_cpu() && images.is_contiguous() && out.is_contiguous()) {
      const auto* index = indices.data_ptr<int64_t>();
      const auto* from = images.data_ptr<uint8_t>();
      auto* to = out.data_ptr<uint8_t>();
      const int64_t bytes = images[0].numel();
      mixmatch::detail::parallel_for(0, indices.numel(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          std::copy_n(from + index[i] * bytes, bytes, to + place[i] * bytes);
        }
      });
    } else {
      out.index_copy_(0, places.to(out.device()), gather_images(images, indices));
    }
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
inline ImageDataset to_device(const ImageDataset& dataset, torch::Device device) {
  ImageDataset moved{dataset.images.to(device), dataset.labels.to(device), dataset.class_names};
  if (moved.images.is_same(dataset.images)) {
    moved.mapping = dataset.mapping;
  }
  return moved;
}

/// The images at `indices` (int64 [B]) with their labels, in that order, copied.
inline ImageDataset take(const ImageDataset& dataset, const Tensor& indices) {
  return {dataset.gather(indices), gather_images(dataset.labels, indices), dataset.class_names};
}

}  // namespace mixmatch::data
