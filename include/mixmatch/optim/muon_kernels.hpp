#pragma once

#include <torch/types.h>
#include <mixmatch/optim/muon.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace mixmatch::training::detail {

/// The kernels that Muon moves, those of one size together, and their momentum.
class MuonKernels {
 public:
  /// Numbers of the Optimizer beside MuonOptions.
  struct Rule {
    double weight_decay, l2;
  };
  struct Moment {
    size_t parameter;
    Tensor momentum;  // [rows, columns]
  };

  /// The `parameter`-th of the optimiser; `weight`: where it lies, [outputs, ...].
  void add(size_t parameter, const Tensor& weight, double rate_factor) {
    const int64_t rows = weight.size(0), columns = weight.numel() / rows;
    auto group = std::find_if(groups_.begin(), groups_.end(), [&](const Group& other) {
      return other.momentum.size(1) == rows && other.momentum.size(2) == columns &&
             other.rate_factor == rate_factor;
    });
    if (group == groups_.end()) {
      group = groups_.insert(group, {{}, {}, rate_factor, at::empty({0, rows, columns}, weight.options())});
    }
    group->parameters.push_back(parameter);
    group->weights.push_back(weight);
    const auto count = static_cast<int64_t>(group->weights.size());
    group->momentum = at::zeros({count, rows, columns}, weight.options());
  }

  bool empty() const { return groups_.empty(); }

  /// All that step() changes beside the weights.
  std::vector<Tensor> state() const {
    std::vector<Tensor> list;
    for (const Group& group : groups_) {
      list.push_back(group.momentum);
    }
    return list;
  }

  std::vector<Moment> moments() const {
    std::vector<Moment> list;
    for (const Group& group : groups_) {
      for (size_t k = 0; k < group.parameters.size(); ++k) {
        list.push_back({group.parameters[k], group.momentum[static_cast<int64_t>(k)]});
      }
    }
    return list;
  }

  /// Muon's step and decay, by the gradients of all the optimiser's parameters in their order; none where not
  /// `finite`, bool []. `learning_rate`: float64 [].
  void step(const std::vector<Tensor>& gradients, const Tensor& finite, const Tensor& learning_rate,
            const MuonOptions& options, const Rule& rule) {
    for (Group& group : groups_) {
      const int64_t rows = group.momentum.size(1), columns = group.momentum.size(2);
      std::vector<Tensor> of_group, weights;
      for (size_t k = 0; k < group.parameters.size(); ++k) {
        of_group.push_back(gradients[group.parameters[k]].reshape({rows, columns}));
        weights.push_back(group.weights[k].reshape({rows, columns}));
      }
      const Tensor weight = at::stack(weights);
      Tensor gradient = at::stack(of_group);
      if (rule.l2 > 0) {
        gradient = gradient + weight * rule.l2;
      }
      const Tensor moved = group.momentum * options.momentum() + gradient;
      const Tensor direction = gradient + moved * options.momentum();
      const auto type = weight.scalar_type();
      const Tensor orthogonal =
          orthogonalize(direction.is_cuda() && type == at::kFloat ? direction.to(at::kBFloat16) : direction,
                        options.iterations());
      const Tensor rate = learning_rate * group.rate_factor;
      const double length = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
      const Tensor next =
          (weight - orthogonal.to(type) * (rate * length).to(type)) * (1 - rate * rule.weight_decay).to(type);
      group.momentum.copy_(at::where(finite, moved, group.momentum));
      const Tensor kept = at::where(finite, next, weight);
      for (size_t k = 0; k < group.weights.size(); ++k) {
        group.weights[k].copy_(kept[static_cast<int64_t>(k)].view(group.weights[k].sizes()));
      }
    }
  }

 private:
  struct Group {
    std::vector<size_t> parameters;
    std::vector<Tensor> weights;
    double rate_factor;
    Tensor momentum;  // [kernels, rows, columns], a row for each output
  };

  std::vector<Group> groups_;
};

}  // namespace mixmatch::training::detail
