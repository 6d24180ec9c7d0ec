// Guessed labels from the logits of K = 2 views, softmax to sharpening, against the same in ATen calls.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/guess_labels.hpp>

#include <vector>

#include "aten_sharpen.hpp"
#include "catch.hpp"

using torch::Tensor;

namespace {

Tensor guess_aten(const std::vector<Tensor>& logits, double temperature) {
  Tensor mean = torch::softmax(logits[0], -1);
  for (size_t k = 1; k < logits.size(); ++k) {
    mean.add_(torch::softmax(logits[k], -1));
  }
  return aten_sharpen(mean.div_(static_cast<double>(logits.size())), temperature);
}

}  // namespace

TEST_CASE("guess_labels_from_logits, 2 views, T = 0.5") {
  const torch::NoGradGuard no_grad;
  struct Size {
    int64_t rows, classes;
  };
  for (const auto [rows, classes] :
       {Size{64, 10}, Size{1024, 10}, Size{64, 100}, Size{4096, 100}, Size{64, 1000}, Size{4096, 1000}}) {
    const std::vector<Tensor> logits{torch::randn({rows, classes}), torch::randn({rows, classes})};
    const auto name = fmt::format("{}x{} | ", rows, classes);
    BENCHMARK(name + "guess_labels_from_logits") { return mixmatch::guess_labels_from_logits(logits, 0.5); };
    BENCHMARK(name + "ATen calls") { return guess_aten(logits, 0.5); };
  }
}
