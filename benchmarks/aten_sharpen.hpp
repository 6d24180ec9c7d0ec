#pragma once

#include <torch/types.h>

/// sharpen() in ATen's calls, written well.
inline torch::Tensor aten_sharpen(const torch::Tensor& p, double temperature) {
  torch::Tensor q = p.pow(1 / temperature);
  q.div_(q.sum(-1, true));
  return q;
}
