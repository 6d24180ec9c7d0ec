#include <mixmatch/interleave.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/mixmatch_batch.hpp>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

using namespace mixmatch;

namespace {

// Labeled rows hold values in [0, 1), unlabeled ones in [10, 11): a mixture tells where it came from.
const int64_t kB = 6, kU = 5, kK = 3, kClasses = 2;

struct Inputs {
  Tensor x = torch::rand({kB, 3}), u = torch::rand({kU, 3}) + 10;
  Tensor labels = torch::tensor({0, 1, 0, 1, 1, 0});
};

MixMatchBatch run(const Inputs& in, MixMode mode, uint64_t seed = 1) {
  auto model = [](const Tensor& x) { return x.narrow(1, 0, kClasses); };
  auto identity = [](const Tensor& x) { return x; };
  return mixmatch_batch(model, identity, in.x, in.labels, in.u,
                        MixMatchOptions().num_augmentations(kK).mix_mode(mode), seeded(seed));
}

}  // namespace

TEST_CASE("with_guessed_labels: views that are neighbours are not copied, and mixed the same") {
  torch::manual_seed(2);
  auto model = [](const Tensor& x) { return x.narrow(1, 0, kClasses); };
  const Tensor all = torch::rand({6 + 2 * 5, 3}), labels = torch::tensor({0, 1, 0, 1, 1, 0});
  const Tensor x = all.narrow(0, 0, 6), u1 = all.narrow(0, 6, 5), u2 = all.narrow(0, 11, 5);
  const auto joined = with_guessed_labels(model, x, labels, {u1, u2});
  CHECK(joined.unlabeled_inputs.data_ptr() == u1.data_ptr());
  const auto copied = with_guessed_labels(model, x.clone(), labels, {u1.clone(), u2.clone()});
  const auto a = mix_labeled_unlabeled(joined, {}, seeded(1));
  const auto b = mix_labeled_unlabeled(copied, {}, seeded(1));
  CHECK(torch::equal(a.labeled_inputs, b.labeled_inputs));
  CHECK(torch::equal(a.unlabeled_inputs, b.unlabeled_inputs));
  CHECK(torch::equal(a.unlabeled_targets, b.unlabeled_targets));
  CHECK(torch::equal(joined.unlabeled_inputs, copied.unlabeled_inputs));  // mixing writes to none of them
}

TEST_CASE("mixmatch_batch: shapes, view order and invariants of all nine modes") {
  torch::manual_seed(1);
  const Inputs in;
  const std::vector<std::string_view> names{".",    "xx.",    ".yy",   "xx.yy",  "xxy.",
                                            ".yxy", "xx.yxy", "xx.yx", "xxy.yxy"};
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string_view name = names[i];
    const auto mode = static_cast<MixMode>(i);
    INFO(name);
    const auto out = run(in, mode);
    CHECK(out.labeled_inputs.sizes() == torch::IntArrayRef({kB, 3}));
    CHECK(out.labeled_targets.sizes() == torch::IntArrayRef({kB, kClasses}));
    CHECK(out.unlabeled_inputs.sizes() == torch::IntArrayRef({kK * kU, 3}));
    CHECK(out.unlabeled_targets.sizes() == torch::IntArrayRef({kK * kU, kClasses}));
    CHECK(torch::allclose(out.labeled_targets.sum(1), torch::ones({kB})));
    CHECK(torch::allclose(out.unlabeled_targets.sum(1), torch::ones({kK * kU})));

    const Tensor unmixed_u = in.u.repeat({kK, 1});
    const bool x_kept = torch::equal(out.labeled_inputs, in.x),
               u_kept = torch::equal(out.unlabeled_inputs, unmixed_u);
    const bool x_with_u = (out.labeled_inputs > 1).any().item<bool>();
    const bool u_with_x = (out.unlabeled_inputs < 10).any().item<bool>();
    CHECK(x_kept == (name.front() == '.'));
    CHECK(u_kept == (name.back() == '.'));
    CHECK(x_with_u == (name.substr(0, 3) == "xxy"));
    CHECK(u_with_x == (name.find("yx") != std::string_view::npos));
    // lambda' >= 1/2: each row stays nearer to its own.
    CHECK((out.unlabeled_inputs > 5).all().item<bool>());
    CHECK((out.labeled_inputs < 6).all().item<bool>());
    CHECK(parse_mix_mode(name) == mode);
    CHECK(to_string(mode) == name);
  }
  CHECK_THAT(error_of([] { parse_mix_mode("xy.z"); }), contains("\"xy.z\""));
  // A command line may hold anything; a message may not.
  CHECK_THAT(error_of([] { parse_mix_mode("x\x1b[2J"); }), contains("\"x\\x1b[2J\""));
  CHECK(error_of([] { parse_mix_mode(std::string(5000, 'x')); }).size() < 200);
}

