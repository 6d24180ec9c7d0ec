#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/image_grid.hpp>
#include <mixmatch/run/tensorboard.hpp>

#include <algorithm>

namespace mixmatch::training {

/// What the network sees, for TensorBoard's image page: some labeled images augmented, and, where there are
/// unlabeled ones, both after MixUp with the labels that the model guesses now. Draws from a generator of its
/// own, so that a run with and without these images is the same.
template <class Model>
void log_example_images(TensorBoardWriter& board, Model& model, const TrainingOptions& o,
                        const TrainingData& data, torch::Device device) {
  auto generator = at::detail::createCPUGenerator(o.seed);
  const augment::RandomCropFlip augment(augment_options(o), generator);
  const auto some = [](const Tensor& rows) { return rows.narrow(0, 0, std::min<int64_t>(32, rows.size(0))); };
  const Tensor rows = some(data.split.labeled);
  const Tensor labeled = data.pool.gather(rows).to(device);
  board.image("augmented", make_image_grid(augment(labeled)), 0);
  if (o.method != "supervised") {
    const Tensor unlabeled = data.pool.gather(some(data.split.unlabeled)).to(device);
    const auto mixed = mixmatch_batch(model, augment, labeled, data.pool.labels_of(rows, device), unlabeled,
                                      mixmatch_options(o), generator);
    board.image("mixed/labeled", make_image_grid(mixed.labeled_inputs), 0);
    board.image("mixed/unlabeled", make_image_grid(mixed.unlabeled_inputs), 0);
  }
}

}  // namespace mixmatch::training
