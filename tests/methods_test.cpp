// Every method but MixMatch (mixmatch_test.cpp): golden values of loss and gradient from double-precision
// arithmetic by hand, and what holds of all.

#include <mixmatch/methods/mean_teacher.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/pi_model.hpp>
#include <mixmatch/methods/pseudo_label.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/step/learner.hpp>

#include <algorithm>
#include <cmath>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

namespace mm = mixmatch;
using torch::Tensor;

namespace {

Tensor method_step(int64_t step) { return at::full({}, step, at::TensorOptions(at::kLong)); }

/// One weight matrix, so that logits and gradients are easy to write down.
struct LinearNet : torch::nn::Cloneable<LinearNet> {
  LinearNet() { reset(); }
  void reset() override { weight = register_parameter("weight", torch::zeros({3, 2}, at::kDouble)); }
  Tensor forward(const Tensor& x) { return x.matmul(weight.t()); }
  Tensor weight;
};

struct MethodInput {
  std::shared_ptr<LinearNet> model = std::make_shared<LinearNet>();
  mm::Batch batch{torch::tensor({1.0, -0.5, 0.25, 2.0}, at::kDouble).view({2, 2}),
                  torch::tensor({2, 0}, at::kLong),
                  {torch::tensor({3.0, 0.5, -0.25, 0.75, 0.0, -4.0}, at::kDouble).view({3, 2}),
                   torch::tensor({2.5, 1.0, -0.5, 0.25, 0.5, -3.0}, at::kDouble).view({3, 2})},
                  torch::tensor({0, 1, -1}, at::kLong)};
  MethodInput() {
    const torch::NoGradGuard no_grad;
    model->weight.copy_(torch::tensor({1.5, -0.5, -0.75, 0.25, 0.5, 1.0}, at::kDouble).view({3, 2}));
  }
};

using Matrix = std::vector<std::vector<double>>;

Matrix matrix_of(const Tensor& tensor) {
  Matrix rows;
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    const Tensor row = tensor[i].contiguous();
    rows.emplace_back(row.data_ptr<double>(), row.data_ptr<double>() + row.size(0));
  }
  return rows;
}

std::vector<double> softmax_of_logits(const Matrix& weight, const std::vector<double>& x) {
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

Golden supervised_golden(const MethodInput& in) {
  Golden golden;
  const auto w = matrix_of(in.model->weight.detach()), x = matrix_of(in.batch.labeled);
  golden.cross_entropy(w, x[0], 2, 1, golden.labeled, 2);
  golden.cross_entropy(w, x[1], 0, 1, golden.labeled, 2);
  return golden;
}

double reported(const mm::StepLoss& loss, const std::string& name) {
  for (const auto& [key, value] : loss.values) {
    if (key == name) {
      return value.item<double>();
    }
  }
  FAIL("no value " << name);
  return 0;
}

void check_golden(const MethodInput& in, const mm::StepLoss& loss, const Golden& golden, double weight) {
  CHECK(loss.total.item<double>() == Approx(golden.labeled + weight * golden.unlabeled).epsilon(1e-12));
  loss.total.backward();
  const auto gradient = matrix_of(in.model->weight.grad());
  for (size_t c = 0; c < 3; ++c) {
    for (size_t d = 0; d < 2; ++d) {
      CHECK(gradient[c][d] == Approx(golden.gradient[c][d]).epsilon(1e-10));
    }
  }
}

const at::Generator kNoGenerator;

/// f(method, name) for each method, at full weight.
template <class F>
void for_each_method(F&& f) {
  f(mm::methods::Supervised(), "supervised");
  f(mm::methods::PseudoLabel(0.3), "pseudo_label");
  f(mm::methods::PiModel(), "pi_model");
  f(mm::methods::MeanTeacher(), "mean_teacher");
  f(mm::methods::MixMatch(mm::MixMatchOptions(), mm::RampedLossOptions().rampup_steps(0)), "mixmatch");
}

mm::Batch small_images(int64_t rows) {
  torch::manual_seed(4);
  return {torch::randn({rows, 3, 8, 8}),
          at::arange(rows, at::kLong).remainder(3),
          {torch::randn({rows, 3, 8, 8}), torch::randn({rows, 3, 8, 8})},
          at::full({rows}, -1, at::TensorOptions(at::kLong))};
}

}  // namespace

TEST_CASE("supervised: golden loss and gradient") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto loss = mm::methods::Supervised()(learner, in.batch, method_step(0), kNoGenerator);
  check_golden(in, loss, supervised_golden(in), 0);
}