TEST_CASE("mixmatch_batch: xx.yx mixes each unlabeled row with labeled rows only") {
  const Inputs in;
  const auto out = run(in, MixMode::xx_yx);
  // u' = l u + (1 - l) x, so u' < u in every column unless l is 1.
  CHECK((out.unlabeled_inputs <= in.u.repeat({kK, 1})).all().item<bool>());
  CHECK((out.unlabeled_inputs < in.u.repeat({kK, 1}) - 0.01).any().item<bool>());
}

TEST_CASE("mixmatch_batch: mode none gives one-hot labels, and the sharpened guess for every view") {
  const Inputs in;
  const auto out = run(in, MixMode::none);
  CHECK(torch::equal(out.labeled_targets, mixmatch::one_hot(in.labels, kClasses)));
  const Tensor p = torch::softmax(in.u.narrow(1, 0, 2).to(at::kDouble), 1);
  const Tensor q = (p * p / (p * p).sum(1, true)).to(at::kFloat);
  for (int64_t k = 0; k < kK; ++k) {
    CHECK(torch::allclose(out.unlabeled_targets.narrow(0, k * kU, kU), q, 1e-5, 1e-6));
  }
}

TEST_CASE("mixmatch_batch: augments x once, u K times, and mixes inputs and targets alike") {
  int calls = 0;
  const Inputs in;
  auto model = [](const Tensor& x) { return x.narrow(1, 0, kClasses); };
  auto augment = [&](const Tensor& x) { return x + 100 * calls++; };
  const auto out = mixmatch_batch(model, augment, in.x, in.labels, in.u,
                                  MixMatchOptions().num_augmentations(2).mix_mode(MixMode::none));
  CHECK(calls == 3);
  CHECK(torch::equal(out.labeled_inputs, in.x));
  CHECK(torch::equal(out.unlabeled_inputs, torch::cat({in.u + 100, in.u + 200})));

  // With inputs equal to their targets, any mixture keeps them equal.
  const Tensor x = mixmatch::one_hot(in.labels, kClasses);
  auto sure = [](const Tensor& rows) { return rows * 1000; };
  auto same = [](const Tensor& rows) { return rows; };
  const Tensor u = mixmatch::one_hot(torch::tensor({0, 1, 1, 0}), kClasses);
  const auto mixed = mixmatch_batch(sure, same, x, x, u);
  CHECK(torch::allclose(mixed.labeled_inputs, mixed.labeled_targets));
  CHECK(torch::allclose(mixed.unlabeled_inputs, mixed.unlabeled_targets));
}

TEST_CASE("mixmatch_batch: same seed, same bits; another seed, another batch") {
  const Inputs in;
  CHECK(torch::equal(run(in, MixMode::all, 5).unlabeled_inputs, run(in, MixMode::all, 5).unlabeled_inputs));
  CHECK_FALSE(
      torch::equal(run(in, MixMode::all, 5).unlabeled_inputs, run(in, MixMode::all, 6).unlabeled_inputs));
}

