#pragma once

#include <torch/arg.h>
#include <torch/serialize.h>
#include <torch/types.h>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/logit_adjustment.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace mixmatch {

using torch::Tensor;

struct DistributionAlignmentOptions {
  /// Batches over which the model's predictions are averaged, >= 1.
  TORCH_ARG(int64_t, window) = 128;
};

/// Distribution alignment (ReMixMatch, arXiv 1911.09785, section 3.1): predictions are scaled so that classes
/// are guessed as often as they should be, before they are sharpened or selected:
///
///     p~ = Normalize(p (p_data + 1e-6) / (p_model + 1e-6))
///
/// p_data is `prior`, the classes' shares among the labeled images or where one knows better; p_model is the
/// mean of the last `window` batches' mean predictions, those before this one, uniform for those that have
/// not been yet (all as in the authors' code). Where unlabeled classes are as unequal as the prior says, it
/// keeps a method from guessing the frequent ones alone; a prior that the unlabeled images do not have does
/// harm.
///
/// Its state is tensors that it changes in place, as a method's step() needs for a CUDA graph; save() and
/// load() store it. Draws nothing. Throws unless `prior` is floating-point [L], finite, >= 0 and not all 0;
/// it is normalised.
class DistributionAlignment {
 public:
  explicit DistributionAlignment(const Tensor& prior, const DistributionAlignmentOptions& options = {}) {
    detail::check_prior("DistributionAlignment", prior);
    TORCH_CHECK(options.window() >= 1, "DistributionAlignment: window must be >= 1, got ", options.window());
    const torch::NoGradGuard no_grad;
    prior_ = (prior / prior.sum()).to(at::kFloat);
    means_ = at::full({options.window(), prior.size(0)}, 1.0 / static_cast<double>(prior.size(0)),
                      prior_.options());
    batches_ = at::zeros({}, prior_.options().dtype(at::kLong));
  }

  /// Aligned predictions of a batch, [N, L] as `probabilities`, without gradient; then counts the batch into
  /// p_model. `probabilities`: floating-point [N, L], rows that sum to 1, on the prior's device.
  Tensor align(const Tensor& probabilities) {
    TORCH_CHECK(probabilities.defined() && probabilities.dim() == 2 &&
                    probabilities.size(1) == prior_.size(0) &&
                    at::isFloatingType(probabilities.scalar_type()),
                "DistributionAlignment: probabilities must be floating-point [N, ", prior_.size(0), "], got ",
                detail::type_and_sizes(probabilities));
    const torch::NoGradGuard no_grad;
    const Tensor ratio = (prior_ + 1e-6) / (means_.mean(0) + 1e-6);
    const Tensor aligned = probabilities * ratio.to(probabilities.scalar_type());
    const Tensor slot = batches_.remainder(means_.size(0)).view({1});
    means_.index_copy_(0, slot, probabilities.mean(0, /*keepdim=*/true).to(at::kFloat));
    batches_.add_(1);
    return aligned / aligned.sum(1, /*keepdim=*/true);
  }

  /// p_model, [L].
  Tensor model_distribution() const { return means_.mean(0); }
  const Tensor& prior() const { return prior_; }

  /// What align() changes.
  std::vector<Tensor> state() const { return {means_, batches_}; }
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("means", means_, /*is_buffer=*/true);
    archive.write("batches", batches_, /*is_buffer=*/true);
  }
  /// Throws where another window or number of classes was saved.
  void load(torch::serialize::InputArchive& archive) {
    Tensor means, batches;
    archive.read("means", means, /*is_buffer=*/true);
    archive.read("batches", batches, /*is_buffer=*/true);
    TORCH_CHECK(means.sizes() == means_.sizes(), "DistributionAlignment: expected means ", means_.sizes(),
                " [window, L], got ", means.sizes());
    means_.copy_(means);
    batches_.copy_(batches);
  }
  void to(torch::Device device) {
    prior_ = prior_.to(device);
    means_ = means_.to(device);
    batches_ = batches_.to(device);
  }

 private:
  Tensor prior_, means_, batches_;
};

}  // namespace mixmatch
