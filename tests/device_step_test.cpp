#include <torch/optim/adam.h>
#include <torch/serialize.h>
#include <mixmatch/evaluation/guess_quality.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/step/device_step.hpp>

#include "catch.hpp"
#include "emulated_norm.hpp"
#include "test_util.hpp"

#include <cmath>
#include <memory>
#include <sstream>
#include <vector>

namespace mm = mixmatch;
using mm::methods::MixMatch;
using mm::training::DeviceStep;
using mm::training::DeviceStepOptions;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_adam.inc"
#include "cuda_augment.inc"
#include "cuda_mixup.inc"
#include "cuda_sharpen.inc"
#include "cuda_shuffle.inc"
}  // namespace cuda_emulation

namespace {

constexpr int64_t kClasses = 3;

/// Images of one gray level a class, with noise.
struct Data {
  Tensor images, labels, labeled, unlabeled;
};

Data device_step_data() {
  torch::manual_seed(5);
  Data data;
  data.labels = at::arange(48, at::kLong).remainder(kClasses);
  const Tensor level = (data.labels * 90 + 20).view({48, 1, 1, 1});
  data.images = (level + at::randint(0, 30, {48, 3, 8, 8})).to(at::kByte);
  data.labeled = at::arange(0, 12, at::kLong);
  data.unlabeled = at::arange(12, 48, at::kLong);
  return data;
}

const mm::RampedLossOptions kRamp = mm::RampedLossOptions().lambda_u(10).rampup_steps(20);

DeviceStepOptions device_step_options() {
  return DeviceStepOptions()
      .batch_size(4)
      .optimizer(mm::training::DeviceAdamOptions().weight_decay(0.02))
      .augmentation(mm::augment::RandomCropFlipOptions().padding(2));
}

mm::models::WideResNet device_step_model() {
  torch::manual_seed(3);
  mm::models::WideResNet model(mm::models::WideResNetOptions(kClasses).depth(10).widen_factor(1));
  mm::training::to_channels_last(model);
  return model;
}

template <class Method>
struct SmallTraining {
  explicit SmallTraining(Method method, const DeviceStepOptions& options = device_step_options(),
                         const Data& data = device_step_data())
      : model(device_step_model()),
        ema(model, mm::EmaModelOptions(0.9).warmup(true)),
        step(model, ema, std::move(method), data.images, data.labels, data.labeled, data.unlabeled, options) {
  }

  mm::models::WideResNet model;
  mm::EmaModel<mm::models::WideResNet> ema;
  DeviceStep<mm::models::WideResNet, Method> step;
};

struct MixMatchTrainer : SmallTraining<MixMatch> {
  explicit MixMatchTrainer(const DeviceStepOptions& options = device_step_options(),
                           const Data& data = device_step_data())
      : SmallTraining(MixMatch(mm::MixMatchOptions(), kRamp), options, data) {}
};

double value_of(const mm::training::DeviceStepResult& result, const std::string& name) {
  for (const auto& [key, value] : result.loss.values) {
    if (key == name) {
      return value.item<double>();
    }
  }
  FAIL("no value " << name);
  return 0;
}

template <class Method>
std::vector<Tensor> tensors_of(SmallTraining<Method>& trainer) {
  std::vector<Tensor> list;
  for (const auto& item : mm::detail::model_state(trainer.model)) {
    list.push_back(item.tensor.detach().clone());
  }
  for (const auto& [name, average] : trainer.ema.named_parameters()) {
    list.push_back(average.clone());
  }
  return list;
}

bool equal(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  if (a.size() != b.size()) {
    return false;
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (!a[i].equal(b[i])) {
      return false;
    }
  }
  return true;
}

bool close(const Tensor& a, const Tensor& b, double tolerance) {
  return at::allclose(a.detach().to(at::kDouble), b.detach().to(at::kDouble), tolerance, tolerance);
}

}  // namespace

