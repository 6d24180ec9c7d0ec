#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/evaluation/test_time_flips.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/run/memory.hpp>
#include <mixmatch/step/graphed_predictor.hpp>
#include <mixmatch/step/run_evaluation.hpp>

#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <array>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;

TEST_CASE("Autocast: bf16 within its scope, the state from before after it") {
  const Tensor a = torch::rand({4, 4}), b = torch::rand({4, 4});
  CHECK(torch::matmul(a, b).scalar_type() == at::kFloat);
  {
    training::Autocast outer(torch::kCPU, at::kBFloat16);
    CHECK(torch::matmul(a, b).scalar_type() == at::kBFloat16);
    {
      training::Autocast inner(torch::kCPU, at::kFloat);
      CHECK(torch::matmul(a, b).scalar_type() == at::kFloat);
    }
    CHECK(torch::matmul(a, b).scalar_type() == at::kBFloat16);
  }
  CHECK(torch::matmul(a, b).scalar_type() == at::kFloat);
}

TEST_CASE("Autocast: gradients of float32 weights are float32") {
  torch::nn::Linear model(4, 2);
  Tensor loss;
  {
    training::Autocast autocast(torch::kCPU, at::kBFloat16);
    loss = model(torch::rand({3, 4})).to(at::kFloat).square().sum();
  }
  loss.backward();
  CHECK(model->weight.grad().scalar_type() == at::kFloat);
  CHECK(model->weight.grad().ne(0).any().item<bool>());
}

