#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>
#include <mixmatch/detail/cuda/cuda_norm_source.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

namespace mixmatch::detail {

/// How a batch of channels-last images is cut up for the kernels: the same on every device, so that results
/// are.
struct NormGrid {
  int64_t rows, width, packs, span, chunks, lane_bits, groups;
  static constexpr int64_t threads = 512;

  /// A large device has 132 processors. A block for each is enough where a thread's loads are of 16 bytes;
  /// where they are not, its registers leave room for a second. Fewer chunks are less to merge.
  NormGrid(int64_t total_rows, int64_t channels, int64_t num_groups, int64_t pack_width,
           int64_t block_threads = threads, int64_t processors = 132)
      : rows(total_rows / num_groups), width(pack_width), packs(channels / pack_width), groups(num_groups) {
    constexpr int64_t least_rows_of_thread = 2;
    // A tile is 64 bytes wide where the packs are of 16, and never of more than 32 channels.
    const int64_t most_lanes = width > 1 ? 4 : 32;
    lane_bits = 0;
    while (lanes() < packs && lanes() < most_lanes) {
      ++lane_bits;
    }
    const int64_t slices = block_threads / lanes(), blocks = width > 1 ? processors : 2 * processors;
    const int64_t most_chunks = std::max<int64_t>(1, blocks / (groups * tiles()));
    const int64_t rows_of_thread = (rows + slices * most_chunks - 1) / (slices * most_chunks);
    span = slices * std::max(least_rows_of_thread, rows_of_thread);
    chunks = (rows + span - 1) / span;
  }
  int64_t lanes() const { return int64_t{1} << lane_bits; }
  int64_t tiles() const { return (packs + lanes() - 1) / lanes(); }
};

/// Whether cuda_norm_forward() takes images of this kind: [N, C, H, W] on CUDA, channels-last, float32,
/// float64, bfloat16 or float16.
inline bool cuda_norm_supported(const at::Tensor& x) {
  return x.dim() == 4 && x.numel() != 0 && has_cuda_memory(x) &&
         x.is_contiguous(at::MemoryFormat::ChannelsLast) && cuda_type_name(x.scalar_type()) != nullptr &&
         cuda_kernels_available(x.device());
}

struct CudaNormOutput {
  at::Tensor y, sum;                      ///< as x; `sum` is x where there is no addend
  at::Tensor mean, invstd, var_unbiased;  ///< [groups, C], of each group; in the arithmetic type
};

struct NormGradients {
  at::Tensor grad_x, grad_weight, grad_bias;  ///< grad_x is the addend's gradient, too
};

/// The entry for x's type and the widest packs that all of `tensors` allow.
class NormLaunch {
 public:
  template <class... Tensors>
  NormLaunch(int64_t groups, const at::Tensor& x, const Tensors&... tensors)
      : type_(cuda_type_name(x.scalar_type())),
        grid(x.numel() / x.size(1), x.size(1), groups, width_for(x, tensors...)),
        device_(x.device()) {}

  /// `more` goes on after the kernel's template arguments of type and width. Numbers among the arguments that
  /// are float64 here are of the arithmetic type there.
  template <class... Arguments>
  void run(const char* kernel, const char* more, Arguments... arguments) const {
    const std::string entry = c10::str(kernel, "<", type_, ", ", grid.width, more, ">");
    if (std::string_view(type_) == "double") {
      launch<double>(entry, arguments...);
    } else {
      launch<float>(entry, arguments...);
    }
  }

 private:
  template <class Compute, class Argument>
  static auto as_parameter(Argument argument) {
    if constexpr (std::is_same_v<Argument, double>) {
      return static_cast<Compute>(argument);
    } else {
      return argument;
    }
  }
  template <class Compute, class... Arguments>
  void launch(const std::string& entry, Arguments... arguments) const {
    launch_cuda_kernel(
        cuda_norm_source, entry, device_,
        {.blocks_x = grid.groups * grid.chunks, .blocks_y = grid.tiles(), .threads = NormGrid::threads},
        as_parameter<Compute>(arguments)..., grid.rows, grid.packs, grid.span, static_cast<int>(grid.chunks),
        static_cast<int>(grid.lane_bits));
  }

