#pragma once

#include <mixmatch/detail/cuda/cuda_compiler.hpp>

namespace mixmatch::detail {

// The kernels share one grid. Images are rows of channels; a group has `rows` rows, cut into `chunks` of
// `span` rows, the last of fewer. Blocks along x are (group, chunk), blocks along y are tiles of 2^lane_bits
// packs of channels. In a block, thread slice * lanes + lane runs over the chunk's rows slice, slice +
// slices, … for one pack, `depth` rows at a time, all of which are on their way before the first is used.
// There is about a block for each processor of a large device, so that a thread may have the registers for
// that.
//
// A sweep leaves two numbers of each chunk and channel, which every block of the next sweep adds up for its
// group and tile while its own rows are on their way: a group's chunks are few, and no launch is needed in
// between. What is to be written of a group, its last chunk's blocks write, which have the fewest rows. No
// atomics; all sums are in one order.
inline constexpr CudaSource cuda_norm_source{"mixmatch_norm.cu", R"cuda(
const int most_threads = 512, most_channels = 32;  // of a block; of a tile

// A thread's place in the grid.
struct Place {
  i64 group, pack, first, step;
  int chunk, lanes, lane_bits, lane, slice, slices, thread, threads, left;
  bool last;  // of the group's chunks

  __device__ Place(i64 rows, i64 packs, i64 span, int chunks, int bits) {
    thread = static_cast<int>(threadIdx.x);
    threads = static_cast<int>(blockDim.x);
    lane_bits = bits;
    lanes = 1 << bits;
    lane = thread & (lanes - 1);
    slice = thread >> bits;
    slices = threads >> bits;
    group = blockIdx.x / static_cast<u32>(chunks);
    chunk = static_cast<int>(blockIdx.x % static_cast<u32>(chunks));
    last = chunk == chunks - 1;
    pack = static_cast<i64>(blockIdx.y) * lanes + lane;
    const i64 before = chunk * span;
    const int size = static_cast<int>(last ? rows - before : span);
    first = (group * rows + before + slice) * packs + pack;  // in packs, of the thread's first row
    step = slices * packs;                                   // to its next one
    left = pack < packs ? size - slice : 0;                  // rows to the chunk's end
  }
};

// A channel of which a thread adds up numbers: of the chunks slice, slice + slices, …. The block's first
// threads, one a channel, have the sums in the end.
struct TileChannel {
  int channels, index, slice, slices;  // `channels` of the tile
  i64 channel, total;
  bool active, first;

  __device__ TileChannel(const Place& place, i64 packs, int width) {
    channels = place.lanes * width;
    index = place.thread & (channels - 1);
    slice = place.thread / width >> place.lane_bits;
    slices = place.threads / width >> place.lane_bits;
    total = packs * width;
    channel = static_cast<i64>(blockIdx.y) * channels + index;
    active = channel < total;
    first = place.thread < channels;
  }
};

// A pack as it is kept in registers: numbers of 16 bits by twos, as a register each is what they would get.
template <class Scalar, int width>
struct Row {
  Pack<Scalar, width> pack;

  __device__ void read(typename ComputeOf<Scalar>::type* to) const {
    for (int k = 0; k < width; ++k) {
      to[k] = widen(pack.values[k]);
    }
  }
  __device__ void write(const typename ComputeOf<Scalar>::type* from) {
    for (int k = 0; k < width; ++k) {
      narrow(pack.values[k], from[k]);
    }
  }
};
template <class Scalar>
struct RowOfWords {
  Pack<u32, 4> words;

  __device__ void read(float* to) const {
    for (int k = 0; k < 4; ++k) {
      to[2 * k] = widen(Scalar{static_cast<u16>(words.values[k] & 0xffffu)});
      to[2 * k + 1] = widen(Scalar{static_cast<u16>(words.values[k] >> 16)});
    }
  }
  __device__ void write(const float* from) {
    for (int k = 0; k < 4; ++k) {
      words.values[k] = narrow_two(Scalar(), from[2 * k], from[2 * k + 1]);
    }
  }
};
template <>
struct Row<BFloat16, 8> : RowOfWords<BFloat16> {};
template <>
struct Row<Half, 8> : RowOfWords<Half> {};

// x + addend as it is stored.
template <class Scalar, int width>
__device__ inline void add_row(Row<Scalar, width>& x, const Row<Scalar, width>& addend) {
  typename ComputeOf<Scalar>::type numbers[width], others[width];
  x.read(numbers);
  addend.read(others);
  for (int k = 0; k < width; ++k) {
    numbers[k] += others[k];
  }
  x.write(numbers);
}

// The thread's next rows, as far as there are some.
template <int depth, class Values>
__device__ inline void load_rows(Values* values, const Values* __restrict__ from, i64 at, const Place& place,
                                 int left) {
  for (int i = 0; i < depth; ++i) {
    if (i * place.slices < left) {
      values[i] = from[at + i * place.step];
    }
  }
}

// use(i, at) for each of the thread's rows: `at` in memory, the i-th of the `depth` that load(at, left) has
// read. The first ones were loaded before.
template <int depth, class Load, class Use>
__device__ inline void for_rows(const Place& place, const Load& load, const Use& use) {
  i64 at = place.first;
  int left = place.left;
  while (left > 0) {
    for (int i = 0; i < depth; ++i) {
      if (i * place.slices < left) {
        use(i, at + i * place.step);
      }
    }
    at += depth * place.step;
    left -= depth * place.slices;
    load(at, left);
  }
}

// What a thread's pack of channels needs of numbers that `scratch` has for each channel of the tile.
template <int width, class Compute>
__device__ inline void read_channels(Compute* to, const Compute* scratch, int number, const Place& place) {
  for (int k = 0; k < width; ++k) {
    to[k] = scratch[number * most_channels + place.lane * width + k];
  }
}

// The sums of `values` numbers of each thread over the block's slices, as far as slice_sum() goes on.
// `values` is a power of two; the lanes between the values' rows keep a warp's accesses in different banks.
// All threads must call it.
template <int values, class Compute>
__device__ inline void sum_slices(const Compute* own, Compute* scratch, const Place& place) {
  const int row = place.threads + place.lanes, each = place.slices < values ? place.slices : values;
  for (int v = 0; v < values; ++v) {
    scratch[v * row + place.thread] = own[v];
  }
  __syncthreads();
  for (int i = place.thread; i < values * place.lanes * (place.slices / each); i += place.threads) {
    const int part = i / values >> place.lane_bits;
    Compute* from = scratch + (i >> place.lane_bits) % values * row + part * each * place.lanes + place.lane;
    Compute sum = from[0];
    if (each == values) {
      for (int k = 1; k < values; ++k) {
        sum += from[k * place.lanes];
      }
    } else {
      for (int k = 1; k < each; ++k) {
        sum += from[k * place.lanes];
      }
    }
    from[0] = sum;
  }
  __syncthreads();
}

// The sum of value `value` over a lane's slices, after sum_slices().
template <int values, class Compute>
__device__ inline Compute slice_sum(const Compute* scratch, int value, int lane, const Place& place) {
  const Compute* from = scratch + value * (place.threads + place.lanes) + lane;
  Compute sum = from[0];
  for (int i = values; i < place.slices; i += values) {
    sum += from[i * place.lanes];
  }
  return sum;
}

// The sums of two numbers of each thread over a channel's threads, then in the first of them. All threads
// must call it.
template <class Compute>
__device__ inline void sum_channel(Compute* own, Compute* scratch, const TileChannel& tile,
                                   const Place& place) {
  scratch[place.thread] = own[0];
  scratch[place.threads + place.thread] = own[1];
  __syncthreads();
  if (tile.first) {
    for (int i = place.thread + tile.channels; i < place.threads; i += tile.channels) {
      own[0] += scratch[i];
      own[1] += scratch[place.threads + i];
    }
  }
}

// Of the chunks slice, slice + slices, …: the sum of count (mean - shift), and that of squared differences
// from `shift`.
template <class Compute>
__device__ inline void add_chunk_moments(Compute* own, Compute shift, const Compute* __restrict__ means,
                                         const Compute* __restrict__ squares, const TileChannel& tile,
                                         i64 rows, i64 span, int chunks) {
  const int batch = 4;
  const Compute usual = static_cast<Compute>(span), rest = static_cast<Compute>(rows - (chunks - 1) * span);
  for (int chunk = tile.slice; chunk < chunks; chunk += batch * tile.slices) {
    Compute mean[batch], square[batch];
    for (int j = 0; j < batch; ++j) {
      const int of = chunk + j * tile.slices;
      mean[j] = of < chunks ? means[of * tile.total] : shift;
      square[j] = of < chunks ? squares[of * tile.total] : static_cast<Compute>(0);
    }
    for (int j = 0; j < batch; ++j) {
      const Compute difference = mean[j] - shift;
      const Compute weighted = (chunk + j * tile.slices == chunks - 1 ? rest : usual) * difference;
      own[0] += weighted;
      own[1] += square[j] + weighted * difference;
    }
  }
}

// Of the chunks slice, slice + slices, …: the sums of two numbers.
template <class Compute>
__device__ inline void add_chunk_sums(Compute* own, const Compute* __restrict__ sums,
                                      const Compute* __restrict__ products, const TileChannel& tile,
                                      int chunks) {
  const int batch = 4;
  for (int chunk = tile.slice; chunk < chunks; chunk += batch * tile.slices) {
    Compute sum[batch], product[batch];
    for (int j = 0; j < batch; ++j) {
      const int of = chunk + j * tile.slices;
      sum[j] = of < chunks ? sums[of * tile.total] : static_cast<Compute>(0);
      product[j] = of < chunks ? products[of * tile.total] : static_cast<Compute>(0);
    }
    for (int j = 0; j < batch; ++j) {
      own[0] += sum[j];
      own[1] += product[j];
    }
  }
}

// Mean and sum of squared differences from it, of each chunk and channel; writes x + addend where it adds.
// The sums are of differences from the chunk's first row.
template <class Scalar, int width, bool adds>
__global__ void __launch_bounds__(most_threads)
    norm_moments(const Row<Scalar, width>* __restrict__ x, const Row<Scalar, width>* __restrict__ addend,
                 Row<Scalar, width>* __restrict__ sum,
                 typename ComputeOf<Scalar>::type* __restrict__ chunk_means,
                 typename ComputeOf<Scalar>::type* __restrict__ chunk_squares, i64 rows, i64 packs, i64 span,
                 int chunks, int lane_bits) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const int depth = adds ? 6 : 8;
  __shared__ Compute scratch[2 * width * (most_threads + most_channels / width)];
  __shared__ Compute shifts[most_channels];
  const Place place(rows, packs, span, chunks, lane_bits);
  Row<Scalar, width> values[depth], others[depth];
  const auto load = [&](i64 at, int left) {
    load_rows<depth>(values, x, at, place, left);
    if (adds) {
      load_rows<depth>(others, addend, at, place, left);
    }
  };
  load(place.first, place.left);
  Compute shift[width], totals[2 * width];
  for (int k = 0; k < width; ++k) {
    shift[k] = totals[k] = totals[width + k] = 0;
  }
  if (place.pack < packs) {
    const i64 first = place.first - place.slice * packs;
    Row<Scalar, width> start = x[first];
    if (adds) {
      add_row(start, addend[first]);
    }
    start.read(shift);
    if (place.slice == 0) {
      for (int k = 0; k < width; ++k) {
        shifts[place.lane * width + k] = shift[k];
      }
    }
  }
  for_rows<depth>(place, load, [&](int i, i64 at) {
    if (adds) {
      add_row(values[i], others[i]);
      sum[at] = values[i];
    }
    Compute numbers[width];
    values[i].read(numbers);
    for (int k = 0; k < width; ++k) {
      const Compute difference = numbers[k] - shift[k];
      totals[k] += difference;
      totals[width + k] += difference * difference;
    }
  });
  sum_slices<2 * width>(totals, scratch, place);
  const TileChannel tile(place, packs, width);
  if (tile.first && tile.active) {
    const int lane = tile.index / width, k = tile.index % width;
    const i64 to = (place.group * chunks + place.chunk) * tile.total + tile.channel;
    const Compute count = static_cast<Compute>(place.last ? rows - place.chunk * span : span);
    const Compute total = slice_sum<2 * width>(scratch, k, lane, place), mean = total / count;
    const Compute square = slice_sum<2 * width>(scratch, width + k, lane, place) - total * mean;
    chunk_means[to] = shifts[tile.index] + mean;
    chunk_squares[to] = square < 0 ? static_cast<Compute>(0) : square;
  }
}

// y = leaky(weight (x - mean) invstd + bias), with the chunks' moments merged. The first group's mean and
// unbiased variance move the running ones by `share`, where they are given.
template <class Scalar, int width>
__global__ void __launch_bounds__(most_threads)
    norm_activate(Row<Scalar, width>* __restrict__ y, const Row<Scalar, width>* __restrict__ x,
                  const typename ComputeOf<Scalar>::type* __restrict__ chunk_means,
                  const typename ComputeOf<Scalar>::type* __restrict__ chunk_squares,
                  const typename ComputeOf<Scalar>::type* __restrict__ weight,
                  const typename ComputeOf<Scalar>::type* __restrict__ bias,
                  typename ComputeOf<Scalar>::type* __restrict__ mean_out,
                  typename ComputeOf<Scalar>::type* __restrict__ invstd_out,
                  typename ComputeOf<Scalar>::type* __restrict__ unbiased_out,
                  typename ComputeOf<Scalar>::type* __restrict__ running_mean,
                  typename ComputeOf<Scalar>::type* __restrict__ running_var,
                  typename ComputeOf<Scalar>::type share, typename ComputeOf<Scalar>::type eps,
                  typename ComputeOf<Scalar>::type slope, i64 rows, i64 packs, i64 span, int chunks,
                  int lane_bits) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const int depth = 8;
  __shared__ Compute scratch[2 * most_threads];
  __shared__ Compute constants[3 * most_channels];
  const Place place(rows, packs, span, chunks, lane_bits);
  Row<Scalar, width> values[depth];
  const auto load = [&](i64 at, int left) { load_rows<depth>(values, x, at, place, left); };
  load(place.first, place.left);

