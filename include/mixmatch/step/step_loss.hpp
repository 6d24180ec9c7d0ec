#pragma once

#include <torch/types.h>

#include <string>
#include <utility>
#include <vector>

namespace mixmatch {

using torch::Tensor;

/// What a method returns of a step: `total`, a scalar that carries the gradient, and scalars to report by
/// name, of any floating dtype on the step's device, NaN where there is no number at this step.
///
/// The names become columns of metrics.csv after "loss", in this order; a method gives the same ones at each
/// step. Nothing here waits for the device: Meter adds up, and is read once a row.
struct StepLoss {
  Tensor total;
  std::vector<std::pair<std::string, Tensor>> values = {};
};

}  // namespace mixmatch