TEST_CASE("mixmatch_batch: unequal alphas, batch-wide lambda, uint8 images through the augmentation") {
  const Inputs in;
  auto model = [](const Tensor& x) { return x.narrow(1, 0, kClasses); };
  auto identity = [](const Tensor& x) { return x; };
  const auto out = mixmatch_batch(model, identity, in.x, in.labels, in.u,
                                  MixMatchOptions().alpha(0).alpha_unlabeled(0.75).mix_mode(MixMode::xx_yy));
  CHECK(torch::equal(out.labeled_inputs, in.x));
  CHECK_FALSE(torch::equal(out.unlabeled_inputs, in.u.repeat({2, 1})));

  const auto one = mixmatch_batch(model, identity, torch::zeros({4, 3}), torch::zeros({4}, at::kLong),
                                  torch::ones({8, 3}), MixMatchOptions().per_sample(false));
  const Tensor values = torch::cat({one.labeled_inputs, one.unlabeled_inputs}).flatten();
  CHECK(std::get<0>(torch::_unique(values)).numel() <= 4);  // 0, 1, lambda and 1 - lambda

  auto to_float = [](const Tensor& x) { return x.to(at::kFloat); };
  CHECK(mixmatch_batch(model, to_float, torch::ones({2, 3}, at::kByte), torch::zeros({2}, at::kLong),
                       torch::ones({2, 3}, at::kByte))
            .labeled_inputs.scalar_type() == at::kFloat);
}

TEST_CASE("mixmatch_batch: the guess carries no gradient, the training loss reaches every parameter") {
  torch::manual_seed(8);
  HeldNet model;
  auto identity = [](const Tensor& x) { return x; };
  const auto out = mixmatch_batch(model, identity, torch::randn({4, 3}), torch::tensor({0, 1, 1, 0}),
                                  torch::randn({4, 3}));
  CHECK_FALSE(out.unlabeled_targets.requires_grad());
  (torch::softmax(model->forward(out.unlabeled_inputs), 1) - out.unlabeled_targets)
      .square()
      .mean()
      .backward();
  for (const auto& parameter : model->named_parameters()) {
    INFO(parameter.key());
    // A bias before a batch norm has none, by construction.
    if (parameter.key() != "dense.bias") {
      CHECK(parameter.value().grad().abs().sum().item<double>() > 0);
    }
  }
}

TEST_CASE("mixmatch_batch: bad input") {
  const Inputs in;
  auto model = [](const Tensor& x) { return x.narrow(1, 0, kClasses); };
  auto identity = [](const Tensor& x) { return x; };
  const auto call = [&](const Tensor& x, const Tensor& labels, const MixMatchOptions& options) {
    return error_of([&] { mixmatch_batch(model, identity, x, labels, in.u, options); });
  };
  CHECK_THAT(call(in.x, in.labels, MixMatchOptions().num_augmentations(0)),
             contains("num_augmentations must be >= 1, got 0"));
  CHECK_THAT(call(in.x, in.labels.narrow(0, 0, 3), {}), contains("got [3]"));
  CHECK_THAT(call(in.x, torch::rand({kB, 7}), {}), contains("got [6, 7]"));
  CHECK_THAT(call(in.x, in.labels + 5, {}), contains("labels must be in [0, 2)"));
  CHECK_THAT(call(in.x, in.labels, MixMatchOptions().alpha(-1)),
             contains("alpha must be finite and >= 0, got -1"));
  CHECK_THAT(call(in.x, in.labels, MixMatchOptions().temperature(-1)), contains("temperature"));
}

