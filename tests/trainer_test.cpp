#include <torch/optim/adam.h>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/nn/batch_norm.hpp>
#include <mixmatch/program/check_options.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/network.hpp>
#include <mixmatch/program/option_presets.hpp>
#include <mixmatch/program/start_run.hpp>
#include <mixmatch/program/with_method.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/training_run.hpp>
#include <mixmatch/step/train_state.hpp>
#include <mixmatch/step/trainer.hpp>

#include "catch.hpp"
#include "emulated_norm.hpp"
#include "test_util.hpp"

#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ATen/record_function.h>

namespace mm = mixmatch;
using mm::training::TrainerOptions;
using mm::training::TrainingOptions;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_augment.inc"
#include "cuda_guess_quality.inc"
#include "cuda_interleave.inc"
#include "cuda_losses.inc"
#include "cuda_meter.inc"
#include "cuda_mixup.inc"
#include "cuda_optimizer.inc"
#include "cuda_sharpen.inc"
#include "cuda_shuffle.inc"
#include "cuda_statistics.inc"
}  // namespace cuda_emulation

namespace {

TrainingOptions tiny_run() {
  TrainingOptions o(mm::presets::cifar10);
  o.steps = 12;
  o.batch = 4;
  o.depth = 10;
  o.widen = 1;
  o.padding = 2;
  o.log_every = 4;
  o.eval_every = 6;
  o.rampup_steps = 20;
  o.precision = "fp32";
  return o;
}

/// Images of one gray level a class, with noise.
mm::training::TrainingData gray_levels() {
  torch::manual_seed(5);
  mm::data::ImageDataset set;
  set.labels = at::arange(60, at::kLong).remainder(3);
  set.images = ((set.labels * 90 + 20).view({60, 1, 1, 1}) + at::randint(0, 30, {60, 3, 8, 8})).to(at::kByte);
  set.class_names = {"a", "b", "c"};
  return {mm::data::ImagePool({set}), {at::arange(15, at::kLong), at::arange(15, 60, at::kLong), {}}, {}, {}};
}

Tensor all_pixels(const mm::training::TrainingData& data) {
  return mm::augment::normalize(data.pool.gather(at::arange(data.pool.size(), at::kLong)));
}

template <class Method>
struct TrainerProgram {
  TrainerProgram(const TrainingOptions& o, Method method, const std::string& file = "",
                 mm::training::TrainingData images = gray_levels())
      : TrainerProgram(o, std::move(method), mm::training::trainer_options(o), file, std::move(images)) {}
  TrainerProgram(const TrainingOptions& o, Method method, const TrainerOptions& options,
                 const std::string& file = "", mm::training::TrainingData images = gray_levels())
      : data(std::move(images)),
        state(mm::training::make_network(o, data.pool.num_classes(), torch::kCPU),
              mm::training::train_state_options(o)),
        trainer(state, std::move(method), data, options),
        checkpoint(file) {
    state.register_in(checkpoint);
    trainer.register_in(checkpoint);
    checkpoint.add("step", state.step);
  }

  mm::StepMeans run_until(int64_t step) {
    mm::StepMeans means;
    while (state.step < step) {
      means = trainer.run(step - state.step);
    }
    return means;
  }

