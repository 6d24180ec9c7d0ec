#pragma once

#include <mixmatch/detail/cuda/cuda_compiler.hpp>

namespace mixmatch::detail {

// The kernels over images share one grid. Images are rows of channels; a group has `rows` rows, cut into
// `chunks` of `span` rows, the last of fewer. Blocks along x are (group, chunk), blocks along y are tiles of
// `lanes` packs of channels. In a block, thread slice * lanes + lane runs over the chunk's rows slice,
// slice + slices, … for one pack, some rows at a time so that their loads do not wait for each other. The
// kernels over items, which are channels, have `lanes` items a block and spread an item's chunks over the
// slices. No atomics: chunks write partial results, which one block merges, and all sums are in one order.
inline constexpr CudaSource cuda_norm_source{"mixmatch_norm.cu", R"cuda(
// A thread's place in the grid of a kernel over images.
struct Place {
  i64 group, chunk, tile, pack, first, step, begin, end;
  int lane, slice, slices;
  bool active;

  __device__ Place(i64 rows, i64 packs, i64 span, i64 chunks, int lanes) {
    lane = static_cast<int>(threadIdx.x) % lanes;
    slice = static_cast<int>(threadIdx.x) / lanes;
    slices = static_cast<int>(blockDim.x) / lanes;
    group = blockIdx.x / static_cast<u32>(chunks);
    chunk = blockIdx.x % static_cast<u32>(chunks);
    tile = static_cast<i64>(blockIdx.y) * lanes;  // its first pack
    pack = tile + lane;
    active = pack < packs;
    begin = chunk * span + slice;
    end = (chunk + 1) * span < rows ? (chunk + 1) * span : rows;
    first = (group * rows + begin) * packs + pack;  // in packs, of row `begin`
    step = slices * packs;                          // to the thread's next row
  }
};

// The sums of `values` numbers of each thread over the block's slices: value v of a lane is then at
// scratch[v * (blockDim.x + lanes) + lane] for every thread. `values`, `lanes` and blockDim.x are powers of
// two; the lanes between the values' rows keep a warp's accesses in different banks. All threads must call it.
template <int values, class Compute>
__device__ inline void sum_slices(const Compute* own, Compute* scratch, int lanes) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int row = threads + lanes, outputs = values * lanes;
  const int parts = threads > outputs ? threads / outputs : 1;  // of a lane's slices, for a thread each
  const int each = threads / lanes / parts;
  for (int v = 0; v < values; ++v) {
    scratch[v * row + thread] = own[v];
  }
  __syncthreads();
  for (int i = thread; i < outputs * parts; i += threads) {
    Compute* from = scratch + i / lanes % values * row + i / outputs * each * lanes + i % lanes;
    Compute sum = from[0];
    if (each == values) {
      for (int k = 1; k < values; ++k) {
        sum += from[k * lanes];
      }
    } else {
      for (int k = 1; k < each; ++k) {
        sum += from[k * lanes];
      }
    }
    from[0] = sum;
  }
  __syncthreads();
  for (int rest = parts / 2; rest > 0; rest /= 2) {
    if (thread < outputs * rest) {
      Compute* to = scratch + thread / lanes % values * row + thread / outputs * each * lanes + thread % lanes;
      to[0] += to[rest * each * lanes];
    }
    __syncthreads();
  }
}

// x + addend as it is stored, where there is an addend.
template <class Scalar, int width>
__device__ inline void add_pack(Pack<Scalar, width>& x, const Pack<Scalar, width>& addend) {
  for (int k = 0; k < width; ++k) {
    narrow(x.values[k], widen(x.values[k]) + widen(addend.values[k]));
  }
}

// Of `count` rows.
template <int count, class Scalar, int width, class Compute>
__device__ inline void add_moments(const Pack<Scalar, width>* __restrict__ x,
                                   const Pack<Scalar, width>* __restrict__ addend,
                                   Pack<Scalar, width>* __restrict__ sum, i64 at, i64 step,
                                   const Compute* shift, Compute* totals) {
  Pack<Scalar, width> values[count], others[count];
  for (int i = 0; i < count; ++i) {
    values[i] = x[at + i * step];
  }
  if (addend != nullptr) {
    for (int i = 0; i < count; ++i) {
      others[i] = addend[at + i * step];
    }
    for (int i = 0; i < count; ++i) {
      add_pack(values[i], others[i]);
      sum[at + i * step] = values[i];
    }
  }
  for (int i = 0; i < count; ++i) {
    for (int k = 0; k < width; ++k) {
      const Compute difference = widen(values[i].values[k]) - shift[k];
      totals[k] += difference;
      totals[width + k] += difference * difference;
    }
  }
}

// Mean and sum of squared differences from it, of each chunk and channel; writes x + addend where there is an
// addend. The sums are of differences from the chunk's first row.
template <class Scalar, int width>
__global__ void norm_moments(const Pack<Scalar, width>* __restrict__ x,
                             const Pack<Scalar, width>* __restrict__ addend,
                             Pack<Scalar, width>* __restrict__ sum,
                             typename ComputeOf<Scalar>::type* __restrict__ chunk_means,
                             typename ComputeOf<Scalar>::type* __restrict__ chunk_squares, i64 rows, i64 packs,
                             i64 span, i64 chunks, int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  __shared__ Compute scratch[2 * width * (256 + 32)];
  __shared__ Compute shifts[32 * width];
  const Place place(rows, packs, span, chunks, lanes);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  Compute shift[width], totals[2 * width];
  for (int k = 0; k < width; ++k) {
    shift[k] = totals[k] = totals[width + k] = 0;
  }
  if (place.active) {
    const i64 first = place.first - place.slice * packs;
    Pack<Scalar, width> values = x[first];
    if (addend != nullptr) {
      add_pack(values, addend[first]);
    }
    for (int k = 0; k < width; ++k) {
      shift[k] = widen(values.values[k]);
    }
    if (place.slice == 0) {
      for (int k = 0; k < width; ++k) {
        shifts[place.lane * width + k] = shift[k];
      }
    }
    i64 at = place.first, row = place.begin;
    for (; row + 3 * place.slices < place.end; row += 4 * place.slices, at += 4 * place.step) {
      add_moments<4>(x, addend, sum, at, place.step, shift, totals);
    }
    for (; row < place.end; row += place.slices, at += place.step) {
      add_moments<1>(x, addend, sum, at, place.step, shift, totals);
    }
  }
  sum_slices<2 * width>(totals, scratch, lanes);
  const i64 to = ((place.group * chunks + place.chunk) * packs + place.tile) * width;
  const Compute count = static_cast<Compute>(place.end - place.chunk * span);
  for (int i = thread; i < lanes * width && place.tile * width + i < packs * width; i += threads) {
    const int from = i % width * (threads + lanes) + i / width;
    const Compute total = scratch[from], mean = total / count;
    chunk_means[to + i] = shifts[i] + mean;
    const Compute square = scratch[from + width * (threads + lanes)] - total * mean;
    chunk_squares[to + i] = square < 0 ? static_cast<Compute>(0) : square;
  }
}

// The chunks' moments merged, for `items` = groups x channels. The first group's mean and unbiased variance
// move the running ones by `share`, where they are given.
template <class Compute>
__global__ void norm_statistics(const Compute* __restrict__ chunk_means,
                                const Compute* __restrict__ chunk_squares, Compute* __restrict__ mean_out,
                                Compute* __restrict__ invstd_out, Compute* __restrict__ unbiased_out,
                                Compute* running_mean, Compute* running_var, double share, double eps,
                                i64 rows, i64 channels, i64 items, i64 span, i64 chunks, int lanes) {
  __shared__ double scratch[2 * (512 + 32)];
  const int lane = static_cast<int>(threadIdx.x) % lanes, slice = static_cast<int>(threadIdx.x) / lanes;
  const int slices = static_cast<int>(blockDim.x) / lanes;
  const i64 item = static_cast<i64>(blockIdx.x) * lanes + lane;
  const bool active = item < items;
  double shift = 0, own[2] = {0, 0};
  if (active) {
    const i64 group = static_cast<u32>(item) / static_cast<u32>(channels);
    const i64 from = group * chunks * channels + (item - group * channels);
    shift = static_cast<double>(chunk_means[from]);
    for (i64 chunk = slice; chunk < chunks; chunk += 4 * slices) {
      Compute means[4], squares[4];
      for (int j = 0; j < 4; ++j) {
        const i64 at = chunk + j * slices;
        means[j] = at < chunks ? chunk_means[from + at * channels] : static_cast<Compute>(0);
        squares[j] = at < chunks ? chunk_squares[from + at * channels] : static_cast<Compute>(0);
      }
      for (int j = 0; j < 4; ++j) {
        const i64 left = rows - (chunk + j * slices) * span;
        const double count = static_cast<double>(left < 0 ? 0 : left < span ? left : span);
        const double difference = static_cast<double>(means[j]) - shift;
        own[0] += count * difference;
        own[1] += static_cast<double>(squares[j]) + count * difference * difference;
      }
    }
  }
  // Read before the sums are there, as nothing of them is needed for it.
  const bool writes = slice == 0 && active, moves = writes && running_mean != nullptr && item < channels;
  const double mean_before = moves ? static_cast<double>(running_mean[item]) : 0;
  const double variance_before = moves ? static_cast<double>(running_var[item]) : 0;
  const double of_row = 1 / static_cast<double>(rows), of_unbiased = 1 / static_cast<double>(rows - 1);
  sum_slices<2>(own, scratch, lanes);
  if (writes) {
    const double total = scratch[lane], mean = shift + total * of_row;
    const double square = scratch[static_cast<int>(blockDim.x) + lanes + lane] - total * (total * of_row);
    const double unbiased = square * of_unbiased;
    mean_out[item] = static_cast<Compute>(mean);
    invstd_out[item] = static_cast<Compute>(1 / sqrt(square * of_row + eps));
    unbiased_out[item] = static_cast<Compute>(unbiased);
    if (moves) {
      running_mean[item] = static_cast<Compute>((1 - share) * mean_before + share * mean);
      running_var[item] = static_cast<Compute>((1 - share) * variance_before + share * unbiased);
    }
  }
}

// A number of each of a pack's channels, 16 bytes at a time where memory is aligned for it.
template <int width, class Compute>
__device__ inline void load_channels(Compute* to, const Compute* __restrict__ from) {
  const int wide = 16 / static_cast<int>(sizeof(Compute));
  if (width % wide == 0 && reinterpret_cast<u64>(from) % 16 == 0) {
    for (int k = 0; k < width / wide; ++k) {
      const Pack<Compute, wide> loaded = reinterpret_cast<const Pack<Compute, wide>*>(from)[k];
      for (int j = 0; j < wide; ++j) {
        to[k * wide + j] = loaded.values[j];
      }
    }
  } else {
    for (int k = 0; k < width; ++k) {
      to[k] = from[k];
    }
  }
}

// What a thread's pack of channels needs for z = weight (x - mean) invstd + bias.
template <int width, class Compute>
struct Affine {
  Compute centre[width], invstd[width], factor[width], offset[width];

