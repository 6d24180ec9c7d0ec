// What holds of every method; golden values of loss and gradient, from double-precision arithmetic by hand,
// of those that do without MixUp and strong views. The others have a file each.

#include <mixmatch/methods/fixmatch.hpp>
#include <mixmatch/methods/ict.hpp>
#include <mixmatch/methods/mean_teacher.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/mixup.hpp>
#include <mixmatch/methods/pi_model.hpp>
#include <mixmatch/methods/pseudo_label.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/methods/uda.hpp>
#include <mixmatch/methods/vat.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/step/learner.hpp>

#include <algorithm>
#include <cmath>

#include "catch.hpp"
#include "method_checks.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

namespace mm = mixmatch;
using torch::Tensor;

namespace {

/// f(method, name) for each method, at full weight.
template <class F>
void for_each_method(F&& f) {
  f(mm::methods::Supervised(), "supervised");
  f(mm::methods::PseudoLabel(0.3), "pseudo_label");
  f(mm::methods::PiModel(), "pi_model");
  f(mm::methods::MeanTeacher(), "mean_teacher");
  f(mm::methods::MixMatch(mm::MixMatchOptions(), mm::RampedLossOptions().rampup_steps(0)), "mixmatch");
  f(mm::methods::MixUp(), "mixup");
  f(mm::methods::Ict(), "ict");
  f(mm::methods::Vat(), "vat");
  f(mm::methods::Uda(mm::methods::UdaOptions().threshold(0.3).annealing(mm::Annealing::none)), "uda");
  f(mm::methods::FixMatch(mm::methods::FixMatchOptions().threshold(0.3)), "fixmatch");
}

/// What goes through the model in the pass that moves batch-norm statistics, with the draws of seeded(1).
Tensor statistics_input(const std::string& name, const mm::Batch& batch) {
  if (name == "uda" || name == "fixmatch") {
    return at::cat({batch.labeled, batch.weak[0], batch.strong[0]});
  }
  if (name == "mixup") {
    return mm::mixup(batch.labeled, mm::one_hot(batch.labels, 3), {}, seeded(1)).inputs;
  }
  return batch.labeled;
}

}  // namespace

TEST_CASE("supervised: golden loss and gradient") {
  MethodInput in;
  mm::training::Learner learner(in.model);
  const auto loss = mm::methods::Supervised()(learner, in.batch, method_step(0), kNoGenerator);
  check_golden(in, loss, supervised_golden(in), 0);
}

TEST_CASE("methods: the labeled loss takes adjusted logits, and nothing else does") {
  const std::vector<double> added{-.5, -2, -1};
  for_each_method([&](auto method, const std::string& name) {
    INFO(name);
    const auto loss_of = [&](const Tensor& adjustment) {
      MethodInput in;
      if (name == "mixmatch") {
        in.batch.weak = {in.batch.weak[0].narrow(0, 0, 2), in.batch.weak[1].narrow(0, 0, 2)};
        in.batch.hidden_labels = in.batch.hidden_labels.narrow(0, 0, 2);
      }
      mm::EmaModel ema(in.model);
      mm::training::Learner learner(in.model, ema);
      in.batch.logit_adjustment = adjustment;
      return method(learner, in.batch, method_step(0), seeded(1));
    };
    const auto plain = loss_of({}), none = loss_of(torch::zeros({3})),
               adjusted = loss_of(torch::tensor(added));
    const double labeled = reported(adjusted, "loss_labeled");
    CHECK(reported(none, "loss_labeled") == Approx(reported(plain, "loss_labeled")).epsilon(1e-12));
    CHECK(std::abs(labeled - reported(plain, "loss_labeled")) > 0.01);
    for (const auto& [key, value] : plain.values) {
      if (key != "loss_labeled") {
        CHECK(reported(adjusted, key) == Approx(reported(plain, key)).epsilon(1e-12).margin(1e-12));
      }
    }
    if (name != "mixmatch" && name != "mixup") {  // whose rows are mixed
      const MethodInput in;
      const auto w = matrix_of(in.model->weight.detach()), x = matrix_of(in.batch.labeled);
      double expected = 0;
      for (size_t i = 0; i < 2; ++i) {
        std::vector<double> terms;
        double sum = 0;
        for (size_t c = 0; c < 3; ++c) {
          terms.push_back(std::exp(w[c][0] * x[i][0] + w[c][1] * x[i][1] + added[c]));
          sum += terms.back();
        }
        expected -= std::log(terms[i == 0 ? 2 : 0] / sum) / 2;
      }
      CHECK(labeled == Approx(expected).epsilon(1e-6));
    }
  });
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
    "methods: unlabeled images send a gradient to the student, and move statistics only in a joint pass") {
  for_each_method([](auto method, const std::string& name) {
    INFO(name);
    const auto batch = method_images(6);
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
      alone(statistics_input(name, batch));
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
      generator = seeded(1);
      CHECK_FALSE(torch::allclose(gradients(changed), first));
    }
    generator = seeded(1);
    const Tensor again = gradients(batch);
    CHECK(again.equal(first));  // the same draws give the same bits
    if (name == "mixup" || name == "ict" || name == "vat") {
      generator = seeded(2);
      CHECK_FALSE(gradients(batch).equal(first));
    }
  });
}