  const TileChannel tile(place, packs, width);
  const bool moves = tile.first && place.last && place.group == 0 && running_mean != nullptr;
  Compute own[2] = {0, 0}, shift = 0, factor = 0, offset = 0, mean_before = 0, variance_before = 0;
  if (tile.active) {
    const i64 from = place.group * chunks * tile.total + tile.channel;
    shift = chunk_means[from];
    if (tile.first) {
      factor = weight[tile.channel];
      offset = bias[tile.channel];
    }
    if (moves) {
      mean_before = running_mean[tile.channel];
      variance_before = running_var[tile.channel];
    }
    add_chunk_moments(own, shift, chunk_means + from, chunk_squares + from, tile, rows, span, chunks);
  }
  sum_channel(own, scratch, tile, place);
  if (tile.first) {
    const Compute count = static_cast<Compute>(rows), difference = own[0] / count, mean = shift + difference;
    const Compute squares = own[1] - own[0] * difference;
    const Compute sum = squares < 0 ? static_cast<Compute>(0) : squares;
    const Compute invstd = 1 / square_root(sum / count + eps);
    constants[tile.index] = mean;
    constants[most_channels + tile.index] = factor * invstd;
    constants[2 * most_channels + tile.index] = offset;
    if (tile.active && place.last) {
      const i64 item = place.group * tile.total + tile.channel;
      const Compute unbiased = sum / static_cast<Compute>(rows - 1);
      mean_out[item] = mean;
      invstd_out[item] = invstd;
      unbiased_out[item] = unbiased;
      if (moves) {
        running_mean[tile.channel] = (1 - share) * mean_before + share * mean;
        running_var[tile.channel] = (1 - share) * variance_before + share * unbiased;
      }
    }
  }
  __syncthreads();

