#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>
#include <mixmatch/detail/update_rule.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_optimizer_source{"mixmatch_optimizer.cu", R"cuda(
// What is common to the rules: decoupled decay of the elements that `is_kernel` marks, and the moving average
// (where `average` is given). What changes from step to step is read from the device. Each 64 elements have a
// factor on the learning rate (where `rate_factors` is given). Nothing is done where *apply is 0.
struct FlatNumbers {
  double decay, keep;
};

__device__ inline FlatNumbers flat_numbers(const double* learning_rate, const double* average_decay,
                                           double weight_decay) {
  FlatNumbers numbers;
  numbers.decay = *learning_rate * weight_decay;
  numbers.keep = average_decay != nullptr ? *average_decay : 1.0;
  return numbers;
}

template <class Scalar>
__device__ inline Scalar rate_factor(const Scalar* rate_factors, i64 i) {
  return rate_factors != nullptr ? rate_factors[i / 64] : static_cast<Scalar>(1);
}

template <class Scalar>
__device__ inline void finish_element(Scalar parameter, Scalar* parameters, Scalar* average, const u8* is_kernel,
                                      double decay, Scalar factor, Scalar keep, Scalar take, i64 i) {
  if (is_kernel[i] != 0) {
    parameter *= static_cast<Scalar>(1 - decay * factor);
  }
  parameters[i] = parameter;
  if (average != nullptr) {
    average[i] = keep == 0 ? parameter : keep * average[i] + take * parameter;  // 0: whatever the average holds
  }
}

template <class Scalar>
__global__ void adam_step(Scalar* parameters, const Scalar* gradients, Scalar* first_moment,
                          Scalar* second_moment, Scalar* average, const u8* is_kernel,
                          const Scalar* rate_factors, const i64* steps_done,
                          const double* learning_rate, const double* average_decay, const u8* apply,
                          double beta1, double beta2, double eps, double weight_decay, double l2, i64 size) {
  __shared__ double numbers[2];
  if (apply != nullptr && *apply == 0) {
    return;
  }
  if (threadIdx.x == 0) {
    const double step = static_cast<double>(*steps_done + 1);
    numbers[0] = *learning_rate / (1 - pow(beta1, step));
    numbers[1] = sqrt(1 - pow(beta2, step));
  }
  __syncthreads();
  const FlatNumbers flat = flat_numbers(learning_rate, average_decay, weight_decay);
  const Scalar step_size = static_cast<Scalar>(numbers[0]);
  const Scalar root_correction = static_cast<Scalar>(numbers[1]);
  const Scalar keep = static_cast<Scalar>(flat.keep), take = static_cast<Scalar>(1 - flat.keep);
  const Scalar keep1 = static_cast<Scalar>(beta1), take1 = static_cast<Scalar>(1 - beta1);
  const Scalar keep2 = static_cast<Scalar>(beta2), take2 = static_cast<Scalar>(1 - beta2);
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += stride) {
    Scalar gradient = gradients[i];
    if (l2 != 0 && is_kernel[i] != 0) {
      gradient += static_cast<Scalar>(l2) * parameters[i];
    }
    const Scalar first = keep1 * first_moment[i] + take1 * gradient;
    const Scalar second = keep2 * second_moment[i] + take2 * gradient * gradient;
    first_moment[i] = first;
    second_moment[i] = second;
    const Scalar root = square_root(second) / root_correction + static_cast<Scalar>(eps);
    const Scalar factor = rate_factor(rate_factors, i);
    finish_element(parameters[i] - step_size * factor * first / root, parameters, average, is_kernel, flat.decay,
                   factor, keep, take, i);
  }
}

