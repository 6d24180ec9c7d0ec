#pragma once

#include <mixmatch/detail/cuda/cuda_statistics.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/nn/batch_norm.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// The running statistics of all batch norms of a model in one block of memory, moved by a momentum that is a
/// tensor: what a step that is captured in a graph needs, where set_batch_norm_momentum() would be baked in,
/// and where BatchNormFreeze copies three small tensors a layer.
///
///     running <- running + momentum (batch's - running)       mean and unbiased variance, each layer
///
/// Within update(momentum) the forward pass is what moves them (of several, the last one alone); within
/// discard() passes leave no trace. Both normalise by their own batch, as BatchNormFreeze does, and are safe
/// between a forward pass and its backward pass. A discard() may stand inside an update() or another
/// discard(); an update() stands alone. Outside, the model is as always: its statistics are views of the
/// block under their own names. Covers what set_batch_norm_momentum() does; a layer without running
/// statistics is left alone. Statistics that BatchNormFreeze would know and these layers have not (of a
/// models::ScriptNetwork, of a layer of one's own) move in update() by a momentum of their own, in each pass,
/// and in discard() not at all. The model must outlive it, and stay on its device.
class BatchNormStatistics {
  enum class Mode { none, update, discard };

  /// By which momentum, or of which step; none.
  struct Move {
    Tensor momentum = {}, step = {};
    double least = 0;

    bool any() const { return momentum.defined() || step.defined(); }
  };