  mm::training::TrainingData data;
  mm::training::TrainState<mm::models::Network> state;
  mm::training::Trainer<mm::models::Network, Method> trainer;
  mm::training::Checkpoint checkpoint;
};

mm::methods::MixMatch mixmatch_of(const TrainingOptions& o) {
  return mm::methods::MixMatch(mm::training::mixmatch_options(o), mm::training::ramped_loss_options(o));
}

double mean_named(const mm::StepMeans& means, const std::string& name) {
  for (size_t i = 0; i < means.names.size(); ++i) {
    if (means.names[i] == name) {
      return means.values[i];
    }
  }
  FAIL("no value " << name);
  return 0;
}

/// The kernels for logits of `type`.
template <class Scalar>
void add_logit_kernels(cuda_emulation::EmulatedDevice& device, const std::string& type) {
  namespace emulated = cuda_emulation;
  device.add("class_loss<" + type + ", true>", emulated::class_loss<Scalar, true>);
  device.add("class_loss<" + type + ", false>", emulated::class_loss<Scalar, false>);
  device.add("class_loss_gradient<" + type + ", true>", emulated::class_loss_gradient<Scalar, true>);
  device.add("class_loss_gradient<" + type + ", false>", emulated::class_loss_gradient<Scalar, false>);
  device.add("interleave_rows<" + type + ">", emulated::interleave_rows<Scalar>);
  device.add("sharpen_views<" + type + ", float>", emulated::sharpen_views<Scalar, float>);
}

/// All kernels of a float32 or bfloat16 step but the norms'.
void add_step_kernels(cuda_emulation::EmulatedDevice& device) {
  namespace emulated = cuda_emulation;
  add_logit_kernels<float>(device, "float");
  add_logit_kernels<emulated::BFloat16>(device, "BFloat16");
  device.add("stream_rows<i64>", emulated::stream_rows<int64_t>);
  device.add("crop_views<float>", emulated::crop_views<float>);
  device.add("crop_views<u8>", emulated::crop_views<emulated::u8>);
  device.add("beta_of_draws<float>", emulated::beta_of_draws<float>);
  device.add("join_targets<float>", emulated::join_targets<float>);
  device.add("mix_rows<float, 4>", emulated::mix_rows<float, 4>);
  device.add("mix_rows<float, 1>", emulated::mix_rows<float, 1>);
  device.add("ramped_total<float>", emulated::ramped_total<float>);
  device.add("guess_quality<float>", emulated::guess_quality<float>);
  device.add("move_statistics<float>", emulated::move_statistics<float>);
  device.add("gather_gradients<float>", emulated::gather_gradients<float>);
  device.add("begin_step<double>", emulated::begin_step<double>);
  device.add("adam_step<float>", emulated::adam_step<float>);
  device.add("sgd_step<float>", emulated::sgd_step<float>);
  device.add("add_numbers<double>", emulated::add_numbers<double>);
}

/// Weights, statistics and averages.
template <class Program>
std::vector<Tensor> trained_tensors(Program& program) {
  std::vector<Tensor> list;
  for (const auto& item : mm::detail::model_state(program.state.model)) {
    list.push_back(item.tensor.detach().clone());
  }
  for (const auto& [name, average] : program.state.ema.named_parameters()) {
    list.push_back(average.detach().clone());
  }
  return list;
}

bool same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) {
    same = a[i].equal(b[i]);
  }
  return same;
}

/// Counts conversions of float32 to bfloat16 of weights, biases or blocks: not those of images and logits.
class ConversionCount {
 public:
  ConversionCount() {
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&seen).needsInputs(true));
    count() = 0;
  }
  ConversionCount(const ConversionCount&) = delete;
  ConversionCount& operator=(const ConversionCount&) = delete;
  ~ConversionCount() { at::removeCallback(handle_); }

  int64_t weights() const { return count(); }

 private:
  static int64_t& count() {
    static int64_t conversions = 0;
    return conversions;
  }
  static std::unique_ptr<at::ObserverContext> seen(const at::RecordFunction& function) {
    if (std::string(function.name()) == "aten::_to_copy") {
      const auto inputs = function.inputs();
      const bool from_float = inputs[0].isTensor() && inputs[0].toTensor().scalar_type() == at::kFloat;
      const bool to_bfloat16 =
          inputs[1].isInt() && static_cast<at::ScalarType>(inputs[1].toInt()) == at::kBFloat16;
      const int64_t dims = inputs[0].isTensor() ? inputs[0].toTensor().dim() : 0;
      const bool image = dims == 4 && inputs[0].toTensor().size(2) == 8;
      count() += from_float && to_bfloat16 && (dims == 1 || (dims == 4 && !image)) ? 1 : 0;
    }
    return nullptr;
  }

  at::CallbackHandle handle_;
};

/// Counts ATen's calls that are kernels, copies or memsets on a GPU, outside of the network's layers: of
/// calls within each other the outermost.
class SmallCallCount {
 public:
  SmallCallCount() {
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&begin, &end).scopes({at::RecordScope::FUNCTION}));
    names().clear();
  }
  SmallCallCount(const SmallCallCount&) = delete;
  SmallCallCount& operator=(const SmallCallCount&) = delete;
  ~SmallCallCount() { at::removeCallback(handle_); }

  int64_t count() const { return static_cast<int64_t>(names().size()); }
  std::string text() const {
    std::string all;
    for (const auto& name : names()) {
      all += name + " ";
    }
    return all;
  }

 private:
  struct Entered : at::ObserverContext {};
  static std::vector<std::string>& names() {
    static std::vector<std::string> list;
    return list;
  }
  static int& depth() {
    static int of_calls = 0;
    return of_calls;
  }
  static bool is_of_layers(const std::string& name) {
    return name.find("conv") != name.npos || name == "aten::linear" || name == "aten::addmm" ||
           name == "aten::mm" || name == "aten::mean" || name == "aten::sum";
  }
  static bool is_small_call(const std::string& name) {
    // What is drawn is drawn otherwise on a GPU.
    static const std::set<std::string> calls{"_to_copy", "clone",       "fill_",
                                             "zero_",    "zeros",       "ones",
                                             "full",     "ones_like",   "cat",
                                             "stack",    "repeat",      "add",
                                             "add_",     "sub",         "sub_",
                                             "rsub",     "mul",         "mul_",
                                             "div",      "div_",        "reciprocal_",
                                             "clamp",    "clamp_",      "clamp_min_",
                                             "maximum",  "minimum",     "index_select",
                                             "gather",   "scatter_",    "where",
                                             "eq",       "lerp_",       "bitwise_right_shift",
                                             "arange",   "logical_and_"};
    return name.rfind("aten::", 0) == 0 && calls.count(name.substr(6)) > 0;
  }
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
    const std::string name = function.name();
    const bool small = is_small_call(name);
    if (!small && !is_of_layers(name)) {
      return nullptr;
    }
    if (depth()++ == 0 && small) {
      names().push_back(name);
    }
    return std::make_unique<Entered>();
  }
  static void end(const at::RecordFunction&, at::ObserverContext* entered) {
    depth() -= entered != nullptr ? 1 : 0;
  }

  at::CallbackHandle handle_;
};