template <class Scalar>
__global__ void sgd_step(Scalar* parameters, const Scalar* gradients, Scalar* first_moment, Scalar* average,
                         const u8* is_kernel, const Scalar* rate_factors, const double* learning_rate,
                         const double* average_decay,
                         const u8* apply, double momentum, i64 nesterov, double weight_decay, double l2, i64 size) {
  if (apply != nullptr && *apply == 0) {
    return;
  }
  const FlatNumbers flat = flat_numbers(learning_rate, average_decay, weight_decay);
  const Scalar rate = static_cast<Scalar>(*learning_rate), kept = static_cast<Scalar>(momentum);
  const Scalar keep = static_cast<Scalar>(flat.keep), take = static_cast<Scalar>(1 - flat.keep);
  const i64 stride = static_cast<i64>(gridDim.x) * blockDim.x;
  for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += stride) {
    Scalar gradient = gradients[i];
    if (l2 != 0 && is_kernel[i] != 0) {
      gradient += static_cast<Scalar>(l2) * parameters[i];
    }
    const Scalar first = kept * first_moment[i] + gradient;
    first_moment[i] = first;
    const Scalar move = nesterov != 0 ? gradient + kept * first : first;
    const Scalar factor = rate_factor(rate_factors, i);
    finish_element(parameters[i] - rate * factor * move, parameters, average, is_kernel, flat.decay, factor, keep,
                   take, i);
  }
}

// Gradients as a backward pass leaves them, each dense and in its parameter's order of elements. Number k is
// for the elements of the block from 64 * start[k] on, has `size` elements (0: none was given), and ends
// where the next begins; start[count] is the end of the last.
struct GradientTable {
  const void* from[128];
  u32 start[129];
  u32 size[128];
  u8 type[128];  // 0: the block's own, 1: BFloat16, 2: Half
};

template <class From, class Scalar>
__device__ inline void load_four(Pack<Scalar, 4>& to, const void* memory, i64 place, i64 rest) {
  const From* from = static_cast<const From*>(memory) + place;
  Pack<From, 4> read;
  if (rest >= 4) {
    read = *reinterpret_cast<const Pack<From, 4>*>(from);
  } else {
    for (int k = 0; k < 4; ++k) {
      read.values[k] = k < rest ? from[k] : From();
    }
  }
  for (int k = 0; k < 4; ++k) {
    to.values[k] = static_cast<Scalar>(widen(read.values[k]));
  }
}

// All of them into the block, with zeros where there is nothing; not_finite[b] tells whether block b met a
// number that is not finite. A thread has four elements, which lie in one parameter.
template <class Scalar>
__global__ void gather_gradients(Scalar* block, u8* not_finite, GradientTable gradients, i64 count) {
  __shared__ int bad;
  if (threadIdx.x == 0) {
    bad = 0;
  }
  __syncthreads();
  const i64 end = 64 * static_cast<i64>(gradients.start[count]);
  const i64 first = 64 * static_cast<i64>(gradients.start[0]) +
                    4 * (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x);
  if (first < end) {
    i64 low = 0, high = count;
    while (high - low > 1) {
      const i64 middle = (low + high) / 2;
      (64 * static_cast<i64>(gradients.start[middle]) <= first ? low : high) = middle;
    }
    const i64 place = first - 64 * static_cast<i64>(gradients.start[low]);
    const i64 rest = static_cast<i64>(gradients.size[low]) - place;
    Pack<Scalar, 4> values;
    if (rest <= 0 || gradients.type[low] == 0) {
      load_four<Scalar>(values, gradients.from[low], place, rest);
    } else if (gradients.type[low] == 1) {
      load_four<BFloat16>(values, gradients.from[low], place, rest);
    } else {
      load_four<Half>(values, gradients.from[low], place, rest);
    }
    bool finite = true;
    for (int k = 0; k < 4; ++k) {
      finite = finite && values.values[k] - values.values[k] == 0;
    }
    if (!finite) {
      atomicMax(&bad, 1);
    }
    *reinterpret_cast<Pack<Scalar, 4>*>(block + first) = values;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    not_finite[blockIdx.x] = static_cast<u8>(bad);
  }
}

