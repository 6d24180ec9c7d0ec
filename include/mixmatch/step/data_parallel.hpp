#pragma once

#include <ATen/core/Generator.h>
#include <torch/arg.h>
#include <mixmatch/detail/counter_rng.hpp>
#include <mixmatch/distributed/gradient_reducer.hpp>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/distributed/same_on_all.hpp>
#include <mixmatch/nn/batch_norm.hpp>
#include <mixmatch/step/learner.hpp>
#include <mixmatch/step/meter.hpp>
#include <mixmatch/step/train_state.hpp>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// What a step is of several processes.
enum class RankBatches {
  /// The step of one process with the whole batch: every rank has all rows, draws the same numbers and
  /// computes the same loss, and the network's rows are shared (LearnerOptions::joint_group).
  joint,
  /// The mean of as many steps as there are ranks, each of its part of the batch, with draws of its own:
  /// MixUp's partners, interleaved rows and means over selected rows stay within a rank.
  separate
};

struct DataParallelOptions {
  TORCH_ARG(RankBatches, batches) = RankBatches::joint;
  /// Of the draws that are a rank's own.
  TORCH_ARG(uint64_t, seed) = 1;
  /// Steps between checks that all ranks have the same weights, averages and moments; 0: none but the first.
  TORCH_ARG(int64_t, check_every) = 1000;
  TORCH_ARG(GradientReducerOptions, reducer) = {};
};

/// What a step of several processes does beside that of one; with a null group nothing.
///
///     DataParallel parallel(state, learner, group);
///     parallel.begin_step();                              // each step, outside of a graph
///     … loss = method(learner, batch, step, state.generator) …
///     parallel.backward(loss.total);                      // in loss.total.backward()'s place
///     meter.add(loss, state.optimizer.step());
///     run.record(parallel.mean(meter.read()));
///
/// On construction every rank takes rank 0's weights, averages, moments and buffers. backward() leaves the
/// mean of the ranks' gradients, and the mean of their batch norms' running statistics. So all ranks take the
/// same step, bit for bit, which begin_step() checks at times. Throws PeerError where another rank is gone,
/// and c10::Error where a rank has other weights.
///
/// Layers that draw, such as Dropout, draw other numbers on each rank, by (seed, step, rank); so does a
/// method of RankBatches::separate. A resumed run draws what one never stopped does.
template <ModuleModel Model>
class DataParallel {
 public:
  DataParallel(TrainState<Model>& state, Learner<Model>& learner, ProcessGroup* group,
               const DataParallelOptions& options = {})
      : state_(&state), learner_(&learner), group_(group), options_(options) {
    if (group_ == nullptr) {
      return;
    }
    for (const Tensor& tensor : replicated()) {
      if (tensor.is_contiguous()) {
        group_->broadcast_(tensor.detach());
      } else {
        Tensor copy = tensor.detach().contiguous();
        group_->broadcast_(copy);
        const torch::NoGradGuard no_grad;
        tensor.detach().copy_(copy);
      }
    }
    reducer_.emplace(state.model, *group_, options.reducer());
  }

  /// Before a step, on the host: draws of the rank's own, and the check where it is due.
  void begin_step() {
    if (group_ == nullptr) {
      return;
    }
    const int64_t step = state_->step;
    if (!checked_ || (options_.check_every() > 0 && step % options_.check_every() == 0)) {
      checked_ = true;
      check_replicas();
    }
    if (group_->world_size() > 1) {
      reseed(state_->default_generator, 1);
      if (options_.batches() == RankBatches::separate) {
        reseed(state_->generator, 2);
      }
    }
  }

  /// The gradients of `loss`, as means over the ranks.
  void backward(const Tensor& loss) {
    if (group_ == nullptr) {
      loss.backward();
      return;
    }
    const torch::NoGradGuard no_grad;
    std::vector<std::pair<Tensor, std::unique_ptr<ProcessGroup::Work>>> statistics;
    for (const Tensor& tensor : running_statistics()) {
      statistics.emplace_back(tensor, group_->start_sum(tensor));
    }
    reducer_->begin();
    {
      const torch::AutoGradMode gradients(true);
      loss.backward();
    }
    reducer_->finish();
    for (auto& [tensor, work] : statistics) {
      work->wait();
      tensor.div_(static_cast<double>(group_->world_size()));
    }
  }