TEST_CASE("mixmatch_batch and its parts: errors name the function that was called, and its argument") {
  const Inputs in;
  auto model = [](const Tensor& x) { return x.narrow(1, 0, kClasses); };
  auto identity = [](const Tensor& x) { return x; };
  const Tensor narrow = torch::rand({kU, 2}), targets = torch::rand({kB, kClasses}),
               guesses = torch::rand({kU, kClasses});
  const auto refused = [](const auto& call, const std::string& begin) {
    const std::string error = error_of(call);
    INFO(error);
    CHECK(error.rfind(begin, 0) == 0);
    CHECK(error.find('\n') == std::string::npos);
  };
  // Rows of x and u that do not fit each other.
  refused([&] { mixmatch_batch(model, identity, in.x, in.labels, narrow); },
          "mixmatch_batch: unlabeled must have rows like those of labeled [6, 3], got [5, 2]");
  refused(
      [&] {
        with_guessed_labels(model, in.x, in.labels, {narrow, narrow});
      },
      "with_guessed_labels: views must have rows like those of labeled_view [6, 3], got [5, 2]");
  refused(
      [&] {
        mix_labeled_unlabeled({in.x, targets, narrow, guesses});
      },
      "mix_labeled_unlabeled: unlabeled_inputs must have rows like those of labeled_inputs [6, 3], got [5, "
      "2]");
  refused(
      [&] {
        mix_labeled_unlabeled({in.x, targets, in.u, torch::rand({kU, 3})});
      },
      "mix_labeled_unlabeled: targets of unlabeled_inputs must have as many classes as those of "
      "labeled_inputs, 2, got 3");
  // Where no row of one is mixed with the other, they need not fit.
  const auto apart = MixMatchOptions().mix_mode(MixMode::xx_yy);
  CHECK(mix_labeled_unlabeled({in.x, targets, narrow, guesses}, apart, seeded(1)).unlabeled_inputs.size(1) ==
        2);

  refused(
      [&] {
        mix_labeled_unlabeled({in.x, targets.narrow(0, 0, 2), in.u, guesses});
      },
      "mix_labeled_unlabeled: targets of labeled_inputs must be floating-point [6, L] as it has rows, got ");
  refused(
      [&] {
        mix_labeled_unlabeled({in.x, in.labels, in.u, guesses});
      },
      "mix_labeled_unlabeled: targets of labeled_inputs must be floating-point [6, L]");
  refused(
      [&] {
        mix_labeled_unlabeled({in.x.to(at::kByte), targets, in.u, guesses});
      },
      "mix_labeled_unlabeled: labeled_inputs must be a floating-point [N, ...] tensor, got Byte [6, 3]");
  refused(
      [&] {
        mix_labeled_unlabeled({in.x, targets, {}, guesses});
      },
      "mix_labeled_unlabeled: unlabeled_inputs must be a floating-point [N, ...] tensor, got undefined");
  refused(
      [&] {
        mix_labeled_unlabeled({in.x, targets, in.u, guesses}, MixMatchOptions().alpha(-1));
      },
      "mix_labeled_unlabeled: alpha must be finite and >= 0, got -1");
  refused([&] { with_guessed_labels(model, in.x, in.labels, {in.u}); },
          "with_guessed_labels: expected num_augmentations = 2 views, got 1");
  refused(
      [&] {
        with_guessed_labels(model, in.x, in.labels, {in.u, narrow});
      },
      "with_guessed_labels: all views of views must have one shape");
  refused(
      [&] {
        with_guessed_labels(model, Tensor(), in.labels, {in.u, in.u});
      },
      "with_guessed_labels: labels must have one row for each row of labeled_view undefined, got [6]");
  refused(
      [&] { mixmatch_batch(model, identity, in.x, in.labels, in.u, MixMatchOptions().num_augmentations(0)); },
      "mixmatch_batch: num_augmentations must be >= 1, got 0");
  refused([&] { mixmatch_batch(model, identity, in.x, in.labels.narrow(0, 0, 3), in.u); },
          "mixmatch_batch: labels must have one row for each row of labeled [6, 3], got [3]");
  const auto none = MixMatchOptions().mix_mode(MixMode::xx_yx);
  refused(
      [&] {
        mix_labeled_unlabeled({in.x.narrow(0, 0, 0), targets.narrow(0, 0, 0), in.u, guesses}, none);
      },
      "mix_labeled_unlabeled: mode xx.yx mixes unlabeled rows with labeled ones, got none");

  const auto forwarded = [&](const Tensor& x, const Tensor& u) {
    return error_of([&] { forward_interleaved(model, x, u); });
  };
  CHECK_THAT(
      forwarded(in.x, torch::rand({12, 2})),
      contains("forward_interleaved: unlabeled must have rows like those of labeled [6, 3], got [12, 2]"));
  CHECK_THAT(forwarded({}, in.u), contains("forward_interleaved: labeled must be [B, ...], got undefined"));
  CHECK_THAT(forwarded(in.x, {}), contains("got undefined"));
  CHECK_THAT(forwarded(in.x, in.u), contains("a multiple of the labeled batch's 6 rows"));

  const RampedLoss criterion{RampedLossOptions()};
  refused([&] { methods::mixmatch_loss(model, identity, in.x, in.labels, narrow, 0, criterion); },
          "mixmatch_loss: unlabeled must have rows like those of labeled [6, 3], got [5, 2]");
  refused(
      [&] {
        methods::mixmatch_loss_of_views(model, in.x, in.labels, {narrow, narrow}, 0, criterion);
      },
      "mixmatch_loss_of_views: views must have rows like those of labeled [6, 3], got [5, 2]");
}
