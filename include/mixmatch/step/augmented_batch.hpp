#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/types.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/detail/counter_rng.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/step/batch.hpp>
#include <mixmatch/workspace.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace mixmatch::training {

/// A run's batches by the step's number, for Prefetch (Algorithm 1, lines 2-6), all images slices of one
/// tensor, the labeled rows first: the rows are those of TrainState's streams at that step, and the
/// augmentation draws from a generator seeded by the run's seed and the step. Images and labels come on
/// `device`. `data` must outlive the result. That keeps streams of its own, and uses the memory of images
/// again that nobody holds any more: one thread at a time may call it. `views`: augmentations of each
/// unlabeled image; without unlabeled rows there are none. Throws what reading the images throws.
inline std::function<Batch(int64_t)> augmented_batches(const TrainingOptions& o, const TrainingData& data,
                                                       torch::Device device, int64_t views) {
  struct State {
    data::BatchStream labeled;
    std::optional<data::BatchStream> unlabeled;
    Workspace workspace = {};
  };
  const auto options = train_state_options(o);
  auto state = std::make_shared<State>(
      State{labeled_stream(data.split.labeled, options), unlabeled_stream(data.split.unlabeled, options)});
  if (views == 0) {
    state->unlabeled.reset();
  }
  return [state, device, &data, seed = o.seed, augmentation = augment_options(o), views](int64_t step) {
    const auto generator = at::detail::createCPUGenerator(
        mixmatch::detail::mix_bits(mixmatch::detail::mix_bits(seed) ^ static_cast<uint64_t>(step)));
    const auto images = [&](const Tensor& rows) {
      return data.pool.gather(rows, &state->workspace).to(device);
    };
    Batch batch;
    state->labeled.seek(step);
    const Tensor rows = state->labeled.next();
    const Tensor x = images(rows);
    batch.labels = data.pool.labels_of(rows, device);
    auto sizes = x.sizes().vec();
    Tensor u;
    if (state->unlabeled.has_value()) {
      state->unlabeled->seek(step);
      const Tensor unlabeled_rows = state->unlabeled->next();
      u = images(unlabeled_rows);
      batch.hidden_labels = data.pool.labels_of(unlabeled_rows, device);
      sizes[0] += views * u.size(0);
    }
    // All images in one tensor, from which guessing and mixing copy nothing.
    const Tensor all = state->workspace.empty(sizes, x.options().dtype(augmentation.normalization().dtype()),
                                              at::MemoryFormat::ChannelsLast);
    const auto slice = [&all](int64_t start, int64_t size) {
      return all.narrow(0, start, size).variable_data();  // with a version of its own for autograd
    };
    batch.labeled = slice(0, x.size(0));
    augment::random_crop_flip_out(batch.labeled, x, augmentation, generator);
    for (int64_t k = 0; u.defined() && k < views; ++k) {
      batch.weak.push_back(slice(x.size(0) + k * u.size(0), u.size(0)));
      augment::random_crop_flip_out(batch.weak.back(), u, augmentation, generator);
    }
    return batch;
  };
}

/// Whether Prefetch should work ahead: on a GPU another thread's allocations would disturb what the step has
/// there.
inline bool prefetches(const TrainingOptions& o, torch::Device device) {
  return o.prefetch && device.is_cpu();
}

}  // namespace mixmatch::training