TEST_CASE("device steps are mixmatch_loss(), Adam, decay, average and statistics on the same draws") {
  const Data data = device_step_data();
  const auto options = device_step_options();
  MixMatchTrainer trainer;

  // The same with the host's blocks.
  auto model = device_step_model();
  mm::EmaModel<mm::models::WideResNet> ema(model, mm::EmaModelOptions(0.9).warmup(true));
  torch::optim::Adam adam(model->parameters(), torch::optim::AdamOptions(2e-3));
  mm::data::DeviceBatchStream labeled(data.labeled, 4, 1, torch::kCPU),
      unlabeled(data.unlabeled, 4, 2, torch::kCPU);
  auto generator = seeded(1);
  const mm::RampedLoss criterion(kRamp);
  for (int64_t step = 0; step < 4; ++step) {
    // The step's three draws for all rows at once, cut up for mixmatch_loss()'s calls of augment.
    const Tensor rows = labeled.next(), other_rows = unlabeled.next();
    const Tensor all =
        mm::augment::random_crop_flip(data.images.index_select(0, at::cat({rows, other_rows, other_rows})),
                                      options.augmentation(), generator);
    int64_t call = 0;
    const auto augment = [&](const Tensor&) { return all.narrow(0, 4 * call++, 4); };
    mm::set_batch_norm_momentum(model, mm::batch_norm_momentum(step, 0.001));
    const auto expected = mm::methods::mixmatch_loss(
        model, augment, data.images.index_select(0, rows), data.labels.index_select(0, rows),
        data.images.index_select(0, other_rows), step, criterion, {}, generator);
    expected.total.backward();
    adam.step();
    ema.decay_weights_and_update(0.02 * 2e-3);
    adam.zero_grad();

    const auto result = trainer.step();
    INFO("step " << step);
    CHECK(result.finite.item<bool>());
    CHECK(close(result.loss.total, expected.total, 1e-5));
    CHECK(value_of(result, "loss_labeled") == Approx(expected.labeled.item<double>()).epsilon(1e-5));
    CHECK(value_of(result, "loss_unlabeled") == Approx(expected.unlabeled.item<double>()).epsilon(1e-4));
    CHECK(value_of(result, "lambda_u") == criterion.weight(step));
    const auto quality =
        mm::training::guess_quality(expected.guesses, data.labels.index_select(0, other_rows));
    CHECK(value_of(result, "guess_accuracy") == Approx(quality.accuracy.item<double>()));
    CHECK(value_of(result, "guess_entropy") == Approx(quality.mean_entropy.item<double>()).epsilon(1e-3));
    CHECK(value_of(result, "guess_confidence") ==
          Approx(quality.mean_max_probability.item<double>()).epsilon(1e-4));
  }
  CHECK(trainer.step.synchronize(trainer.ema) == 4);
  CHECK(trainer.ema.num_updates() == 4);
  const auto mine = mm::detail::model_state(trainer.model), theirs = mm::detail::model_state(model);
  for (size_t i = 0; i < mine.size(); ++i) {
    INFO(mine[i].name);
    CHECK(close(mine[i].tensor, theirs[i].tensor, 2e-4));
  }
  const auto averages = trainer.ema.named_parameters(), expected_averages = ema.named_parameters();
  for (size_t i = 0; i < averages.size(); ++i) {
    CHECK(close(averages[i].second, expected_averages[i].second, 2e-4));
  }
  const Tensor images = mm::augment::normalize(data.images);
  CHECK(close(trainer.ema.forward(images), ema.forward(images), 5e-3));
}

TEST_CASE("a hundred device steps learn, and a resumed run equals one that never stopped") {
  const Data data = device_step_data();
  MixMatchTrainer whole;
  std::stringstream model_file, ema_file, step_file;
  double first = 0;
  for (int64_t step = 0; step < 100; ++step) {
    const auto result = whole.step();
    REQUIRE(std::isfinite(result.loss.total.item<double>()));
    first = step == 0 ? value_of(result, "loss_labeled") : first;
    if (step == 59) {
      whole.step.synchronize(whole.ema);
      torch::save(whole.model, model_file);
      torch::save(whole.ema, ema_file);
      torch::serialize::OutputArchive archive;
      whole.step.save(archive);
      archive.save_to(step_file);
    }
    if (step == 99) {
      CHECK(value_of(result, "loss_labeled") < 0.8 * first);  // mixed targets have an entropy of their own
    }
  }
  whole.step.synchronize(whole.ema);
  const Tensor predicted = whole.ema.forward(mm::augment::normalize(data.images)).argmax(1);
  CHECK(predicted.eq(data.labels).to(at::kFloat).mean().item<double>() > 0.9);

  MixMatchTrainer resumed;
  resumed.step();  // another position, to be overwritten
  torch::serialize::InputArchive model_archive, archive;
  model_archive.load_from(model_file);
  mm::training::detail::load_module(*resumed.model, model_archive);
  torch::load(resumed.ema, ema_file);
  archive.load_from(step_file);
  resumed.step.load(archive);
  for (int64_t step = 60; step < 100; ++step) {
    resumed.step();
  }
  CHECK(equal(tensors_of(resumed), tensors_of(whole)));
}

