#pragma once

#include <variant>

namespace mixmatch::detail {

/// Adam (arXiv 1412.6980), in the form that PyTorch computes: m <- beta1 m + (1 - beta1) g,
/// v <- beta2 v + (1 - beta2) g^2,   w <- w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
struct AdamRule {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};

/// SGD with momentum, as PyTorch writes it: m <- momentum m + g,
/// w <- w - lr (nesterov ? g + momentum m : m)
struct SgdRule {
  double momentum = 0.9;
  bool nesterov = true;
};

using UpdateRule = std::variant<AdamRule, SgdRule>;

}  // namespace mixmatch::detail