bool near(const Tensor& a, const Tensor& b, double tolerance) {
  return at::allclose(a.detach().to(at::kDouble), b.detach().to(at::kDouble), tolerance, tolerance);
}

}  // namespace

TEST_CASE("Trainer: a step is the method's loss, the optimiser, decay, average and statistics by hand") {
  auto o = tiny_run();
  o.lr_schedule = "cosine";
  o.steps = 6;  // so that the learning rate changes a lot
  TrainerProgram program(o, mixmatch_of(o));

  const auto data = gray_levels();
  auto model = mm::training::make_network(o, 3, torch::kCPU);
  mm::EmaModel ema(model, mm::EmaModelOptions(o.ema_decay).warmup(true));
  torch::optim::Adam adam(model->parameters(), torch::optim::AdamOptions(o.learning_rate));
  const mm::training::Feed feed(data, mm::training::trainer_options(o).feed());
  const mm::RampedLoss criterion(mm::training::ramped_loss_options(o));
  auto generator = seeded(o.seed);
  for (int64_t step = 0; step < 4; ++step) {
    const auto batch = feed(at::full({}, step, at::TensorOptions(at::kLong)));
    int64_t call = 0;
    const auto augment = [&](const Tensor&) {
      const auto view = static_cast<size_t>(call++);
      return view == 0 ? batch.labeled : batch.weak[view - 1];
    };
    mm::set_batch_norm_momentum(model, mm::batch_norm_momentum(step, 0.001));
    const auto expected = mm::methods::mixmatch_loss(model, augment, batch.labeled, batch.labels,
                                                     batch.weak[0], step, criterion, {}, generator);
    const double rate = o.learning_rate * mm::cosine_decay(step, o.steps);
    static_cast<torch::optim::AdamOptions&>(adam.param_groups()[0].options()).lr(rate);
    expected.total.backward();
    adam.step();
    ema.decay_weights_and_update(o.weight_decay * rate);
    adam.zero_grad();

    const auto means = program.trainer.run(1);
    INFO("step " << step);
    CHECK(means.finite);
    CHECK(mean_named(means, "loss") == Approx(expected.total.item<double>()).epsilon(1e-5));
    CHECK(mean_named(means, "loss_labeled") == Approx(expected.labeled.item<double>()).epsilon(1e-5));
    CHECK(mean_named(means, "loss_unlabeled") == Approx(expected.unlabeled.item<double>()).epsilon(1e-4));
    CHECK(mean_named(means, "lambda_u") == criterion.weight(step));
    const auto quality = mm::training::guess_quality(expected.guesses, batch.hidden_labels);
    CHECK(mean_named(means, "guess_accuracy") == Approx(quality.accuracy.item<double>()));
    CHECK(mean_named(means, "guess_entropy") == Approx(quality.mean_entropy.item<double>()).epsilon(1e-3));
    CHECK(mean_named(means, "guess_confidence") ==
          Approx(quality.mean_max_probability.item<double>()).epsilon(1e-4));
    CHECK(program.state.optimizer.learning_rate().item<double>() == Approx(rate).epsilon(1e-12));
    CHECK(program.state.step == step + 1);
  }
  CHECK(program.state.ema.num_updates() == 4);
  CHECK(program.state.optimizer.num_steps().item<int64_t>() == 4);
  const auto mine = mm::detail::model_state(program.state.model), theirs = mm::detail::model_state(model);
  REQUIRE(mine.size() == theirs.size());
  for (size_t i = 0; i < mine.size(); ++i) {
    INFO(mine[i].name);
    CHECK(near(mine[i].tensor, theirs[i].tensor, 2e-4));
  }
  const auto averages = program.state.ema.named_parameters(), expected_averages = ema.named_parameters();
  for (size_t i = 0; i < averages.size(); ++i) {
    CHECK(near(averages[i].second, expected_averages[i].second, 2e-4));
  }
  CHECK(near(program.state.ema.forward(all_pixels(data)), ema.forward(all_pixels(data)), 5e-3));
}

