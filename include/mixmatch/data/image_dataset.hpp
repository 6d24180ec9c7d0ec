#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace mixmatch::data {

using torch::Tensor;

/// The part of a data set that a loader reads.
enum class Split { train, test, unlabeled, extra };

/// Rows of `images` by their int64 [B] indices, on the device of `images`; dtype kept, and a channels-last
/// layout too. Any number of dimensions >= 1. Throws on indices of another dtype or shape, and, on the CPU,
/// out of range.
inline Tensor gather_images(const Tensor& images, const Tensor& indices) {
  TORCH_CHECK(images.defined() && images.dim() >= 1, "gather_images: images must be [N, ...], got ",
              images.defined() ? c10::str(images.sizes()) : std::string("undefined"));
  TORCH_CHECK(
      indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
      "gather_images: indices must be int64 [B], got ",
      indices.defined() ? c10::str(indices.scalar_type(), " ", indices.sizes()) : std::string("undefined"));
  const Tensor rows = indices.to(images.device());
  if (images.dim() == 4 && !images.is_contiguous() && images.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return images.permute({0, 2, 3, 1}).index_select(0, rows).permute({0, 3, 1, 2});
  }
  return images.index_select(0, rows);
}

/// Images in memory. `images` is uint8 [N, C, H, W], `labels` int64 [N] with -1 where an image has none.
struct ImageDataset {
  Tensor images;
  Tensor labels;
  std::vector<std::string> class_names;

  int64_t size() const { return images.defined() ? images.size(0) : 0; }
  int64_t num_classes() const { return static_cast<int64_t>(class_names.size()); }
};

/// The images at `indices` (int64 [B]) with their labels, in that order, copied.
inline ImageDataset take(const ImageDataset& dataset, const Tensor& indices) {
  return {gather_images(dataset.images, indices), gather_images(dataset.labels, indices),
          dataset.class_names};
}

}  // namespace mixmatch::data