TEST_CASE("to_channels_last: kernels change their strides and nothing else") {
  torch::nn::Sequential model(torch::nn::Conv2d(3, 4, 3), torch::nn::Linear(4, 2));
  const Tensor before = model->parameters()[0].detach().clone();
  training::to_channels_last(model);
  CHECK(model->parameters()[0].is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(torch::equal(model->parameters()[0], before));
  CHECK(model->parameters()[0].requires_grad());
}

TEST_CASE("fastest_precision: bf16 where the processor says so, in words of its own") {
  std::ifstream in("/proc/cpuinfo");
  const std::string cpu{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (cpu.find("flags") != std::string::npos) {
    CHECK((training::fastest_precision(torch::kCPU) == at::kBFloat16) ==
          (cpu.find(" avx512_bf16") != std::string::npos));
  }
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)  // which has an allocator of its own
TEST_CASE("keep_freed_memory: the system gives no fresh pages for memory that was just freed") {
  const auto faults = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
  };
  training::keep_freed_memory();
  const auto touch = [] { CHECK(torch::ones({16 << 20}).sum().item<double>() == 16 << 20); };  // 64 MB
  for (int i = 0; i < 20; ++i) {
    touch();  // until the heap has a hole for it that nothing else takes a part of
  }
  const auto before = faults();
  for (int i = 0; i < 5; ++i) {
    touch();
  }
  CHECK(faults() - before < 1000);  // of 80,000 pages
}
#endif

TEST_CASE("precision, device and threads by name") {
  CHECK(training::parse_precision("fp32") == at::kFloat);
  CHECK(training::parse_precision("bf16") == at::kBFloat16);
  CHECK_THAT(error_of([] { training::parse_precision("fp16"); }),
             contains("expected fp32 or bf16, got \"fp16\""));
  CHECK(training::describe_precision(torch::kCPU, "fp32") == "fp32");
  CHECK(training::describe_precision(torch::kCUDA, "bf16") == "bf16");
  CHECK(training::describe_precision(torch::kCUDA, "fp32") ==
        "fp32 (convolutions in TF32, matrix products without)");  // LibTorch's defaults
  {
    const training::NoTf32 none;
    CHECK(training::describe_precision(torch::kCUDA, "fp32") == "fp32 (without TF32)");
  }
  CHECK(training::parse_device("cpu") == torch::kCPU);
  CHECK(training::parse_device("auto").type() == (torch::cuda::is_available() ? torch::kCUDA : torch::kCPU));
  CHECK_THAT(error_of([] { training::parse_device("gpu"); }),
             contains("expected auto, cpu or cuda, got \"gpu\""));
  if (!torch::cuda::is_available()) {
    CHECK_THAT(error_of([] { training::parse_device("cuda"); }), contains("finds no CUDA device"));
  }
  const int before = at::get_num_threads();
  CHECK(training::set_threads(1) == 1);
  CHECK(at::get_num_threads() == 1);
  CHECK(training::set_threads(0) >= 1);
  CHECK_THAT(error_of([] { training::set_threads(-1); }), contains("threads: expected >= 0, got -1"));
  at::set_num_threads(before);
}

TEST_CASE("error_percent counts wrong rows over all batches, a short last one too") {
  data::ImageDataset dataset;
  dataset.images = torch::zeros({7, 3, 2, 2}, at::kByte);
  dataset.labels = torch::tensor({0, 1, 1, 0, 1, 1, 0}, at::kLong);
  // Says class 1 to a bright first pixel.
  const auto predictor = [](const Tensor& images) {
    const Tensor first = images.select(1, 0).select(1, 0).select(1, 0);
    return torch::stack({-first, first}, 1);
  };
  for (const int64_t bright : {1, 2, 5}) {
    dataset.images[bright].fill_(255);
  }
  // Row 4 is wrong.
  for (const int64_t batch : {1, 3, 7, 250}) {
    CHECK(training::error_percent(predictor, dataset, training::EvaluateOptions().batch_size(batch)) ==
          Approx(100.0 / 7));
  }
  CHECK_THAT(error_of([&] {
               training::error_percent(predictor, dataset, training::EvaluateOptions().batch_size(0));
             }),
             contains("batch_size must be > 0, got 0"));
  CHECK_THAT(error_of([&] { training::error_percent(predictor, data::ImageDataset()); }),
             contains("holds no images"));
}

TEST_CASE("with_test_time_flips averages the probabilities of an image and its mirror image") {
  // Logits that look at the two sides of a row of two pixels: [left, right, 0].
  const auto predictor = [](const Tensor& images) {
    const Tensor row = images.select(1, 0).select(1, 0);
    return torch::cat({row, torch::zeros({images.size(0), 1})}, 1);
  };
  const Tensor images = torch::tensor({2.0F, -1.0F, 0.5F, 3.0F}).view({2, 1, 1, 2});
  const Tensor log_mean = training::with_test_time_flips(predictor)(images);
  const std::array<std::array<double, 2>, 2> rows{{{2, -1}, {0.5, 3}}};
  for (size_t i = 0; i < 2; ++i) {
    const double left = std::exp(rows[i][0]), right = std::exp(rows[i][1]), sum = left + right + 1;
    const auto row = static_cast<int64_t>(i);
    CHECK(log_mean[row][0].item<double>() == Approx(std::log((left + right) / sum / 2)));
    CHECK(log_mean[row][1].item<double>() == Approx(std::log((left + right) / sum / 2)));
    CHECK(log_mean[row][2].item<double>() == Approx(std::log(1 / sum)));
  }
  // The sum of probabilities decides, not the louder side: class 2 of a predictor that is split between 0
  // and 1.
  data::ImageDataset dataset;
  dataset.images = torch::tensor({0, 255}, at::kByte).view({1, 1, 1, 2});
  dataset.labels = torch::tensor({2}, at::kLong);
  const auto split = [](const Tensor& views) {  // values in [-1, 1]
    const Tensor left = views.select(1, 0).select(1, 0).select(1, 0);
    return torch::stack({left * 2, left * -2, torch::full_like(left, 1.5)}, 1);
  };
  CHECK(training::error_percent(split, dataset) == 100);
  CHECK(training::error_percent(training::with_test_time_flips(split), dataset) == 0);
  // Reduced precision is averaged in float32.
  const auto halved = [&](const Tensor& views) { return predictor(views).to(at::kBFloat16); };
  CHECK(training::with_test_time_flips(halved)(images).scalar_type() == at::kFloat);
}

TEST_CASE("a graphed predictor is its predictor where nothing is captured, without gradient") {
  const Tensor weight = torch::ones({2}, torch::requires_grad());
  int calls = 0;
  training::GraphedPredictor predictor([&](const Tensor& x) {
    ++calls;
    return x * weight;
  });
  const Tensor images = torch::arange(6.0).view({3, 2});
  CHECK(torch::equal(predictor(images), images));
  CHECK_FALSE(predictor(images).requires_grad());
  CHECK(calls == 2);
  CHECK(predictor.num_graphs() == 0);
}

TEST_CASE("RunEvaluation: validation by averages, test by both, of the weights as they are then") {
  torch::manual_seed(4);
  torch::nn::Linear linear(3, 3);
  torch::nn::Sequential model(torch::nn::Flatten(), linear);
  training::TrainState state(model, training::TrainStateOptions());
  const auto set = [](int64_t count) {
    return data::ImageDataset{torch::rand({count, 3, 1, 1}), torch::arange(count).remainder(3), {}};
  };
  const auto validation = set(9), test = set(20);
  const auto options = training::EvaluateOptions().batch_size(8);
  training::RunEvaluation evaluation(state, options);
  for (int turn = 0; turn < 2; ++turn) {
    state.model->train();
    const auto errors = evaluation(validation, test);
    CHECK(state.model->is_training());
    REQUIRE(errors.size() == 3);
    CHECK(errors[0] == training::evaluate_ema(state.ema, validation, options));
    CHECK(errors[1] == training::evaluate_model(state.model, test, options));
    CHECK(errors[2] == training::evaluate_ema(state.ema, test, options));
    CHECK(torch::equal(evaluation.averaged(test.images), state.ema.forward(test.images)));
    const torch::NoGradGuard no_grad;  // all say the first class from now on
    linear->weight.zero_();
    linear->bias.copy_(torch::tensor({1.0, 0.0, 0.0}));
  }
  const auto errors = evaluation({}, test);
  CHECK(std::isnan(errors[0]));
  CHECK(errors[1] == Approx(65));  // 13 of 20
  CHECK(errors[2] != errors[1]);
}

TEST_CASE("evaluate_model runs in evaluation mode, without gradient, and restores every mode") {
  struct Spy : torch::nn::Module {
    Spy() {
      child = register_module("child", torch::nn::Dropout(0.5));
      child->eval();
    }
    Tensor forward(const Tensor& images) {
      evaluated = !is_training() && !child->is_training() && !at::GradMode::is_enabled();
      return torch::zeros({images.size(0), 2});
    }
    torch::nn::Dropout child{nullptr};
    bool evaluated = false;
  } model;
  data::ImageDataset dataset{torch::zeros({2, 3, 2, 2}, at::kByte), torch::zeros({2}, at::kLong), {"a", "b"}};
  CHECK(training::evaluate_model(model, dataset) == 0);
  CHECK(model.evaluated);
  CHECK(model.is_training());
  CHECK_FALSE(model.child->is_training());
}