TEST_CASE("Trainer: on the CPU a run is a step, and not a graph's") {
  const auto o = tiny_run();
  TrainerProgram program(o, mixmatch_of(o));
  const auto means = program.trainer.run(4);
  CHECK(means.names == std::vector<std::string>{"loss", "loss_labeled", "loss_unlabeled", "lambda_u",
                                                "guess_confidence", "guess_entropy", "guess_class_entropy",
                                                "guess_accuracy"});
  CHECK(means.counts.front() == 1);
  CHECK(mean_named(means, "lambda_u") == 0);
  CHECK(program.state.step == 1);
  CHECK(program.state.ema.num_updates() == 1);
  CHECK_FALSE(program.trainer.is_graphed());
  program.trainer.run(1);
  CHECK(program.state.ema.num_updates() == 2);
}

TEST_CASE("Trainer: a hundred steps learn") {
  auto o = tiny_run();
  o.ema_decay = 0.9;
  o.lambda_u = 10;
  TrainerProgram program(o, mixmatch_of(o));
  const double first = mean_named(program.run_until(1), "loss_labeled");
  CHECK(mean_named(program.run_until(100), "loss_labeled") < 0.8 * first);  // mixed targets have an entropy
  const Tensor predicted = program.state.ema.forward(all_pixels(program.data)).argmax(1);
  CHECK(predicted.eq(program.data.pool.labels).to(at::kFloat).mean().item<double>() > 0.9);
}

TEST_CASE("Trainer: a supervised step looks at labeled images alone") {
  auto data = gray_levels();
  data.split.unlabeled = torch::empty({0}, torch::kLong);
  // Whatever the options say of views: the method knows.
  TrainerProgram program(tiny_run(), mm::methods::Supervised(), "", std::move(data));
  const double first = mean_named(program.run_until(1), "loss_labeled");
  const auto last = program.run_until(60);
  CHECK(last.names == std::vector<std::string>{"loss", "loss_labeled"});
  CHECK(last.values[0] == last.values[1]);
  CHECK(last.values[1] < 0.5 * first);
}

TEST_CASE("Trainer: every mixing mode, number of views and precision") {
  auto o = tiny_run();
  for (const auto* mode : {".", "xx.yxy", "xx.yx"}) {
    for (const int64_t views : {1, 3}) {
      o.mix_mode = mode;
      o.num_augmentations = views;
      o.precision = views == 1 ? "bf16" : "fp32";
      TrainerProgram program(o, mixmatch_of(o));
      CHECK(std::isfinite(mean_named(program.trainer.run(1), "loss")));
    }
  }
}

TEST_CASE("Trainer: a step whose gradients are not finite changes no weight, and says so") {
  const auto o = tiny_run();
  TrainerProgram program(o, mixmatch_of(o));
  program.trainer.run(1);
  {
    const torch::NoGradGuard no_grad;
    program.state.model->named_parameters()["fc.bias"].fill_(std::numeric_limits<float>::infinity());
  }
  const Tensor weight = program.state.model->named_parameters()["conv1.weight"].detach().clone();
  CHECK_FALSE(program.trainer.run(1).finite);
  CHECK(program.state.model->named_parameters()["conv1.weight"].equal(weight));
  CHECK(program.state.ema.num_updates() == 1);
  CHECK(program.state.optimizer.num_steps().item<int64_t>() == 1);
  CHECK(program.state.step == 2);
}

TEST_CASE("Trainer: every method's steps resume from a checkpoint bit for bit, with images ahead or not") {
  REQUIRE_FALSE(mm::training::method_names().empty());
  for (const auto& name : mm::training::method_names()) {
    INFO(name);
    auto o = tiny_run();
    o.method = name;
    mm::training::use_method_preset(o);
    o.steps = 10;
    o.filters = 8;  // with 4, LibTorch 1.13 writes past an array where there is no AVX-512
    o.threshold = 0.4;
    o.rampup_steps = std::min<int64_t>(o.rampup_steps, 4);
    mm::training::check_options(o);
    auto later = o;
    later.prefetch = false;
    mm::training::with_method(o, [&](auto method) {
      const TempDir dir;
      const std::string file = dir / "checkpoint.pt";
      TrainerProgram whole(o, method, file), resumed(later, method, file);
      const auto start = trained_tensors(whole);
      whole.run_until(5);
      whole.checkpoint.save();
      const auto expected = whole.run_until(10);
      resumed.run_until(2);  // another position, to be overwritten
      resumed.checkpoint.load();
      CHECK(resumed.state.step == 5);
      const auto found = resumed.run_until(10);
      CHECK(std::isfinite(expected.values[0]));
      CHECK(expected.finite);
      CHECK(found.values[0] == expected.values[0]);
      CHECK(found.names == expected.names);
      CHECK(same_bits(trained_tensors(resumed), trained_tensors(whole)));
      CHECK_FALSE(trained_tensors(whole)[0].equal(start[0]));
      const Tensor images = all_pixels(whole.data);
      CHECK(resumed.state.ema.forward(images).equal(whole.state.ema.forward(images)));
    });
  }
}