  Compute centre[width], scale[width], after[width];
  read_channels<width>(centre, constants, 0, place);
  read_channels<width>(scale, constants, 1, place);
  read_channels<width>(after, constants, 2, place);
  for_rows<depth>(place, load, [&](int i, i64 at) {
    Compute numbers[width];
    values[i].read(numbers);
    for (int k = 0; k < width; ++k) {
      const Compute z = (numbers[k] - centre[k]) * scale[k] + after[k];
      numbers[k] = z > 0 ? z : z * slope;
    }
    values[i].write(numbers);
    y[at] = values[i];
  });
}

// Of each chunk and channel: the sums of dz = gradient of z, and of dz (x - mean) invstd.
template <class Scalar, int width>
__global__ void __launch_bounds__(most_threads)
    norm_gradient_sums(const Row<Scalar, width>* __restrict__ grad_y,
                       const Row<Scalar, width>* __restrict__ x,
                       const typename ComputeOf<Scalar>::type* __restrict__ mean,
                       const typename ComputeOf<Scalar>::type* __restrict__ invstd,
                       const typename ComputeOf<Scalar>::type* __restrict__ weight,
                       const typename ComputeOf<Scalar>::type* __restrict__ bias,
                       typename ComputeOf<Scalar>::type* __restrict__ chunk_sums,
                       typename ComputeOf<Scalar>::type* __restrict__ chunk_products,
                       typename ComputeOf<Scalar>::type slope, i64 rows, i64 packs, i64 span, int chunks,
                       int lane_bits) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const int depth = 6;
  __shared__ Compute scratch[2 * width * (most_threads + most_channels / width)];
  __shared__ Compute constants[3 * most_channels];
  const Place place(rows, packs, span, chunks, lane_bits);
  Row<Scalar, width> values[depth], gradients[depth];
  const auto load = [&](i64 at, int left) {
    load_rows<depth>(values, x, at, place, left);
    load_rows<depth>(gradients, grad_y, at, place, left);
  };
  load(place.first, place.left);

  const TileChannel tile(place, packs, width);
  Compute own_invstd = 0;
  if (tile.first && tile.active) {
    const i64 item = place.group * tile.total + tile.channel;
    own_invstd = invstd[item];
    constants[tile.index] = mean[item];
    constants[most_channels + tile.index] = weight[tile.channel] * own_invstd;
    constants[2 * most_channels + tile.index] = bias[tile.channel];
  }
  __syncthreads();

  Compute centre[width], scale[width], after[width], totals[2 * width];
  for (int k = 0; k < width; ++k) {
    centre[k] = scale[k] = after[k] = totals[k] = totals[width + k] = 0;
  }
  if (place.left > 0) {
    read_channels<width>(centre, constants, 0, place);
    read_channels<width>(scale, constants, 1, place);
    read_channels<width>(after, constants, 2, place);
  }
  for_rows<depth>(place, load, [&](int i, i64) {
    Compute numbers[width], changes[width];
    values[i].read(numbers);
    gradients[i].read(changes);
    for (int k = 0; k < width; ++k) {
      const Compute centred = numbers[k] - centre[k], z = centred * scale[k] + after[k];
      const Compute dz = z > 0 ? changes[k] : changes[k] * slope;
      totals[k] += dz;
      totals[width + k] += dz * centred;
    }
  });
  sum_slices<2 * width>(totals, scratch, place);
  if (tile.first && tile.active) {
    const int lane = tile.index / width, k = tile.index % width;
    const i64 to = (place.group * chunks + place.chunk) * tile.total + tile.channel;
    chunk_sums[to] = slice_sum<2 * width>(scratch, k, lane, place);
    chunk_products[to] = slice_sum<2 * width>(scratch, width + k, lane, place) * own_invstd;
  }
}