  /// A method's state: means over the ranks, of floating-point tensors, where each has its own.
  void reduce_state(const std::vector<Tensor>& state) {
    if (group_ == nullptr || options_.batches() == RankBatches::joint) {
      return;
    }
    const torch::NoGradGuard no_grad;
    for (const Tensor& tensor : state) {
      if (at::isFloatingType(tensor.scalar_type())) {
        group_->mean_(tensor);
      }
    }
  }

  /// Of all ranks' steps.
  StepMeans mean(StepMeans means) {
    if (group_ == nullptr || options_.batches() == RankBatches::joint) {
      return means;
    }
    const auto size = static_cast<int64_t>(means.values.size());
    const Tensor own = at::cat({at::tensor(means.values, at::kDouble), at::tensor(means.counts, at::kDouble),
                                at::full({1}, means.finite ? 1.0 : 0.0, at::kDouble)});
    const Tensor all = group_->gather(own);
    const Tensor counts = all.narrow(1, size, size);
    // Of ranks that have a number; the loss must show where it is none.
    const Tensor known = counts.gt(0);
    const Tensor values =
        at::where(known, all.narrow(1, 0, size) * counts, at::zeros_like(counts)).sum(0) / counts.sum(0);
    for (int64_t i = 0; i < size; ++i) {
      means.values[static_cast<size_t>(i)] = values[i].item<double>();
      means.counts[static_cast<size_t>(i)] = counts.select(1, i).mean().item<double>();
    }
    means.finite = all.select(1, 2 * size).min().item<double>() != 0;
    return means;
  }

  /// Whether a step can be captured in a CUDA graph.
  bool capturable(torch::Device device) const { return group_ == nullptr || group_->capturable(device); }

  /// Throws unless every rank has rank 0's weights, averages, moments and buffers.
  void check_replicas() {
    const int64_t rank = first_to_differ(checksum_of(replicated()), *group_);
    TORCH_CHECK(rank < 0, "at step ", state_->step, " rank ", rank,
                " has other weights than rank 0: the processes no longer train one model");
  }

 private:
  /// The optimiser's blocks hold the trained parameters, their averages and moments; the rest is the model's.
  std::vector<Tensor> replicated() const {
    std::vector<Tensor> tensors = state_->optimizer.state();
    for (const auto& item : mixmatch::detail::model_state(state_->model)) {
      if (!item.tensor.requires_grad()) {
        tensors.push_back(item.tensor);
      }
    }
    return tensors;
  }

  std::vector<Tensor> running_statistics() const {
    std::vector<Tensor> tensors;
    for (const Tensor& tensor : learner_->state()) {
      if (at::isFloatingType(tensor.scalar_type())) {
        tensors.push_back(tensor);
      }
    }
    // Of layers that the learner does not know, such as a TorchScript module's.
    for (const auto& item : mixmatch::detail::model_buffers(state_->model)) {
      if (mixmatch::detail::is_batch_norm_statistic(item.name) &&
          at::isFloatingType(item.tensor.scalar_type()) && !lies_in(item.tensor, tensors)) {
        tensors.push_back(item.tensor);
      }
    }
    return tensors;
  }

  static bool lies_in(const Tensor& tensor, const std::vector<Tensor>& blocks) {
    return std::any_of(blocks.begin(), blocks.end(),
                       [&](const Tensor& block) { return block.storage().is_alias_of(tensor.storage()); });
  }

  void reseed(at::Generator& generator, uint64_t purpose) const {
    mixmatch::detail::CounterRng random(
        mixmatch::detail::mix_bits(options_.seed() + purpose) ^ static_cast<uint64_t>(group_->rank()),
        static_cast<uint64_t>(state_->step));
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(random.next());
  }

  TrainState<Model>* state_;
  Learner<Model>* learner_;
  ProcessGroup* group_;
  DataParallelOptions options_;
  std::optional<GradientReducer> reducer_;
  bool checked_ = false;
};

}  // namespace mixmatch::training