TEST_CASE("Trainer: with filtered guesses, balanced batches or adjusted logits it resumes bit for bit") {
  using Case = std::pair<std::string, std::string>;
  for (const auto& [name, imbalance] : {Case{"mixmatch", "balanced_batches"}, Case{"uda", "logit_adjustment"},
                                        Case{"fixmatch", "balanced_batches"}}) {
    INFO(name << " " << imbalance);
    auto o = tiny_run();
    o.method = name;
    mm::training::use_method_preset(o);
    o.steps = 10;
    o.filters = 8;
    o.threshold = 0.4;
    o.rampup_steps = 0;
    o.imbalance = imbalance;
    o.alignment = "labeled";
    o.open_set = "energy";
    o.class_counts = {9, 4, 2};
    mm::training::check_options(o);
    const TempDir dir;
    const std::string file = dir / "checkpoint.pt";
    const auto made = [&](const std::string& of) {
      return mm::training::with_method(o, [&](auto method) {
        TrainerProgram program(o, std::move(method), file);
        if (of == "resumed") {
          program.run_until(2);  // another position, to be overwritten
          program.checkpoint.load();
        } else {
          program.run_until(5);
          program.checkpoint.save();
        }
        const auto means = program.run_until(10);
        CHECK(means.finite);
        CHECK(means.names.back() == "open_set_rate");
        auto results = trained_tensors(program);
        results.push_back(at::tensor(means.values));
        return results;
      });
    };
    const auto whole = made("whole"), resumed = made("resumed");
    bool same = whole.size() == resumed.size();
    for (size_t i = 0; same && i < whole.size(); ++i) {
      same = whole[i].equal(resumed[i]) || at::allclose(whole[i], resumed[i], 0, 0, /*equal_nan=*/true);
    }
    CHECK(same);
    // A run without the filter does not go on from it.
    o.alignment = "none";
    mm::training::with_method(o, [&](auto method) {
      TrainerProgram other(o, std::move(method), file);
      CHECK_THAT(error_of([&] { other.checkpoint.load(); }),
                 contains("entry 'method'") && contains("\"aligned\" on, this one off"));
    });
  }
}

TEST_CASE("Trainer: a checkpoint of other rows is refused") {
  const TempDir dir;
  const std::string file = dir / "checkpoint.pt";
  auto o = tiny_run();
  TrainerProgram whole(o, mixmatch_of(o), file);
  whole.trainer.run(1);
  whole.checkpoint.save();
  o.seed = 2;
  TrainerProgram other(o, mixmatch_of(o), file);
  CHECK_THAT(error_of([&] { other.checkpoint.load(); }), contains("entry 'feed'") && contains("has seed 1"));
  auto data = gray_levels();
  data.split.labeled = at::arange(1, 16, at::kLong);
  TrainerProgram moved(tiny_run(), mixmatch_of(o), file, std::move(data));
  CHECK_THAT(error_of([&] { moved.checkpoint.load(); }), contains("other indices"));
}

TEST_CASE("Trainer: an unknown label leaves the accuracy of guesses out") {
  const auto o = tiny_run();
  auto data = gray_levels();
  data.pool.labels.narrow(0, 15, 45).fill_(-1);
  TrainerProgram program(o, mixmatch_of(o), "", std::move(data));
  const auto means = program.trainer.run(2);
  CHECK(std::isnan(mean_named(means, "guess_accuracy")));
  CHECK(means.counts.back() == 0);
  CHECK(std::isfinite(means.values.front()));
}

