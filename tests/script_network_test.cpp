#include <mixmatch/models/script_network.hpp>

#include <mixmatch/mixmatch.hpp>

#include <memory>
#include <string>
#include <vector>

#include "catch.hpp"
#include "script_net.hpp"
#include "test_util.hpp"

using namespace mixmatch;
using models::Network;
using models::ScriptNetwork;

namespace {

ScriptNetwork script_network(int64_t classes = 10) {
  return ScriptNetwork(small_net(3, classes), classes, "net.pt");
}

std::vector<Tensor> copies(const torch::nn::Module& module) {
  std::vector<Tensor> list;
  for (const auto& buffer : module.buffers()) {
    list.push_back(buffer.clone());
  }
  return list;
}

bool equal(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Tensor& x, const Tensor& y) { return torch::equal(x, y); });
}

/// A user's module with a Network in it.
struct OuterImpl : torch::nn::Cloneable<OuterImpl> {
  OuterImpl() { reset(); }
  void reset() override { inner = register_module("inner", Network(models::named_network("resnet18", 2))); }
  Network inner{nullptr};
};
TORCH_MODULE(Outer);

}  // namespace

TEST_CASE("ScriptNetwork: names, tensors, mode and answers are the script's") {
  auto script = small_net();
  ScriptNetwork network(script, 10, "net.pt");
  CHECK(network->named_parameters().size() == 5);
  for (const auto& item : mixmatch::detail::model_state(network)) {
    INFO(item.name);
    CHECK(item.tensor.is_same(script.attr(item.name).toTensor()));
  }
  CHECK(script.attr("training").toBool());
  network->eval();
  CHECK_FALSE(script.attr("training").toBool());
  const Tensor images = torch::randn({4, 3, 9, 9});
  CHECK(torch::allclose(network->forward(images), script.forward({images}).toTensor(), 1e-6, 1e-6));

  // What the script rebinds stays the tensor that optimiser, average and checkpoint know.
  network->train();
  const Tensor count = network->named_buffers()["num_batches_tracked"];
  network->forward(images);
  network->forward(images);
  CHECK(count.item<int64_t>() == 2);
  CHECK(script.attr("num_batches_tracked").toTensor().is_same(count));
  CHECK_THAT(error_of([&] {
               network->forward(torch::randn({4, 5, 9, 9}));
             }),
             contains("fails: "));  // behind the count
  CHECK(count.item<int64_t>() == 2);
  CHECK(script.attr("num_batches_tracked").toTensor().is_same(count));
  network->forward(images).sum().backward();
  CHECK(network->named_parameters()["kernel"].grad().abs().sum().item<float>() > 0);

  const auto copy = std::dynamic_pointer_cast<models::ScriptNetworkImpl>(network->clone());
  const auto before = copies(*copy);
  CHECK(equal(before, copies(*network)));
  network->forward(images);
  CHECK(equal(before, copies(*copy)));
}

TEST_CASE("ScriptNetwork: several batches are several passes, of which the first moves the statistics") {
  auto together = script_network(), apart = script_network();
  const std::vector<Tensor> batches{torch::randn({4, 3, 8, 8}), torch::randn({4, 3, 8, 8}) + 1,
                                    torch::randn({4, 3, 8, 8})};
  const auto outputs = forward_each(together, batches);
  CHECK(torch::equal(outputs[0], apart->forward(batches[0])));
  {
    const BatchNormFreeze frozen(apart);
    CHECK(torch::equal(outputs[1], apart->forward(batches[1])));
    CHECK(torch::equal(outputs[2], apart->forward(batches[2])));
  }
  CHECK(equal(copies(*together), copies(*apart)));
  CHECK(together->named_buffers()["num_batches_tracked"].item<int64_t>() == 1);
  together->set_batch_norm_groups(3);
  CHECK_THAT(error_of([&] {
               together->forward(torch::zeros({4, 3, 8, 8}));
             }),
             contains("must have a multiple of 3 rows"));
}

