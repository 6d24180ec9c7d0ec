#pragma once

#include <mixmatch/detail/cuda_kernel.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>

namespace mixmatch::detail {

// All kernels share one grid. Images are rows of channels; a group has `rows` rows, cut into `chunks`. Blocks
// along x are (group, chunk), blocks along y are tiles of `lanes` packs of channels. In a block, thread
// slice * lanes + lane runs over the chunk's rows slice, slice + slices, … for one pack. No atomics: chunks
// write partial results, which one block merges in one order.
inline constexpr CudaSource cuda_norm_source{"mixmatch_norm.cu", R"cuda(
// A thread's place in the grid.
struct Place {
  i64 group, chunk, pack, first, step, begin, end;
  int lane, slice, slices;
  bool active;

  __device__ Place(i64 rows, i64 packs, i64 chunks, int lanes) {
    lane = static_cast<int>(threadIdx.x) % lanes;
    slice = static_cast<int>(threadIdx.x) / lanes;
    slices = static_cast<int>(blockDim.x) / lanes;
    group = blockIdx.x / chunks;
    chunk = blockIdx.x % chunks;
    pack = static_cast<i64>(blockIdx.y) * lanes + lane;
    active = pack < packs;
    begin = rows * chunk / chunks + slice;
    end = rows * (chunk + 1) / chunks;
    first = (group * rows + begin) * packs + pack;  // in packs, of row `begin`
    step = slices * packs;                          // to the thread's next row
  }
};

// Mean and sum of squared differences from it, of each chunk and channel; writes x + addend where there is an
// addend. Each thread's sums are of differences from its own first value.
template <class Scalar, int width>
__global__ void norm_moments(const Pack<Scalar, width>* x, const Pack<Scalar, width>* addend,
                             Pack<Scalar, width>* sum, typename ComputeOf<Scalar>::type* chunk_means,
                             typename ComputeOf<Scalar>::type* chunk_squares, i64 rows, i64 packs, i64 chunks,
                             int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  __shared__ Compute means[256 * width];
  __shared__ Compute squares[256 * width];
  __shared__ int counts[256];
  const Place place(rows, packs, chunks, lanes);
  const int thread = static_cast<int>(threadIdx.x), own = thread * width;
  Compute shift[width], total[width], square[width];
  for (int k = 0; k < width; ++k) {
    shift[k] = total[k] = square[k] = 0;
  }
  int count = 0;
  i64 at = place.first;
  for (i64 row = place.begin; place.active && row < place.end; row += place.slices, at += place.step) {
    Pack<Scalar, width> values = x[at];
    if (addend != nullptr) {
      const Pack<Scalar, width> others = addend[at];
      for (int k = 0; k < width; ++k) {
        narrow(values.values[k], widen(values.values[k]) + widen(others.values[k]));
      }
      sum[at] = values;
    }
    for (int k = 0; k < width; ++k) {
      const Compute value = widen(values.values[k]);
      shift[k] = count == 0 ? value : shift[k];
      const Compute difference = value - shift[k];
      total[k] += difference;
      square[k] += difference * difference;
    }
    ++count;
  }
  counts[thread] = count;
  for (int k = 0; k < width; ++k) {
    const Compute mean = count == 0 ? static_cast<Compute>(0) : total[k] / static_cast<Compute>(count);
    means[own + k] = shift[k] + mean;
    squares[own + k] = square[k] - total[k] * mean;
  }
  __syncthreads();
  for (int rest = place.slices / 2; rest > 0; rest /= 2) {
    if (place.slice < rest) {
      const int other = thread + rest * lanes;
      const int mine = counts[thread], theirs = counts[other];
      if (theirs > 0) {
        const Compute share = static_cast<Compute>(theirs) / static_cast<Compute>(mine + theirs);
        for (int k = 0; k < width; ++k) {
          Compute& mean = means[own + k];
          const Compute difference = means[other * width + k] - mean;
          squares[own + k] +=
              squares[other * width + k] + difference * difference * static_cast<Compute>(mine) * share;
          mean += difference * share;
        }
        counts[thread] = mine + theirs;
      }
    }
    __syncthreads();
  }
  if (place.slice == 0 && place.active) {
    const i64 to = ((place.group * chunks + place.chunk) * packs + place.pack) * width;
    for (int k = 0; k < width; ++k) {
      chunk_means[to + k] = means[own + k];
      chunk_squares[to + k] = squares[own + k];
    }
  }
}

// The chunks' moments merged, for `items` = groups x channels: 32 items a block, blockDim.x / 32 threads each.
// The first group's mean and unbiased variance move the running ones by `share`, where they are given.
template <class Compute>
__global__ void norm_statistics(const Compute* chunk_means, const Compute* chunk_squares, Compute* mean_out,
                                Compute* invstd_out, Compute* unbiased_out, Compute* running_mean,
                                Compute* running_var, double share, i64 rows, i64 channels, i64 items,
                                i64 chunks, double eps) {
  __shared__ double sums[256];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int slice = static_cast<int>(threadIdx.x) / 32, slices = static_cast<int>(blockDim.x) / 32;
  const i64 item = static_cast<i64>(blockIdx.x) * 32 + lane;
  const i64 from = item / channels * chunks * channels + item % channels;
  double mean = 0, square = 0;
  for (int pass = 0; pass < 2; ++pass) {
    double part = 0;
    for (i64 chunk = slice; item < items && chunk < chunks; chunk += slices) {
      const i64 begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
      const double of_chunk = static_cast<double>(chunk_means[from + chunk * channels]);
      const double count = static_cast<double>(end - begin);
      part += pass == 0 ? count * of_chunk
                        : static_cast<double>(chunk_squares[from + chunk * channels]) +
                              count * (of_chunk - mean) * (of_chunk - mean);
    }
    __syncthreads();
    sums[threadIdx.x] = part;
    __syncthreads();
    double total = 0;
    for (int k = 0; k < slices; ++k) {
      total += sums[k * 32 + lane];
    }
    if (pass == 0) {
      mean = total / static_cast<double>(rows);
    } else {
      square = total;
    }
  }
  if (slice == 0 && item < items) {
    const double variance = square / static_cast<double>(rows);
    mean_out[item] = static_cast<Compute>(mean);
    invstd_out[item] = static_cast<Compute>(1 / sqrt(variance + eps));
    const double unbiased = square / static_cast<double>(rows - 1);
    unbiased_out[item] = static_cast<Compute>(unbiased);
    if (running_mean != nullptr && item < channels) {
      const double before = static_cast<double>(running_mean[item]);
      const double variance_before = static_cast<double>(running_var[item]);
      running_mean[item] = static_cast<Compute>((1 - share) * before + share * mean);
      running_var[item] = static_cast<Compute>((1 - share) * variance_before + share * unbiased);
    }
  }
}

// y = leaky(weight (x - mean) invstd + bias)
template <class Scalar, int width>
__global__ void norm_activate(Pack<Scalar, width>* y, const Pack<Scalar, width>* x,
                              const typename ComputeOf<Scalar>::type* mean,
                              const typename ComputeOf<Scalar>::type* invstd,
                              const typename ComputeOf<Scalar>::type* weight,
                              const typename ComputeOf<Scalar>::type* bias, double slope, i64 rows, i64 packs,
                              i64 chunks, int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const Place place(rows, packs, chunks, lanes);
  if (!place.active) {
    return;
  }
  Compute centre[width], factor[width], offset[width];
  for (int k = 0; k < width; ++k) {
    const i64 channel = place.pack * width + k, item = place.group * packs * width + channel;
    centre[k] = mean[item];
    factor[k] = invstd[item] * weight[channel];
    offset[k] = bias[channel];
  }
  i64 at = place.first;
  for (i64 row = place.begin; row < place.end; row += place.slices, at += place.step) {
    Pack<Scalar, width> values = x[at];
    for (int k = 0; k < width; ++k) {
      const Compute z = (widen(values.values[k]) - centre[k]) * factor[k] + offset[k];
      narrow(values.values[k], z > 0 ? z : z * static_cast<Compute>(slope));
    }
    y[at] = values;
  }
}

// Of each chunk and channel: the sums of dz = gradient of z, and of dz (x - mean) invstd.
template <class Scalar, int width>
__global__ void norm_gradient_sums(const Pack<Scalar, width>* grad_y, const Pack<Scalar, width>* x,
                                   const typename ComputeOf<Scalar>::type* mean,
                                   const typename ComputeOf<Scalar>::type* invstd,
                                   const typename ComputeOf<Scalar>::type* weight,
                                   const typename ComputeOf<Scalar>::type* bias,
                                   typename ComputeOf<Scalar>::type* chunk_sums,
                                   typename ComputeOf<Scalar>::type* chunk_products, double slope, i64 rows,
                                   i64 packs, i64 chunks, int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  __shared__ Compute sums[256 * width];
  __shared__ Compute products[256 * width];
  const Place place(rows, packs, chunks, lanes);
  const int thread = static_cast<int>(threadIdx.x), own = thread * width;
  Compute sum[width], product[width];
  for (int k = 0; k < width; ++k) {
    sum[k] = product[k] = 0;
  }
  if (place.active) {
    Compute centre[width], scale[width], factor[width], offset[width];
    for (int k = 0; k < width; ++k) {
      const i64 channel = place.pack * width + k, item = place.group * packs * width + channel;
      centre[k] = mean[item];
      scale[k] = invstd[item];
      factor[k] = invstd[item] * weight[channel];
      offset[k] = bias[channel];
    }
    i64 at = place.first;
    for (i64 row = place.begin; row < place.end; row += place.slices, at += place.step) {
      const Pack<Scalar, width> values = x[at], gradients = grad_y[at];
      for (int k = 0; k < width; ++k) {
        const Compute centred = widen(values.values[k]) - centre[k];
        const Compute z = centred * factor[k] + offset[k];
        const Compute gradient = widen(gradients.values[k]);
        const Compute dz = z > 0 ? gradient : gradient * static_cast<Compute>(slope);
        sum[k] += dz;
        product[k] += dz * (centred * scale[k]);
      }
    }
  }
  for (int k = 0; k < width; ++k) {
    sums[own + k] = sum[k];
    products[own + k] = product[k];
  }
  __syncthreads();
  for (int rest = place.slices / 2; rest > 0; rest /= 2) {
    if (place.slice < rest) {
      const int other = thread + rest * lanes;
      for (int k = 0; k < width; ++k) {
        sums[own + k] += sums[other * width + k];
        products[own + k] += products[other * width + k];
      }
    }
    __syncthreads();
  }
  if (place.slice == 0 && place.active) {
    const i64 to = ((place.group * chunks + place.chunk) * packs + place.pack) * width;
    for (int k = 0; k < width; ++k) {
      chunk_sums[to + k] = sums[own + k];
      chunk_products[to + k] = products[own + k];
    }
  }
}

// The chunks' sums added up: by group and channel, and over the groups, which are the gradients of bias and
// weight. 32 channels a block, blockDim.x / 32 threads each.
template <class Compute>
__global__ void norm_parameter_gradients(const Compute* chunk_sums, const Compute* chunk_products,
                                         Compute* group_sums, Compute* group_products, Compute* grad_bias,
                                         Compute* grad_weight, i64 channels, i64 groups, i64 chunks) {
  __shared__ double sums[256];
  __shared__ double products[256];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int slice = static_cast<int>(threadIdx.x) / 32, slices = static_cast<int>(blockDim.x) / 32;
  const i64 channel = static_cast<i64>(blockIdx.x) * 32 + lane;
  double all_sums = 0, all_products = 0;
  for (i64 group = 0; group < groups; ++group) {
    double sum = 0, product = 0;
    for (i64 chunk = slice; channel < channels && chunk < chunks; chunk += slices) {
      const i64 from = (group * chunks + chunk) * channels + channel;
      sum += static_cast<double>(chunk_sums[from]);
      product += static_cast<double>(chunk_products[from]);
    }
    __syncthreads();
    sums[threadIdx.x] = sum;
    products[threadIdx.x] = product;
    __syncthreads();
    sum = product = 0;
    for (int k = 0; k < slices; ++k) {
      sum += sums[k * 32 + lane];
      product += products[k * 32 + lane];
    }
    all_sums += sum;
    all_products += product;
    if (slice == 0 && channel < channels) {
      group_sums[group * channels + channel] = static_cast<Compute>(sum);
      group_products[group * channels + channel] = static_cast<Compute>(product);
    }
  }
  if (slice == 0 && channel < channels) {
    grad_bias[channel] = static_cast<Compute>(all_sums);
    grad_weight[channel] = static_cast<Compute>(all_products);
  }
}

// grad_x = weight invstd (dz - mean of dz - xhat mean of dz xhat) + grad_sum, xhat = (x - mean) invstd.
template <class Scalar, int width>
__global__ void norm_input_gradient(Pack<Scalar, width>* grad_x, const Pack<Scalar, width>* grad_y,
                                    const Pack<Scalar, width>* grad_sum, const Pack<Scalar, width>* x,
                                    const typename ComputeOf<Scalar>::type* mean,
                                    const typename ComputeOf<Scalar>::type* invstd,
                                    const typename ComputeOf<Scalar>::type* weight,
                                    const typename ComputeOf<Scalar>::type* bias,
                                    const typename ComputeOf<Scalar>::type* group_sums,
                                    const typename ComputeOf<Scalar>::type* group_products, double slope,
                                    i64 rows, i64 packs, i64 chunks, int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const Place place(rows, packs, chunks, lanes);
  if (!place.active) {
    return;
  }
  Compute centre[width], factor[width], offset[width], mean_dz[width], mean_product[width];
  for (int k = 0; k < width; ++k) {
    const i64 channel = place.pack * width + k, item = place.group * packs * width + channel;
    centre[k] = mean[item];
    factor[k] = invstd[item] * weight[channel];
    offset[k] = bias[channel];
    mean_dz[k] = group_sums[item] / static_cast<Compute>(rows);
    mean_product[k] = group_products[item] / static_cast<Compute>(rows) * invstd[item];
  }
  i64 at = place.first;
  for (i64 row = place.begin; row < place.end; row += place.slices, at += place.step) {
    const Pack<Scalar, width> values = x[at], gradients = grad_y[at];
    Pack<Scalar, width> result, rest;
    if (grad_sum != nullptr) {
      rest = grad_sum[at];
    }
    for (int k = 0; k < width; ++k) {
      const Compute centred = widen(values.values[k]) - centre[k];
      const Compute z = centred * factor[k] + offset[k];
      const Compute gradient = widen(gradients.values[k]);
      const Compute dz = z > 0 ? gradient : gradient * static_cast<Compute>(slope);
      Compute found = factor[k] * (dz - mean_dz[k] - centred * mean_product[k]);
      if (grad_sum != nullptr) {
        found += widen(rest.values[k]);
      }
      narrow(result.values[k], found);
    }
    grad_x[at] = result;
  }
}
)cuda"};

/// How a batch of channels-last images is cut up for the kernels: the same on every device, so that results
/// are.
struct NormGrid {
  int64_t rows, width, packs, chunks, lanes, groups;
  static constexpr int64_t threads = 256;

