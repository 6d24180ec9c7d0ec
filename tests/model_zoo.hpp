#pragma once

// Small models of every kind that the library accepts.

#include <torch/script.h>
#include <torch/torch.h>

/// Three inputs to two classes, with a batch norm; a plain torch::nn::Module that cannot be cloned.
struct PlainNet : torch::nn::Module {
  PlainNet() {
    dense1 = register_module("dense1", torch::nn::Linear(3, 5));
    norm = register_module("norm", torch::nn::BatchNorm1d(5));
    dense2 = register_module("dense2", torch::nn::Linear(5, 2));
  }
  torch::Tensor forward(torch::Tensor x) { return dense2(torch::relu(norm(dense1(x)))); }

  torch::nn::Linear dense1{nullptr}, dense2{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};

struct HeldNetImpl : torch::nn::Cloneable<HeldNetImpl> {
  HeldNetImpl() { reset(); }
  void reset() override {
    dense = register_module("dense", torch::nn::Linear(3, 2));
    norm = register_module("norm", torch::nn::BatchNorm1d(2));
  }
  torch::Tensor forward(const torch::Tensor& x) { return norm(dense(x)); }
  torch::nn::Linear dense{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(HeldNet);

inline torch::nn::Sequential sequential_net() {
  return torch::nn::Sequential(torch::nn::Linear(3, 4), torch::nn::BatchNorm1d(4), torch::nn::Linear(4, 2));
}

/// A TorchScript module with a batch norm as Python exports it: num_batches_tracked is rebound, not changed
/// in place.
inline torch::jit::Module script_net() {
  torch::jit::Module norm("Norm");
  norm.register_buffer("running_mean", torch::zeros({2}));
  norm.register_buffer("running_var", torch::ones({2}));
  norm.register_buffer("num_batches_tracked", torch::zeros({}, torch::kLong));
  norm.register_attribute("training", c10::BoolType::get(), true);
  norm.define(R"(
    def forward(self, x):
      if self.training:
        self.num_batches_tracked = self.num_batches_tracked + 1
      return torch.batch_norm(x, None, None, self.running_mean, self.running_var, self.training, 0.1, 1e-5, False)
  )");
  torch::jit::Module net("Net");
  net.register_parameter("weight", torch::randn({2, 3}).set_requires_grad(true), false);
  net.register_parameter("bias", torch::randn({2}).set_requires_grad(true), false);
  net.register_module("norm", norm);
  net.register_attribute("training", c10::BoolType::get(), true);
  net.define(R"(
    def forward(self, x):
      return self.norm.forward(torch.linear(x, self.weight, self.bias))
  )");
  return net;
}
