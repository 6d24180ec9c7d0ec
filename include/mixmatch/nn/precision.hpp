#pragma once

#include <ATen/Context.h>
#include <torch/types.h>
#include <mixmatch/detail/cpu/fast_bfloat16.hpp>
#include <mixmatch/detail/version.hpp>
#include <mixmatch/detail/weight_copies.hpp>

#include <string>

namespace mixmatch::training {

/// Automatic mixed precision for one scope: convolutions and matrix products in `dtype`, what needs it in
/// float32; parameters and gradients stay float32. bfloat16 needs no gradient scaling. Switched off by
/// float32.
class Autocast {
 public:
  Autocast(torch::Device device, at::ScalarType dtype)
      : device_(device.type()),
        before_(mixmatch::detail::autocast_state(device_)),
        copies_(mixmatch::detail::WeightCopies::in_use()) {
    if (copies_ != nullptr && copies_->type() == dtype) {
      copies_ = nullptr;
    }
    if (copies_ != nullptr) {
      copies_->suspend();  // of another precision
    }
    at::autocast::increment_nesting();
    const bool enabled = dtype != at::kFloat;
    mixmatch::detail::set_autocast_state(device_, {enabled, enabled ? dtype : before_.dtype});
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    mixmatch::detail::set_autocast_state(device_, before_);
    if (copies_ != nullptr) {
      copies_->resume();
    }
  }

 private:
  at::DeviceType device_;
  mixmatch::detail::AutocastState before_;
  mixmatch::detail::WeightCopies* copies_;
};

/// Convolutions and products of float32 on a GPU in full precision, not in TF32, for one scope.
class NoTf32 {
 public:
  NoTf32() { set(false, false); }
  NoTf32(const NoTf32&) = delete;
  NoTf32& operator=(const NoTf32&) = delete;
  ~NoTf32() { set(convolutions_, products_); }

 private:
  static void set(bool convolutions, bool products) {
    at::globalContext().setAllowTF32CuDNN(convolutions);
    at::globalContext().setAllowTF32CuBLAS(products);
  }

  bool convolutions_ = at::globalContext().allowTF32CuDNN();
  bool products_ = at::globalContext().allowTF32CuBLAS();
};

/// What convolutions and matrix products of a precision are computed in, as a run says it: on a GPU float32
/// may mean TF32.
inline std::string describe_precision(torch::Device device, const std::string& name) {
  if (!device.is_cuda() || name != "fp32") {
    return name;
  }
  const bool convolutions = at::globalContext().allowTF32CuDNN(),
             products = at::globalContext().allowTF32CuBLAS();
  return convolutions == products ? name + (products ? " (TF32)" : " (without TF32)")
         : convolutions           ? name + " (convolutions in TF32, matrix products without)"
                                  : name + " (matrix products in TF32, convolutions without)";
}

/// "fp32" or "bf16"; another name throws.
inline at::ScalarType parse_precision(const std::string& name) {
  TORCH_CHECK(name == "fp32" || name == "bf16", "precision: expected fp32 or bf16, got \"", name, "\"");
  return name == "bf16" ? at::kBFloat16 : at::kFloat;
}

/// What trains fastest on the device: bfloat16 by autocast on a CPU with AVX512-BF16 or AMX and on a GPU that
/// has it, else float32.
inline at::ScalarType fastest_precision(torch::Device device) {
  const bool fast = device.is_cpu() ? mixmatch::detail::has_fast_bfloat16() && at::globalContext().hasMKLDNN()
                                    : device.is_cuda() && mixmatch::detail::cuda_has_bfloat16();
  return fast ? at::kBFloat16 : at::kFloat;
}

/// `name`, or in place of "auto" the name of fastest_precision().
inline std::string choose_precision(const std::string& name, torch::Device device) {
  return name != "auto" ? name : fastest_precision(device) == at::kBFloat16 ? "bf16" : "fp32";
}

}  // namespace mixmatch::training
