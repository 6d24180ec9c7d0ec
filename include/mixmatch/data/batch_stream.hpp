#pragma once

#include <torch/serialize/archive.h>
#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda_shuffle.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/shuffled_index.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace mixmatch::data {

using torch::Tensor;

/// Batches of indices without end: epoch after epoch over one set of rows, each in a new random order in
/// which every row comes once. balanced() has batches in which every class comes as often instead.
///
/// A batch is a pure function of (seed, step), computed for its rows alone by the swap-or-not shuffle, in
/// integer arithmetic that gives the same batches on every device and machine: nothing to save, to seek or to
/// draw in order. A batch may begin in one epoch and end in the next, and may be larger than the set. With
/// `world_size` W the ranks share batches of W * batch_size rows: rank r has the r-th part, and all parts in
/// order are what one process with batch_size W * batch_size would have.
///
/// `indices`: int64 [N], 1 <= N < 2^31; a copy stays on their device, where batches come. Nothing waits for
/// the device, and rows() can be captured in a CUDA graph. Throws on other arguments.
class BatchStream {
 public:
  BatchStream(const Tensor& indices, int64_t batch_size, uint64_t seed, int64_t rank = 0,
              int64_t world_size = 1)
      : BatchStream(indices, {0, indices.defined() ? indices.numel() : 0}, batch_size, seed, rank,
                    world_size) {}