TEST_CASE("Learner: statistics of a script move in the training pass alone") {
  Network network(script_network().ptr(), models::NetworkDescription{});
  auto twin = script_network();
  training::Learner learner(network);
  const Tensor x = torch::randn({6, 3, 8, 8}), other = torch::randn({6, 3, 8, 8});
  {
    const auto scope = learner.training_step(torch::zeros({}, torch::kLong));
    guess_labels(learner, {other, x});
    const auto before = copies(*network);
    CHECK(equal(before, copies(*twin)));
    learner(x);
    twin->forward(x);
    {
      const auto frozen = freeze_batch_norm(learner);
      const auto again = freeze_batch_norm(learner);
      learner(other);
    }
  }
  CHECK(equal(copies(*network), copies(*twin)));
}

TEST_CASE("ScriptNetwork: what does not fit is said in one line that names the file") {
  const Tensor images = torch::zeros({2, 3, 8, 8});
  const auto error = [&](const std::string& code) {
    torch::jit::Module script("Net");
    script.define(code);
    ScriptNetwork network(script, 3, "net.pt");
    const std::string text = error_of([&] { network->forward(images); });
    CHECK(text.find('\n') == std::string::npos);
    return text;
  };
  CHECK(error("def forward(self, x):\n  return (x, x)\n") ==
        "net.pt: forward must return logits, got a Tuple");
  CHECK(error("def forward(self, x):\n  return x\n") ==
        "net.pt: forward of images [2, 3, 8, 8] must return logits [2, 3] for 3 classes, got [2, 3, 8, 8]");
  CHECK_THAT(error("def forward(self, x):\n  return torch.conv2d(x, x[:, :2], None)\n"),
             contains("net.pt: forward of images [2, 3, 8, 8] fails: "));
  CHECK_THAT(error("def other(self, x):\n  return x\n"), contains("fails: "));
}

TEST_CASE("ScriptNetwork: check_trainable() says what does not fit, and changes nothing") {
  const Tensor images = torch::randn({2, 3, 8, 8});
  for (const bool training : {true, false}) {
    auto script = small_net();
    ScriptNetwork network(script, 10, "net.pt");
    network->train(training);
    const auto before = copies(*network);
    network->check_trainable(images);
    CHECK(equal(before, copies(*network)));
    CHECK(network->is_training() == training);
    CHECK(script.attr("training").toBool() == training);
    // A pass that throws changes nothing either.
    CHECK_THAT(error_of([&] {
                 network->check_trainable(torch::zeros({2, 5, 8, 8}));
               }),
               contains("net.pt: forward of images [2, 5, 8, 8] fails: "));
    CHECK(equal(before, copies(*network)));
    CHECK(script.attr("training").toBool() == training);
  }
  const auto refused = [&](const torch::jit::Module& script) {
    return error_of([&] { ScriptNetwork(script, 3, "a\nb.pt")->check_trainable(images); });
  };
  CHECK(refused(small_net(3, 7)) ==
        "a\\nb.pt: forward of images [2, 3, 8, 8] must return logits [2, 3] for 3 classes, got [2, 7]");
  auto frozen = small_net(3, 3, /*trainable=*/false);
  CHECK(refused(frozen) ==
        "a\\nb.pt has no parameter that takes a gradient among its 5: were they frozen before it was exported?");
  frozen.attr("bias").toTensor().set_requires_grad(true);
  CHECK(refused(frozen).empty());
  torch::jit::Module constants("Net");  // as torch.jit.freeze() leaves one
  constants.define("def forward(self, x):\n  return x.flatten(1)[:, :3]\n");
  CHECK(refused(constants) == "a\\nb.pt has no parameters: was it frozen before it was exported?");
}

TEST_CASE("Network: scale and shift go along, and so do clones inside of other modules") {
  torch::manual_seed(2);
  Outer outer;
  outer->eval();
  const Tensor images = torch::randn({1, 3, 32, 32});
  const torch::NoGradGuard no_grad;
  const Tensor expected = outer->inner->forward(images);
  torch::manual_seed(3);
  const auto copy = std::dynamic_pointer_cast<OuterImpl>(outer->clone());
  CHECK(torch::equal(copy->inner->forward(images), expected));
  copy->inner->parameters().front().add_(1);
  CHECK(torch::equal(outer->inner->forward(images), expected));
  CHECK_FALSE(torch::equal(copy->inner->forward(images), expected));
  outer->to(torch::kDouble);
  CHECK(torch::allclose(outer->inner->forward(images.to(torch::kDouble)).to(torch::kFloat), expected, 1e-3,
                        1e-4));
}