TEST_CASE("Trainer: a row's mean weighs every step alike, however the run is cut by checkpoints") {
  const TempDir dir;
  auto o = tiny_run();
  o.steps = 10;
  o.log_every = 5;
  o.eval_every = 10;
  const auto rows = [&](const std::string& name, int64_t checkpoint_every) {
    o.checkpoint_every = checkpoint_every;
    TrainerProgram program(o, mixmatch_of(o));
    mm::training::TrainingRun run(mm::training::RunDirectory::create(dir / name),
                                  mm::training::training_run_options(o, program.data, torch::kCPU),
                                  program.state.step);
    run.start();
    while (run.running()) {
      run.record(program.trainer.run(run.steps_until_due()));
      run.finish_step();
    }
    run.finish();
    return mm::training::read_metrics(run.directory().metrics());
  };
  const auto cut = rows("cut", 3), whole = rows("whole", 10);
  REQUIRE(cut.rows.size() == 2);
  REQUIRE(whole.rows.size() == 2);
  TrainerProgram apart(o, mixmatch_of(o));
  double sum = 0;
  for (int64_t step = 1; step <= 5; ++step) {
    sum += mean_named(apart.run_until(step), "loss");
  }
  CHECK(whole.column("loss")[0] == Approx(sum / 5).epsilon(1e-9));
  for (const auto& column : whole.columns) {
    if (whole.column(column)[0] == whole.column(column)[0]) {  // an error that was not asked for is NaN
      INFO(column);
      for (size_t row = 0; row < 2; ++row) {
        CHECK(cut.column(column)[row] == Approx(whole.column(column)[row]).epsilon(1e-9));
      }
    }
  }
  CHECK(whole.column("lambda_u")[1] > whole.column("lambda_u")[0]);
}

TEST_CASE("Trainer: a method of one's own, with names of its own, from a lambda") {
  auto o = tiny_run();
  o.num_augmentations = 1;
  const auto entropy = [](auto& model, const mm::Batch& batch, const Tensor& step, const at::Generator&) {
    const Tensor logits = model(batch.labeled);
    const auto frozen = mm::freeze_batch_norm(model);
    const Tensor log_p = torch::log_softmax(model(batch.weak.front()), 1);
    const Tensor unsure = -(log_p.exp() * log_p).sum(1).mean();
    const Tensor ramp = mm::linear_rampup(step, 4);
    return mm::StepLoss{
        mm::soft_cross_entropy(logits, mm::one_hot(batch.labels, 3)) + ramp.to(at::kFloat) * unsure,
        {{"entropy", unsure}, {"ramp", ramp}}};
  };
  TrainerProgram program(o, entropy);
  program.trainer.run(1);
  const auto means = program.trainer.run(1);
  CHECK(means.names == std::vector<std::string>{"loss", "entropy", "ramp"});
  CHECK(mean_named(means, "ramp") == 0.25);
  CHECK(mean_named(means, "entropy") > 0);
}

namespace {

/// Says which views it got.
struct CountsViews {
  template <class Model>
  mm::StepLoss operator()(Model& model, const mm::Batch& batch, const Tensor&, const at::Generator&) const {
    const auto number = [](size_t count) { return at::full({}, static_cast<double>(count)); };
    const Tensor rows = batch.weak.empty() ? batch.strong[0] : batch.weak[0];
    return {mm::soft_cross_entropy(model(batch.labeled), mm::one_hot(batch.labels, 3)),
            {{"weak", number(batch.weak.size())},
             {"strong", number(batch.strong.size())},
             {"unlabeled", number(static_cast<size_t>(rows.size(0)))}}};
  }
};
struct AsksForStrong : CountsViews {
  static constexpr int64_t weak_views() { return 0; }
  static constexpr int64_t strong_views() { return 2; }
};
struct AsksForWeak : CountsViews {
  static constexpr int64_t weak_views() { return 1; }
};

/// A method as a user would write it, with state of its own: labels that the model is surer of than it was on
/// average so far train it on a second view.
class SurerThanBefore {
 public:
  /// The model's device.
  explicit SurerThanBefore(torch::Device device) : threshold_(at::full({}, 1.0 / kClasses, device)) {}

  template <class Model>
  mm::StepLoss operator()(Model& model, const mm::Batch& batch, const Tensor&, const at::Generator&) {
    const Tensor labeled = mm::soft_cross_entropy(model(batch.labeled), mm::one_hot(batch.labels, kClasses));
    const auto frozen = mm::freeze_batch_norm(model);  // one pass a step moves the statistics
    const Tensor guess = mm::guess_labels(model, {batch.weak[0]}, mm::GuessLabelsOptions().temperature(1));
    const auto [sure, label] = guess.max(1);
    const Tensor mask = sure.ge(threshold_).to(at::kFloat);
    threshold_.mul_(0.9).add_(sure.mean(), 0.1);
    const Tensor log_p = torch::log_softmax(model(batch.weak[1]), 1);
    const Tensor unlabeled = -(mask * log_p.gather(1, label.unsqueeze(1)).squeeze(1)).mean();
    return {labeled + unlabeled,
            {{"loss_labeled", labeled}, {"mask_rate", mask.mean()}, {"threshold", threshold_.clone()}}};
  }