  __device__ Affine(const Compute* mean, const Compute* inverse, const Compute* weight, const Compute* bias,
                    const Place& place, i64 packs) {
    const i64 channel = place.pack * width, item = place.group * packs * width + channel;
    load_channels<width>(centre, mean + item);
    load_channels<width>(invstd, inverse + item);
    load_channels<width>(factor, weight + channel);
    load_channels<width>(offset, bias + channel);
    for (int k = 0; k < width; ++k) {
      factor[k] *= invstd[k];
    }
  }
};

// Of `count` rows.
template <int count, class Scalar, int width, class Compute>
__device__ inline void activate(Pack<Scalar, width>* __restrict__ y, const Pack<Scalar, width>* __restrict__ x,
                                i64 at, i64 step, const Affine<width, Compute>& affine, Compute slope) {
  Pack<Scalar, width> values[count];
  for (int i = 0; i < count; ++i) {
    values[i] = x[at + i * step];
  }
  for (int i = 0; i < count; ++i) {
    for (int k = 0; k < width; ++k) {
      const Compute z =
          (widen(values[i].values[k]) - affine.centre[k]) * affine.factor[k] + affine.offset[k];
      narrow(values[i].values[k], z > 0 ? z : z * slope);
    }
    y[at + i * step] = values[i];
  }
}

// y = leaky(weight (x - mean) invstd + bias)
template <class Scalar, int width>
__global__ void norm_activate(Pack<Scalar, width>* __restrict__ y, const Pack<Scalar, width>* __restrict__ x,
                              const typename ComputeOf<Scalar>::type* __restrict__ mean,
                              const typename ComputeOf<Scalar>::type* __restrict__ invstd,
                              const typename ComputeOf<Scalar>::type* __restrict__ weight,
                              const typename ComputeOf<Scalar>::type* __restrict__ bias, double slope, i64 rows,
                              i64 packs, i64 span, i64 chunks, int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const Place place(rows, packs, span, chunks, lanes);
  if (!place.active) {
    return;
  }
  const Affine<width, Compute> affine(mean, invstd, weight, bias, place, packs);
  i64 at = place.first, row = place.begin;
  for (; row + 3 * place.slices < place.end; row += 4 * place.slices, at += 4 * place.step) {
    activate<4>(y, x, at, place.step, affine, static_cast<Compute>(slope));
  }
  for (; row < place.end; row += place.slices, at += place.step) {
    activate<1>(y, x, at, place.step, affine, static_cast<Compute>(slope));
  }
}

// Of `count` rows.
template <int count, class Scalar, int width, class Compute>
__device__ inline void add_gradients(const Pack<Scalar, width>* __restrict__ grad_y,
                                     const Pack<Scalar, width>* __restrict__ x, i64 at, i64 step,
                                     const Affine<width, Compute>& affine, Compute slope, Compute* totals) {
  Pack<Scalar, width> values[count], gradients[count];
  for (int i = 0; i < count; ++i) {
    values[i] = x[at + i * step];
    gradients[i] = grad_y[at + i * step];
  }
  for (int i = 0; i < count; ++i) {
    for (int k = 0; k < width; ++k) {
      const Compute centred = widen(values[i].values[k]) - affine.centre[k];
      const Compute z = centred * affine.factor[k] + affine.offset[k];
      const Compute gradient = widen(gradients[i].values[k]);
      const Compute dz = z > 0 ? gradient : gradient * slope;
      totals[k] += dz;
      totals[width + k] += dz * centred;
    }
  }
}

// Of each chunk and channel: the sums of dz = gradient of z, and of dz (x - mean) invstd.
template <class Scalar, int width>
__global__ void norm_gradient_sums(const Pack<Scalar, width>* __restrict__ grad_y,
                                   const Pack<Scalar, width>* __restrict__ x,
                                   const typename ComputeOf<Scalar>::type* __restrict__ mean,
                                   const typename ComputeOf<Scalar>::type* __restrict__ invstd,
                                   const typename ComputeOf<Scalar>::type* __restrict__ weight,
                                   const typename ComputeOf<Scalar>::type* __restrict__ bias,
                                   typename ComputeOf<Scalar>::type* __restrict__ chunk_sums,
                                   typename ComputeOf<Scalar>::type* __restrict__ chunk_products, double slope,
                                   i64 rows, i64 packs, i64 span, i64 chunks, int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  __shared__ Compute scratch[2 * width * (256 + 32)];
  const Place place(rows, packs, span, chunks, lanes);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  Compute totals[2 * width];
  for (int k = 0; k < 2 * width; ++k) {
    totals[k] = 0;
  }
  if (place.active) {
    const Affine<width, Compute> affine(mean, invstd, weight, bias, place, packs);
    i64 at = place.first, row = place.begin;
    for (; row + place.slices < place.end; row += 2 * place.slices, at += 2 * place.step) {
      add_gradients<2>(grad_y, x, at, place.step, affine, static_cast<Compute>(slope), totals);
    }
    for (; row < place.end; row += place.slices, at += place.step) {
      add_gradients<1>(grad_y, x, at, place.step, affine, static_cast<Compute>(slope), totals);
    }
  }
  sum_slices<2 * width>(totals, scratch, lanes);
  const i64 to = ((place.group * chunks + place.chunk) * packs + place.tile) * width;
  const i64 items = (place.group * packs + place.tile) * width;
  for (int i = thread; i < lanes * width && place.tile * width + i < packs * width; i += threads) {
    const int from = i % width * (threads + lanes) + i / width;
    chunk_sums[to + i] = scratch[from];
    chunk_products[to + i] = scratch[from + width * (threads + lanes)] * invstd[items + i];
  }
}

// The chunks' sums added up: by group and channel, and over the groups, which are the gradients of bias and
// weight. Four groups at a time.
template <class Compute>
__global__ void norm_parameter_gradients(const Compute* __restrict__ chunk_sums,
                                         const Compute* __restrict__ chunk_products,
                                         Compute* __restrict__ group_sums, Compute* __restrict__ group_products,
                                         Compute* __restrict__ grad_bias, Compute* __restrict__ grad_weight,
                                         i64 channels, i64 groups, i64 chunks, int lanes) {
  __shared__ double scratch[8 * (512 + 32)];
  const int lane = static_cast<int>(threadIdx.x) % lanes, slice = static_cast<int>(threadIdx.x) / lanes;
  const int slices = static_cast<int>(blockDim.x) / lanes, row = static_cast<int>(blockDim.x) + lanes;
  const i64 channel = static_cast<i64>(blockIdx.x) * lanes + lane;
  const bool active = channel < channels;
  double all_sums = 0, all_products = 0;
  for (i64 group = 0; group < groups; group += 4) {
    double own[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (i64 chunk = slice; active && chunk < chunks; chunk += slices) {
      Compute sums[4], products[4];
      for (int j = 0; j < 4; ++j) {
        const i64 from = ((group + j) * chunks + chunk) * channels + channel;
        sums[j] = group + j < groups ? chunk_sums[from] : static_cast<Compute>(0);
        products[j] = group + j < groups ? chunk_products[from] : static_cast<Compute>(0);
      }
      for (int j = 0; j < 4; ++j) {
        own[j] += static_cast<double>(sums[j]);
        own[4 + j] += static_cast<double>(products[j]);
      }
    }
    sum_slices<8>(own, scratch, lanes);
    if (slice == 0 && active) {
      for (int j = 0; j < 4 && group + j < groups; ++j) {
        const double sum = scratch[j * row + lane], product = scratch[(4 + j) * row + lane];
        all_sums += sum;
        all_products += product;
        group_sums[(group + j) * channels + channel] = static_cast<Compute>(sum);
        group_products[(group + j) * channels + channel] = static_cast<Compute>(product);
      }
    }
    __syncthreads();  // before the next groups use scratch
  }
  if (slice == 0 && active) {
    grad_bias[channel] = static_cast<Compute>(all_sums);
    grad_weight[channel] = static_cast<Compute>(all_products);
  }
}

// grad_x = weight invstd (dz - mean of dz - xhat mean of dz xhat) + grad_sum, xhat = (x - mean) invstd.
template <class Scalar, int width>
__global__ void norm_input_gradient(Pack<Scalar, width>* __restrict__ grad_x,
                                    const Pack<Scalar, width>* __restrict__ grad_y,
                                    const Pack<Scalar, width>* __restrict__ grad_sum,
                                    const Pack<Scalar, width>* __restrict__ x,
                                    const typename ComputeOf<Scalar>::type* __restrict__ mean,
                                    const typename ComputeOf<Scalar>::type* __restrict__ invstd,
                                    const typename ComputeOf<Scalar>::type* __restrict__ weight,
                                    const typename ComputeOf<Scalar>::type* __restrict__ bias,
                                    const typename ComputeOf<Scalar>::type* __restrict__ group_sums,
                                    const typename ComputeOf<Scalar>::type* __restrict__ group_products,
                                    double slope, i64 rows, i64 packs, i64 span, i64 chunks, int lanes) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const Place place(rows, packs, span, chunks, lanes);
  if (!place.active) {
    return;
  }
  const Affine<width, Compute> affine(mean, invstd, weight, bias, place, packs);
  Compute mean_dz[width], mean_product[width];
  const i64 item = (place.group * packs + place.pack) * width;
  load_channels<width>(mean_dz, group_sums + item);
  load_channels<width>(mean_product, group_products + item);
  const Compute share = 1 / static_cast<Compute>(rows);
  for (int k = 0; k < width; ++k) {
    mean_dz[k] *= share;
    mean_product[k] *= share * affine.invstd[k];
  }
  i64 at = place.first;
  for (i64 row = place.begin; row < place.end; row += place.slices, at += place.step) {
    Pack<Scalar, width> values = x[at];
    const Pack<Scalar, width> gradients = grad_y[at];
    Pack<Scalar, width> rest;
    if (grad_sum != nullptr) {
      rest = grad_sum[at];
    }
    for (int k = 0; k < width; ++k) {
      const Compute centred = widen(values.values[k]) - affine.centre[k];
      const Compute z = centred * affine.factor[k] + affine.offset[k];
      const Compute gradient = widen(gradients.values[k]);
      const Compute dz = z > 0 ? gradient : gradient * static_cast<Compute>(slope);
      Compute found = affine.factor[k] * (dz - mean_dz[k] - centred * mean_product[k]);
      if (grad_sum != nullptr) {
        found += widen(rest.values[k]);
      }
      narrow(values.values[k], found);
    }
    grad_x[at] = values;
  }
}
)cuda"};

}  // namespace mixmatch::detail
