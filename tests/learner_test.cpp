#include <mixmatch/guess_labels.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/step/learner.hpp>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;
using training::Learner;
using training::LearnerOptions;

namespace {

Tensor step_number(int64_t step) { return at::full({}, step, at::TensorOptions(at::kLong)); }

std::vector<Tensor> buffer_copies(HeldNet& model) {
  std::vector<Tensor> list;
  for (const Tensor& buffer : model->buffers()) {
    list.push_back(buffer.clone());
  }
  return list;
}

bool all_close(const std::vector<Tensor>& a, const std::vector<Tensor>& b, double tolerance = 0) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!torch::allclose(a[i].to(at::kDouble), b[i].to(at::kDouble), tolerance, tolerance)) {
      return false;
    }
  }
  return a.size() == b.size();
}

}  // namespace

TEST_CASE("Learner: is a Model whose training pass moves the statistics as the module alone does") {
  static_assert(Model<Learner<HeldNet>>);
  static_assert(FreezesBatchNorm<Learner<HeldNet>>);
  static_assert(GroupedModel<Learner<models::WideResNet>>);
  static_assert(!GroupedModel<Learner<HeldNet>>);
  torch::manual_seed(1);
  HeldNet model;
  HeldNet alone(std::dynamic_pointer_cast<HeldNetImpl>(model->clone()));
  Learner learner(model, LearnerOptions().batch_norm_momentum(0.1).warmup(true));
  for (int64_t step = 0; step < 20; ++step) {
    const Tensor x = torch::randn({6, 3});
    set_batch_norm_momentum(alone, batch_norm_momentum(step, 0.1));
    Tensor found;
    {
      const auto scope = learner.training_step(step_number(step));
      found = learner(x);
    }
    CHECK(torch::equal(found, alone->forward(x)));
    found.square().sum().backward();
    CHECK(all_close(buffer_copies(model), buffer_copies(alone), 1e-6));
  }
}

TEST_CASE(
    "Learner: what is frozen in a step moves nothing, in any order, and the training pass still counts") {
  torch::manual_seed(1);
  HeldNet model;
  HeldNet alone(std::dynamic_pointer_cast<HeldNetImpl>(model->clone()));
  Learner learner(model, LearnerOptions().batch_norm_momentum(0.25).warmup(false));
  const std::vector<Tensor> views{torch::randn({6, 3}), torch::randn({6, 3})};
  const Tensor x = torch::randn({6, 3}), other = torch::randn({6, 3});
  {
    const auto scope = learner.training_step(step_number(0));
    const Tensor guess = guess_labels(learner, views);
    CHECK(torch::equal(guess, guess_labels(alone, views)));
    forward_each(learner, {x, other});
    {
      const auto frozen = freeze_batch_norm(learner);
      const auto again = freeze_batch_norm(learner);
      learner(other);
    }
    const auto frozen = freeze_batch_norm(learner);
    learner(views.front());
  }
  set_batch_norm_momentum(alone, 0.25);
  alone->forward(x);
  CHECK(all_close(buffer_copies(model), buffer_copies(alone), 1e-6));

  // Outside of a step, passes are the module's own, and a frozen one leaves no trace.
  const auto before = buffer_copies(model);
  {
    const auto frozen = freeze_batch_norm(learner);
    learner(other);
  }
  CHECK(all_close(buffer_copies(model), before));
  learner(other);
  CHECK_FALSE(all_close(buffer_copies(model), before));
}

TEST_CASE("Learner: a step that throws moves nothing, and the next one is whole") {
  HeldNet model;
  Learner learner(model);
  const auto before = buffer_copies(model);
  CHECK_THROWS_AS(
      [&] {
        const auto scope = learner.training_step(step_number(0));
        learner(torch::randn({6, 3}));
        throw std::runtime_error("half a batch");
      }(),
      std::runtime_error);
  CHECK(all_close(buffer_copies(model), before));
  {
    const auto scope = learner.training_step(step_number(0));
    learner(torch::randn({6, 3}));
  }
  CHECK_FALSE(all_close(buffer_copies(model), before));
}

TEST_CASE("Learner: a momentum out of range is refused") {
  HeldNet model;
  CHECK_THAT(error_of([&] { Learner learner(model, LearnerOptions().batch_norm_momentum(1.5)); }),
             contains("batch_norm_momentum must be in [0, 1], got 1.5"));
}