// One block: whether all gradients are finite, and so whether the step counts; the steps before it; and the
// decay of the moving average, min(limit, (1 + n) / (10 + n)) where it warms up.
template <class Number>
__global__ void begin_step(const u8* not_finite, i64 blocks, u8* apply, i64* steps, i64* steps_before, i64* updates,
                           Number* average_decay, Number limit, i64 warms_up) {
  __shared__ Number scratch[256];
  Number bad = 0;
  for (i64 i = threadIdx.x; i < blocks; i += blockDim.x) {
    bad = larger_of(bad, static_cast<Number>(not_finite[i]));
  }
  bad = reduce_block<true>(bad, scratch);
  if (threadIdx.x == 0) {
    const i64 counts = bad == 0 ? 1 : 0;
    *apply = static_cast<u8>(counts);
    *steps_before = *steps;
    *steps += counts;
    if (updates != nullptr) {
      const Number n = static_cast<Number>(*updates);
      const Number warm = (n + 1) / (n + 10);
      *average_decay = warms_up != 0 && warm < limit ? warm : limit;
      *updates += counts;
    }
  }
}
)cuda"};

/// The kernels' GradientTable.
struct CudaGradientTable {
  static constexpr int64_t capacity = 128;
  const void* from[capacity];
  uint32_t start[capacity + 1];
  uint32_t size[capacity];
  uint8_t type[capacity];
};

/// A gradient and its place in the block, from `offset` to `offset` + `room`, multiples of 64.
struct GradientPiece {
  at::Tensor gradient;  ///< of the block's dtype, bfloat16 or half; undefined: zeros
  int64_t offset, room;
};

/// Whether gather_gradients() reads the tensor where it lies, as numel() elements that follow each other.
inline bool can_gather(const at::Tensor& gradient, const at::Tensor& block) {
  const auto type = gradient.scalar_type();
  const auto alignment = 4 * static_cast<std::uintptr_t>(gradient.element_size());
  return (type == block.scalar_type() || type == at::kBFloat16 || type == at::kHalf) &&
         gradient.device() == block.device() && has_cuda_memory(gradient) &&
         gradient.is_non_overlapping_and_dense() &&
         reinterpret_cast<std::uintptr_t>(gradient.data_ptr()) % alignment == 0;
}

/// The gradients, which can_gather(), into their block: float32 or float64 [P], whose pieces follow each
/// other from its start. Returns uint8 [blocks]: 1 where one was not finite.
inline at::Tensor gather_gradients_on_cuda(at::Tensor& block, const std::vector<GradientPiece>& pieces) {
  constexpr int64_t threads = 256, capacity = CudaGradientTable::capacity;
  struct Launch {
    CudaGradientTable table;
    int64_t count, blocks;
  };
  std::vector<Launch> launches;
  int64_t blocks = 0;
  for (size_t first = 0; first < pieces.size(); first += capacity) {
    Launch launch{};
    launch.count = std::min<int64_t>(capacity, static_cast<int64_t>(pieces.size() - first));
    for (int64_t k = 0; k < launch.count; ++k) {
      const auto& piece = pieces[first + static_cast<size_t>(k)];
      TORCH_CHECK(piece.room <= int64_t{UINT32_MAX},
                  "mixmatch: a parameter must have less than 2^32 elements");
      launch.table.start[k] = static_cast<uint32_t>(piece.offset / 64);
      launch.table.start[k + 1] = static_cast<uint32_t>((piece.offset + piece.room) / 64);
      if (piece.gradient.defined()) {
        const auto type = piece.gradient.scalar_type();
        launch.table.from[k] = piece.gradient.data_ptr();
        launch.table.size[k] = static_cast<uint32_t>(piece.gradient.numel());
        launch.table.type[k] = type == block.scalar_type() ? 0 : type == at::kBFloat16 ? 1 : 2;
      }
    }
    const int64_t groups = launch.table.start[launch.count] - launch.table.start[0];
    launch.blocks = (64 * groups + 4 * threads - 1) / (4 * threads);
    blocks += launch.blocks;
    launches.push_back(launch);
  }
  const at::Tensor not_finite = at::empty({blocks}, block.options().dtype(at::kByte));
  auto* flags = not_finite.data_ptr<uint8_t>();
  for (const auto& launch : launches) {
    if (launch.blocks > 0) {
      launch_cuda_kernel(cuda_optimizer_source,
                         std::string("gather_gradients<") + cuda_type_name(block.scalar_type()) + ">",
                         block.device(), {.blocks_x = launch.blocks, .threads = threads}, block.data_ptr(),
                         flags, launch.table, launch.count);
    }
    flags += launch.blocks;
  }
  return not_finite;
}

