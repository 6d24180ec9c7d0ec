#pragma once

#include <cstdint>
#include <string_view>

namespace mixmatch {

/// The numbers of the papers' experiments, in one place; functions of the library know no data set.
struct Preset {
  std::string_view name;
  double alpha;          ///< MixUp's Beta(alpha, alpha)
  double lambda_u;       ///< weight of the unlabeled loss
  int64_t rampup_steps;  ///< of lambda_u, linear
  double weight_decay;   ///< decoupled; the step's rate is weight_decay * learning_rate
  int64_t scales;        ///< of the Wide ResNet
  int64_t filters;       ///< of its first scale: 16 * widen_factor, where that is a whole number
  int64_t padding;       ///< of the random crop
  bool mirror;
  // Shared by all of MixMatch's experiments.
  double temperature = 0.5;
  int64_t num_augmentations = 2;
  int64_t batch_size = 64;
  double learning_rate = 2e-3;
  double ema_decay = 0.999;
  int64_t total_steps = int64_t{1} << 20;
  int64_t steps_per_checkpoint = 1024;
};

/// MixMatch (arXiv 1905.02249, section 4 and its released code).
namespace presets {

inline constexpr Preset cifar10{"cifar10", 0.75, 75, 16384, 0.02, 3, 32, 4, true};
inline constexpr Preset cifar10_large{"cifar10-large", 0.75, 75, 16384, 0.04, 3, 135, 4, true};
inline constexpr Preset cifar100{"cifar100", 0.75, 150, 16384, 0.04, 3, 135, 4, true};
inline constexpr Preset svhn{"svhn", 0.75, 250, 16384, 0.02, 3, 32, 4, false};
inline constexpr Preset svhn_extra{"svhn-extra", 0.25, 250, 16384, 0.02, 3, 32, 4, false};
inline constexpr Preset stl10{"stl10", 0.75, 50, 16384, 0.02, 4, 32, 12, true};
inline constexpr Preset ablation{"ablation", 0.75, 100, 2048, 0.02, 3, 32, 4, true};

// The methods that MixMatch is measured against there: the unlabeled loss's weight, ramped over this share of
// the steps.
inline constexpr double pseudo_label_weight = 1, pi_model_weight = 20, mean_teacher_weight = 50;
inline constexpr double consistency_rampup = 0.4;
inline constexpr double vat_weight = 0.3, vat_entropy_weight = 0.06, vat_radius = 6, vat_xi = 1e-6;
inline constexpr double ict_weight = 100, ict_alpha = 1;  // as the authors' code trains CIFAR-10
// Not ramped.
inline constexpr double mixup_weight = 1, mixup_alpha = 0.75;

// UDA (arXiv 1904.12848) and FixMatch (arXiv 2001.07685).
inline constexpr double uda_weight = 1, uda_threshold = 0.8, uda_temperature = 0.4;
inline constexpr double fixmatch_weight = 1, fixmatch_threshold = 0.95;
/// Unlabeled rows for each labeled one, of both.
inline constexpr int64_t unlabeled_ratio = 7;
/// Their optimiser: SGD with Nesterov momentum, the rate times cosine_decay(), and an L2 penalty of l2 / 2
/// times the squared kernels in the loss.
inline constexpr double sgd_learning_rate = 0.03, sgd_momentum = 0.9, sgd_l2 = 5e-4;
/// On CIFAR-100 with a network eight times as wide as WRN-28-1.
inline constexpr double cifar100_sgd_l2 = 1e-3;
inline constexpr int64_t cifar100_sgd_widen = 8;

/// `--preset fast`: FixMatch on CIFAR-10 within a quarter of an hour on one GPU. No paper's numbers:
/// docs/RESULTS.md, "Time to accuracy", has what was tried, and docs/GUIDE.md the arithmetic.
inline constexpr int64_t fast_steps = 147456, fast_unlabeled_ratio = 3, fast_steps_per_evaluation = 4096;
inline constexpr double fast_learning_rate = 2e-3, fast_weight_decay = 0.02;

/// Fine-tuning of published weights, by Adam: no paper's numbers, but those of docs/RESULTS.md.
inline constexpr double fine_tuning_learning_rate = 1e-3, fine_tuning_backbone_rate = 0.1;
inline constexpr double fine_tuning_weight_decay = 0.02, fine_tuning_ema_decay = 0.99;
inline constexpr int64_t fine_tuning_warmup = 50;

}  // namespace presets

}  // namespace mixmatch