// grad_x = weight invstd (dz - mean of dz - xhat mean of dz xhat) + grad_sum, xhat = (x - mean) invstd, with
// the chunks' sums merged; those over all groups are the gradients of bias and weight.
template <class Scalar, int width, bool adds>
__global__ void __launch_bounds__(most_threads)
    norm_input_gradient(Row<Scalar, width>* __restrict__ grad_x,
                        const Row<Scalar, width>* __restrict__ grad_y,
                        const Row<Scalar, width>* __restrict__ grad_sum,
                        const Row<Scalar, width>* __restrict__ x,
                        const typename ComputeOf<Scalar>::type* __restrict__ mean,
                        const typename ComputeOf<Scalar>::type* __restrict__ invstd,
                        const typename ComputeOf<Scalar>::type* __restrict__ weight,
                        const typename ComputeOf<Scalar>::type* __restrict__ bias,
                        const typename ComputeOf<Scalar>::type* __restrict__ chunk_sums,
                        const typename ComputeOf<Scalar>::type* __restrict__ chunk_products,
                        typename ComputeOf<Scalar>::type* __restrict__ grad_bias,
                        typename ComputeOf<Scalar>::type* __restrict__ grad_weight,
                        typename ComputeOf<Scalar>::type slope, int groups, i64 rows, i64 packs, i64 span,
                        int chunks, int lane_bits) {
  typedef typename ComputeOf<Scalar>::type Compute;
  const int depth = adds ? 4 : 6;
  __shared__ Compute scratch[2 * most_threads];
  __shared__ Compute constants[5 * most_channels];
  const Place place(rows, packs, span, chunks, lane_bits);
  Row<Scalar, width> values[depth], gradients[depth], others[depth];
  const auto load = [&](i64 at, int left) {
    load_rows<depth>(values, x, at, place, left);
    load_rows<depth>(gradients, grad_y, at, place, left);
    if (adds) {
      load_rows<depth>(others, grad_sum, at, place, left);
    }
  };
  load(place.first, place.left);

  const TileChannel tile(place, packs, width);
  Compute own[2] = {0, 0}, own_mean = 0, own_invstd = 0, own_weight = 0, own_bias = 0;
  if (tile.active) {
    if (tile.first) {
      own_mean = mean[place.group * tile.total + tile.channel];
      own_invstd = invstd[place.group * tile.total + tile.channel];
      own_weight = weight[tile.channel];
      own_bias = bias[tile.channel];
    }
    const i64 from = place.group * chunks * tile.total + tile.channel;
    add_chunk_sums(own, chunk_sums + from, chunk_products + from, tile, chunks);
  }
  sum_channel(own, scratch, tile, place);
  if (tile.first) {
    const Compute factor = own_weight * own_invstd, share = factor / static_cast<Compute>(rows);
    constants[tile.index] = own_mean;
    constants[most_channels + tile.index] = factor;
    constants[2 * most_channels + tile.index] = own_bias;
    constants[3 * most_channels + tile.index] = own[0] * share;
    constants[4 * most_channels + tile.index] = own[1] * share * own_invstd;
  }
  __syncthreads();

  Compute centre[width], scale[width], after[width], constant[width], linear[width];
  read_channels<width>(centre, constants, 0, place);
  read_channels<width>(scale, constants, 1, place);
  read_channels<width>(after, constants, 2, place);
  read_channels<width>(constant, constants, 3, place);
  read_channels<width>(linear, constants, 4, place);
  for_rows<depth>(place, load, [&](int i, i64 at) {
    Compute numbers[width], changes[width], rest[width];
    values[i].read(numbers);
    gradients[i].read(changes);
    if (adds) {
      others[i].read(rest);
    }
    for (int k = 0; k < width; ++k) {
      const Compute centred = numbers[k] - centre[k], z = centred * scale[k] + after[k];
      const Compute dz = z > 0 ? changes[k] : changes[k] * slope;
      numbers[k] = dz * scale[k] - constant[k] - centred * linear[k];
      if (adds) {
        numbers[k] += rest[k];
      }
    }
    values[i].write(numbers);
    grad_x[at] = values[i];
  });

  if (place.last && place.group == groups - 1) {
    own[0] = own[1] = 0;
    if (tile.active) {
      add_chunk_sums(own, chunk_sums + tile.channel, chunk_products + tile.channel, tile, groups * chunks);
    }
    sum_channel(own, scratch, tile, place);  // its scratch is free since the constants were read
    if (tile.first && tile.active) {
      grad_bias[tile.channel] = own[0];
      grad_weight[tile.channel] = own[1];
    }
  }
}
)cuda"};

}  // namespace mixmatch::detail
