#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_guess_quality.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/evaluation/confusion_matrix.hpp>

namespace mixmatch::training {

/// Entropy in nats of how guessed classes are distributed over the rows, - sum_l h_l ln h_l with h_l the
/// share of rows whose class is l: 0 where all are of one class, ln L where each class has as many. A float64
/// scalar on the device of `classes`, int64 [N], N >= 1, in [0, num_classes); computed without waiting for
/// the device. Of a batch of few rows it is smaller than of the whole set: look at how it changes. Not to be
/// confused with the mean entropy of each row's guess (GuessQuality::mean_entropy). Throws on other dtypes
/// and shapes.
inline Tensor guessed_class_entropy(const Tensor& classes, int64_t num_classes) {
  detail::check_class_indices("guessed_class_entropy", "classes", classes);
  TORCH_CHECK(classes.size(0) > 0 && num_classes > 0,
              "guessed_class_entropy: there must be rows and classes, got ", classes.size(0), " and ",
              num_classes);
  const torch::NoGradGuard no_grad;
  const Tensor share =
      classes.unsqueeze(1).eq(at::arange(num_classes, classes.options())).to(at::kDouble).mean(0);
  return 0 - at::xlogy(share, share).sum();
}

/// How sure, and how right, guessed labels are: float64 scalars on their device.
struct GuessQuality {
  Tensor class_entropy;         ///< guessed_class_entropy of the rows' arg-max
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
              mixmatch::detail::type_and_sizes(guessed));
  detail::check_class_indices("guess_quality", "labels", labels);
  TORCH_CHECK(labels.size(0) == guessed.size(0), "guess_quality: guessed has ", guessed.size(0),
              " rows, labels ", labels.size(0));
  TORCH_CHECK(labels.device() == guessed.device(), "guess_quality: labels must be on the device of guessed, ",
              guessed.device(), ", got ", labels.device());
  const torch::NoGradGuard no_grad;
  if (const Tensor numbers = mixmatch::detail::guess_quality_on_cuda(guessed, labels); numbers.defined()) {
    return {numbers[0], numbers[1], numbers[2], numbers[3]};
  }
  const Tensor q = guessed.to(at::kDouble);
  const auto [largest, predicted] = q.max(1);
  return {guessed_class_entropy(predicted, q.size(1)), largest.mean(),
          0 - at::xlogy(q, q).sum(1).mean(),  // entr() would be compiled at run time
          labels.eq(predicted).sum().to(at::kDouble).div_(labels.ne(-1).sum())};
}

}  // namespace mixmatch::training