  std::vector<Tensor> state() const { return {threshold_}; }
  void save(torch::serialize::OutputArchive& archive) const { archive.write("threshold", threshold_, true); }
  void load(torch::serialize::InputArchive& archive) {
    Tensor stored;
    archive.read("threshold", stored, true);
    threshold_.copy_(stored);
  }

 private:
  static constexpr int64_t kClasses = 10;
  Tensor threshold_;
};

}  // namespace

TEST_CASE("Trainer: the views that a method asks for, else those of the options") {
  const auto o = tiny_run();
  const auto options = TrainerOptions().feed(
      mm::training::trainer_options(o).feed().unlabeled_ratio(3).weak_views(2).strong_views(1));
  const auto views = [&](auto method) {
    TrainerProgram program(o, method, options);
    const auto means = program.trainer.run(1);
    return std::vector<double>(means.values.begin() + 1, means.values.end());
  };
  CHECK(views(CountsViews()) == std::vector<double>{2, 1, 12});
  CHECK(views(AsksForStrong()) == std::vector<double>{0, 2, 12});
  CHECK(views(AsksForWeak()) == std::vector<double>{1, 0, 12});
}

TEST_CASE("Trainer: a method of one's own with state resumes bit for bit") {
  const auto o = tiny_run();
  const auto shapes = [] {
    return mm::training::TrainingData{mm::data::ImagePool({mm::data::make_shapes(60, 1)}),
                                      {at::arange(20, at::kLong), at::arange(20, 60, at::kLong), {}},
                                      {},
                                      {}};
  };
  const TempDir dir;
  const std::string file = dir / "checkpoint.pt";
  TrainerProgram whole(o, SurerThanBefore(torch::kCPU), file, shapes());
  std::vector<double> thresholds;
  for (int step = 0; step < 12; ++step) {
    if (step == 6) {
      whole.checkpoint.save();
    }
    thresholds.push_back(mean_named(whole.trainer.run(1), "threshold"));
  }
  CHECK(thresholds[11] > thresholds[0]);
  TrainerProgram resumed(o, SurerThanBefore(torch::kCPU), file, shapes());
  resumed.checkpoint.load();
  for (size_t step = 6; step < 12; ++step) {
    CHECK(mean_named(resumed.trainer.run(1), "threshold") == thresholds[step]);
  }
  CHECK(same_bits(trained_tensors(resumed), trained_tensors(whole)));
}

TEST_CASE("Trainer: options of the statistics and of the learning rate") {
  auto o = tiny_run();
  const auto feed = mm::training::trainer_options(o).feed();
  const auto statistics = [&](const TrainerOptions& options) {
    TrainerProgram program(o, mm::methods::Supervised(), options);
    program.run_until(3);
    std::vector<Tensor> list;
    for (const Tensor& buffer : program.state.model->buffers()) {
      if (buffer.is_floating_point()) {  // not the count of batches
        list.push_back(buffer.clone());
      }
    }
    list.push_back(program.state.optimizer.learning_rate());
    return list;
  };
  const auto still = statistics(TrainerOptions().feed(feed).learner(
      mm::training::LearnerOptions().warmup(false).batch_norm_momentum(0)));
  o.lr_schedule = "cosine";
  const auto moved = statistics(TrainerOptions().feed(feed));
  bool any = false;
  for (size_t i = 0; i + 1 < still.size(); ++i) {
    any = any || !still[i].equal(moved[i]);
    CHECK((still[i].eq(0).all().item<bool>() || still[i].eq(1).all().item<bool>()));
  }
  CHECK(any);
  CHECK(still.back().item<double>() == o.learning_rate);
  CHECK(moved.back().item<double>() ==
        Approx(o.learning_rate * mm::cosine_decay(2, o.steps)));  // the third step
}

TEST_CASE("Trainer: what is wrong is said, and a step that throws changes nothing") {
  const auto o = tiny_run();
  TrainerProgram program(o, mixmatch_of(o));
  CHECK_THAT(error_of([&] { program.trainer.run(0); }), contains("Trainer: at_most must be >= 1, got 0"));
  auto data = gray_levels();
  data.split.unlabeled = torch::empty({0}, torch::kLong);
  CHECK_THAT(error_of([&] { TrainerProgram none(o, mixmatch_of(o), "", data); }),
             contains("the method needs unlabeled images, there are none"));
  CHECK_THAT(error_of([&] {
               TrainerProgram none(
                   o, mixmatch_of(o),
                   TrainerOptions().learner(mm::training::LearnerOptions().batch_norm_momentum(2)));
             }),
             contains("batch_norm_momentum must be in [0, 1], got 2"));

  const auto vector_loss = [](auto& model, const mm::Batch& batch, const Tensor&, const at::Generator&) {
    return mm::StepLoss{model(batch.labeled).sum(0), {}};
  };
  TrainerProgram wrong(o, vector_loss);
  const auto before = trained_tensors(wrong);
  CHECK_THAT(error_of([&] { wrong.trainer.run(1); }), contains("total must be a scalar, got [3]"));
  CHECK(wrong.state.step == 0);
  CHECK(wrong.state.ema.num_updates() == 0);
  const auto parameters = wrong.state.model->parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    CHECK(parameters[i].equal(before[i]));
  }
}

