// Must not compile, and must say why in one line.
#include <mixmatch/evaluation/update_bn.hpp>

int main() {
  torch::jit::Module model;
  mixmatch::training::UpdatedBatchNorm recalibration(model, torch::zeros({1, 3, 2, 2}, at::kByte));
}
