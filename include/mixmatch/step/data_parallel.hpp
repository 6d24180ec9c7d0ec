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
#include <mixmatch/step/method_state.hpp>
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
  /// Steps between checks that all ranks have the same weights, averages, moments and state of the method; 0:
  /// none but the first.
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

  /// Before a step, on the host: draws of the rank's own, and the check where it is due, of the method's
  /// state() too.
  void begin_step(const std::vector<Tensor>& method_state = {}) {
    if (group_ == nullptr) {
      return;
    }
    group_->begin_step();
    const int64_t step = state_->step;
    if (!checked_ || (options_.check_every() > 0 && step % options_.check_every() == 0)) {
      checked_ = true;
      check_replicas(method_state);
    }
    if (group_->world_size() > 1) {
      // A graph draws by the seed that the generator has when it is replayed, from LibTorch 1.13 on.
      reseed(state_->default_generator, 1);
      if (options_.batches() == RankBatches::separate) {
        reseed(state_->generator, 2);
      }
    }
  }

  /// The gradients of `loss`, as means over the ranks, for the optimiser's step. `overlap`: see
  /// Optimizer::keep_copies_gradients(), in one process.
  void backward(const Tensor& loss, bool overlap = false) {
    if (group_ == nullptr) {
      const auto kept = state_->optimizer.keep_copies_gradients(overlap);
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

  /// A method's state where each rank takes a step of its own, for reduce_state() after it.
  template <class Method>
  MethodState begin_state(const Method& method) const {
    if (group_ == nullptr || options_.batches() == RankBatches::joint) {
      return {};
    }
    const torch::NoGradGuard no_grad;
    MethodState state{state_of(method), {}};
    for (const Tensor& tensor : row_state_of(method)) {
      state.rows.emplace_back(tensor, tensor.detach().clone());
    }
    return state;
  }

  /// Makes it the same on every rank, as of one method that has seen all of their rows. What is of rows, or
  /// is counted by them, by the method's row_state(): what it was, and each rank's change of it. Of the rest
  /// floating-point tensors are averaged; integers count steps, of which each rank has taken as many.
  void reduce_state(const MethodState& state) {
    const torch::NoGradGuard no_grad;
    for (const auto& [tensor, before] : state.rows) {
      add_changes(tensor, before);
    }
    for (const Tensor& tensor : state.all) {
      const bool of_rows = std::any_of(state.rows.begin(), state.rows.end(),
                                       [&](const auto& rows) { return rows.first.is_same(tensor); });
      if (!of_rows && at::isFloatingType(tensor.scalar_type())) {
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

  /// Throws unless every rank has rank 0's weights, averages, moments and buffers, and its state of the
  /// method.
  void check_replicas(const std::vector<Tensor>& method_state = {}) {
    const auto check = [this](const char* what, int64_t rank) {
      TORCH_CHECK(rank < 0, "at step ", state_->step, " rank ", rank, " has ", what,
                  " than rank 0: the processes no longer train one model");
    };
    check("other weights", first_to_differ(checksum_of(replicated()), *group_));
    if (options_.batches() == RankBatches::separate) {
      check("another state of its method", first_to_differ(checksum_of(method_state), *group_));
      return;
    }
    // Computed by each rank for itself: processors of another kind round otherwise.
    for (const Tensor& tensor : method_state) {
      check("another state of its method", first_to_be_far(tensor, *group_));
    }
  }

 private:
  /// tensor <- old + the sum over ranks of tensor - old; exact where one rank alone changed an element.
  void add_changes(const Tensor& tensor, const Tensor& old) {
    const auto type = at::isFloatingType(tensor.scalar_type()) ? at::kDouble : at::kLong;
    const Tensor start = old.to(type);
    const Tensor change = tensor.to(type).sub_(start).contiguous();
    group_->start_sum(change)->wait();
    const Tensor sum = change.add_(start);
    tensor.copy_(tensor.scalar_type() == at::kBool ? sum.clamp_(0, 1) : sum);
  }

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
