#pragma once

#include <torch/types.h>

#include <vector>

namespace mixmatch {

using torch::Tensor;

/// What a step of semi-supervised training reads: images that were augmented already, [N, C, H, W] of the
/// model's floating dtype, and labels, all on one device.
///
/// `weak`: K augmentations of the same U unlabeled rows (crop and mirror); `strong`: further ones of the same
/// rows by RandAugment and cutout; none of either where a method asks for none. `unlabeled_rows`: which rows
/// of the data set those are, for methods that keep something by image. `hidden_labels`: those rows' own
/// labels, -1 where unknown, which only the judgement of guesses may look at. Both are undefined without
/// unlabeled rows. `logit_adjustment`: what for_labeled() adds (see logit_adjustment()); undefined where
/// nothing is.
struct Batch {
  Tensor labeled, labels;           ///< [B, C, H, W], int64 [B]
  std::vector<Tensor> weak;         ///< K times [U, C, H, W]
  Tensor hidden_labels;             ///< int64 [U]
  std::vector<Tensor> strong = {};  ///< [U, C, H, W] each
  Tensor unlabeled_rows = {};       ///< int64 [U]
  Tensor logit_adjustment = {};     ///< floating-point [L]

  /// Logits [N, L] as the loss of labeled rows takes them: with the adjustment, where there is one.
  Tensor for_labeled(const Tensor& logits) const {
    return logit_adjustment.defined() ? logits + logit_adjustment : logits;
  }
};

}  // namespace mixmatch
