#pragma once

#include <torch/arg.h>
#include <torch/serialize/archive.h>
#include <mixmatch/augment/color_jitter.hpp>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/augment/rand_augment.hpp>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/augment/random_resized_crop.hpp>
#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/counter_words.hpp>
#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/step/batch.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct FeedOptions {
  /// Labeled rows of a step, of all ranks together.
  TORCH_ARG(int64_t, batch_size) = 64;
  /// Unlabeled rows of a step for each labeled one.
  TORCH_ARG(int64_t, unlabeled_ratio) = 1;
  /// Augmentations of each unlabeled image by crop and mirror (or what is in their place), and by
  /// strong_augmentation() on top; none of both: the step has labeled images alone.
  TORCH_ARG(int64_t, weak_views) = 2;
  TORCH_ARG(int64_t, strong_views) = 0;
  /// Labeled batches in which every class comes as often: see BatchStream::balanced().
  TORCH_ARG(bool, balanced) = false;
  /// Of rows and augmentation.
  TORCH_ARG(uint64_t, seed) = 1;
  /// Crop and mirror, and how images become what the network gets: by augmentation().normalization(), also
  /// those that are floating-point already (scale 1: (x - mean) / stddev).
  TORCH_ARG(augment::RandomCropFlipOptions, augmentation) = {};
  /// In place of crop and mirror, for photographs: uint8 images.
  TORCH_ARG(std::optional<augment::RandomResizedCropOptions>, resized_crop) = std::nullopt;
  /// After it, of every view: uint8 images of three channels.
  TORCH_ARG(augment::ColorJitterOptions, color_jitter) = {};
  TORCH_ARG(augment::RandAugmentOptions, strong_augmentation) = {};
  /// Of several processes that have a part of each batch: rows rank * batch_size / world_size and on of its
  /// labeled images, and as many parts of its unlabeled ones, augmented as in the whole batch.
  TORCH_ARG(int64_t, rank) = 0;
  TORCH_ARG(int64_t, world_size) = 1;
};

/// The images of a step before augmentation: [B + U, C, H, W] as the pool has them, the labeled ones first.
struct RawBatch {
  Tensor images, labels;
  Tensor unlabeled_rows, hidden_labels;  ///< undefined without unlabeled images
};

/// The batches of a run (Algorithm 1, lines 2-6): that of a step is a pure function of (seed, step), on every
/// device the same, so that a run can be resumed or moved, and nothing is drawn in order.
///
///     const training::Feed feed(data, training::FeedOptions().batch_size(64));
///     const Batch batch = feed(step);                        // step: int64 [] on the images' device
///
/// Rows and images come where data.pool has them: on a GPU by the GPU alone, so that a CUDA graph can capture
/// it. gather() and augment() are its two halves, for images that stay elsewhere than the training: gather()
/// by the host, ahead of time, augment() on the device. All images of a Batch but the strong views are slices
/// of one tensor, from which guessing and mixing copy nothing. Of several sets on a GPU the feed has a joined
/// copy. Throws what reading the images throws.
class Feed {
 public:
  explicit Feed(const TrainingData& data, const FeedOptions& options = {})
      : pool_(data.pool), options_(options), device_(pool_.device()) {
    TORCH_CHECK(options.unlabeled_ratio() >= 1, "Feed: unlabeled_ratio must be >= 1, got ",
                options.unlabeled_ratio());
    TORCH_CHECK(options.weak_views() >= 0, "Feed: weak_views must be >= 0, got ", options.weak_views());
    TORCH_CHECK(options.strong_views() >= 0, "Feed: strong_views must be >= 0, got ", options.strong_views());
    TORCH_CHECK(options.world_size() >= 1 && options.rank() >= 0 && options.rank() < options.world_size(),
                "Feed: rank must be in [0, world_size), got ", options.rank(), " of ", options.world_size());
    TORCH_CHECK(options.batch_size() % options.world_size() == 0, "Feed: batch_size must be a multiple of ",
                options.world_size(), ", the ranks, got ", options.batch_size());
    if (!device_.is_cpu()) {  // the host must neither sort rows by set nor look up labels
      pool_ = pool_.in_one();
      pool_.labels = pool_.labels.to(device_);
    }
    if (options.resized_crop().has_value()) {
      augment::detail::check_resized_crop_options("Feed", *options.resized_crop());
    }
    augment::detail::check_color_jitter_options("Feed", options.color_jitter());
    const auto sizes = pool_.image_sizes();
    TORCH_CHECK(options.strong_views() == 0 || (pool_.dtype() == at::kByte && sizes[0] == 3),
                "Feed: strong views (RandAugment) are of uint8 images [N, 3, H, W], got ", pool_.dtype(),
                " [N, ", sizes[0], ", ", sizes[1], ", ", sizes[2], "]: take a method without them");
    TORCH_CHECK(
        pool_.dtype() == at::kByte || (!options.resized_crop().has_value() && !options.color_jitter().any()),
        "Feed: resized_crop and color_jitter are of uint8 images, got ", pool_.dtype());
    const Tensor labeled = data.split.labeled.to(device_);
    labeled_ = options.balanced() ? data::BatchStream::balanced(
                                        labeled, pool_.labels_of(labeled, torch::kCPU), labeled_rows(),
                                        options.seed(), options.rank(), options.world_size())
                                  : data::BatchStream(labeled, labeled_rows(), options.seed(), options.rank(),
                                                      options.world_size());
    if (options.weak_views() + options.strong_views() > 0) {
      TORCH_CHECK(data.split.unlabeled.numel() > 0,
                  "Feed: the method needs unlabeled images, there are none");
      unlabeled_.emplace(data.split.unlabeled.to(device_), labeled_rows() * options.unlabeled_ratio(),
                         options.seed() + 1, options.rank(), options.world_size());
    }
  }