/// All parameters of a model, one after the other: [P], contiguous, float32 or float64, of one device.
struct FlatParameters {
  at::Tensor parameters, gradients, first_moment;
  at::Tensor second_moment;  ///< Adam's; undefined with SGD
  at::Tensor average;        ///< of the parameters; may be undefined
  at::Tensor is_kernel;      ///< bool [P]: what weight decay shrinks
  at::Tensor rate_factors;   ///< [P / 64], of the parameters' dtype: on the learning rate; may be undefined
};

/// What a step may change without a new graph: 0-dimensional, on the parameters' device.
struct FlatScalars {
  at::Tensor steps_done;     ///< int64, before this step
  at::Tensor learning_rate;  ///< float64
  at::Tensor average_decay;  ///< float64; may be undefined without an average
  at::Tensor apply;          ///< bool: false leaves everything as it is; may be undefined
};

struct FlatConstants {
  UpdateRule rule;
  double weight_decay = 0;  ///< kernels shrink by 1 - learning rate * weight_decay
  double l2 = 0;            ///< joins the gradient of kernels
};

/// What begin_step() moves: 0-dimensional, on one device. `updates` and `average_decay` are of a moving
/// average, undefined without one.
struct StepCounters {
  at::Tensor apply;                   ///< bool
  at::Tensor steps, steps_before;     ///< int64
  at::Tensor updates, average_decay;  ///< int64, float64
};

/// Counts a step, if all gradients are finite, by what gather_gradients_on_cuda() returned, and sets
/// the average's decay, min(limit, (1 + n) / (10 + n)) where it warms up.
inline void begin_step_on_cuda(const at::Tensor& not_finite, const StepCounters& counters, double limit,
                               bool warms_up) {
  launch_cuda_kernel(cuda_optimizer_source, "begin_step<double>", not_finite.device(), {.threads = 256},
                     not_finite.data_ptr(), not_finite.numel(), counters.apply.data_ptr(),
                     counters.steps.data_ptr(), counters.steps_before.data_ptr(),
                     data_or_null(counters.updates), data_or_null(counters.average_decay), limit,
                     static_cast<int64_t>(warms_up));
}

/// flat_step_() in ATen's calls.
inline void flat_step_composite_(const FlatParameters& flat, const FlatScalars& scalars,
                                 const FlatConstants& constants) {
  const auto type = flat.parameters.scalar_type();
  const auto assign = [&](const at::Tensor& target, const at::Tensor& value) {
    target.copy_(scalars.apply.defined() ? at::where(scalars.apply, value, target) : value);
  };
  const at::Tensor gradients =
      constants.l2 == 0
          ? flat.gradients
          : at::where(flat.is_kernel, flat.gradients + flat.parameters * constants.l2, flat.gradients);
  // Undefined factors are 1, without a multiplication.
  const at::Tensor factors = flat.rate_factors.defined()
                                 ? flat.rate_factors.unsqueeze(1).expand({-1, 64}).reshape({-1})
                                 : at::Tensor();
  const auto scaled = [&](const at::Tensor& rate) { return factors.defined() ? rate * factors : rate; };
  at::Tensor moved, first;
  if (const auto* adam = std::get_if<AdamRule>(&constants.rule)) {
    const at::Tensor step = (scalars.steps_done + 1).to(at::kDouble);
    const auto correction = [&](double beta) { return 1 - at::pow(at::Scalar(beta), step); };
    const at::Tensor step_size = (scalars.learning_rate / correction(adam->beta1)).to(type);
    const at::Tensor root_correction = correction(adam->beta2).sqrt().to(type);
    first = flat.first_moment * adam->beta1 + gradients * (1 - adam->beta1);
    const at::Tensor second = flat.second_moment * adam->beta2 + gradients * gradients * (1 - adam->beta2);
    const at::Tensor root = second.sqrt().div_(root_correction).add_(adam->eps);
    moved = flat.parameters - scaled(step_size) * first / root;
    assign(flat.second_moment, second);
  } else {
    const auto& sgd = std::get<SgdRule>(constants.rule);
    first = flat.first_moment * sgd.momentum + gradients;
    const at::Tensor move = sgd.nesterov ? gradients + first * sgd.momentum : first;
    moved = flat.parameters - scaled(scalars.learning_rate.to(type)) * move;
  }
  const at::Tensor shrink = (1 - scaled(scalars.learning_rate * constants.weight_decay)).to(type);
  const at::Tensor parameters = at::where(flat.is_kernel, moved * shrink, moved);
  if (flat.average.defined()) {
    const at::Tensor keep = scalars.average_decay.to(type);
    const at::Tensor take = (1 - scalars.average_decay).to(type);
    const at::Tensor average = flat.average * keep + parameters * take;
    assign(flat.average, at::where(keep == 0, parameters, average));  // 0: whatever the average holds
  }
  assign(flat.parameters, parameters);
  assign(flat.first_moment, first);
}

