#pragma once

#include <string>
#include <type_traits>

#include "cuda_emulation.hpp"

namespace cuda_emulation {

#include "cuda_norm_source.inc"

/// All norm kernels that images of `type`, in packs of `width`, ask for.
template <class Scalar, int width>
void add_norm_kernels(EmulatedDevice& device, const std::string& type) {
  using Compute = typename ComputeOf<Scalar>::type;
  const std::string packs = "<" + type + ", " + std::to_string(width) + ">";
  const std::string compute = std::is_same_v<Compute, double> ? "<double>" : "<float>";
  device.add("norm_moments" + packs, norm_moments<Scalar, width>);
  device.add("norm_statistics" + compute, norm_statistics<Compute>);
  device.add("norm_activate" + packs, norm_activate<Scalar, width>);
  device.add("norm_gradient_sums" + packs, norm_gradient_sums<Scalar, width>);
  device.add("norm_parameter_gradients" + compute, norm_parameter_gradients<Compute>);
  device.add("norm_input_gradient" + packs, norm_input_gradient<Scalar, width>);
}

}  // namespace cuda_emulation
