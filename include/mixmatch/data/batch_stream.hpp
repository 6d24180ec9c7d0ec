#pragma once

#include <torch/serialize/archive.h>
#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/counter_rng.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace mixmatch::data {

/// Batches of indices without end: epoch after epoch over one set of rows, each in a new random order.
///
/// The order of epoch e is a pure function of (seed, e), so (seed, position) is the whole state: a stream can
/// be saved, resumed and moved in time, and gives the same batches on every machine. A batch may begin in one
/// epoch and end in the next, and may be larger than the set. With `world_size` W the ranks share batches of
/// W * batch_size rows: rank r has the r-th part, and all parts in order are what one process with batch_size
/// W * batch_size would have.
///
/// `indices`: int64 [N], N >= 1, on any device; kept on the CPU. Throws on other arguments.
class BatchStream {
 public:
  BatchStream(const Tensor& indices, int64_t batch_size, uint64_t seed, int64_t rank = 0,
              int64_t world_size = 1)
      : batch_size_(batch_size), seed_(seed), rank_(rank), world_size_(world_size) {
    TORCH_CHECK(
        indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
        "BatchStream: indices must be int64 [N], got ",
        indices.defined() ? c10::str(indices.scalar_type(), " ", indices.sizes()) : std::string("undefined"));
    TORCH_CHECK(indices.numel() > 0, "BatchStream: indices must not be empty");
    TORCH_CHECK(batch_size >= 1, "BatchStream: batch_size must be >= 1, got ", batch_size);
    TORCH_CHECK(world_size >= 1, "BatchStream: world_size must be >= 1, got ", world_size);
    TORCH_CHECK(rank >= 0 && rank < world_size, "BatchStream: rank must be in [0, ", world_size, "), got ",
                rank);
    const Tensor on_cpu = indices.cpu().contiguous();
    const auto* data = on_cpu.data_ptr<int64_t>();
    indices_.assign(data, data + on_cpu.numel());
    for (const int64_t index : indices_) {
      fingerprint_ = mixmatch::detail::mix_bits(fingerprint_ ^ static_cast<uint64_t>(index));
    }
  }

  /// The next batch: int64 [batch_size] on the CPU.
  Tensor next() {
    Tensor batch = at::empty({batch_size_}, at::kLong);
    auto* out = batch.data_ptr<int64_t>();
    int64_t row = (position_ * world_size_ + rank_) * batch_size_;
    for (int64_t filled = 0; filled < batch_size_;) {
      use_epoch(row / size());
      const int64_t offset = row % size();
      const int64_t count = std::min(batch_size_ - filled, size() - offset);
      std::copy_n(order_.begin() + offset, count, out + filled);
      filled += count;
      row += count;
    }
    ++position_;
    return batch;
  }

  /// How many batches came before the next one.
  int64_t position() const { return position_; }

  /// Makes next() return batch number `position` of the stream.
  void seek(int64_t position) {
    TORCH_CHECK(position >= 0, "BatchStream::seek: position must be >= 0, got ", position);
    position_ = position;
  }

  /// The number of rows in an epoch.
  int64_t size() const { return static_cast<int64_t>(indices_.size()); }
  int64_t batch_size() const { return batch_size_; }
  uint64_t seed() const { return seed_; }

  /// The state is the same for every rank: a checkpoint of one serves all.
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("size", c10::IValue(size()));
    archive.write("global_batch_size", c10::IValue(batch_size_ * world_size_));
    archive.write("seed", c10::IValue(static_cast<int64_t>(seed_)));
    archive.write("fingerprint", c10::IValue(static_cast<int64_t>(fingerprint_)));
    archive.write("position", c10::IValue(position_));
  }

  /// Continues where the saved stream stood. Throws, and leaves this stream as it was, unless the saved one
  /// had the same rows, seed and batch size (over all ranks together).
  void load(torch::serialize::InputArchive& archive) {
    check_equal(archive, "size", size());
    check_equal(archive, "global_batch_size", batch_size_ * world_size_);
    check_equal(archive, "seed", static_cast<int64_t>(seed_));
    TORCH_CHECK(read(archive, "fingerprint") == static_cast<int64_t>(fingerprint_),
                "BatchStream::load: the saved stream ran over other indices (as many, ", size(), ")");
    seek(read(archive, "position"));
  }

 private:
  static int64_t read(torch::serialize::InputArchive& archive, const std::string& key) {
    c10::IValue value;
    TORCH_CHECK(archive.try_read(key, value) && value.isInt(),
                "BatchStream::load: the archive has no number \"", key, "\": it holds no stream");
    return value.toInt();
  }

  static void check_equal(torch::serialize::InputArchive& archive, const std::string& key, int64_t expected) {
    const int64_t saved = read(archive, key);
    TORCH_CHECK(saved == expected, "BatchStream::load: the saved stream has ", key, " ", saved, ", this one ",
                expected);
  }

  void use_epoch(int64_t epoch) {
    if (epoch == epoch_) {
      return;
    }
    order_ = indices_;
    mixmatch::detail::CounterRng rng(seed_, static_cast<uint64_t>(epoch));
    rng.shuffle(order_.data(), size());
    epoch_ = epoch;
  }

  std::vector<int64_t> indices_;
  int64_t batch_size_;
  uint64_t seed_;
  int64_t rank_;
  int64_t world_size_;
  uint64_t fingerprint_ = 0;
  int64_t position_ = 0;
  int64_t epoch_ = -1;  // the one that order_ holds
  std::vector<int64_t> order_;
};

}  // namespace mixmatch::data