  Batch operator()(const Tensor& step) const { return augment(gather(step), step); }

  /// The rows of a step and their images: on the images' device, where `step` is.
  RawBatch gather(const Tensor& step) const {
    using mixmatch::detail::separate_rows;
    const int64_t labeled = labeled_rows(), unlabeled = unlabeled_rows();
    const Tensor rows = at::empty({labeled + unlabeled}, step.options());
    Tensor of_labeled = separate_rows(rows, 0, labeled);
    RawBatch raw;
    if (unlabeled_.has_value()) {
      raw.unlabeled_rows = separate_rows(rows, labeled, unlabeled);
      data::BatchStream::rows_out(*labeled_, of_labeled, *unlabeled_, raw.unlabeled_rows, step);
    } else {
      labeled_->rows_out(of_labeled, step);
    }
    const Tensor labels = data::gather_images(pool_.labels, rows);
    raw.labels = separate_rows(labels, 0, labeled);
    if (unlabeled_.has_value()) {
      raw.hidden_labels = separate_rows(labels, labeled, unlabeled);
    }
    raw.images = pool_.gather(rows);
    return raw;
  }

  /// The views of a step, on the device of `raw`, where `step` is.
  Batch augment(const RawBatch& raw, const Tensor& step) const {
    const torch::NoGradGuard no_grad;
    const int64_t labeled = labeled_rows(), unlabeled = unlabeled_rows();
    const int64_t weak = labeled + options_.weak_views() * unlabeled;
    const int64_t strong = options_.strong_views() * unlabeled;
    const int64_t draws = strong > 0 ? augment::rand_augment_draws(options_.strong_augmentation()) : 0;
    const bool resizes = options_.resized_crop().has_value(), jitters = options_.color_jitter().any();
    const int64_t crop_draws = resizes ? augment::random_resized_crop_draws() : 3;
    const int64_t jitter_draws = jitters ? augment::color_jitter_draws() : 0;
    // Draws are those of the whole batch, of which this rank's rows take their own.
    const int64_t ranks = options_.world_size(), all_weak = ranks * weak, all_strong = ranks * strong;
    const uint64_t seed = mixmatch::detail::mix_bits(options_.seed()) ^ kAugmentation;
    Tensor drawn_words;  // where a kernel does not draw them
    const auto words = [&](int64_t first, int64_t count) {
      if (!drawn_words.defined()) {
        drawn_words = mixmatch::detail::counter_words(
            step, seed, (crop_draws + jitter_draws) * (all_weak + all_strong) + all_strong * draws);
      }
      return drawn_words.narrow(0, first, count);
    };
    Tensor rows_of_rank;
    const auto own_rows = [&] {
      if (!rows_of_rank.defined()) {
        rows_of_rank = rows_in_batch(labeled, unlabeled, step.device());
      }
      return rows_of_rank;
    };
    // So many of them for each image, one image after the other; of strong views alone the last ones.
    const auto uniform = [&](int64_t first, int64_t rows, int64_t each, bool strong_only) {
      Tensor drawn = words(first, rows * each).view({rows, each});
      if (ranks > 1) {
        drawn =
            drawn.index_select(0, strong_only ? own_rows().narrow(0, weak, strong) - all_weak : own_rows());
      }
      return mixmatch::detail::words_to_uniform(drawn);
    };
    const Tensor images = raw.images.scalar_type() == at::kByte
                              ? raw.images
                              : augment::normalize(raw.images, options_.augmentation().normalization());
    const auto pixels = augment::detail::check_crop_flip("Feed", images, options_.augmentation());
    mixmatch::detail::CropFlip crops;
    Tensor resized, jitter;
    if (resizes) {
      resized = uniform(0, all_weak + all_strong, crop_draws, false);
    }
    if (jitters) {
      jitter = uniform(crop_draws * (all_weak + all_strong) + all_strong * draws, all_weak + all_strong,
                       jitter_draws, false);
    }
    // Of all views, the labeled images first: rows `first` and on, either the weak or the strong ones.
    const auto views = [&](int64_t first, int64_t count) {
      std::vector<Tensor> parts;
      if (first == 0) {
        parts.push_back(images.narrow(0, 0, labeled));
      }
      for (int64_t row = first == 0 ? labeled : 0; row < count; row += unlabeled) {
        parts.push_back(images.narrow(0, labeled, unlabeled));
      }
      return parts.size() == 1 ? parts.front() : at::cat(parts);
    };
    const auto cut = [&](int64_t first, int64_t count,
                         const std::optional<mixmatch::detail::PixelScale>& scale, at::ScalarType dtype) {
      const auto& augmentation = options_.augmentation();
      const auto of_pixels = scale.value_or(mixmatch::detail::PixelScale{});
      const Tensor made = mixmatch::detail::crop_views_on_cuda(
          images, step, mixmatch::detail::mix_bits(seed + mixmatch::detail::kGolden),
          {labeled, unlabeled, first, count, all_weak + all_strong, options_.rank(), ranks},
          augmentation.padding(), augmentation.mirror(), of_pixels.shift, of_pixels.scale, dtype);
      if (made.defined()) {
        return made;
      }
      if (!crops.any()) {
        Tensor drawn = words(0, 3 * (all_weak + all_strong)).view({3, all_weak + all_strong});
        if (ranks > 1) {
          drawn = drawn.index_select(1, own_rows());
        }
        crops = augment::detail::crops_of_words(drawn, augmentation);
      }
      return mixmatch::detail::crop_flip(views(first, count), crops.narrow(first, count), scale, dtype);
    };
    const auto cut_bytes = [&](int64_t first, int64_t count) {
      const Tensor made =
          resizes ? augment::random_resized_crop_with(views(first, count), resized.narrow(0, first, count),
                                                      *options_.resized_crop())
                  : cut(first, count, std::nullopt, at::kByte);
      return jitters
                 ? augment::color_jitter_with(made, jitter.narrow(0, first, count), options_.color_jitter())
                 : made;
    };

    using mixmatch::detail::separate_rows;
    Batch batch;
    batch.labels = raw.labels;
    batch.hidden_labels = raw.hidden_labels;
    batch.unlabeled_rows = raw.unlabeled_rows;
    const Tensor all = resizes || jitters
                           ? augment::normalize(cut_bytes(0, weak), options_.augmentation().normalization())
                           : cut(0, weak, pixels.scale, pixels.dtype);
    batch.labeled = separate_rows(all, 0, labeled);
    for (int64_t row = labeled; row < weak; row += unlabeled) {
      batch.weak.push_back(separate_rows(all, row, unlabeled));
    }
    if (strong > 0) {
      const Tensor augmented = augment::normalize(
          augment::rand_augment_with(cut_bytes(weak, strong),
                                     uniform(crop_draws * (all_weak + all_strong), all_strong, draws, true),
                                     options_.strong_augmentation()),
          options_.augmentation().normalization());
      for (int64_t row = 0; row < strong; row += unlabeled) {
        batch.strong.push_back(separate_rows(augmented, row, unlabeled));
      }
    }
    return batch;
  }

