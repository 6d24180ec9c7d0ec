#pragma once

#include <string>

#include "cuda_emulation.hpp"

namespace cuda_emulation {

#include "cuda_norm_source.inc"

/// All norm kernels that images of `type`, in packs of `width`, ask for.
template <class Scalar, int width>
void add_norm_kernels(EmulatedDevice& device, const std::string& type) {
  const std::string packs = "<" + type + ", " + std::to_string(width);
  device.add("norm_moments" + packs + ", false>", norm_moments<Scalar, width, false>);
  device.add("norm_moments" + packs + ", true>", norm_moments<Scalar, width, true>);
  device.add("norm_activate" + packs + ">", norm_activate<Scalar, width>);
  device.add("norm_gradient_sums" + packs + ">", norm_gradient_sums<Scalar, width>);
  device.add("norm_input_gradient" + packs + ", false>", norm_input_gradient<Scalar, width, false>);
  device.add("norm_input_gradient" + packs + ", true>", norm_input_gradient<Scalar, width, true>);
}

}  // namespace cuda_emulation
