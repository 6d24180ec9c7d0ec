#pragma once

#include <torch/types.h>
#include <mixmatch/evaluation/confusion_matrix.hpp>

namespace mixmatch::training {

/// How sure, and how right, guessed labels are: float64 scalars on their device.
struct GuessQuality {
  Tensor mean_max_probability;  ///< mean over rows of max_l q_l, in [1 / L, 1]
  Tensor mean_entropy;          ///< mean over rows of - sum_l q_l ln q_l in nats, in [0, ln L]; 0 ln 0 = 0
  Tensor accuracy;  ///< share in [0, 1] of the rows of known label whose arg-max is it; NaN if none
};

/// Quality of guessed labels against labels that training does not see.
///
/// `guessed`: floating-point [N, L], N >= 1, rows of probabilities, any device: what guess_labels returns (so
/// sharpened: less entropy than the model's own prediction). `labels`: int64 [N] on that device, -1 =
/// unknown. Computed in float64, without waiting for the device and without gradient. Throws on other dtypes,
/// shapes and devices.
inline GuessQuality guess_quality(const Tensor& guessed, const Tensor& labels) {
  TORCH_CHECK(guessed.defined() && guessed.dim() == 2 && guessed.numel() > 0 &&
                  at::isFloatingType(guessed.scalar_type()),
              "guess_quality: guessed must be a non-empty floating-point [N, L], got ",
              guessed.defined() ? c10::str(guessed.scalar_type(), " ", guessed.sizes()) : "undefined");
  detail::check_class_indices("guess_quality", "labels", labels);
  TORCH_CHECK(labels.size(0) == guessed.size(0), "guess_quality: guessed has ", guessed.size(0),
              " rows, labels ", labels.size(0));
  TORCH_CHECK(labels.device() == guessed.device(), "guess_quality: labels must be on the device of guessed, ",
              guessed.device(), ", got ", labels.device());
  const torch::NoGradGuard no_grad;
  const Tensor q = guessed.to(at::kDouble);
  const auto [largest, predicted] = q.max(1);
  return {largest.mean(), 0 - at::xlogy(q, q).sum(1).mean(),  // entr() would be compiled at run time
          labels.eq(predicted).sum().to(at::kDouble).div_(labels.ne(-1).sum())};
}

}  // namespace mixmatch::training
