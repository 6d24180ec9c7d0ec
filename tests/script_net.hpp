#pragma once

#include <torch/script.h>
#include <torch/torch.h>

#include <cstdint>
#include <string>

/// A small convolutional network with a batch norm, as torch.jit.script would write it.
inline torch::jit::Module small_net(int64_t in_channels = 3, int64_t classes = 10, bool trainable = true,
                                    uint64_t seed = 1) {
  torch::manual_seed(seed);
  torch::jit::Module net("SmallNet");
  const auto parameter = [&](const std::string& name, const torch::Tensor& value) {
    net.register_parameter(name, value.clone().set_requires_grad(trainable), false);
  };
  parameter("kernel", 0.2 * torch::randn({16, in_channels, 3, 3}));
  parameter("scale", torch::ones({16}));
  parameter("shift", torch::zeros({16}));
  parameter("weight", 0.2 * torch::randn({classes, 16}));
  parameter("bias", torch::zeros({classes}));
  net.register_buffer("running_mean", torch::zeros({16}));
  net.register_buffer("running_var", torch::ones({16}));
  net.register_buffer("num_batches_tracked", torch::tensor(int64_t{0}));
  net.register_attribute("training", c10::BoolType::get(), true);
  net.define(R"(
    def forward(self, x):
      if self.training:
        self.num_batches_tracked = self.num_batches_tracked + 1
      x = torch.conv2d(x, self.kernel, None, [2, 2], [1, 1])
      x = torch.batch_norm(x, self.scale, self.shift, self.running_mean, self.running_var, self.training, 0.1, 1e-3, False)
      return torch.linear(torch.relu(x).mean([2, 3]), self.weight, self.bias)
  )");
  return net;
}