  NormGrid(int64_t total_rows, int64_t channels, int64_t num_groups, int64_t pack_width,
           int64_t block_threads = threads)
      : rows(total_rows / num_groups), width(pack_width), packs(channels / pack_width), groups(num_groups) {
    lanes = 1;
    while (lanes < packs && lanes < 32) {
      lanes *= 2;
    }
    const int64_t slices = block_threads / lanes;
    chunks = std::clamp<int64_t>(rows / (slices * 8), 1, 128);
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

struct CudaNormGradients {
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
        arguments..., grid.rows, grid.packs, grid.chunks, static_cast<int>(grid.lanes));
  }
  template <class... Arguments>
  void over_items(const char* kernel, int64_t items, Arguments... arguments) const {
    const char* compute = std::string(type_) == "double" ? "double" : "float";
    launch_cuda_kernel(cuda_norm_source, std::string(kernel) + "<" + compute + ">", device_,
                       {.blocks_x = (items + 31) / 32, .threads = NormGrid::threads}, arguments...);
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

inline void* norm_pointer(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

inline void check_norm(const char* function, const at::Tensor& x, const at::Tensor& like,
                       const at::Tensor& weight, const at::Tensor& bias, int64_t groups) {
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(groups >= 1 && x.size(0) % groups == 0, function, ": x must have a multiple of ", groups,
              " rows, one part a group, got ", x.sizes());
  TORCH_CHECK(!like.defined() || (like.sizes() == x.sizes() && like.scalar_type() == x.scalar_type() &&
                                  like.is_contiguous(at::MemoryFormat::ChannelsLast)),
              function, ": all images must be channels-last ", x.scalar_type(), " ", x.sizes(), ", got ",
              like.scalar_type(), " ", like.sizes(), " with strides ", like.strides());
  for (const at::Tensor* parameter : {&weight, &bias}) {
    TORCH_CHECK(parameter->sizes() == at::IntArrayRef{x.size(1)} && parameter->scalar_type() == compute &&
                    parameter->is_contiguous() && parameter->device() == x.device(),
                function, ": weight and bias must be contiguous ", compute, " [", x.size(1), "] on ",
                x.device(), ", got ", parameter->scalar_type(), " ", parameter->sizes(), " on ",
                parameter->device());
  }
}

/// Batch norm by groups of images, leaky ReLU after it and the addition before it:
///
///     s = x + addend,   y = leaky(weight (s - mean_g) / sqrt(var_g + eps) + bias)
///
/// mean_g and biased var_g over the images of each of `groups` equal parts of the batch, in float32 (float64
/// for float64). `addend` may be undefined. Only for what cuda_norm_supported() takes; two sweeps over
/// memory; the same bits at each call. Without gradient.
inline CudaNormOutput cuda_norm_forward(const at::Tensor& x, const at::Tensor& addend,
                                        const at::Tensor& weight, const at::Tensor& bias, int64_t groups,
                                        double eps, double slope, const at::Tensor& running_mean = {},
                                        const at::Tensor& running_var = {}, double share = 0.0) {
  check_norm("cuda_norm_forward", x, addend, weight, bias, groups);
  const at::NoGradGuard no_grad;
  const int64_t channels = x.size(1);
  CudaNormOutput out;
  out.y = at::empty_like(x);
  out.sum = addend.defined() ? at::empty_like(x) : x;
  const NormLaunch launch(groups, x, addend, out.y, out.sum);
  const auto options = weight.options().requires_grad(false);
  const at::Tensor chunks = at::empty({2, groups * launch.grid.chunks, channels}, options);
  const at::Tensor results = at::empty({3, groups, channels}, options);
  launch.over_images("norm_moments", norm_pointer(x), norm_pointer(addend), norm_pointer(out.sum),
                     norm_pointer(chunks[0]), norm_pointer(chunks[1]));
  out.mean = results[0];
  out.invstd = results[1];
  out.var_unbiased = results[2];
  launch.over_items("norm_statistics", groups * channels, norm_pointer(chunks[0]), norm_pointer(chunks[1]),
                    norm_pointer(out.mean), norm_pointer(out.invstd), norm_pointer(out.var_unbiased),
                    norm_pointer(running_mean), norm_pointer(running_var), share, launch.grid.rows, channels,
                    groups * channels, launch.grid.chunks, eps);
  launch.over_images("norm_activate", norm_pointer(out.y), norm_pointer(out.sum), norm_pointer(out.mean),
                     norm_pointer(out.invstd), norm_pointer(weight), norm_pointer(bias), slope);
  return out;
}

/// The gradients of cuda_norm_forward(): `sum`, `mean` and `invstd` are what it returned; `grad_sum`, the
/// gradient that arrives at the sum itself, may be undefined. Two sweeps over memory.
inline CudaNormGradients cuda_norm_backward(const at::Tensor& grad_y, const at::Tensor& grad_sum,
                                            const at::Tensor& sum, const at::Tensor& weight,
                                            const at::Tensor& bias, const at::Tensor& mean,
                                            const at::Tensor& invstd, int64_t groups, double slope) {
  check_norm("cuda_norm_backward", sum, grad_y, weight, bias, groups);
  check_norm("cuda_norm_backward", sum, grad_sum, weight, bias, groups);
  const at::NoGradGuard no_grad;
  const int64_t channels = sum.size(1);
  CudaNormGradients out;
  out.grad_x = at::empty_like(sum);
  const NormLaunch launch(groups, sum, grad_y, grad_sum, out.grad_x);
  const auto options = weight.options().requires_grad(false);
  const at::Tensor chunks = at::empty({2, groups * launch.grid.chunks, channels}, options);
  const at::Tensor group_sums = at::empty({2, groups, channels}, options);
  out.grad_weight = at::empty({channels}, options);
  out.grad_bias = at::empty({channels}, options);
  launch.over_images("norm_gradient_sums", norm_pointer(grad_y), norm_pointer(sum), norm_pointer(mean),
                     norm_pointer(invstd), norm_pointer(weight), norm_pointer(bias), norm_pointer(chunks[0]),
                     norm_pointer(chunks[1]), slope);
  launch.over_items("norm_parameter_gradients", channels, norm_pointer(chunks[0]), norm_pointer(chunks[1]),
                    norm_pointer(group_sums[0]), norm_pointer(group_sums[1]), norm_pointer(out.grad_bias),
                    norm_pointer(out.grad_weight), channels, groups, launch.grid.chunks);
  launch.over_images("norm_input_gradient", norm_pointer(out.grad_x), norm_pointer(grad_y),
                     norm_pointer(grad_sum), norm_pointer(sum), norm_pointer(mean), norm_pointer(invstd),
                     norm_pointer(weight), norm_pointer(bias), norm_pointer(group_sums[0]),
                     norm_pointer(group_sums[1]), slope);
  return out;
}

}  // namespace mixmatch::detail
