#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>
#include <mixmatch/detail/cuda/cuda_norm_source.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>

namespace mixmatch::detail {

/// How a batch of channels-last images is cut up for the kernels: the same on every device, so that results
/// are.
struct NormGrid {
  int64_t rows, width, packs, span, chunks, lanes, groups;
  static constexpr int64_t threads = 256, item_threads = 512, item_lanes = 8;

  NormGrid(int64_t total_rows, int64_t channels, int64_t num_groups, int64_t pack_width,
           int64_t block_threads = threads)
      : rows(total_rows / num_groups), width(pack_width), packs(channels / pack_width), groups(num_groups) {
    constexpr int64_t rows_of_thread = 8, most_chunks = 256;
    lanes = 1;
    while (lanes < packs && lanes < 32) {
      lanes *= 2;
    }
    const int64_t slices = block_threads / lanes;
    const int64_t each = (rows + slices * most_chunks - 1) / (slices * most_chunks);
    span = slices * std::max(rows_of_thread, each);
    chunks = (rows + span - 1) / span;
  }
  int64_t tiles() const { return (packs + lanes - 1) / lanes; }
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

  template <class... Arguments>
  void over_images(const char* kernel, Arguments... arguments) const {
    launch_cuda_kernel(
        cuda_norm_source, std::string(kernel) + "<" + type_ + ", " + std::to_string(grid.width) + ">",
        device_,
        {.blocks_x = grid.groups * grid.chunks, .blocks_y = grid.tiles(), .threads = NormGrid::threads},
        arguments..., grid.rows, grid.packs, grid.span, grid.chunks, static_cast<int>(grid.lanes));
  }
  template <class... Arguments>
  void over_items(const char* kernel, int64_t items, Arguments... arguments) const {
    const char* compute = std::string(type_) == "double" ? "double" : "float";
    launch_cuda_kernel(cuda_norm_source, std::string(kernel) + "<" + compute + ">", device_,
                       {.blocks_x = (items + NormGrid::item_lanes - 1) / NormGrid::item_lanes,
                        .threads = NormGrid::item_threads},
                       arguments..., grid.chunks, static_cast<int>(NormGrid::item_lanes));
  }

 private:
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
  launch.over_images("norm_moments", data_or_null(x), data_or_null(addend), data_or_null(out.sum),
                     data_or_null(chunks[0]), data_or_null(chunks[1]));
  out.mean = results[0];
  out.invstd = results[1];
  out.var_unbiased = results[2];
  launch.over_items("norm_statistics", groups * channels, data_or_null(chunks[0]), data_or_null(chunks[1]),
                    data_or_null(out.mean), data_or_null(out.invstd), data_or_null(out.var_unbiased),
                    data_or_null(running_mean), data_or_null(running_var), share, eps, launch.grid.rows,
                    channels, groups * channels, launch.grid.span);
  launch.over_images("norm_activate", data_or_null(out.y), data_or_null(out.sum), data_or_null(out.mean),
                     data_or_null(out.invstd), data_or_null(weight), data_or_null(bias), slope);
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
  const at::Tensor group_sums = at::empty({2, groups, channels}, options);
  out.grad_weight = at::empty({channels}, options);
  out.grad_bias = at::empty({channels}, options);
  launch.over_images("norm_gradient_sums", data_or_null(grad_y), data_or_null(sum), data_or_null(mean),
                     data_or_null(invstd), data_or_null(weight), data_or_null(bias), data_or_null(chunks[0]),
                     data_or_null(chunks[1]), slope);
  launch.over_items("norm_parameter_gradients", channels, data_or_null(chunks[0]), data_or_null(chunks[1]),
                    data_or_null(group_sums[0]), data_or_null(group_sums[1]), data_or_null(out.grad_bias),
                    data_or_null(out.grad_weight), channels, groups);
  launch.over_images("norm_input_gradient", data_or_null(out.grad_x), data_or_null(grad_y),
                     data_or_null(grad_sum), data_or_null(sum), data_or_null(mean), data_or_null(invstd),
                     data_or_null(weight), data_or_null(bias), data_or_null(group_sums[0]),
                     data_or_null(group_sums[1]), slope);
  return out;
}

}  // namespace mixmatch::detail
