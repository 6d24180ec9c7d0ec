#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/describe.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// Several data sets one after the other, as if they were one, without copying their images: STL-10's
/// unlabeled images and those of its training images whose labels are hidden; two folders of pictures; mapped
/// sets beside sets in memory.
///
/// Row i is row i of the first set, while it lasts, then come those of the second, and so on. `labels` is
/// int64 [N], all sets' labels joined; `class_names` are those of the first set that has any. The sets are
/// [N, C, H, W] of the same dtype (see ImageDataset), C, H, W and device, or are made on demand; throws
/// c10::Error on others, and if no set holds images. Copies of a pool share the images.
class ImagePool {
 public:
  explicit ImagePool(std::vector<ImageDataset> sets) {
    std::vector<Tensor> all_labels;
    for (size_t i = 0; i < sets.size(); ++i) {
      auto& set = sets[i];
      if (class_names.empty()) {
        class_names = set.class_names;
      }
      if (!set.images.defined() && !set.on_demand()) {
        continue;
      }
      TORCH_CHECK(set.on_demand() || (set.images.dim() == 4 && mixmatch::detail::is_pixel_type(set.dtype())),
                  "ImagePool: set ", i, " must hold images ", mixmatch::detail::pixel_type_names,
                  " [N, C, H, W], got ", mixmatch::detail::type_and_sizes(set.images));
      TORCH_CHECK(set.labels.defined() && set.labels.dim() == 1 && set.labels.scalar_type() == at::kLong &&
                      set.labels.size(0) == set.size(),
                  "ImagePool: set ", i, " must hold labels int64 [", set.size(), "], got ",
                  mixmatch::detail::type_and_sizes(set.labels));
      if (!sets_.empty()) {
        const auto& first = sets_.front();
        TORCH_CHECK(set.image_sizes() == first.image_sizes(), "ImagePool: set ", i, " has images of ",
                    at::IntArrayRef(set.image_sizes()), ", those before it of ",
                    at::IntArrayRef(first.image_sizes()));
        TORCH_CHECK(set.dtype() == first.dtype(), "ImagePool: set ", i, " has images of ", set.dtype(),
                    ", those before it of ", first.dtype());
        TORCH_CHECK(set.device() == first.device(), "ImagePool: set ", i, " is on ", set.device(),
                    ", those before it on ", first.device());
      }
      all_labels.push_back(set.labels);
      sets_.push_back(std::move(set));
      ends_.push_back(size() + sets_.back().size());
    }
    TORCH_CHECK(!sets_.empty(), "ImagePool: none of ", sets.size(), " sets holds images");
    labels = at::cat(all_labels);
  }

  Tensor labels;
  std::vector<std::string> class_names;

  int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }
  /// Height of the images.
  int64_t image_size() const { return sets_.front().image_sizes()[1]; }
  int64_t num_classes() const { return static_cast<int64_t>(class_names.size()); }

  /// The images at `indices` (int64 [B], any device), in that order: what gather_images would give of all the
  /// sets' images joined. Of mapped sets nothing stays in memory,
  /// as in ImageDataset::gather. Throws on indices of another dtype or shape, or out of range.
  Tensor gather(const Tensor& indices) const {
    TORCH_CHECK(indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
                "ImagePool::gather: indices must be int64 [B], got ",
                mixmatch::detail::type_and_sizes(indices));
    if (sets_.size() == 1) {
      return sets_.front().gather(indices);
    }
    const Tensor on_cpu = indices.cpu().contiguous();
    const auto* index = on_cpu.data_ptr<int64_t>();
    std::vector<std::vector<int64_t>> rows(sets_.size());    // of each set,
    std::vector<std::vector<int64_t>> places(sets_.size());  // and where they go
    for (int64_t i = 0; i < on_cpu.numel(); ++i) {
      TORCH_CHECK(index[i] >= 0 && index[i] < size(), "ImagePool::gather: index ", index[i],
                  " is out of range for ", size(), " images");
      const auto set =
          static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), index[i]) - ends_.begin());
      rows[set].push_back(index[i] - (set == 0 ? 0 : ends_[set - 1]));
      places[set].push_back(i);
    }
    auto shape = sets_.front().image_sizes();
    shape.insert(shape.begin(), on_cpu.numel());
    const bool channels_last = std::all_of(sets_.begin(), sets_.end(), [](const ImageDataset& set) {
      return set.images.defined() && !set.images.is_contiguous() &&
             set.images.is_contiguous(at::MemoryFormat::ChannelsLast);
    });
    const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    Tensor out = at::empty(shape, at::TensorOptions(device()).dtype(dtype()), format);
    for (size_t set = 0; set < sets_.size(); ++set) {
      if (!rows[set].empty()) {
        sets_[set].gather_into(out, at::tensor(rows[set], at::kLong), at::tensor(places[set], at::kLong));
      }
    }
    return out;
  }

  at::ScalarType dtype() const { return sets_.front().dtype(); }
  /// C, H and W of the images.
  std::vector<int64_t> image_sizes() const { return sets_.front().image_sizes(); }
  /// Where the images are.
  torch::Device device() const { return sets_.front().device(); }
  /// The images that a source could not make: gather() gives others in their place. Of images that are made
  /// on demand those that it was asked for. int64 [R] on the CPU, ascending.
  Tensor replaced() const {
    std::vector<int64_t> rows;
    int64_t first = 0;
    for (const auto& set : sets_) {
      if (set.source != nullptr) {
        const auto bad = set.source->replaced();
        for (int64_t i = 0; !bad.empty() && i < set.size(); ++i) {
          const int64_t row = set.source_rows.defined() ? set.source_rows.data_ptr<int64_t>()[i] : i;
          if (std::binary_search(bad.begin(), bad.end(), row)) {
            rows.push_back(first + i);
          }
        }
      }
      first += set.size();
    }
    return at::tensor(rows, at::kLong);
  }
  /// Those that hold images, in order.
  const std::vector<ImageDataset>& sets() const { return sets_; }

  /// The same images as one set: of several, a copy.
  ImagePool in_one() const {
    if (sets_.size() == 1) {
      return *this;
    }
    return ImagePool({{gather(at::arange(size(), at::kLong)), labels.to(device()), class_names}});
  }

  /// The labels at `indices` (int64 [B], any device), on `device`.
  Tensor labels_of(const Tensor& indices, torch::Device device) const {
    return gather_images(labels, indices).to(device);
  }

 private:
  std::vector<ImageDataset> sets_;
  std::vector<int64_t> ends_;
};

}  // namespace mixmatch::data