/// One step of the rule, t = steps_done + 1, with l2 w in the gradient where is_kernel, then decoupled weight
/// decay and the moving average, in the papers' order:
///
///     w <- w (1 - lr weight_decay)    where is_kernel; lr includes the rate factor
///     average <- average_decay average + (1 - average_decay) w
///
/// In place, without gradient, in one kernel on CUDA. Nothing waits for the device; steps_done is not moved.
inline void flat_step_(const FlatParameters& flat, const FlatScalars& scalars,
                       const FlatConstants& constants) {
  const at::NoGradGuard no_grad;
  const at::Tensor& parameters = flat.parameters;
  const auto type = parameters.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble,
              "flat_step_: parameters must be float32 or float64, got ", type);
  for (const at::Tensor* tensor : {&flat.gradients, &flat.first_moment, &flat.second_moment, &flat.average}) {
    const bool optional = tensor == &flat.average || tensor == &flat.second_moment;
    TORCH_CHECK((!tensor->defined() && optional) ||
                    (tensor->sizes() == parameters.sizes() && tensor->scalar_type() == type &&
                     tensor->device() == parameters.device() && tensor->is_contiguous()),
                "flat_step_: all tensors must be contiguous ", type, " ", parameters.sizes(), " on ",
                parameters.device(), ", got ", tensor->scalar_type(), " ", tensor->sizes(), " on ",
                tensor->device());
  }
  if (!has_cuda_memory(parameters) || !cuda_kernels_available(parameters.device())) {
    flat_step_composite_(flat, scalars, constants);
    return;
  }
  if (parameters.numel() == 0) {
    return;
  }
  constexpr int64_t threads = 256;
  // About as many blocks as run at once: each begins with numbers that it waits for and, of Adam, two powers.
  constexpr int64_t most = 768;
  const CudaGrid launch{.blocks_x = cuda_blocks(parameters.numel(), threads, most), .threads = threads};
  const std::string scalar = std::string("<") + cuda_type_name(type) + ">";
  if (const auto* adam = std::get_if<AdamRule>(&constants.rule)) {
    launch_cuda_kernel(
        cuda_optimizer_source, "adam_step" + scalar, parameters.device(), launch, data_or_null(parameters),
        data_or_null(flat.gradients), data_or_null(flat.first_moment), data_or_null(flat.second_moment),
        data_or_null(flat.average), data_or_null(flat.is_kernel), data_or_null(flat.rate_factors),
        data_or_null(scalars.steps_done), data_or_null(scalars.learning_rate),
        data_or_null(scalars.average_decay), data_or_null(scalars.apply), adam->beta1, adam->beta2, adam->eps,
        constants.weight_decay, constants.l2, parameters.numel());
  } else {
    const auto& sgd = std::get<SgdRule>(constants.rule);
    launch_cuda_kernel(
        cuda_optimizer_source, "sgd_step" + scalar, parameters.device(), launch, data_or_null(parameters),
        data_or_null(flat.gradients), data_or_null(flat.first_moment), data_or_null(flat.average),
        data_or_null(flat.is_kernel), data_or_null(flat.rate_factors), data_or_null(scalars.learning_rate),
        data_or_null(scalars.average_decay), data_or_null(scalars.apply), sgd.momentum,
        static_cast<int64_t>(sgd.nesterov), constants.weight_decay, constants.l2, parameters.numel());
  }
}

}  // namespace mixmatch::detail
