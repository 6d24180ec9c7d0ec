#pragma once

#include <torch/arg.h>
#include <mixmatch/distributed/joint_rows.hpp>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/nn/batch_norm_statistics.hpp>
#include <mixmatch/nn/forward_each.hpp>

#include <cstdint>
#include <type_traits>
#include <vector>

namespace mixmatch::training {

namespace detail {

/// In BatchNormStatistics' place for a bare TorchScript module, which cannot be reached into: a training pass
/// moves its statistics by the momentum of its own.
template <class Model>
class ScriptStatistics {
 public:
  explicit ScriptStatistics(Model& model) : model_(&model) {}
  auto update(const Tensor& /*momentum*/) { return mixmatch::detail::NothingToFreeze(); }
  auto update_at(const Tensor& /*step*/, double /*least*/) { return mixmatch::detail::NothingToFreeze(); }
  auto discard() { return BatchNormFreeze(*model_); }
  std::vector<Tensor> state() const { return {}; }

 private:
  Model* model_;
};

}  // namespace detail

struct LearnerOptions {
  /// Share of the new batch in the batch norms' running statistics, in [0, 1].
  TORCH_ARG(double, batch_norm_momentum) = 0.001;
  /// Lets a run's first steps average them plainly (see batch_norm_momentum()).
  TORCH_ARG(bool, warmup) = true;
  /// A group whose ranks share the rows of each forward pass (see own_rows()): every rank is to call the
  /// learner with the same batch, and has the outputs of all its rows. Null: this process does all of them.
  TORCH_ARG(std::add_pointer_t<ProcessGroup>, joint_group) = nullptr;
};

/// The model in training, as methods see it: a Model (any block takes it) whose running statistics lie in one
/// block and move by a momentum that follows the step, a tensor, so that what a method does with it is the
/// same eagerly and captured in a CUDA graph.
///
///     Learner learner(model);
///     { const auto scope = learner.training_step(step);          // step: int64 [] on the model's device
///       loss = method(learner, batch, step, generator); }
///     loss.total.backward();
///
/// Within training_step() the forward pass moves the statistics; those within freeze_batch_norm(), which
/// guess_labels() and forward_each() enter by themselves, do not. The model's mode is left alone. Made after
/// model->to(...); the model must outlive it.
///
/// With a joint_group() a method computes on every rank what it would in one process, whatever it does with
/// the outputs: MixUp across all rows, means over all of them, thresholds. The batch norms of a rank see its
/// own rows alone, every world_size-th of each part of the batch, unless synchronize_batch_norm() joins them.
template <ModuleModel M>
class Learner {
 public:
  explicit Learner(M& model, const LearnerOptions& options = {})
      : Learner(model, static_cast<EmaModel<M>*>(nullptr), options) {}
  /// With the moving average of the same model, which must outlive it: for teacher().
  Learner(M& model, EmaModel<M>& ema, const LearnerOptions& options = {}) : Learner(model, &ema, options) {}

  /// model(input)
  Tensor operator()(const Tensor& input) {
    ProcessGroup* group = options_.joint_group();
    return group == nullptr ? forward(*model_, input)
                            : all_rows(forward(*model_, own_rows(input, *group)), *group);
  }

  auto freeze_batch_norm() { return statistics_.discard(); }

  /// The teacher's output (Mean Teacher, arXiv 1703.01780): the averaged weights, in the mode the model is
  /// in, so by batch statistics in training; without gradient, and no statistics move.
  Tensor teacher(const Tensor& input) {
    TORCH_CHECK(ema_ != nullptr, "Learner: teacher() needs the moving average: Learner(model, ema)");
    const torch::NoGradGuard no_grad;
    const auto frozen = freeze_batch_norm();
    const auto averages = ema_->average_parameters();
    return (*this)(input);
  }

  void set_batch_norm_groups(int64_t groups) requires GroupedModel<M> {
    mixmatch::detail::set_batch_norm_groups(*model_, groups);
  }

  /// The scope of the step's forward passes. `step`: int64 [] on the model's device, which must not change
  /// within it.
  auto training_step(const Tensor& step) {
    const double momentum = options_.batch_norm_momentum();
    return options_.warmup() ? statistics_.update_at(step, momentum)
                             : statistics_.update(at::full({}, momentum, step.options().dtype(at::kDouble)));
  }

  M& model() { return *model_; }
  /// What a training step changes: for GraphedStep.
  std::vector<Tensor> state() const { return statistics_.state(); }

 private:
  Learner(M& model, EmaModel<M>* ema, const LearnerOptions& options)
      : model_(&model), ema_(ema), options_(options), statistics_(model) {
    TORCH_CHECK(options.batch_norm_momentum() >= 0 && options.batch_norm_momentum() <= 1,
                "Learner: batch_norm_momentum must be in [0, 1], got ", options.batch_norm_momentum());
  }

  M* model_;
  EmaModel<M>* ema_;
  LearnerOptions options_;
  std::conditional_t<mixmatch::detail::is_script_module<M>, detail::ScriptStatistics<M>, BatchNormStatistics>
      statistics_;
};

}  // namespace mixmatch::training
