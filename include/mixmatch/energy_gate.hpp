#pragma once

#include <torch/arg.h>
#include <torch/serialize.h>
#include <torch/types.h>
#include <mixmatch/guess_labels.hpp>

#include <cstdint>
#include <vector>

namespace mixmatch {

struct EnergyGateOptions {
  /// Of how far the two means are from the batch's, each step; in [0, 1).
  TORCH_ARG(double, decay) = 0.95;
};

/// Leaves unlabeled rows out that look like no class, by their energy: a row is kept where
///
///     s(u) = 1/K sum_k log sum_l exp f_l(u_k)
///     s(u) > m_0
///
/// s is the negative energy (Liu et al., arXiv 2010.03759, eq. 4), m_0 and m_1 are the means of the scores
/// below and above (m_0 + m_1) / 2: the threshold that divides scores best into two groups (Otsu 1979), by
/// which foreign rows are told in Yu et al. (arXiv 2007.11330) too. To leave all of the lower group out would
/// take half of the rows where none is foreign; its mean takes a third of them, and most of the foreign rows
/// where there are some. There is no threshold to set. Energy does without the softmax, which becomes sure of
/// what is far from everything. Both means are the batch's mean score and a moving average of how far from it
/// they are, as scores rise while a model learns.
///
/// It is as good as the model's eye: on a network from random weights and few labels foreign rows do not
/// score lower than others, on a pretrained one they do (docs/GUIDE.md has figures).
///
/// Its state is tensors that it changes in place, as a method's step() needs for a CUDA graph; save() and
/// load() store it. The first batch's deviation is how far both are to begin with. Draws nothing.
class EnergyGate {
 public:
  explicit EnergyGate(const EnergyGateOptions& options = {}) : options_(options) {
    TORCH_CHECK(options.decay() >= 0 && options.decay() < 1, "EnergyGate: decay must be in [0, 1), got ",
                options.decay());
    offsets_ = at::zeros({2}, at::kFloat);
    batches_ = at::zeros({}, at::kLong);
  }

  /// Of a batch's logits, K >= 1 views of [N, L], N >= 1: 1 for each row that is kept and 0 for the others,
  /// float32 [N], without gradient; then moves the means. A batch with a NaN is left out whole.
  Tensor keep(const std::vector<Tensor>& logits) {
    TORCH_CHECK(!logits.empty(), "EnergyGate: logits must hold at least one view, got none");
    const torch::NoGradGuard no_grad;
    Tensor score;
    for (const Tensor& view : logits) {
      detail::check_logits("EnergyGate", view);
      TORCH_CHECK(view.sizes() == logits.front().sizes() && view.size(0) > 0,
                  "EnergyGate: all views must have one shape [N, L] of at least one row, got ", view.sizes());
      const Tensor of_view = torch::logsumexp(detail::float_logits(view), {1}).to(at::kFloat);
      score = score.defined() ? score + of_view : of_view;
    }
    score = score / static_cast<double>(logits.size());
    score = score - score.mean();
    const Tensor spread = score.std(/*unbiased=*/false);
    const Tensor offsets = at::where(batches_.gt(0), offsets_, at::stack({-spread, spread}));
    const Tensor kept = score.gt(offsets[0]).to(at::kFloat), above = score.gt(offsets.mean());
    const Tensor members = at::stack({above.logical_not(), above}).to(at::kFloat);
    const Tensor counts = members.sum(1);
    const Tensor of_batch = (members * score).sum(1) / counts.clamp_min(1);
    const Tensor known = counts.gt(0).logical_and(of_batch.isfinite());
    offsets_.copy_(at::where(known, offsets + (1 - options_.decay()) * (of_batch - offsets),
                             at::where(offsets.isfinite(), offsets, offsets_)));
    batches_.add_(spread.isfinite());  // one with a NaN is none to begin with
    return kept;
  }

  /// How far m_0 and m_1 are from the next batch's mean score: float32 [2].
  const Tensor& offsets() const { return offsets_; }

  /// What keep() changes.
  std::vector<Tensor> state() const { return {offsets_, batches_}; }
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("offsets", offsets_, /*is_buffer=*/true);
    archive.write("batches", batches_, /*is_buffer=*/true);
  }
  void load(torch::serialize::InputArchive& archive) {
    Tensor offsets, batches;
    archive.read("offsets", offsets, /*is_buffer=*/true);
    archive.read("batches", batches, /*is_buffer=*/true);
    TORCH_CHECK(offsets.sizes() == offsets_.sizes(), "EnergyGate: expected offsets [2], got ",
                offsets.sizes());
    offsets_.copy_(offsets);
    batches_.copy_(batches);
  }
  void to(torch::Device device) {
    offsets_ = offsets_.to(device);
    batches_ = batches_.to(device);
  }

 private:
  EnergyGateOptions options_;
  Tensor offsets_, batches_;
};

}  // namespace mixmatch
