#pragma once

#include <mixmatch/detail/cuda/cuda_kernel.hpp>
#include <mixmatch/detail/shuffled_index.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

namespace mixmatch::detail {

inline constexpr CudaSource cuda_shuffle_source{"mixmatch_shuffle.cu", R"cuda(
// shuffled_index.hpp's function, word for word. `Index` is i64: kernels are templates.
template <class Index>
__device__ inline Index shuffled_index(Index index, Index size, u64 key) {
  const u64 golden = 0x9E3779B97F4A7C15ull;
  const u64 range = static_cast<u64>(size);
  u64 place = static_cast<u64>(index);
  for (int round = 0; round < 90; ++round) {
    const u64 first = key + 3 * static_cast<u64>(round) * golden;
    const u64 pivot = ((mix_bits(first) >> 32) * range) >> 32;
    u64 partner = pivot + range - place;
    partner = partner >= range ? partner - range : partner;
    const u64 larger = place > partner ? place : partner;
    const u64 hash = mix_bits(first + golden) * larger + mix_bits(first + 2 * golden);
    place = hash >> 63 != 0 ? partner : place;
  }
  return static_cast<Index>(place);
}

// An endless stream over `indices`, whose group g is from bounds[g] to bounds[g + 1], and where its batch goes: see
// BatchStream. group_bits are mix_bits(~seed + golden), seed_bits those of the seed itself.
struct RowStream {
  i64* out;
  const i64* indices;
  const i64* bounds;
  i64 groups, batch, rank, world_size;
  u64 group_bits, seed_bits;
};

// The rows of batch number *position of one stream, or of two, which then are a grid's two rows of blocks.
template <class Index>
__global__ void stream_rows(RowStream first, RowStream second, const Index* position) {
  const u64 golden = 0x9E3779B97F4A7C15ull;
  const RowStream stream = blockIdx.y == 0 ? first : second;
  const Index begin = (*position * stream.world_size + stream.rank) * stream.batch;
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < stream.batch; i += step) {
    const Index round = (begin + i) / stream.groups;
    const Index group =
        stream.groups == 1 ? 0
                           : shuffled_index((begin + i) % stream.groups, stream.groups,
                                            mix_bits(stream.group_bits + static_cast<u64>(round + 1) * golden));
    const Index start = stream.bounds[group], count = stream.bounds[group + 1] - start;
    const u64 key =
        mix_bits(stream.seed_bits + static_cast<u64>(round / count * stream.groups + group + 1) * golden);
    stream.out[i] = stream.indices[start + shuffled_index(round % count, count, key)];
  }
}

// The upper halves of CounterRng(seed, *step)'s first numbers; `seed_bits` is mix_bits(seed + golden).
template <class Index>
__global__ void counter_words(Index* out, const Index* step, Index count, u64 seed_bits) {
  const u64 state = counter_state(seed_bits, *step);
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    out[i] = counter_word(state, i);
  }
}

// The places of the numbers in ascending order, those of equal numbers in theirs: each thread counts what
// comes before its own. Blocks of at most 256 threads.
template <class Index>
__global__ void sorted_places(Index* places, const double* numbers, Index count) {
  __shared__ double tile[256];
  const Index own_place = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  const double own = own_place < count ? numbers[own_place] : 0;
  Index before = 0;
  for (Index start = 0; start < count; start += blockDim.x) {
    const Index size = count - start < static_cast<Index>(blockDim.x) ? count - start : static_cast<Index>(blockDim.x);
    __syncthreads();
    if (static_cast<Index>(threadIdx.x) < size) {
      tile[threadIdx.x] = numbers[start + threadIdx.x];
    }
    __syncthreads();
    for (Index k = 0; k < size; ++k) {
      before += tile[k] < own || (tile[k] == own && start + k < own_place) ? 1 : 0;
    }
  }
  if (own_place < count) {
    places[before] = own_place;
  }
}
)cuda"};

/// The kernel's RowStream. All memory is int64, of one CUDA device.
struct CudaRowStream {
  void *out, *indices, *bounds;
  int64_t groups, batch, rank, world_size;
  uint64_t group_bits, seed_bits;
};

/// Batch number `position`, int64 [], of one stream, or of two, in one kernel. Only after
/// cuda_kernels_available().
inline void launch_stream_rows(const CudaRowStream& first, const CudaRowStream* second,
                               const at::Tensor& position) {
  constexpr int64_t threads = 64;
  const int64_t longer = second == nullptr ? first.batch : std::max(first.batch, second->batch);
  launch_cuda_kernel(
      cuda_shuffle_source, "stream_rows<i64>", position.device(),
      {.blocks_x = cuda_blocks(longer, threads), .blocks_y = second == nullptr ? 1 : 2, .threads = threads},
      first, second == nullptr ? first : *second, position.data_ptr());
}

/// counter_words() in one kernel; false where it does not apply.
inline bool counter_words_on_cuda(at::Tensor& out, const at::Tensor& step, uint64_t seed_bits) {
  if (!has_cuda_memory(step) || !cuda_kernels_available(step.device())) {
    return false;
  }
  constexpr int64_t threads = 128;
  launch_cuda_kernel(cuda_shuffle_source, "counter_words<i64>", step.device(),
                     {.blocks_x = cuda_blocks(out.numel(), threads), .threads = threads}, out.data_ptr(),
                     step.data_ptr(), out.numel(), seed_bits);
  return true;
}

/// numbers.argsort(), stable, of float64 [N] without NaN, in one kernel whose work grows with N^2; false
/// where it does not apply.
inline bool sorted_places_on_cuda(at::Tensor& places, const at::Tensor& numbers) {
  if (!has_cuda_memory(numbers) || !cuda_kernels_available(numbers.device()) || numbers.numel() == 0 ||
      numbers.numel() > 8192) {
    return false;
  }
  constexpr int64_t threads = 64;  // rather many processors than large tiles
  launch_cuda_kernel(cuda_shuffle_source, "sorted_places<i64>", numbers.device(),
                     {.blocks_x = cuda_blocks(numbers.numel(), threads), .threads = threads},
                     places.data_ptr(), numbers.data_ptr(), numbers.numel());
  return true;
}

}  // namespace mixmatch::detail