TEST_CASE("Trainer: every method's step by the CUDA kernels, emulated, is the step by the CPU's kernels") {
  auto names = mm::training::method_names();
  names.emplace_back("mixmatch, filtered");
  names.emplace_back("fixmatch, filtered");
  for (const auto& text : names) {
    INFO(text);
    const std::string name = text.substr(0, text.find(','));
    auto o = tiny_run();
    o.method = name;
    if (text != name) {
      o.imbalance = "logit_adjustment";
      o.alignment = "labeled";
      o.open_set = "energy";
      o.class_counts = {9, 4, 2};
    }
    mm::training::use_method_preset(o);
    o.batch = name == "mixmatch" ? 4 : 2;
    o.filters = 8;  // the emulation is slow
    o.scales = 2;
    o.unlabeled_ratio = std::min<int64_t>(o.unlabeled_ratio, 2);
    o.threshold = 0.2;  // so that rows pass
    o.rampup_steps = 0;
    mm::training::check_options(o);
    const auto train = [&] {
      return mm::training::with_method(o, [&](auto method) {
        TrainerProgram program(o, std::move(method),
                               mm::training::trainer_options(o).prefetch(false).learner(
                                   mm::training::LearnerOptions().warmup(false).batch_norm_momentum(0.1)));
        const auto means = program.trainer.run(1);
        CHECK(means.finite);
        auto results = trained_tensors(program);
        results.push_back(at::tensor(means.values));
        return results;
      });
    };
    const auto expected = train();
    std::vector<Tensor> found;
    {
      namespace emulated = cuda_emulation;
      emulated::EmulatedDevice device;
      add_step_kernels(device);
      emulated::add_norm_kernels<float, 4>(device, "float");
      found = train();
      CHECK(device.launches() > 20);  // norms both ways, the optimiser
    }
    REQUIRE(found.size() == expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      INFO("result " << i);
      CHECK(near(found[i], expected[i], 2e-3));
    }
  }
}

TEST_CASE("Trainer: a bfloat16 step by the CUDA kernels casts weights once, and is the CPU's step") {
  auto o = tiny_run();
  o.filters = 8;  // packs of the kernels
  o.scales = 2;
  o.precision = "bf16";
  o.rampup_steps = 0;
  for (const std::string name : {"mixmatch", "mean_teacher", "vat"}) {
    INFO(name);
    o.method = name;
    mm::training::use_method_preset(o);
    mm::training::check_options(o);
    int64_t conversions = 0, calls = 0;
    std::string called;
    const auto train = [&] {
      return mm::training::with_method(o, [&](auto method) {
        TrainerProgram program(o, std::move(method), mm::training::trainer_options(o).prefetch(false));
        const ConversionCount counted;
        const SmallCallCount small_calls;
        const auto means = program.trainer.run(1);
        conversions = counted.weights();
        called = small_calls.text();
        calls = small_calls.count();
        CHECK(means.finite);
        const auto weight = program.state.model->named_parameters()["conv1.weight"];
        CHECK(weight.scalar_type() == at::kFloat);
        CHECK_FALSE(weight.grad().defined());
        auto results = trained_tensors(program);
        results.push_back(at::tensor(means.values));
        return results;
      });
    };
    const auto expected = train();
    const int64_t by_autocast = conversions;
    namespace emulated = cuda_emulation;
    emulated::EmulatedDevice device;
    add_step_kernels(device);
    emulated::add_norm_kernels<emulated::BFloat16, 8>(device, "BFloat16");
    emulated::add_norm_kernels<emulated::BFloat16, 1>(device, "BFloat16");
    emulated::add_norm_kernels<float, 4>(device, "float");  // of VAT's direction
    const auto found = train();
    REQUIRE(found.size() == expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      INFO("result " << i);
      CHECK(near(found[i], expected[i], 3e-2));
    }
    // Of 7 convolutions and a last layer; of the weights, and of a teacher's averages.
    CHECK(by_autocast >= 8);
    CHECK(conversions == (name == "mean_teacher" ? 2 : 1));
    // Each is a piece of the captured step: see docs/PERFORMANCE.md.
    INFO(called);
    CHECK((name != "mixmatch" || calls <= 24));
  }
}
