#pragma once

// What the tests of methods share: a linear model and a batch in double precision, and loss and gradient by
// plain loops.

#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/learner.hpp>
#include <mixmatch/step/step_loss.hpp>

#include <torch/nn/cloneable.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

inline torch::Tensor method_step(int64_t step) { return at::full({}, step, at::TensorOptions(at::kLong)); }

/// One weight matrix, so that logits and gradients are easy to write down.
struct LinearNet : torch::nn::Cloneable<LinearNet> {
  LinearNet() { reset(); }
  void reset() override { weight = register_parameter("weight", torch::zeros({3, 2}, at::kDouble)); }
  torch::Tensor forward(const torch::Tensor& x) { return x.matmul(weight.t()); }
  torch::Tensor weight;
};

struct MethodInput {
  std::shared_ptr<LinearNet> model = std::make_shared<LinearNet>();
  mixmatch::Batch batch{torch::tensor({1.0, -0.5, 0.25, 2.0}, at::kDouble).view({2, 2}),
                        torch::tensor({2, 0}, at::kLong),
                        {torch::tensor({3.0, 0.5, -0.25, 0.75, 0.0, -4.0}, at::kDouble).view({3, 2}),
                         torch::tensor({2.5, 1.0, -0.5, 0.25, 0.5, -3.0}, at::kDouble).view({3, 2})},
                        torch::tensor({0, 1, -1}, at::kLong),
                        {torch::tensor({1.0, 0.75, -1.5, 0.5, 2.0, -0.5}, at::kDouble).view({3, 2})}};
  MethodInput() {
    const torch::NoGradGuard no_grad;
    model->weight.copy_(torch::tensor({1.5, -0.5, -0.75, 0.25, 0.5, 1.0}, at::kDouble).view({3, 2}));
  }
};

using Matrix = std::vector<std::vector<double>>;

inline Matrix matrix_of(const torch::Tensor& tensor) {
  Matrix rows;
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    const torch::Tensor row = tensor[i].contiguous();
    rows.emplace_back(row.data_ptr<double>(), row.data_ptr<double>() + row.size(0));
  }
  return rows;
}

inline std::vector<double> softmax_of_logits(const Matrix& weight, const std::vector<double>& x) {
  std::vector<double> p;
  double sum = 0;
  for (const auto& row : weight) {
    p.push_back(std::exp(row[0] * x[0] + row[1] * x[1]));
    sum += p.back();
  }
  for (double& value : p) {
    value /= sum;
  }
  return p;
}

/// Loss and gradient of the weight, as written in the papers, class by class.
struct Golden {
  double labeled = 0, unlabeled = 0;
  Matrix gradient = Matrix(3, std::vector<double>(2, 0.0));

  /// dL/dlogits of one row, times x.
  void add(const std::vector<double>& slope, const std::vector<double>& x, double weight) {
    for (size_t c = 0; c < 3; ++c) {
      for (size_t d = 0; d < 2; ++d) {
        gradient[c][d] += weight * slope[c] * x[d];
      }
    }
  }
  /// Cross-entropy against a soft target; returns the row's.
  double soft_cross_entropy(const Matrix& w, const std::vector<double>& x, const std::vector<double>& target,
                            double weight, double rows) {
    auto p = softmax_of_logits(w, x);
    double loss = 0, mass = 0;
    for (size_t c = 0; c < 3; ++c) {
      loss -= target[c] * std::log(p[c]);
      mass += target[c];
    }
    for (size_t c = 0; c < 3; ++c) {
      p[c] = mass * p[c] - target[c];
    }
    add(p, x, weight / rows);
    return loss;
  }
  void cross_entropy(const Matrix& w, const std::vector<double>& x, size_t label, double weight, double& sum,
                     double rows) {
    auto p = softmax_of_logits(w, x);
    sum -= std::log(p[label]) / rows;
    p[label] -= 1;
    add(p, x, weight / rows);
  }
  /// Mean over rows and classes of (softmax - target)^2.
  void squared(const Matrix& w, const std::vector<double>& x, const std::vector<double>& target,
               double weight, double rows) {
    const auto p = softmax_of_logits(w, x);
    double inner = 0;
    for (size_t c = 0; c < 3; ++c) {
      unlabeled += (p[c] - target[c]) * (p[c] - target[c]) / (3 * rows);
      inner += 2 * (p[c] - target[c]) * p[c];
    }
    std::vector<double> slope;
    for (size_t c = 0; c < 3; ++c) {
      slope.push_back(p[c] * (2 * (p[c] - target[c]) - inner));
    }
    add(slope, x, weight / (3 * rows));
  }
};

inline double entropy_of(const std::vector<double>& p) {
  double sum = 0;
  for (const double value : p) {
    sum -= value > 0 ? value * std::log(value) : 0;
  }
  return sum;
}

/// Row i: lambda[i] rows[i] + (1 - lambda[i]) rows[order[i]].
inline Matrix mixed_rows(const Matrix& rows, const torch::Tensor& lambda, const torch::Tensor& order) {
  Matrix mixed = rows;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    const auto weight = lambda[at].item<double>();
    const auto& other = rows[static_cast<size_t>(order[at].item<int64_t>())];
    for (size_t d = 0; d < rows[i].size(); ++d) {
      mixed[i][d] = weight * rows[i][d] + (1 - weight) * other[d];
    }
  }
  return mixed;
}

inline Golden supervised_golden(const MethodInput& in) {
  Golden golden;
  const auto w = matrix_of(in.model->weight.detach()), x = matrix_of(in.batch.labeled);
  golden.cross_entropy(w, x[0], 2, 1, golden.labeled, 2);
  golden.cross_entropy(w, x[1], 0, 1, golden.labeled, 2);
  return golden;
}

inline double reported(const mixmatch::StepLoss& loss, const std::string& name) {
  for (const auto& [key, value] : loss.values) {
    if (key == name) {
      return value.item<double>();
    }
  }
  FAIL("no value " << name);
  return 0;
}

inline void check_golden(const MethodInput& in, const mixmatch::StepLoss& loss, const Golden& golden,
                         double weight) {
  CHECK(loss.total.item<double>() == Approx(golden.labeled + weight * golden.unlabeled).epsilon(1e-12));
  loss.total.backward();
  const auto gradient = matrix_of(in.model->weight.grad());
  for (size_t c = 0; c < 3; ++c) {
    for (size_t d = 0; d < 2; ++d) {
      CHECK(gradient[c][d] == Approx(golden.gradient[c][d]).epsilon(1e-10));
    }
  }
}

inline const at::Generator kNoGenerator;

inline mixmatch::Batch method_images(int64_t rows) {
  torch::manual_seed(4);
  return {torch::randn({rows, 3, 8, 8}),
          at::arange(rows, at::kLong).remainder(3),
          {torch::randn({rows, 3, 8, 8}), torch::randn({rows, 3, 8, 8})},
          at::full({rows}, -1, at::TensorOptions(at::kLong)),
          {torch::randn({rows, 3, 8, 8})}};
}