 public:
  template <ModuleModel M>
  explicit BatchNormStatistics(M& model) {
    static_assert(!mixmatch::detail::is_script_module<std::remove_const_t<M>>,
                  "mixmatch: BatchNormStatistics cannot reach into TorchScript");
    const torch::NoGradGuard no_grad;
    std::vector<Tensor> values, counts;
    mixmatch::detail::for_each_batch_norm(model, [&](auto& norm) {
      if (!norm.running_mean.defined()) {
        return;
      }
      Layer layer;
      layer.set_momentum = [&norm](double momentum) { norm.options.momentum(momentum); };
      layer.restore_momentum = [&norm, before = norm.options.momentum()] { norm.options.momentum(before); };
      layer.count = &norm.num_batches_tracked;
      for (const Tensor& buffer : {norm.running_mean, norm.running_var}) {
        layer.buffers.push_back(buffer);
        values.push_back(buffer.detach().reshape({-1}));
      }
      layer.own_count = norm.num_batches_tracked;
      counts.push_back(norm.num_batches_tracked.detach().reshape({1}));
      layers_.push_back(std::move(layer));
    });
    for (const auto& item : mixmatch::detail::model_buffers(model)) {
      const bool known = std::any_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
        return item.tensor.is_same(layer.own_count) || item.tensor.is_same(layer.buffers[0]) ||
               item.tensor.is_same(layer.buffers[1]);
      });
      if (!known && mixmatch::detail::is_batch_norm_statistic(item.name)) {
        others_.push_back({item.tensor, {}});
      }
    }
    if (layers_.empty()) {
      return;
    }
    running_ = at::cat(values);
    counts_ = at::cat(counts);
    batch_ = running_.clone();
    discarded_ = running_.clone();
    for (size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].own_count.set_data(counts_[static_cast<int64_t>(i)]);
    }
    point_to(running_);
  }
  BatchNormStatistics(const BatchNormStatistics&) = delete;
  BatchNormStatistics& operator=(const BatchNormStatistics&) = delete;

  class [[nodiscard]] Scope {
   public:
    Scope(BatchNormStatistics& statistics, Move move)
        : statistics_(statistics), move_(std::move(move)), exceptions_(std::uncaught_exceptions()) {
      before_ = statistics_.enter(move_.any() ? Mode::update : Mode::discard);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    /// A pass that threw moves nothing: its statistics are half of a batch's, and a device whose capture has
    /// failed takes no more work.
    ~Scope() noexcept(false) {
      statistics_.leave(before_, std::uncaught_exceptions() > exceptions_ ? Move() : move_);
    }

   private:
    BatchNormStatistics& statistics_;
    Move move_;
    int exceptions_;
    Mode before_;
  };

  /// `momentum`: floating-point [] on the model's device, in [0, 1].
  Scope update(const Tensor& momentum) {
    TORCH_CHECK(momentum.defined() && momentum.dim() == 0 && at::isFloatingType(momentum.scalar_type()),
                "BatchNormStatistics: momentum must be a floating-point scalar tensor, got ",
                mixmatch::detail::type_and_sizes(momentum));
    return {*this, {momentum}};
  }
  /// update(batch_norm_momentum(step, least)), on a GPU in one kernel. `step`: int64 [] on the model's
  /// device, which must not change within the scope.
  Scope update_at(const Tensor& step, double least) {
    if (mixmatch::detail::can_move_statistics_on_cuda(running_, step)) {
      return {*this, {Tensor(), step, least}};
    }
    return update(batch_norm_momentum(step, least));
  }
  Scope discard() { return {*this, Move()}; }

  /// What update() changes.
  std::vector<Tensor> state() const {
    return layers_.empty() ? std::vector<Tensor>() : std::vector<Tensor>{running_, counts_};
  }

 private:
  struct Layer {
    std::function<void(double)> set_momentum;
    std::function<void()> restore_momentum;
    std::vector<Tensor> buffers;  // the module's own handles: mean, variance
    Tensor* count = nullptr;      // its num_batches_tracked,
    Tensor own_count;             // and what that is outside of scopes
  };

  void point_to(const Tensor& memory) {
    int64_t offset = 0;
    for (auto& layer : layers_) {
      for (Tensor& buffer : layer.buffers) {
        buffer.set_data(memory.narrow(0, offset, buffer.numel()).view(buffer.sizes()));
        offset += buffer.numel();
      }
    }
  }

  /// Where the layers' statistics lie, and what a pass does to them: with a momentum of 1 it leaves its own
  /// batch's.
  void use(Mode mode) {
    point_to(mode == Mode::none ? running_ : mode == Mode::update ? batch_ : discarded_);
    for (auto& layer : layers_) {
      if (mode == Mode::none) {
        layer.restore_momentum();
        *layer.count = layer.own_count;
      } else {
        layer.set_momentum(mode == Mode::update ? 1.0 : 0.0);
        *layer.count = Tensor();  // not counted layer by layer
      }
    }
    mode_ = mode;
  }

  /// Returns the mode before.
  Mode enter(Mode mode) {
    TORCH_CHECK(mode == Mode::discard || mode_ == Mode::none,
                "BatchNormStatistics: update() stands in no other scope");
    const Mode before = mode_;
    if ((layers_.empty() && others_.empty()) || before == Mode::discard) {
      return before;
    }
    const torch::NoGradGuard no_grad;
    for (auto& other : others_) {
      if (mode == Mode::discard) {
        other.memory = other.buffer.tensor_data();
        other.buffer.set_data(other.memory.clone());
      }
    }
    if (layers_.empty()) {
      mode_ = mode;
      return before;
    }
    const Tensor& now = before == Mode::none ? running_ : batch_;
    TORCH_CHECK(layers_.front().buffers.front().data_ptr() == now.data_ptr(),
                "BatchNormStatistics: the model's running statistics no longer lie where they were put; make "
                "it after model->to(...)");
    (mode == Mode::update ? batch_ : discarded_).copy_(now);  // finite: 0 times a NaN of before would stay
    use(mode);
    return before;
  }

  void leave(Mode before, const Move& move) {
    if (mode_ == before) {
      return;
    }
    const torch::NoGradGuard no_grad;
    for (auto& other : others_) {
      if (mode_ == Mode::discard) {
        other.buffer.set_data(std::exchange(other.memory, Tensor()));
      }
    }
    use(before);
    if (layers_.empty()) {
      return;
    }
    if (move.step.defined()) {
      mixmatch::detail::move_statistics_on_cuda(running_, batch_, counts_, move.step, move.least);
    } else if (move.momentum.defined()) {
      running_.lerp_(batch_, move.momentum.to(running_.scalar_type()));
      counts_.add_(1);
    }
  }

  struct Other {
    Tensor buffer, memory;  // its own, while passes leave no trace
  };

  std::vector<Layer> layers_;
  std::vector<Other> others_;
  Tensor running_, counts_;
  Tensor batch_, discarded_;  // of the pass that counts; of those that do not
  Mode mode_ = Mode::none;
};

}  // namespace mixmatch::training