TEST_CASE("pseudo_label: golden loss and gradient; rows below the threshold count as 0 in the mean") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]);
  auto golden = supervised_golden(in);
  double selected = 0;
  for (const auto& row : u) {
    const auto p = softmax_of_logits(w, row);
    const size_t label = static_cast<size_t>(std::max_element(p.begin(), p.end()) - p.begin());
    if (p[label] >= 0.8) {
      golden.cross_entropy(w, row, label, 0.5 * 2, golden.unlabeled, 3);
      ++selected;
    }
  }
  REQUIRE(selected == 2);
  const mm::methods::PseudoLabel method(0.8, mm::RampedLossOptions().lambda_u(2).rampup_steps(10));
  const auto loss = method(learner, in.batch, method_step(5), kNoGenerator);
  CHECK(reported(loss, "lambda_u") == 1);
  CHECK(reported(loss, "mask_rate") == Approx(2.0 / 3));
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-12));
  CHECK(reported(loss, "mask_accuracy") == 1);  // the third row's label is unknown
  check_golden(in, loss, golden, 1);
}

TEST_CASE("pi_model: golden loss and gradient, none to the second view's pass") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]),
             v = matrix_of(in.batch.weak[1]);
  auto golden = supervised_golden(in);
  for (size_t i = 0; i < 3; ++i) {
    golden.squared(w, u[i], softmax_of_logits(w, v[i]), 5, 3);
  }
  const mm::methods::PiModel method(mm::RampedLossOptions().lambda_u(20).rampup_steps(8));
  const auto loss = method(learner, in.batch, method_step(2), kNoGenerator);
  CHECK(reported(loss, "lambda_u") == 5);
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-12));
  check_golden(in, loss, golden, 5);
}

TEST_CASE("mean_teacher: golden loss and gradient against the averaged weights") {
  MethodInput in;
  mm::EmaModel ema(in.model, mm::EmaModelOptions(0.5));
  const auto teacher = matrix_of(in.model->weight.detach());
  {
    const torch::NoGradGuard no_grad;
    in.model->weight.add_(torch::tensor({0.5, 0.25, 0.0, -0.5, 1.0, 0.0}, at::kDouble).view({3, 2}));
  }
  mm::training::Learner learner(in.model, ema);
  const auto w = matrix_of(in.model->weight.detach()), u = matrix_of(in.batch.weak[0]),
             v = matrix_of(in.batch.weak[1]);
  auto golden = supervised_golden(in);
  for (size_t i = 0; i < 3; ++i) {
    golden.squared(w, u[i], softmax_of_logits(teacher, v[i]), 50, 3);
  }
  const auto loss = mm::methods::MeanTeacher()(learner, in.batch, method_step(0), kNoGenerator);
  CHECK(golden.unlabeled > 0.01);  // student and teacher differ
  CHECK(reported(loss, "loss_unlabeled") == Approx(golden.unlabeled).epsilon(1e-12));
  check_golden(in, loss, golden, 50);
  CHECK_FALSE(ema.named_parameters()[0].second.grad().defined());
  CHECK(matrix_of(ema.named_parameters()[0].second) == teacher);
}