  /// The stream in which every class comes as often, however many rows it has: of each L rows in order, from
  /// the first on, each is of another of the L classes that `classes` has, in a new random order; each class
  /// has epochs of its own. So a batch of B rows has each class B / L times, where L divides B, else less
  /// than two times more or fewer.
  ///
  /// `classes`: int64 [N], the class of each of `indices`, on their device or another; in any numbering. Not
  /// to be confused with a balanced split (split_labels()), which chooses the rows themselves.
  static BatchStream balanced(const Tensor& indices, const Tensor& classes, int64_t batch_size, uint64_t seed,
                              int64_t rank = 0, int64_t world_size = 1) {
    TORCH_CHECK(
        indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong && classes.defined() &&
            classes.sizes() == indices.sizes() && classes.scalar_type() == at::kLong,
        "BatchStream: indices and classes must be int64 [N], got ", mixmatch::detail::type_and_sizes(indices),
        " and ", mixmatch::detail::type_and_sizes(classes));
    const Tensor on_cpu = classes.cpu().contiguous();
    const auto* of = on_cpu.data_ptr<int64_t>();
    std::vector<int64_t> order(static_cast<size_t>(on_cpu.numel()));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [of](int64_t a, int64_t b) { return of[a] < of[b]; });
    std::vector<int64_t> bounds;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i == 0 || of[order[i]] != of[order[i - 1]]) {
        bounds.push_back(static_cast<int64_t>(i));
      }
    }
    bounds.push_back(on_cpu.numel());
    return BatchStream(indices.index_select(0, at::tensor(order, at::kLong).to(indices.device())), bounds,
                       batch_size, seed, rank, world_size);
  }

  /// The batch of `step`, int64 [] >= 0 on the indices' device: int64 [batch_size] there.
  Tensor rows(const Tensor& step) const {
    Tensor batch = at::empty({batch_size_}, indices_.options());
    rows_out(batch, step);
    return batch;
  }

  /// rows(step) into `out`, int64 [batch_size], contiguous, on the indices' device: a part of a longer list.
  void rows_out(Tensor& out, const Tensor& step) const {
    check_out(out, step);
    if (has_kernel(out, step)) {
      mixmatch::detail::launch_stream_rows(on_cuda(out), nullptr, step);
    } else {
      write_rows(out, step);
    }
  }

  /// rows_out() of two streams on one device, each into its own `out`: by one kernel on a GPU. Throws before
  /// it writes.
  static void rows_out(const BatchStream& first, Tensor& first_out, const BatchStream& second,
                       Tensor& second_out, const Tensor& step) {
    first.check_out(first_out, step);
    second.check_out(second_out, step);
    if (first.has_kernel(first_out, step)) {
      const auto beside = second.on_cuda(second_out);
      mixmatch::detail::launch_stream_rows(first.on_cuda(first_out), &beside, step);
    } else {
      first.write_rows(first_out, step);
      second.write_rows(second_out, step);
    }
  }

  /// The same of a number that the host has.
  Tensor rows(int64_t step) const {
    if (!indices_.is_cpu()) {
      TORCH_CHECK(step >= 0, "BatchStream: step must be >= 0, got ", step);
      return rows(at::full({}, step, indices_.options()));
    }
    Tensor batch = at::empty({batch_size_}, indices_.options());
    write_rows(batch.data_ptr<int64_t>(), step);
    return batch;
  }

  /// rows() in ATen's calls: what a device without kernels runs.
  Tensor rows_composite(const Tensor& step) const {
    using mixmatch::detail::shuffled_indices;
    const auto quotient = [](const Tensor& a, const auto& b) { return a.div(b, /*rounding_mode=*/"floor"); };
    const Tensor row =
        (step * world_size_ + rank_) * batch_size_ + at::arange(batch_size_, indices_.options());
    const Tensor round = quotient(row, groups());
    const Tensor group = groups() == 1 ? at::zeros_like(row)
                                       : shuffled_indices(row.remainder(groups()), round, groups(), ~seed_);
    const Tensor start = bounds_.index_select(0, group), count = bounds_.index_select(0, group + 1) - start;
    const Tensor place =
        shuffled_indices(round.remainder(count), quotient(round, count) * groups() + group, count, seed_);
    return indices_.index_select(0, start + place);
  }

  /// The number of rows: in an epoch, where classes are not balanced.
  int64_t size() const { return indices_.numel(); }
  int64_t batch_size() const { return batch_size_; }
  uint64_t seed() const { return seed_; }

  /// What the batches are a function of, besides the step; the same for every rank.
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("order", c10::IValue(std::string(kOrder)));
    archive.write("size", c10::IValue(size()));
    archive.write("groups", c10::IValue(groups()));
    archive.write("global_batch_size", c10::IValue(batch_size_ * world_size_));
    archive.write("seed", c10::IValue(static_cast<int64_t>(seed_)));
    archive.write("fingerprint", c10::IValue(static_cast<int64_t>(fingerprint_)));
  }

  /// Throws unless the saved stream had the same rows, classes, seed and batch size (over all ranks
  /// together): else a resumed run would not be the one that was stopped.
  void load(torch::serialize::InputArchive& archive) const {
    c10::IValue order;
    TORCH_CHECK(archive.try_read("order", order) && order.isString() && order.toStringRef() == kOrder,
                "BatchStream::load: the archive holds no stream of this kind");
    check_equal(archive, "size", size());
    check_equal(archive, "groups", groups());
    check_equal(archive, "global_batch_size", batch_size_ * world_size_);
    check_equal(archive, "seed", static_cast<int64_t>(seed_));
    TORCH_CHECK(read(archive, "fingerprint") == static_cast<int64_t>(fingerprint_),
                "BatchStream::load: the saved stream ran over other indices (as many, ", size(), ")");
  }

 private:
  static constexpr const char* kOrder = "swap-or-not";

  /// Of groups of rows that follow each other, group g from bounds[g] to bounds[g + 1].
  BatchStream(const Tensor& indices, const std::vector<int64_t>& bounds, int64_t batch_size, uint64_t seed,
              int64_t rank, int64_t world_size)
      : batch_size_(batch_size), seed_(seed), rank_(rank), world_size_(world_size) {
    TORCH_CHECK(indices.defined() && indices.dim() == 1 && indices.scalar_type() == at::kLong,
                "BatchStream: indices must be int64 [N], got ", mixmatch::detail::type_and_sizes(indices));
    TORCH_CHECK(indices.numel() > 0, "BatchStream: indices must not be empty");
    TORCH_CHECK(indices.numel() <= std::numeric_limits<int32_t>::max(),
                "BatchStream: indices must have less than 2^31 rows, got ", indices.numel());
    TORCH_CHECK(batch_size >= 1, "BatchStream: batch_size must be >= 1, got ", batch_size);
    TORCH_CHECK(world_size >= 1, "BatchStream: world_size must be >= 1, got ", world_size);
    TORCH_CHECK(rank >= 0 && rank < world_size, "BatchStream: rank must be in [0, ", world_size, "), got ",
                rank);
    const Tensor on_cpu = indices.cpu().contiguous();
    const auto* data = on_cpu.data_ptr<int64_t>();
    for (int64_t i = 0; i < on_cpu.numel(); ++i) {
      fingerprint_ = mixmatch::detail::mix_bits(fingerprint_ ^ static_cast<uint64_t>(data[i]));
    }
    for (const int64_t bound : bounds) {
      fingerprint_ = mixmatch::detail::mix_bits(fingerprint_ ^ static_cast<uint64_t>(bound));
    }
    indices_ = indices.detach().clone().contiguous();
    bounds_ = at::tensor(bounds, at::kLong).to(indices.device());
  }

  int64_t groups() const { return bounds_.numel() - 1; }

  void check_out(const Tensor& out, const Tensor& step) const {
    TORCH_CHECK(step.defined() && step.dim() == 0 && step.scalar_type() == at::kLong &&
                    step.device() == indices_.device(),
                "BatchStream: step must be int64 [] on ", indices_.device(), ", got ",
                step.defined() ? c10::str(step.scalar_type(), " ", step.sizes(), " on ", step.device())
                               : std::string("undefined"));
    TORCH_CHECK(out.defined() && out.dim() == 1 && out.size(0) == batch_size_ && out.is_contiguous() &&
                    out.scalar_type() == at::kLong && out.device() == indices_.device(),
                "BatchStream: out must be contiguous int64 [", batch_size_, "] on ", indices_.device(),
                ", got ", mixmatch::detail::type_and_sizes(out));
  }

  bool has_kernel(const Tensor& out, const Tensor& step) const {
    return mixmatch::detail::has_cuda_memory(indices_) && mixmatch::detail::has_cuda_memory(out) &&
           mixmatch::detail::has_cuda_memory(step) &&
           mixmatch::detail::cuda_kernels_available(indices_.device());
  }

  mixmatch::detail::CudaRowStream on_cuda(const Tensor& out) const {
    using mixmatch::detail::kGolden, mixmatch::detail::mix_bits;
    return {
        out.data_ptr(), indices_.data_ptr(),        bounds_.data_ptr(),       groups(), batch_size_, rank_,
        world_size_,    mix_bits(~seed_ + kGolden), mix_bits(seed_ + kGolden)};
  }

  void write_rows(Tensor& out, const Tensor& step) const {
    if (indices_.is_cpu()) {
      write_rows(out.data_ptr<int64_t>(), *step.data_ptr<int64_t>());
    } else {
      out.copy_(rows_composite(step));
    }
  }

  void write_rows(int64_t* out, int64_t step) const {
    using mixmatch::detail::shuffle_key, mixmatch::detail::shuffled_index;
    TORCH_CHECK(step >= 0, "BatchStream: step must be >= 0, got ", step);
    const int64_t first = (step * world_size_ + rank_) * batch_size_;
    const auto *indices = indices_.data_ptr<int64_t>(), *bounds = bounds_.data_ptr<int64_t>();
    for (int64_t i = 0; i < batch_size_; ++i) {
      const int64_t round = (first + i) / groups();
      const int64_t group =
          shuffled_index((first + i) % groups(), groups(), shuffle_key(~seed_, static_cast<uint64_t>(round)));
      const int64_t start = bounds[group], count = bounds[group + 1] - start;
      const auto epoch = static_cast<uint64_t>(round / count * groups() + group);
      out[i] = indices[start + shuffled_index(round % count, count, shuffle_key(seed_, epoch))];
    }
  }

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

  int64_t batch_size_;
  uint64_t seed_;
  int64_t rank_;
  int64_t world_size_;
  uint64_t fingerprint_ = 0;
  Tensor indices_, bounds_;
};

}  // namespace mixmatch::data
