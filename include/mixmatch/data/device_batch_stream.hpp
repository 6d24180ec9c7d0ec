#pragma once

#include <torch/serialize/archive.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_shuffle.hpp>
#include <mixmatch/detail/shuffled_index.hpp>

#include <cstdint>
#include <limits>
#include <string>

namespace mixmatch::data {

using torch::Tensor;

/// BatchStream on the device of its rows, for a step that runs there alone or is captured in a graph: batches
/// of indices without end, epoch after epoch, each a fresh random order in which every row comes once.
///
/// The order of epoch e is a pure function of (seed, e): the swap-or-not shuffle, computed for a batch's rows
/// alone, in integer arithmetic that gives the same batches on every device. The position is a counter on the
/// device, so a captured next() advances at each replay. As with BatchStream, a batch may begin in one epoch
/// and end in a later one, may be larger than the set, and `world_size` ranks share batches of world_size *
/// batch_size rows. The orders are not those of a BatchStream of the same seed, which shuffles by another
/// method, and neither loads the other's state.
///
/// `indices`: int64 [N], 1 <= N < 2^31, kept on `device`. Nothing here waits for the device but position(),
/// save() and load(). Throws on other arguments.
class DeviceBatchStream {
 public:
  DeviceBatchStream(const Tensor& indices, int64_t batch_size, uint64_t seed, torch::Device device,
                    int64_t rank = 0, int64_t world_size = 1)
      : batch_size_(batch_size), seed_(seed), rank_(rank), world_size_(world_size) {
    TORCH_CHECK(
        indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
        "DeviceBatchStream: indices must be int64 [N], got ",
        indices.defined() ? c10::str(indices.scalar_type(), " ", indices.sizes()) : std::string("undefined"));
    TORCH_CHECK(indices.numel() > 0 && indices.numel() <= std::numeric_limits<int32_t>::max(),
                "DeviceBatchStream: indices must have 1 to 2^31 - 1 rows, got ", indices.numel());
    TORCH_CHECK(batch_size >= 1, "DeviceBatchStream: batch_size must be >= 1, got ", batch_size);
    TORCH_CHECK(world_size >= 1, "DeviceBatchStream: world_size must be >= 1, got ", world_size);
    TORCH_CHECK(rank >= 0 && rank < world_size, "DeviceBatchStream: rank must be in [0, ", world_size,
                "), got ", rank);
    const Tensor on_cpu = indices.cpu().contiguous();
    const auto* data = on_cpu.data_ptr<int64_t>();
    for (int64_t i = 0; i < on_cpu.numel(); ++i) {
      fingerprint_ = mixmatch::detail::mix_bits(fingerprint_ ^ static_cast<uint64_t>(data[i]));
    }
    indices_ = indices.to(device, at::kLong, /*non_blocking=*/false, /*copy=*/true).contiguous();
    position_ = at::zeros({}, indices_.options());
    offsets_ = at::arange(batch_size, indices_.options());
  }

  DeviceBatchStream(DeviceBatchStream&&) = default;  // a copy would share the position
  DeviceBatchStream& operator=(DeviceBatchStream&&) = default;

  /// The next batch: int64 [batch_size] on the device.
  Tensor next() {
    Tensor batch = at::empty({batch_size_}, indices_.options());
    const uint64_t seed_bits = mixmatch::detail::mix_bits(seed_ + mixmatch::detail::kGolden);
    if (indices_.device().is_cpu()) {
      const int64_t first = (*position_.data_ptr<int64_t>() * world_size_ + rank_) * batch_size_;
      const auto* rows = indices_.data_ptr<int64_t>();
      auto* out = batch.data_ptr<int64_t>();
      for (int64_t i = 0; i < batch_size_; ++i) {
        const auto epoch = static_cast<uint64_t>((first + i) / size());
        out[i] = rows[mixmatch::detail::shuffled_index((first + i) % size(), size(),
                                                       mixmatch::detail::shuffle_key(seed_, epoch))];
      }
    } else if (!mixmatch::detail::stream_rows_on_cuda(batch, indices_, position_, rank_, world_size_,
                                                      seed_bits)) {
      batch = next_composite();
    }
    position_.add_(1);
    return batch;
  }

  /// next() in ATen's calls, without moving on: what a device without kernels runs.
  Tensor next_composite() const {
    const Tensor row = (position_ * world_size_ + rank_) * batch_size_ + offsets_;
    const Tensor place = mixmatch::detail::shuffled_indices(
        row.remainder(size()), row.div(size(), /*rounding_mode=*/"floor"), size(), seed_);
    return indices_.index_select(0, place);
  }

  /// How many batches came before the next one: int64 [], the stream's own, whose value a graph moves.
  const Tensor& position_tensor() const { return position_; }
  /// The same number. Waits for the device.
  int64_t position() const { return position_.item<int64_t>(); }

  /// Makes next() return batch number `position` of the stream.
  void seek(int64_t position) {
    TORCH_CHECK(position >= 0, "DeviceBatchStream::seek: position must be >= 0, got ", position);
    position_.fill_(position);
  }

  /// The number of rows in an epoch.
  int64_t size() const { return indices_.numel(); }
  int64_t batch_size() const { return batch_size_; }
  uint64_t seed() const { return seed_; }

  /// The state is the same for every rank: a checkpoint of one serves all.
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("order", c10::IValue(std::string(kOrder)));
    archive.write("size", c10::IValue(size()));
    archive.write("global_batch_size", c10::IValue(batch_size_ * world_size_));
    archive.write("seed", c10::IValue(static_cast<int64_t>(seed_)));
    archive.write("fingerprint", c10::IValue(static_cast<int64_t>(fingerprint_)));
    archive.write("device_position", c10::IValue(position()));
  }

  /// Continues where the saved stream stood. Throws, and leaves this stream as it was, unless the saved one
  /// had the same rows, seed and batch size (over all ranks together).
  void load(torch::serialize::InputArchive& archive) {
    c10::IValue order;
    TORCH_CHECK(archive.try_read("order", order) && order.isString() && order.toStringRef() == kOrder,
                "DeviceBatchStream::load: the archive holds no stream of this kind");
    check_equal(archive, "size", size());
    check_equal(archive, "global_batch_size", batch_size_ * world_size_);
    check_equal(archive, "seed", static_cast<int64_t>(seed_));
    TORCH_CHECK(read(archive, "fingerprint") == static_cast<int64_t>(fingerprint_),
                "DeviceBatchStream::load: the saved stream ran over other indices (as many, ", size(), ")");
    seek(read(archive, "device_position"));
  }

 private:
  static constexpr const char* kOrder = "swap-or-not";

  static int64_t read(torch::serialize::InputArchive& archive, const std::string& key) {
    c10::IValue value;
    TORCH_CHECK(archive.try_read(key, value) && value.isInt(),
                "DeviceBatchStream::load: the archive has no number \"", key, "\"");
    return value.toInt();
  }

  static void check_equal(torch::serialize::InputArchive& archive, const std::string& key, int64_t expected) {
    const int64_t saved = read(archive, key);
    TORCH_CHECK(saved == expected, "DeviceBatchStream::load: the saved stream has ", key, " ", saved,
                ", this one ", expected);
  }

  int64_t batch_size_;
  uint64_t seed_;
  int64_t rank_;
  int64_t world_size_;
  uint64_t fingerprint_ = 0;
  Tensor indices_, position_, offsets_;
};

}  // namespace mixmatch::data
