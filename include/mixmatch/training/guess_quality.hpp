#pragma once

#include <torch/types.h>
#include <mixmatch/training/confusion_matrix.hpp>

#include <limits>

namespace mixmatch::training {

/// How sure, and how right, guessed labels are.
struct GuessQuality {
  double mean_max_probability;  ///< mean over rows of max_l q_l, in [1 / L, 1]
  double mean_entropy;          ///< mean over rows of - sum_l q_l ln q_l in nats, in [0, ln L]; 0 ln 0 = 0
  double accuracy;  ///< share in [0, 1] of the rows of known label whose arg-max is it; NaN if none
};

/// Quality of guessed labels against labels that training does not see.
///
/// `guessed`: floating-point [N, L], N >= 1, rows of probabilities, any device: what guess_labels returns (so
/// sharpened: less entropy than the model's own prediction). `labels`: int64 [N] on the CPU or that device,
/// -1 = unknown. Computed in float64; one synchronisation with the device. Throws on other dtypes and shapes.
inline GuessQuality guess_quality(const Tensor& guessed, const Tensor& labels) {
  TORCH_CHECK(guessed.defined() && guessed.dim() == 2 && guessed.numel() > 0 &&
                  at::isFloatingType(guessed.scalar_type()),
              "guess_quality: guessed must be a non-empty floating-point [N, L], got ",
              guessed.defined() ? c10::str(guessed.scalar_type(), " ", guessed.sizes()) : "undefined");
  detail::check_class_indices("guess_quality", "labels", labels);
  TORCH_CHECK(labels.size(0) == guessed.size(0), "guess_quality: guessed has ", guessed.size(0),
              " rows, labels ", labels.size(0));
  const Tensor q = guessed.detach().to(torch::kCPU, at::kDouble);
  const Tensor truth = labels.cpu();
  const auto [largest, predicted] = q.max(1);
  const auto known = truth.ne(-1).sum().item<int64_t>();
  const auto right = truth.eq(predicted).sum().item<int64_t>();
  return {largest.mean().item<double>(), at::special_entr(q).sum(1).mean().item<double>(),
          known > 0 ? static_cast<double>(right) / static_cast<double>(known)
                    : std::numeric_limits<double>::quiet_NaN()};
}

}  // namespace mixmatch::training
