#pragma once

#include <torch/arg.h>
#include <torch/serialize.h>
#include <torch/types.h>
#include <mixmatch/guess_labels.hpp>

#include <cstdint>
#include <vector>

namespace mixmatch {

struct EnergyGateOptions {
  /// Of the two means, each step; in [0, 1).
  TORCH_ARG(double, decay) = 0.95;
};

/// Leaves unlabeled rows out that look like no class, by their energy: a row is kept where
///
///     s(u) = 1/K sum_k log sum_l exp f_l(u_k)
///     s(u) > m_0
///
/// s is the negative energy (Liu et al., arXiv 2010.03759, eq. 4),
/// with m_0 and m_1 the means of the scores below and above (m_0 + m_1) / 2, moving averages that follow the
/// model: the threshold that divides scores best into two groups (Otsu 1979), by which foreign rows are told
/// in Yu et al. (arXiv 2007.11330) too. To leave all of the lower group out would take half of the rows where
/// none is foreign; its mean takes a third of them, and most of the foreign rows where there are some. There
/// is no threshold to set. Energy does without the softmax, which becomes sure of what is far from
/// everything.
///
/// It is as good as the model's eye: on a network from random weights and few labels foreign rows do not
/// score lower than others, on a pretrained one they do (docs/GUIDE.md has figures).
///
/// Its state is tensors that it changes in place, as a method's step() needs for a CUDA graph; save() and
/// load() store it. The first batch's mean less and plus its deviation are the means to begin with. Draws
/// nothing.
class EnergyGate {
 public:
  explicit EnergyGate(const EnergyGateOptions& options = {}) : options_(options) {
    TORCH_CHECK(options.decay() >= 0 && options.decay() < 1, "EnergyGate: decay must be in [0, 1), got ",
                options.decay());
    means_ = at::zeros({2}, at::kFloat);
    batches_ = at::zeros({}, at::kLong);
  }

  /// Of a batch's logits, K >= 1 views of [N, L], N >= 1: 1 for each row that is kept and 0 for the others,
  /// float32 [N], without gradient; then moves the means. NaN is left out.
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
    const Tensor center = score.mean(), spread = score.std(/*unbiased=*/false);
    const Tensor means = at::where(batches_.gt(0), means_, at::stack({center - spread, center + spread}));
    const Tensor kept = score.gt(means[0]).to(at::kFloat), above = score.gt(means.mean());
    const Tensor members = at::stack({above.logical_not(), above}).to(at::kFloat);
    const Tensor counts = members.sum(1);
    const Tensor of_batch = (members * score).sum(1) / counts.clamp_min(1);
    means_.copy_(at::where(counts.gt(0), means + (1 - options_.decay()) * (of_batch - means), means));
    batches_.add_(1);
    return kept;
  }

  /// m_0, above which rows are kept, and m_1: float32 [2].
  const Tensor& means() const { return means_; }

  /// What keep() changes.
  std::vector<Tensor> state() const { return {means_, batches_}; }
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("means", means_, /*is_buffer=*/true);
    archive.write("batches", batches_, /*is_buffer=*/true);
  }
  void load(torch::serialize::InputArchive& archive) {
    Tensor means, batches;
    archive.read("means", means, /*is_buffer=*/true);
    archive.read("batches", batches, /*is_buffer=*/true);
    TORCH_CHECK(means.sizes() == means_.sizes(), "EnergyGate: expected means [2], got ", means.sizes());
    means_.copy_(means);
    batches_.copy_(batches);
  }
  void to(torch::Device device) {
    means_ = means_.to(device);
    batches_ = batches_.to(device);
  }

 private:
  EnergyGateOptions options_;
  Tensor means_, batches_;
};

}  // namespace mixmatch