TEST_CASE("a supervised device step looks at labeled images alone") {
  Data data = device_step_data();
  SmallTraining trainer(mm::methods::Supervised(), device_step_options().weak_views(0), data);
  const auto batch = trainer.step.draw();
  CHECK(batch.labeled.sizes() == at::IntArrayRef({4, 3, 8, 8}));
  CHECK(batch.weak.empty());
  CHECK_FALSE(batch.hidden_labels.defined());
  double first = 0, last = 0;
  for (int64_t step = 0; step < 60; ++step) {
    const auto result = trainer.step();
    last = value_of(result, "loss_labeled");
    first = step == 0 ? last : first;
    CHECK(result.loss.total.item<double>() == last);
  }
  CHECK(last < 0.5 * first);
}

TEST_CASE("a device step takes every mixing mode, number of views and precision") {
  for (const auto* mode : {".", "xx.yxy", "xx.yx"}) {
    for (const int64_t views : {1, 3}) {
      SmallTraining trainer(
          MixMatch(mm::MixMatchOptions().mix_mode(mm::parse_mix_mode(mode)).num_augmentations(views), kRamp),
          device_step_options().weak_views(views).precision(views == 1 ? at::kBFloat16 : at::kFloat));
      CHECK(std::isfinite(trainer.step().loss.total.item<double>()));
    }
  }
}

TEST_CASE("a device step whose gradients are not finite changes no weight") {
  Data data = device_step_data();
  MixMatchTrainer trainer(device_step_options(), data);
  trainer.step();
  const auto before = tensors_of(trainer);
  {
    const torch::NoGradGuard no_grad;
    trainer.model->fc->bias.fill_(std::numeric_limits<float>::infinity());
  }
  const Tensor weight = trainer.model->conv1->weight.detach().clone();
  CHECK_FALSE(trainer.step().finite.item<bool>());
  CHECK(trainer.model->conv1->weight.equal(weight));
  CHECK(trainer.step.synchronize(trainer.ema) == 1);
}

TEST_CASE("a captured device step on the CPU is the eager one") {
  MixMatchTrainer eager, graphed;
  mm::training::GraphedStep step([&] { return graphed.step(); }, torch::kCPU, graphed.step.graph_options());
  CHECK_FALSE(step.is_graphed());
  for (int i = 0; i < 3; ++i) {
    CHECK(step().loss.total.equal(eager.step().loss.total));
  }
  CHECK(equal(tensors_of(eager), tensors_of(graphed)));
}

TEST_CASE("a device step names a bad argument") {
  auto model = device_step_model();
  mm::EmaModel<mm::models::WideResNet> ema(model);
  const Data data = device_step_data();
  const auto make = [&](const Tensor& images, const Tensor& labels) {
    return error_of(
        [&] { DeviceStep step(model, ema, MixMatch(), images, labels, data.labeled, data.unlabeled); });
  };
  CHECK_THAT(make(data.images.to(at::kFloat), data.labels),
             contains("images must be uint8 [N, C, H, W], got Float"));
  CHECK_THAT(make(data.images, data.labels.narrow(0, 0, 5)), contains("labels must be int64 [48], got [5]"));
}

TEST_CASE("a step by the CUDA kernels, emulated, is the step by ATen's calls and the CPU's kernels") {
  const auto train = [] {
    MixMatchTrainer trainer(
        device_step_options().learner(mm::training::LearnerOptions().warmup(false).batch_norm_momentum(0.1)));
    std::vector<Tensor> results;
    for (int step = 0; step < 2; ++step) {
      const auto result = trainer.step();
      CHECK(result.finite.item<bool>());
      results.push_back(result.loss.total);
      for (const auto& [name, value] : result.loss.values) {
        results.push_back(value);
      }
    }
    trainer.step.synchronize(trainer.ema);
    const auto state = tensors_of(trainer);
    results.insert(results.end(), state.begin(), state.end());
    return results;
  };
  const auto expected = train();
  std::vector<Tensor> found;
  {
    namespace emulated = cuda_emulation;
    emulated::EmulatedDevice device;
    device.add("stream_rows<i64>", emulated::stream_rows<emulated::i64>);
    device.add("crop_flip<float>", emulated::crop_flip<float>);
    device.add("sharpen_views<float, float>", emulated::sharpen_views<float, float>);
    device.add("mix_rows<float, 4>", emulated::mix_rows<float, 4>);
    device.add("mix_rows<float, 1>", emulated::mix_rows<float, 1>);
    emulated::add_norm_kernels<float, 4>(device, "float");
    device.add("adam_step<float>", emulated::adam_step<float>);
    found = train();
    // Twice: streams, augmentation, guess, mixing of inputs and targets, norms both ways, Adam.
    CHECK(device.launches() > 2 * 50);
  }
  REQUIRE(found.size() == expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    INFO("result " << i);
    CHECK(close(found[i], expected[i], 2e-3));
  }
}
