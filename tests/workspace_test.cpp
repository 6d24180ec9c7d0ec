#include <mixmatch/workspace.hpp>

#include <mixmatch/interleave.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/mixup.hpp>

#include <algorithm>
#include <future>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch;

TEST_CASE("Workspace: memory is given out again once nothing refers to it") {
  Workspace workspace;
  Tensor first = workspace.empty({4, 3}, torch::kFloat);
  const void* memory = first.data_ptr();
  const Tensor second = workspace.empty({4, 3}, torch::kFloat);
  CHECK(second.data_ptr() != memory);
  CHECK(second.sizes() == torch::IntArrayRef({4, 3}));
  CHECK(second.scalar_type() == torch::kFloat);

  Tensor view = first.narrow(0, 2, 1);
  first = Tensor();
  CHECK(workspace.empty({4, 3}, torch::kFloat).data_ptr() != memory);  // a view is left
  view = Tensor();
  CHECK(workspace.empty({4, 3}, torch::kFloat).data_ptr() == memory);
}

TEST_CASE("Workspace: other shapes, types and layouts get memory of their own") {
  Workspace workspace;
  const auto address = [&](std::vector<int64_t> sizes, at::ScalarType type, at::MemoryFormat format) {
    const Tensor tensor = workspace.empty(sizes, type, format);
    CHECK(tensor.sizes() == torch::IntArrayRef(sizes));
    CHECK(tensor.scalar_type() == type);
    CHECK(tensor.is_contiguous(format));
    return tensor.data_ptr();
  };
  const auto contiguous = at::MemoryFormat::Contiguous, channels_last = at::MemoryFormat::ChannelsLast;
  for (int round = 0; round < 2; ++round) {
    std::set<void*> addresses;
    addresses.insert(address({2, 3, 4, 5}, torch::kFloat, contiguous));
    addresses.insert(address({2, 3, 4, 5}, torch::kFloat, channels_last));
    addresses.insert(address({2, 3, 5, 4}, torch::kFloat, contiguous));
    addresses.insert(address({2, 3, 4, 5}, torch::kInt, contiguous));
    CHECK(addresses.size() == 4);
  }
}

TEST_CASE("Workspace: what autograd keeps for the backward pass is not overwritten") {
  Workspace workspace;
  const Tensor weight = torch::full({3}, 2.).requires_grad_();
  Tensor product;
  {
    Tensor x = workspace.empty({3}, torch::kFloat);
    x.fill_(5);
    product = x * weight;
  }
  workspace.empty({3}, torch::kFloat).fill_(-1);
  product.sum().backward();
  CHECK(torch::equal(weight.grad(), torch::full({3}, 5.f)));
}

TEST_CASE("Workspace: each tensor has its own version: writing to one spoils no gradient of another") {
  Workspace workspace;
  workspace.empty({3}, torch::kFloat).fill_(1);
  const Tensor weight = torch::ones({3}).requires_grad_();
  Tensor x = workspace.empty({3}, torch::kFloat);
  x.fill_(4);
  const Tensor product = x * weight;
  workspace.empty({3}, torch::kFloat).fill_(7);
  CHECK_NOTHROW(product.sum().backward());
  CHECK(torch::equal(weight.grad(), torch::full({3}, 4.f)));
}

TEST_CASE(
    "Workspace: steps of ever other shapes do not pile memory up, and many tensors a step are all kept") {
  Workspace workspace;
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> memory;
  for (int64_t size = 1; size <= 300; ++size) {
    const Tensor tensor = workspace.empty({size}, torch::kByte);
    memory.emplace_back(
        c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(tensor.storage().unsafeGetStorageImpl()));
  }
  const auto held =
      std::count_if(memory.begin(), memory.end(), [](const auto& one) { return !one.expired(); });
  CHECK(held <= Workspace::kManyRequests + 1);
  CHECK(held > 0);

  Workspace steps;
  std::set<void*> addresses;
  std::vector<Tensor> neighbours;  // so that memory that was freed is not had again by chance
  for (int step = 0; step < 5; ++step) {
    for (int64_t i = 0; i < 40; ++i) {
      addresses.insert(steps.empty({1000 + i}, torch::kByte).data_ptr());
      neighbours.push_back(torch::empty({1000 + i}, torch::kByte));
    }
  }
  CHECK(addresses.size() == 40);
}