  /// Where gather() works.
  torch::Device device() const { return device_; }
  const FeedOptions& options() const { return options_; }

  /// What tells whether another feed gives the same rows; load() throws where it does not.
  void save(torch::serialize::OutputArchive& archive) const {
    for (const auto& [name, stream] : streams()) {
      torch::serialize::OutputArchive nested(archive.compilation_unit());
      stream->save(nested);
      archive.write(name, nested);
    }
  }
  void load(torch::serialize::InputArchive& archive) {
    for (const auto& [name, stream] : streams()) {
      torch::serialize::InputArchive nested;
      archive.read(name, nested);
      stream->load(nested);
    }
  }

 private:
  static constexpr uint64_t kAugmentation = 0xA5A5A5A5A5A5A5A5U;  // its numbers are not the streams'

  std::vector<std::pair<std::string, const data::BatchStream*>> streams() const {
    std::vector<std::pair<std::string, const data::BatchStream*>> list{{"labeled", &*labeled_}};
    if (unlabeled_.has_value()) {
      list.emplace_back("unlabeled", &*unlabeled_);
    }
    return list;
  }

  /// Rows of this rank's.
  int64_t labeled_rows() const { return options_.batch_size() / options_.world_size(); }
  int64_t unlabeled_rows() const {
    return unlabeled_.has_value() ? labeled_rows() * options_.unlabeled_ratio() : 0;
  }

  /// Where this rank's images stand in the whole batch: its part of the labeled ones and of each view, int64.
  Tensor rows_in_batch(int64_t labeled, int64_t unlabeled, torch::Device device) const {
    const auto part = [&](int64_t begin, int64_t rows) {
      const int64_t first = begin + options_.rank() * rows;
      return at::arange(first, first + rows, at::TensorOptions(device).dtype(at::kLong));
    };
    const int64_t ranks = options_.world_size();
    std::vector<Tensor> parts{part(0, labeled)};
    for (int64_t view = 0; unlabeled > 0 && view < options_.weak_views() + options_.strong_views(); ++view) {
      parts.push_back(part(ranks * (labeled + view * unlabeled), unlabeled));
    }
    return at::cat(parts);
  }

  data::ImagePool pool_;
  FeedOptions options_;
  torch::Device device_;
  std::optional<data::BatchStream> labeled_, unlabeled_;
};

}  // namespace mixmatch::training