TEST_CASE("methods: a batch of one class and an empty mask stay finite") {
  for_each_method([](auto method, const std::string& name) {
    INFO(name);
    auto batch = method_images(4);
    batch.labels.fill_(1);
    torch::manual_seed(7);
    mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
    mm::EmaModel ema(model);
    mm::training::Learner learner(model, ema);
    auto generator = seeded(1);
    CHECK(std::isfinite(method(learner, batch, method_step(0), generator).total.template item<double>()));
  });
  const auto batch = method_images(4);
  mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
  mm::training::Learner learner(model);
  const auto loss = mm::methods::PseudoLabel(1)(learner, batch, method_step(0), kNoGenerator);
  CHECK(reported(loss, "mask_rate") == 0);
  CHECK(reported(loss, "loss_unlabeled") == 0);
  CHECK(std::isnan(reported(loss, "mask_accuracy")));
  loss.total.backward();
  CHECK(model->conv1->weight.grad().isfinite().all().item<bool>());
}

TEST_CASE("methods: bfloat16 by autocast has about float32's loss, and every parameter its gradient") {
  for_each_method([](auto method, const std::string& name) {
    INFO(name);
    const auto batch = method_images(6);
    torch::manual_seed(7);
    mm::models::WideResNet model(mm::models::WideResNetOptions(3).depth(10).widen_factor(1));
    mm::EmaModel ema(model);
    mm::training::Learner learner(model, ema);
    double totals[2];
    for (const auto precision : {at::kFloat, at::kBFloat16}) {
      auto generator = seeded(1);
      const auto scope = learner.training_step(method_step(0));
      mm::StepLoss loss;
      {
        const mm::training::Autocast autocast(torch::kCPU, precision);
        loss = method(learner, batch, method_step(0), generator);
      }
      CHECK(loss.total.scalar_type() == at::kFloat);
      totals[precision == at::kBFloat16] = loss.total.template item<double>();
      model->zero_grad();
      loss.total.backward();
      for (const auto& parameter : model->named_parameters()) {
        INFO(parameter.key());
        REQUIRE(parameter.value().grad().defined());
        CHECK(parameter.value().grad().isfinite().all().template item<bool>());
        CHECK(parameter.value().grad().abs().sum().template item<double>() > 0);
      }
    }
    CHECK(totals[1] == Approx(totals[0]).epsilon(0.1));
  });
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

TEST_CASE("methods: the options' defaults are the presets") {
  namespace presets = mm::presets;
  CHECK(mm::MixUpOptions().alpha() == presets::mixup_alpha);
  const mm::methods::VatOptions vat;
  CHECK(vat.radius() == presets::vat_radius);
  CHECK(vat.entropy_weight() == presets::vat_entropy_weight);
  CHECK(vat.direction().xi() == presets::vat_xi);
  CHECK(vat.direction().power_iterations() == 1);
  const mm::methods::UdaOptions uda;
  CHECK(uda.temperature() == presets::uda_temperature);
  CHECK(uda.threshold() == presets::uda_threshold);
  CHECK(uda.weight() == presets::uda_weight);
  CHECK(uda.total_steps() == presets::cifar10.total_steps);
  const mm::methods::FixMatchOptions fixmatch;
  CHECK(fixmatch.threshold() == presets::fixmatch_threshold);
  CHECK(fixmatch.weight() == presets::fixmatch_weight);
  MethodInput in;
  mm::EmaModel ema(in.model);
  mm::training::Learner learner(in.model, ema);
  const auto weight = [&](const auto& method) {
    return reported(method(learner, in.batch, method_step(0), seeded(1)), "lambda_u");
  };
  CHECK(weight(mm::methods::PseudoLabel()) == presets::pseudo_label_weight);
  CHECK(weight(mm::methods::PiModel()) == presets::pi_model_weight);
  CHECK(weight(mm::methods::MeanTeacher()) == presets::mean_teacher_weight);
  CHECK(weight(mm::methods::MixUp()) == presets::mixup_weight);
  CHECK(weight(mm::methods::Ict()) == presets::ict_weight);
  CHECK(weight(mm::methods::Vat()) == presets::vat_weight);
}

TEST_CASE("methods: options out of range are refused when the method is made") {
  CHECK_THAT(error_of([] { mm::methods::PseudoLabel(-0.1); }),
             contains("threshold must be in [0, 1], got -0.1"));
  CHECK_THAT(error_of([] { mm::methods::PiModel(mm::RampedLossOptions().lambda_u(-1)); }),
             contains("lambda_u must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([] { mm::methods::MixUp(mm::MixUpOptions().alpha(-1)); }),
             contains("MixUp: alpha must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([] { mm::methods::MixUp({}, -2); }),
             contains("MixUp: weight must be finite and >= 0, got -2"));
  CHECK_THAT(error_of([] { mm::methods::Ict(mm::MixUpOptions().alpha(-1)); }),
             contains("Ict: alpha must be finite and >= 0, got -1"));
  using mm::methods::FixMatchOptions, mm::methods::UdaOptions, mm::methods::VatOptions;
  CHECK_THAT(error_of([] { mm::methods::Vat(VatOptions().radius(0)); }),
             contains("Vat: radius must be finite and > 0, got 0"));
  CHECK_THAT(error_of([] { mm::methods::Vat(VatOptions().entropy_weight(-1)); }),
             contains("Vat: entropy_weight must be finite and >= 0, got -1"));
  CHECK_THAT(
      error_of([] { mm::methods::Vat(VatOptions().direction(mm::VirtualAdversarialOptions().xi(0))); }),
      contains("Vat: xi must be finite and > 0, got 0"));
  CHECK_THAT(error_of([] { mm::methods::Uda(UdaOptions().temperature(-1)); }),
             contains("Uda: temperature must be >= 0, got -1"));
  CHECK_THAT(error_of([] { mm::methods::Uda(UdaOptions().threshold(1.5)); }),
             contains("Uda: threshold must be in [0, 1], got 1.5"));
  CHECK_THAT(error_of([] { mm::methods::Uda(UdaOptions().weight(-1)); }),
             contains("Uda: weight must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([] { mm::methods::Uda(UdaOptions().total_steps(0)); }),
             contains("Uda: total_steps must be > 0, got 0"));
  CHECK_THAT(error_of([] { mm::methods::FixMatch(FixMatchOptions().threshold(-1)); }),
             contains("FixMatch: threshold must be in [0, 1], got -1"));
  CHECK_THAT(error_of([] { mm::methods::FixMatch(FixMatchOptions().weight(-1)); }),
             contains("FixMatch: weight must be finite and >= 0, got -1"));
  CHECK_THAT(error_of([] { mm::methods::MeanTeacher(mm::RampedLossOptions().rampup_steps(-1)); }),
             contains("rampup_steps must be >= 0, got -1"));
}