TEST_CASE(
    "methods: unlabeled images send a gradient to the student, and only the labeled pass moves statistics") {
  for_each_method([](auto method, const std::string& name) {
    INFO(name);
    const auto batch = small_images(6);
    const auto make = [] {
      torch::manual_seed(7);
      return mm::models::WideResNet(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
    };
    auto model = make(), other = make();
    mm::EmaModel ema(model);
    {
      const torch::NoGradGuard no_grad;  // student and teacher differ
      for (auto& parameter : model->parameters()) {
        parameter.mul_(1.1);
      }
      for (auto& parameter : other->parameters()) {
        parameter.mul_(1.1);
      }
    }
    mm::training::Learner learner(model, ema);
    auto generator = seeded(1);
    const auto gradients = [&](const mm::Batch& of) {
      mm::StepLoss loss;
      {
        const auto scope = learner.training_step(method_step(0));
        loss = method(learner, of, method_step(0), generator);
      }
      CHECK(std::isfinite(loss.total.template item<double>()));
      model->zero_grad();
      loss.total.backward();
      return model->conv1->weight.grad().clone();
    };
    const Tensor first = gradients(batch);
    CHECK(first.abs().sum().template item<double>() > 0);
    if (name != "mixmatch") {  // whose statistics are those of a mixed batch
      mm::training::Learner alone(other);
      const auto scope = alone.training_step(method_step(0));
      alone(batch.labeled);
    }
    if (name != "mixmatch") {
      for (const auto& buffer : model->named_buffers()) {
        INFO(buffer.key());
        CHECK(torch::allclose(buffer.value(), other->named_buffers()[buffer.key()], 1e-5, 1e-6));
      }
    }
    if (name != "supervised") {
      auto changed = batch;
      changed.weak[0] = changed.weak[0] + 0.5 * torch::randn_like(changed.weak[0]);
      CHECK_FALSE(torch::allclose(gradients(changed), first));
    }
  });
}

TEST_CASE("methods: a batch of one class and an empty mask stay finite") {
  for_each_method([](auto method, const std::string& name) {
    INFO(name);
    auto batch = small_images(4);
    batch.labels.fill_(1);
    torch::manual_seed(7);
    mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
    mm::EmaModel ema(model);
    mm::training::Learner learner(model, ema);
    auto generator = seeded(1);
    CHECK(std::isfinite(method(learner, batch, method_step(0), generator).total.template item<double>()));
  });
  const auto batch = small_images(4);
  mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
  mm::training::Learner learner(model);
  const auto loss = mm::methods::PseudoLabel(1)(learner, batch, method_step(0), kNoGenerator);
  CHECK(reported(loss, "mask_rate") == 0);
  CHECK(reported(loss, "loss_unlabeled") == 0);
  CHECK(std::isnan(reported(loss, "mask_accuracy")));
  loss.total.backward();
  CHECK(model->conv1->weight.grad().isfinite().all().item<bool>());
}

TEST_CASE("select_confident and masked_cross_entropy: values, limits and what does not fit") {
  const Tensor p = torch::tensor({0.2, 0.8, 0.6, 0.4, 0.5, 0.5}, at::kDouble).view({3, 2});
  const auto selected = mm::select_confident(p, 0.6);
  CHECK(selected.labels.narrow(0, 0, 2).equal(torch::tensor({1, 0}, at::kLong)));
  CHECK(selected.mask.equal(torch::tensor({1.0, 1.0, 0.0}, at::kDouble)));
  CHECK(mm::select_confident(p, 0).mask.sum().item<double>() == 3);
  CHECK(mm::select_confident(p * std::nan(""), 0).mask.sum().item<double>() == 0);
  CHECK(mm::selected_accuracy(selected, torch::tensor({1, 1, 0}, at::kLong)).item<double>() == 0.5);
  CHECK_THAT(error_of([&] { mm::select_confident(p, 1.5); }),
             contains("threshold must be in [0, 1], got 1.5"));
  CHECK_THAT(error_of([&] { mm::select_confident(p[0], 0.5); }),
             contains("floating-point [N, L], got Double [2]"));
  const Tensor logits = torch::tensor({1.0, 3.0, 2.0, 2.0}, at::kDouble).view({2, 2}).requires_grad_();
  const Tensor labels = torch::tensor({0, 1}, at::kLong);
  const Tensor mask = torch::tensor({0.5, 1.0}, at::kDouble);
  const double expected = (0.5 * std::log(1 + std::exp(2.0)) + std::log(2.0)) / 2;
  CHECK(mm::masked_cross_entropy(logits, labels, mask).item<double>() == Approx(expected));
  CHECK(mm::masked_cross_entropy(logits, labels, mask * 0).item<double>() == 0);
  CHECK(mm::masked_cross_entropy(logits.narrow(0, 0, 0), labels.narrow(0, 0, 0), mask.narrow(0, 0, 0))
            .item<double>() == 0);
  CHECK_THAT(error_of([&] { mm::masked_cross_entropy(logits, labels.to(at::kInt), mask); }),
             contains("labels must be int64 [2], got Int [2]"));
  CHECK_THAT(error_of([&] { mm::masked_cross_entropy(logits, labels, mask.narrow(0, 0, 1)); }),
             contains("mask must be floating-point [2], got Double [1]"));
}

TEST_CASE("Learner: without a moving average there is no teacher") {
  HeldNet model;
  mm::training::Learner learner(model);
  CHECK_THAT(error_of([&] { learner.teacher(torch::ones({2, 3})); }), contains("Learner(model, ema)"));
}

TEST_CASE("methods: options out of range are refused when the method is made") {
  CHECK_THAT(error_of([] { mm::methods::PseudoLabel(-0.1); }),
             contains("threshold must be in [0, 1], got -0.1"));
  CHECK_THAT(error_of([] { mm::methods::PiModel(mm::RampedLossOptions().lambda_u(-1)); }),
             contains("lambda_u must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([] { mm::methods::MeanTeacher(mm::RampedLossOptions().rampup_steps(-1)); }),
             contains("rampup_steps must be >= 0, got -1"));
}