TEST_CASE("Workspace: empty_like and empty have the strides of ATen's") {
  Workspace workspace;
  const Tensor x = torch::rand({4, 3, 5, 6}), gray = torch::rand({4, 1, 5, 6});
  const auto channels_last = at::MemoryFormat::ChannelsLast;
  for (int round = 0; round < 2; ++round) {
    for (const Tensor& other :
         {x, x.contiguous(channels_last), x.transpose(0, 3), x[0][0], x.slice(3, 0, 6, 2), x.sum(),
          gray.to(torch::kFloat, false, true, channels_last), gray, x.narrow(0, 0, 0)}) {
      const Tensor like = workspace.empty_like(other);
      CHECK(like.sizes() == other.sizes());
      CHECK(like.strides() == torch::empty_like(other).strides());
      CHECK(like.scalar_type() == other.scalar_type());
    }
    for (const std::vector<int64_t>& sizes :
         std::vector<std::vector<int64_t>>{{4, 3, 5, 6}, {4, 1, 5, 6}, {1, 3, 1, 1}, {0, 3, 2, 2}}) {
      for (const auto format : {at::MemoryFormat::Contiguous, channels_last}) {
        CHECK(workspace.empty(sizes, torch::kFloat, format).strides() ==
              at::empty(sizes, torch::kFloat, format).strides());
      }
    }
  }
  CHECK_THAT(error_of([&] { workspace.empty({3}, torch::kFloat, channels_last); }),
             contains("channels-last sizes must be [N, C, H, W], got [3]"));
}

TEST_CASE("Workspace: tensors are used and released on other threads") {
  Workspace workspace;
  std::vector<std::future<bool>> unchanged;
  for (int i = 0; i < 200; ++i) {
    Tensor tensor = workspace.empty({10000}, torch::kInt);
    tensor.fill_(i);
    unchanged.push_back(std::async(std::launch::async, [i, mine = std::move(tensor)] {
      const int* values = mine.data_ptr<int>();
      return std::all_of(values, values + 10000, [i](int value) { return value == i; });
    }));
  }
  CHECK(std::all_of(unchanged.begin(), unchanged.end(), [](auto& one) { return one.get(); }));
}

TEST_CASE("Workspace: nothing is kept of inference mode") {
  Workspace workspace;
  {
    const c10::InferenceMode inference;
    CHECK(workspace.empty({100}, torch::kInt).is_inference());
  }
  CHECK_FALSE(workspace.empty({100}, torch::kInt).is_inference());
}

TEST_CASE("mixup, interleave: the same with a workspace, in memory that is used again") {
  const auto workspace = std::make_shared<Workspace>();
  for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
    std::set<void*> addresses;
    for (uint64_t step = 0; step < 5; ++step) {
      torch::manual_seed(step);
      const Tensor x = torch::randn({6, 3, 4, 4}).contiguous(format);
      const Tensor targets = torch::softmax(torch::randn({6, 5}), 1);
      const auto plain = mixup(x, targets, {}, seeded(step));
      const auto mixed = mixup(x, targets, MixUpOptions().workspace(workspace), seeded(step));
      CHECK(torch::equal(mixed.inputs, plain.inputs));
      CHECK(torch::equal(mixed.targets, plain.targets));
      CHECK(mixed.inputs.strides() == plain.inputs.strides());
      addresses.insert(mixed.inputs.data_ptr());

      const auto batches = mixed.inputs.split(2);
      const auto expected = interleave(batches), swapped = interleave(batches, workspace.get());
      for (size_t i = 0; i < batches.size(); ++i) {
        CHECK(torch::equal(swapped[i], expected[i]));
        CHECK(swapped[i].strides() == expected[i].strides());
      }
      addresses.insert(swapped[0].data_ptr());
    }
    CHECK(addresses.size() == 2);
  }
  // Types that torch::cat would join are joined.
  const std::vector<Tensor> differ{torch::zeros({2, 1}), torch::ones({2, 1}, torch::kDouble)};
  CHECK(interleave(differ, workspace.get())[0].scalar_type() == interleave(differ)[0].scalar_type());
}

TEST_CASE("mixmatch_loss_of_views: with a workspace each step's images take the same memory") {
  torch::manual_seed(1);
  torch::nn::Linear layer(4, 3);
  std::set<void*> addresses;
  auto model = [&](const Tensor& x) {
    addresses.insert(x.data_ptr());
    return layer->forward(x);
  };
  const RampedLoss criterion(RampedLossOptions().rampup_steps(0));
  const auto options = MixMatchOptions().workspace(std::make_shared<Workspace>());
  const Tensor all = torch::rand({3 * 6, 4});
  const auto rows = all.split(6);
  const Tensor labels = torch::randint(3, {6}, torch::kLong);
  for (uint64_t step = 0; step < 6; ++step) {
    const auto loss = methods::mixmatch_loss_of_views(model, rows[0], labels, {rows[1], rows[2]}, 0,
                                                      criterion, options, seeded(step));
    const auto expected = methods::mixmatch_loss_of_views(layer, rows[0], labels, {rows[1], rows[2]}, 0,
                                                          criterion, {}, seeded(step));
    CHECK(torch::equal(loss.total, expected.total));
    const auto gradients = torch::autograd::grad({loss.total}, {layer->weight});
    const auto expected_gradients = torch::autograd::grad({expected.total}, {layer->weight});
    CHECK(torch::equal(gradients[0], expected_gradients[0]));
  }
  // Three interleaved batches, and the two views that labels are guessed of.
  CHECK(addresses.size() == 5);
}
