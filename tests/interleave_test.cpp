#include <mixmatch/interleave.hpp>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using mixmatch::forward_interleaved;
using mixmatch::interleave;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_interleave.inc"
}

namespace {

/// A linear model that takes several batches as one.
struct GroupedProduct {
  Tensor weight;

  Tensor operator()(const Tensor& rows) const { return rows.matmul(weight); }
  void set_batch_norm_groups(int64_t) {}
};

}  // namespace

TEST_CASE("interleave: a hand-worked example with a remainder") {
  // B = 7, K + 1 = 3: groups of 2, 2, 3 rows; batch 0's group i changes places with batch i's group i.
  const Tensor a = torch::arange(0, 7), b = torch::arange(10, 17), c = torch::arange(20, 27);
  const auto out = interleave({a, b, c});
  REQUIRE(out.size() == 3);
  CHECK(torch::equal(out[0], torch::tensor({0, 1, 12, 13, 24, 25, 26})));
  CHECK(torch::equal(out[1], torch::tensor({10, 11, 2, 3, 14, 15, 16})));
  CHECK(torch::equal(out[2], torch::tensor({20, 21, 22, 23, 4, 5, 6})));
}

TEST_CASE("interleave: is its own inverse") {
  for (const int64_t rows : {0, 1, 2, 3, 7, 64}) {
    for (const int count : {1, 2, 3, 5}) {
      std::vector<Tensor> batches;
      for (int i = 0; i < count; ++i) {
        batches.push_back(torch::randn({rows, 2, 3}));
      }
      const auto back = interleave(interleave(batches));
      for (size_t i = 0; i < batches.size(); ++i) {
        CHECK(torch::equal(back[i], batches[i]));
      }
    }
  }
}

TEST_CASE("interleave: each batch holds rows of all, gradients come back to where they belong") {
  std::vector<Tensor> batches;
  for (int i = 0; i < 3; ++i) {
    batches.push_back(torch::full({6, 1}, i).to(torch::kFloat).requires_grad_());
  }
  auto out = interleave(batches);
  CHECK(std::get<0>(torch::_unique(out[0])).numel() == 3);
  (out[0] * 2).sum().backward();
  CHECK(torch::equal(batches[0].grad(), torch::tensor({2.f, 2.f, 0.f, 0.f, 0.f, 0.f}).view({6, 1})));
  CHECK(torch::equal(batches[1].grad(), torch::tensor({0.f, 0.f, 2.f, 2.f, 0.f, 0.f}).view({6, 1})));
}

TEST_CASE("interleave: channels-last batches stay so, however few their rows") {
  for (const int64_t rows : {2, 7}) {
    std::vector<Tensor> batches;
    for (int i = 0; i < 3; ++i) {
      batches.push_back(torch::randn({rows, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast));
    }
    for (const Tensor& batch : interleave(batches)) {
      CHECK(batch.is_contiguous(at::MemoryFormat::ChannelsLast));
    }
  }
}

TEST_CASE("interleave: one pass over all batches finds them joined") {
  const auto out = interleave({torch::randn({7, 3}), torch::randn({7, 3}), torch::randn({7, 3})});
  CHECK(mixmatch::detail::join_rows(out).data_ptr() == out[0].data_ptr());
}

TEST_CASE("interleave: a model may write to its batch, and the one before is still good for a gradient") {
  const Tensor weight = torch::ones({3}).requires_grad_();
  const auto out = interleave({torch::randn({4, 3}), torch::randn({4, 3})});
  Tensor loss = torch::zeros({});
  for (Tensor batch : out) {
    loss = loss + (batch.mul_(2) * weight).sum();  // the product keeps the batch
  }
  loss.backward();
  CHECK(torch::allclose(weight.grad(), out[0].sum(0) + out[1].sum(0)));
}

TEST_CASE("interleave: refuses no batches and unequal ones") {
  CHECK_THAT(error_of([] { interleave({}); }), contains("interleave: batches must hold at least one"));
  CHECK_THAT(error_of([] { interleave({torch::zeros({4, 2}), torch::zeros({3, 2})}); }), contains("[3, 2]"));
}

TEST_CASE(
    "forward_interleaved: logits of each row in its place, and statistics moved by the first pass alone") {
  torch::manual_seed(3);
  HeldNet model;
  const Tensor x = torch::randn({4, 3}), u = torch::randn({8, 3});
  // In evaluation mode a row's logits do not depend on its batch.
  model->eval();
  const auto logits = forward_interleaved(model, x, u);
  CHECK(torch::allclose(logits.labeled, model->forward(x)));
  CHECK(torch::allclose(logits.unlabeled, model->forward(u)));

  model->train();
  HeldNet twin(std::dynamic_pointer_cast<HeldNetImpl>(model->clone()));
  forward_interleaved(model, x, u);
  const auto batches = interleave({x, u.narrow(0, 0, 4), u.narrow(0, 4, 4)});
  twin->forward(batches[0]);
  CHECK(torch::equal(model->norm->running_mean, twin->norm->running_mean));
  CHECK(model->norm->num_batches_tracked.item<int64_t>() == 1);

  const auto none = forward_interleaved(model, x, u.narrow(0, 0, 0));
  CHECK(none.unlabeled.sizes() == torch::IntArrayRef({0, 2}));
  CHECK_THAT(error_of([&] {
               forward_interleaved(model, x, torch::randn({6, 3}));
             }),
             contains("a multiple of the labeled batch's 4 rows, got [6, 3]"));
}

TEST_CASE("forward_interleaved: one kernel puts the logits back, and one their gradients, to the bit") {
  torch::manual_seed(4);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t rows : {1, 2, 7, 12}) {
      for (const int64_t views : {1, 2, 4}) {
        INFO(type << ", " << rows << " rows, " << views << " views");
        const Tensor x = at::randn({rows, 3}).to(type), u = at::randn({views * rows, 3}).to(type);
        const Tensor weight = at::randn({3, 5}).to(type);
        const Tensor factors = at::randn({(1 + views) * rows, 5}).to(type);
        const auto run = [&] {
          GroupedProduct model{weight.clone().requires_grad_()};
          const auto logits = forward_interleaved(model, x, u);
          // A function whose gradient is another for each row.
          const Tensor loss = (logits.labeled.square() * factors.narrow(0, 0, rows)).sum() +
                              (logits.unlabeled.square() * factors.narrow(0, rows, views * rows)).sum();
          const Tensor first = torch::autograd::grad({loss}, {model.weight}, {}, true, true)[0];
          const Tensor second =
              torch::autograd::grad({first.square().sum()}, {model.weight}, {}, /*retain_graph=*/true)[0];
          loss.backward();
          return std::vector<Tensor>{logits.labeled.detach(), logits.unlabeled.detach(), model.weight.grad(),
                                     first.detach(), second};
        };
        const auto expected = run();
        cuda_emulation::EmulatedDevice device;
        device.add("interleave_rows<float>", cuda_emulation::interleave_rows<float>);
        device.add("interleave_rows<BFloat16>", cuda_emulation::interleave_rows<cuda_emulation::BFloat16>);
        const auto found = run();
        CHECK(device.launches() > 1);
        for (size_t i = 0; i < found.size(); ++i) {
          INFO("result " << i);
          CHECK(found[i].equal(expected[i]));
        }
      }
    }
  }
}
