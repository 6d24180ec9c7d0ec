#pragma once

#include <torch/arg.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/types.h>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/model.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace mixmatch::training {

struct GradientReducerOptions {
  /// Gradients that one call sums, in bytes: more calls overlap better, and cost more.
  TORCH_ARG(int64_t, bucket_bytes) = 4 << 20;
  /// Begins a bucket's sum as soon as the backward pass has all of its gradients.
  TORCH_ARG(bool, overlap) = true;
};

/// The means of a model's gradients over the ranks of a group:
///
///     GradientReducer reducer(model, group);
///     reducer.begin();                          // each step
///     loss.backward();                          // one backward pass
///     reducer.finish();                         // each grad() is the mean, the same bits on every rank
///
/// They lie in one block of memory, in the reverse of the parameters' order, as a backward pass comes to the
/// last ones first; a bucket is a slice of it. A parameter without a gradient counts as one of gradient 0,
/// and has one afterwards. Frozen parameters are left out. All of one floating dtype and one device. The
/// model and the group must outlive it.
class GradientReducer {
 public:
  template <ModuleModel M>
  GradientReducer(M& model, ProcessGroup& group, const GradientReducerOptions& options = {})
      : group_(&group), overlap_(options.overlap()) {
    TORCH_CHECK(options.bucket_bytes() > 0, "GradientReducer: bucket_bytes must be > 0, got ",
                options.bucket_bytes());
    auto all = mixmatch::detail::model_parameters(model);
    std::reverse(all.begin(), all.end());
    int64_t total = 0;
    for (const auto& item : all) {
      const Tensor& tensor = item.tensor;
      if (!tensor.requires_grad()) {
        continue;
      }
      const Tensor& first = parameters_.empty() ? tensor : parameters_.front().tensor;
      TORCH_CHECK(tensor.scalar_type() == first.scalar_type() && tensor.device() == first.device(),
                  "GradientReducer: all parameters must be ", first.scalar_type(), " on ", first.device(),
                  " as the first is, got ", tensor.scalar_type(), " on ", tensor.device(), ": ", item.name);
      const auto bytes = static_cast<int64_t>(tensor.element_size());
      if (buckets_.empty() || (total - buckets_.back().offset) * bytes >= options.bucket_bytes()) {
        buckets_.push_back({total, 0, 0, 0, nullptr});
      }
      parameters_.push_back({tensor, Tensor(), buckets_.size() - 1, false, Accumulator(), 0});
      total += aligned_size(tensor);
      buckets_.back().size = total - buckets_.back().offset;
      ++buckets_.back().parameters;
    }
    TORCH_CHECK(!parameters_.empty(), "GradientReducer: the model has no trainable parameter");
    block_ = at::zeros({total}, parameters_.front().tensor.options().requires_grad(false));
    int64_t offset = 0;
    for (auto& parameter : parameters_) {
      const Tensor& tensor = parameter.tensor;
      const auto strides =
          (tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous()).strides().vec();
      parameter.place = block_.as_strided(tensor.sizes(), strides, offset);
      offset += aligned_size(tensor);
    }
  }
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;
  ~GradientReducer() { let_go_of_hooks(); }

  /// Before the step's backward pass.
  void begin() {
    for (auto& parameter : parameters_) {
      parameter.ready = false;
    }
    for (auto& bucket : buckets_) {
      bucket.missing = bucket.parameters;
      bucket.work.reset();
    }
    next_ = 0;
    active_ = true;
    let_go_of_hooks();  // of a backward pass that threw
    if (overlap_) {
      watch_gradients();
    }
  }

  /// After it: waits for the sums.
  void finish() {
    TORCH_CHECK(active_, "GradientReducer: finish() comes after begin()");
    const torch::NoGradGuard no_grad;
    for (auto& parameter : parameters_) {
      take(parameter);
    }
    active_ = false;
    let_go_of_hooks();
    for (auto& bucket : buckets_) {
      bucket.work->wait();
      bucket.work.reset();
    }
    block_.div_(static_cast<double>(group_->world_size()));
  }

  int64_t buckets() const { return static_cast<int64_t>(buckets_.size()); }
  int64_t bytes() const { return block_.numel() * static_cast<int64_t>(block_.element_size()); }

 private:
  static int64_t aligned_size(const Tensor& tensor) {
    constexpr int64_t alignment = 64;  // elements: for vectors of any processor
    return (tensor.numel() + alignment - 1) / alignment * alignment;
  }

  using Accumulator = decltype(torch::autograd::impl::grad_accumulator(std::declval<const Tensor&>()));

  struct Parameter {
    Tensor tensor, place;
    size_t bucket;
    bool ready;  // its gradient lies in its place
    Accumulator accumulator;
    uintptr_t hook;
  };
  struct Bucket {
    int64_t offset, size, parameters, missing;
    std::unique_ptr<ProcessGroup::Work> work;
  };

  /// The hooks run where the backward pass runs, when a parameter's gradient has all of its parts. They are
  /// of one step: an accumulator works on the stream that it was made on, which is another when a graph is
  /// captured.
  void watch_gradients() {
    using torch::autograd::variable_list;
    using torch::autograd::utils::LambdaPostHook;
    for (auto& parameter : parameters_) {
      parameter.accumulator = torch::autograd::impl::grad_accumulator(parameter.tensor);
      parameter.hook = parameter.accumulator->add_post_hook(std::make_unique<LambdaPostHook>(
          [this, &parameter](const variable_list& outputs, const variable_list&) {
            const torch::NoGradGuard no_grad;
            take(parameter);
            return outputs;
          }));
    }
  }

  void let_go_of_hooks() {
    for (auto& parameter : parameters_) {
      if (parameter.accumulator) {
        parameter.accumulator->del_post_hook(parameter.hook);
        parameter.accumulator = Accumulator();
      }
    }
  }

  void take(Parameter& parameter) {
    if (parameter.ready) {
      return;
    }
    parameter.ready = true;
    Tensor& gradient = parameter.tensor.mutable_grad();
    if (!gradient.defined()) {
      parameter.place.zero_();
    } else if (gradient.data_ptr() != parameter.place.data_ptr()) {
      parameter.place.copy_(gradient);
    }
    gradient = parameter.place;
    --buckets_[parameter.bucket].missing;
    // On every rank in the same order.
    for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) {
      Bucket& bucket = buckets_[next_];
      bucket.work = group_->start_sum(block_.narrow(0, bucket.offset, bucket.size));
    }
  }

  ProcessGroup* group_;
  bool overlap_;
  std::vector<Parameter> parameters_;
  std::vector<Bucket> buckets_;
  size_t next_ = 0;      // the first bucket whose sum has not begun
  bool active_ = false;  // between begin() and finish()
  Tensor block_;
};

}  // namespace mixmatch::training
