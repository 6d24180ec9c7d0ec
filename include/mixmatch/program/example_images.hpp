#pragma once

#include <mixmatch/run/image_grid.hpp>
#include <mixmatch/run/tensorboard.hpp>
#include <mixmatch/step/feed.hpp>

#include <algorithm>
#include <vector>

namespace mixmatch::training {

/// What the network sees at the first step, for TensorBoard's image page: labeled images, and the weak and
/// the strong views of unlabeled ones, as far as there are any. Draws nothing.
inline void log_example_images(TensorBoardWriter& board, const Feed& feed) {
  const Batch batch = feed(at::zeros({}, at::TensorOptions(feed.device()).dtype(at::kLong)));
  const auto log = [&board](const char* name, const Tensor& images) {
    const Tensor first = images.narrow(0, 0, std::min<int64_t>(32, images.size(0)));
    const bool picture = first.size(1) == 1 || first.size(1) == 3;
    board.image(name, make_image_grid(picture ? first : displayable(first)), 0);
  };
  log("labeled", batch.labeled);
  if (!batch.weak.empty()) {
    log("weak", batch.weak.front());
  }
  if (!batch.strong.empty()) {
    log("strong", batch.strong.front());
  }
}

}  // namespace mixmatch::training
