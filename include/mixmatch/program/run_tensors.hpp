#pragma once

#include <torch/types.h>

namespace mixmatch::training {

/// What more than one part of a run computes of its images, from start to verdict: whoever comes first puts
/// it here, for the others, who would come to the same to the bit. Undefined until then.
struct RunTensors {
  torch::Tensor labeled_features;        ///< of the labeled images, by the weights that the run starts from
  torch::Tensor held_out_probabilities;  ///< of the validation images, by the finished run's averaged weights
};

}  // namespace mixmatch::training