  template <class... Tensors>
  static int64_t width_for(const at::Tensor& x, const Tensors&... tensors) {
    const auto wide = 16 / static_cast<int64_t>(x.element_size());
    const auto aligned = [](const at::Tensor& tensor) {
      return !tensor.defined() || reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 16 == 0;
    };
    return x.size(1) % wide == 0 && aligned(x) && (aligned(tensors) && ...) ? wide : 1;
  }

  const char* type_;

 public:
  NormGrid grid;

 private:
  at::Device device_;
};

/// Batch norm by groups of images, leaky ReLU after it and the addition before it:
///
///     s = x + addend,   y = leaky(weight (s - mean_g) / sqrt(var_g + eps) + bias)
///
/// mean_g and biased var_g over the images of each of `groups` equal parts of the batch, in float32 (float64
/// for float64). `addend` may be undefined. Only for what can_fuse_norm() takes, of a multiple of `groups`
/// rows; two sweeps over memory; the same bits at each call. Without gradient.
inline CudaNormOutput cuda_norm_forward(const at::Tensor& x, const at::Tensor& addend,
                                        const at::Tensor& weight, const at::Tensor& bias, int64_t groups,
                                        double eps, double slope, const at::Tensor& running_mean = {},
                                        const at::Tensor& running_var = {}, double share = 0.0) {
  const at::NoGradGuard no_grad;
  const int64_t channels = x.size(1);
  CudaNormOutput out;
  out.y = at::empty_like(x);
  out.sum = addend.defined() ? at::empty_like(x) : x;
  const NormLaunch launch(groups, x, addend, out.y, out.sum);
  const auto options = weight.options().requires_grad(false);
  const at::Tensor chunks = at::empty({2, groups * launch.grid.chunks, channels}, options);
  const at::Tensor results = at::empty({3, groups, channels}, options);
  out.mean = results[0];
  out.invstd = results[1];
  out.var_unbiased = results[2];
  launch.run("norm_moments", addend.defined() ? ", true" : ", false", data_or_null(x), data_or_null(addend),
             data_or_null(out.sum), data_or_null(chunks[0]), data_or_null(chunks[1]));
  launch.run("norm_activate", "", data_or_null(out.y), data_or_null(out.sum), data_or_null(chunks[0]),
             data_or_null(chunks[1]), data_or_null(weight), data_or_null(bias), data_or_null(out.mean),
             data_or_null(out.invstd), data_or_null(out.var_unbiased), data_or_null(running_mean),
             data_or_null(running_var), share, eps, slope);
  return out;
}

/// The gradients of cuda_norm_forward(): `sum`, `mean` and `invstd` are what it returned; `grad_sum`, the
/// gradient that arrives at the sum itself, may be undefined. Two sweeps over memory.
inline NormGradients cuda_norm_backward(const at::Tensor& grad_y, const at::Tensor& grad_sum,
                                        const at::Tensor& sum, const at::Tensor& weight,
                                        const at::Tensor& bias, const at::Tensor& mean,
                                        const at::Tensor& invstd, int64_t groups, double slope) {
  const at::NoGradGuard no_grad;
  const int64_t channels = sum.size(1);
  NormGradients out;
  out.grad_x = at::empty_like(sum);
  const NormLaunch launch(groups, sum, grad_y, grad_sum, out.grad_x);
  const auto options = weight.options().requires_grad(false);
  const at::Tensor chunks = at::empty({2, groups * launch.grid.chunks, channels}, options);
  out.grad_weight = at::empty({channels}, options);
  out.grad_bias = at::empty({channels}, options);
  launch.run("norm_gradient_sums", "", data_or_null(grad_y), data_or_null(sum), data_or_null(mean),
             data_or_null(invstd), data_or_null(weight), data_or_null(bias), data_or_null(chunks[0]),
             data_or_null(chunks[1]), slope);
  launch.run("norm_input_gradient", grad_sum.defined() ? ", true" : ", false", data_or_null(out.grad_x),
             data_or_null(grad_y), data_or_null(grad_sum), data_or_null(sum), data_or_null(mean),
             data_or_null(invstd), data_or_null(weight), data_or_null(bias), data_or_null(chunks[0]),
             data_or_null(chunks[1]), data_or_null(out.grad_bias), data_or_null(out.grad_weight), slope,
             static_cast<int>(groups));
  return out;
}

}  // namespace mixmatch::detail
