#pragma once

// Every kernel that is compiled at run time, on the device that is at hand, against the same in ATen's calls
// in float64. For the tests and for the benchmark, which must not trust what it times.

#include <torch/torch.h>
#include <mixmatch/augment/rand_augment.hpp>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/detail/counter_words.hpp>
#include <mixmatch/detail/cuda/cuda_norm.hpp>
#include <mixmatch/detail/cuda/cuda_optimizer.hpp>
#include <mixmatch/evaluation/guess_quality.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/interleave.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/mixup.hpp>
#include <mixmatch/nn/batch_norm_statistics.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/sharpen.hpp>
#include <mixmatch/step/feed.hpp>
#include <mixmatch/step/graphed_step.hpp>
#include <mixmatch/step/meter.hpp>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace kernel_checks {

using torch::Tensor;

struct Check {
  std::string name;
  double error, tolerance;  ///< largest difference, relative to 1 + the exact value
  bool passed() const { return error <= tolerance; }
};

inline const std::vector<at::ScalarType> all_types{at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

inline double rounding_of(at::ScalarType type) {
  return type == at::kDouble ? 1e-11 : type == at::kFloat ? 1e-5 : type == at::kHalf ? 1.0 / 1024 : 1.0 / 128;
}

inline double difference(const Tensor& found, const Tensor& exact) {
  const Tensor right = exact.detach().to(at::kDouble);
  const Tensor gap = (found.detach().to(at::kDouble) - right).abs() / (right.abs() + 1);
  return gap.isnan().any().item<bool>() ? INFINITY : gap.max().item<double>();
}

inline std::string named(const char* name, at::ScalarType type) { return c10::str(name, ' ', type); }

inline void check_sharpen(std::vector<Check>& checks, torch::Device device,
                          const std::vector<at::ScalarType>& types) {
  for (const auto type : types) {
    for (const int64_t classes : {2, 10, 1000}) {
      std::vector<Tensor> views;
      Tensor mean = at::zeros({65, classes}, at::TensorOptions(device).dtype(at::kDouble));
      for (int k = 0; k < 3; ++k) {
        views.push_back((at::randn({65, classes}, device) * 3).to(type));
        mean += at::softmax(views.back().to(at::kDouble), -1) / 3;
      }
      checks.push_back({named("guess_labels_from_logits", type),
                        difference(mixmatch::guess_labels_from_logits(views),
                                   mixmatch::detail::sharpen_composite(mean, 0.5, -1)),
                        type == at::kDouble ? 1e-11 : 1e-5});
      const Tensor rows = at::rand({65, classes}, device).to(type);
      for (const double temperature : {0.5, 0.3, 1.0, 0.0}) {
        checks.push_back(
            {named("sharpen", type),
             difference(mixmatch::sharpen(rows, temperature),
                        mixmatch::detail::sharpen_composite(rows.to(at::kDouble), temperature, -1)),
             rounding_of(type)});
      }
    }
  }
}

inline void check_mixup(std::vector<Check>& checks, torch::Device device,
                        const std::vector<at::ScalarType>& types) {
  for (const auto type : types) {
    for (const auto& shape : {std::vector<int64_t>{192, 3, 32, 32}, {7, 3, 5, 5}, {64, 10}}) {
      Tensor x = at::randn(shape, device).to(type);
      if (x.dim() == 4) {
        x = x.contiguous(at::MemoryFormat::ChannelsLast);
      }
      const Tensor order = at::rand({x.size(0)}, device).argsort();
      for (const Tensor& lambda : {at::rand({x.size(0)}, device), at::rand({}, device)}) {
        checks.push_back({named("mixup_pairs", type),
                          difference(mixmatch::mixup_pairs(x, order, lambda),
                                     mixmatch::detail::mix_rows_composite(x.to(at::kDouble),
                                                                          x.to(at::kDouble), order, lambda)),
                          rounding_of(type)});
      }
    }
  }
}

/// Against the CPU's kernel, which it must equal to the bit.
inline void check_augmentation(std::vector<Check>& checks, torch::Device device,
                               const std::vector<at::ScalarType>& types) {
  const Tensor images = at::randint(256, {65, 3, 32, 32}, at::kByte);
  for (const auto type : types) {
    mixmatch::detail::CropFlip crops{4, at::randint(2, {65}, at::kLong), at::randint(9, {65}, at::kLong),
                                     at::randint(9, {65}, at::kLong)};
    const auto options = mixmatch::augment::NormalizeOptions().dtype(type);
    const auto scale = mixmatch::augment::detail::pixel_scale("check", options, 3);
    const Tensor expected = mixmatch::detail::crop_flip(images, crops, scale, type);
    for (Tensor* offsets : {&crops.flip, &crops.row, &crops.column}) {
      *offsets = offsets->to(device);
    }
    checks.push_back(
        {named("random_crop_flip", type),
         difference(mixmatch::detail::crop_flip(images.to(device), crops, scale, type).cpu(), expected), 0});
    checks.push_back({named("normalize", type),
                      difference(mixmatch::augment::normalize(images.to(device), options).cpu(),
                                 mixmatch::augment::normalize(images, options)),
                      0});
  }
}

/// Against the CPU's kernel, to the bit: each operation by itself, then whole policies.
inline void check_rand_augment(std::vector<Check>& checks, torch::Device device) {
  using mixmatch::augment::RandAugmentOp;
  using mixmatch::augment::RandAugmentOptions;
  const auto check = [&](const std::string& name, int64_t height, int64_t width,
                         const RandAugmentOptions& options) {
    const Tensor images = at::cat({at::randint(256, {60, 3, height, width}, at::kByte),
                                   at::randint(90, 120, {5, 3, height, width}, at::kByte)});
    const Tensor uniform = at::rand({65, rand_augment_draws(options)});
    const Tensor expected = rand_augment_with(images, uniform, options);
    const Tensor found = rand_augment_with(images.to(device), uniform.to(device), options);
    checks.push_back({name, difference(found.cpu(), expected), 0});
  };
  for (int32_t code = 0; code <= static_cast<int32_t>(RandAugmentOp::cutout); ++code) {
    const auto options = RandAugmentOptions::uda()
                             .operations({static_cast<RandAugmentOp>(code)})
                             .num_ops(1)
                             .probability(1)
                             .cutout(0);
    check(c10::str("rand_augment, operation ", code), 32, 32, options);
  }
  check("rand_augment, FixMatch's", 32, 32, RandAugmentOptions::fixmatch());
  check("rand_augment, UDA's", 32, 32, RandAugmentOptions::uda());
  check("rand_augment, five operations of 45x67", 45, 67, RandAugmentOptions().num_ops(5).probability(1));
}

inline void check_stream(std::vector<Check>& checks, torch::Device device) {
  const Tensor rows = at::arange(49750, at::kLong) * 7;
  const mixmatch::data::BatchStream there(rows.to(device), 64, 5), here(rows, 64, 5);
  for (const int64_t position : {0, 776, 777, 778, 1000000}) {
    checks.push_back({"BatchStream", difference(there.rows(position).cpu(), here.rows(position)), 0});
    const Tensor step = at::full({}, position, at::kLong);
    checks.push_back({"counter_words",
                      difference(mixmatch::detail::counter_words(step.to(device), 9, 1000).cpu(),
                                 mixmatch::detail::counter_words(step, 9, 1000)),
                      0});
  }
}

inline void check_optimizer(std::vector<Check>& checks, torch::Device device, bool adam) {
  for (const auto type : {at::kFloat, at::kDouble}) {
    const auto make = [&](at::ScalarType as) {
      torch::manual_seed(3);
      mixmatch::detail::FlatParameters flat;
      const Tensor start = at::randn({100003}).to(type);
      flat.parameters = start.to(device, as, false, true);
      flat.average = flat.parameters.clone();
      flat.first_moment = at::zeros_like(flat.parameters);
      flat.second_moment = adam ? at::zeros_like(flat.parameters) : Tensor();
      flat.is_kernel = at::arange(100003, device).lt(50000);
      return flat;
    };
    auto found = make(type), exact = make(at::kDouble);
    const auto scalar = [&](double value) {
      return at::full({}, value, at::TensorOptions(device).dtype(at::kDouble));
    };
    for (int64_t step = 0; step < 3; ++step) {
      const Tensor gradient = at::randn({100003}, device);
      found.gradients = gradient.to(type);
      exact.gradients = gradient.to(at::kDouble);
      const mixmatch::detail::FlatScalars scalars{
          at::full({}, step, at::TensorOptions(device).dtype(at::kLong)), scalar(0.01), scalar(0.9),
          at::ones({}, at::TensorOptions(device).dtype(at::kBool))};
      const mixmatch::detail::UpdateRule rule = mixmatch::detail::AdamRule{};
      const mixmatch::detail::FlatConstants constants{adam ? rule : mixmatch::detail::SgdRule{}, 0.3,
                                                      adam ? 0 : 0.1};
      mixmatch::detail::flat_step_(found, scalars, constants);
      mixmatch::detail::flat_step_composite_(exact, scalars, constants);
    }
    checks.push_back({named(adam ? "adam" : "sgd", type), difference(found.parameters, exact.parameters),
                      type == at::kDouble ? 1e-11 : 1e-4});
    checks.push_back({named(adam ? "adam: average" : "sgd: average", type),
                      difference(found.average, exact.average), type == at::kDouble ? 1e-11 : 1e-4});
  }
}

/// Only where the kernels run: there is no other way through these functions.
inline void check_norm(std::vector<Check>& checks, torch::Device device,
                       const std::vector<at::ScalarType>& types, const std::vector<int64_t>& all_channels,
                       int64_t size) {
  constexpr double eps = 1e-3, slope = 0.1;
  for (const auto type : types) {
    for (const int64_t channels : all_channels) {
      for (const int64_t groups : {1, 3}) {
        const auto images = [&](double shift) {
          return (at::randn({12, channels, size, size}, device) + shift)
              .to(type)
              .contiguous(at::MemoryFormat::ChannelsLast);
        };
        const bool adds = groups != 1;  // another kernel than those that do not
        const Tensor x = images(1), addend = adds ? images(0.5) : Tensor();
        const Tensor grad_sum = adds ? images(0) : Tensor();
        Tensor grad_y = images(0);
        if (!mixmatch::detail::cuda_norm_supported(x)) {
          return;
        }
        const auto compute = type == at::kDouble ? at::kDouble : at::kFloat;
        const Tensor weight = (at::rand({channels}, device) + 0.5).to(compute);
        const Tensor bias = at::randn({channels}, device).to(compute);
        const auto forward = [&](const Tensor& running) {
          return mixmatch::detail::cuda_norm_forward(x, addend, weight, bias, groups, eps, slope, running[0],
                                                     running[1], 0.25);
        };
        const Tensor running = at::full({2, channels}, 3, weight.options()), running_again = running.clone();
        const auto out = forward(running), again = forward(running_again);
        const auto leaf = [](const Tensor& t) { return t.to(at::kDouble).detach().requires_grad_(); };
        const Tensor s = leaf(out.sum), w = leaf(weight), b = leaf(bias);
        std::vector<Tensor> parts, variances;
        const Tensor moving = s.detach().chunk(groups)[0];
        const Tensor moments = at::stack({moving.mean({0, 2, 3}), moving.var({0, 2, 3}, true)});
        for (const Tensor& part : s.chunk(groups)) {
          parts.push_back(at::leaky_relu(at::batch_norm(part, w, b, {}, {}, true, 0.0, eps, false), slope));
          variances.push_back(part.detach().var({0, 2, 3}, true));
        }
        const Tensor y = at::cat(parts);
        // So near its kink the function's slope is a matter of rounding.
        grad_y = grad_y.mul(y.detach().abs().ge(1e-4).to(type));
        const auto backward = [&] {
          return mixmatch::detail::cuda_norm_backward(grad_y, grad_sum, out.sum, weight, bias, out.mean,
                                                      out.invstd, groups, slope);
        };
        const auto grads = backward(), grads_again = backward();
        const auto exact = torch::autograd::grad({y}, {s, w, b}, {grad_y.to(at::kDouble)});
        const double tight = type == at::kDouble ? 1e-9 : 1e-3;
        const double image = std::max(rounding_of(type), type == at::kDouble ? 1e-10 : 1e-4);
        checks.push_back({named("norm y", type), difference(out.y, y), image});
        checks.push_back({named("norm sum", type), difference(out.sum, adds ? x + addend : x), 0});
        checks.push_back(
            {named("norm variance", type), difference(out.var_unbiased, at::stack(variances)), tight});
        checks.push_back({named("norm grad_x", type),
                          difference(grads.grad_x, adds ? exact[0] + grad_sum.to(at::kDouble) : exact[0]),
                          2 * image});
        checks.push_back({named("norm grad_weight", type), difference(grads.grad_weight, exact[1]), tight});
        checks.push_back({named("norm grad_bias", type), difference(grads.grad_bias, exact[2]), tight});
        checks.push_back(
            {named("norm running statistics", type), difference(running, 0.75 * 3 + 0.25 * moments), tight});
        for (const auto& [one, other] : {std::pair<Tensor, Tensor>{out.y, again.y},
                                         {running, running_again},
                                         {grads.grad_x, grads_again.grad_x},
                                         {grads.grad_weight, grads_again.grad_weight}}) {
          checks.push_back({named("norm, the same once more", type), difference(one, other), 0});
        }
      }
    }
  }
}

/// What a step does in one kernel each: gradients to the optimiser's block, draws of MixUp, what is reported.
/// Only where the kernels run.
inline void check_step_kernels(std::vector<Check>& checks, torch::Device device) {
  if (!device.is_cuda() || !mixmatch::detail::cuda_kernels_available(device)) {
    return;
  }
  for (const auto type : {at::kFloat, at::kDouble}) {
    std::vector<mixmatch::detail::GradientPiece> pieces;
    std::vector<Tensor> exact;
    int64_t offset = 0;
    for (int64_t i = 0; i < 300; ++i) {  // of several launches
      const int64_t size = (i * 389) % 2011, room = (size + 63) / 64 * 64;
      const auto of = i % 3 == 0 ? type : i % 3 == 1 ? at::kBFloat16 : at::kHalf;
      const Tensor gradient = i % 7 == 6 ? Tensor() : at::randn({size}, device).to(of);
      pieces.push_back({gradient, offset, room});
      exact.push_back(gradient.defined() ? gradient.to(type)
                                         : at::zeros({size}, at::TensorOptions(device).dtype(type)));
      exact.push_back(at::zeros({room - size}, at::TensorOptions(device).dtype(type)));
      offset += room;
    }
    Tensor block = at::empty({offset}, at::TensorOptions(device).dtype(type));
    const auto sum_of = [&] { return gather_gradients_on_cuda(block, pieces).sum().to(at::kDouble); };
    checks.push_back(
        {named("gather_gradients: finite", type), difference(sum_of(), at::zeros({}, device)), 0});
    checks.push_back({named("gather_gradients", type), difference(block, at::cat(exact)), 0});
    pieces[205].gradient.narrow(0, 5, 1).fill_(INFINITY);  // one of those that are there
    checks.push_back(
        {named("gather_gradients: infinite", type), difference(sum_of(), at::ones({}, device)), 0});
  }
  for (const int64_t size : {1, 192, 960, 8192}) {
    const Tensor numbers = at::rand({size}, at::TensorOptions(device).dtype(at::kDouble));
    Tensor places = at::empty({size}, at::TensorOptions(device).dtype(at::kLong));
    mixmatch::detail::sorted_places_on_cuda(places, numbers);
    checks.push_back({"random_permutation", difference(places, numbers.argsort()), 0});
  }
  const auto draws = [&] {
    return 0.01 + at::rand({2, 500}, at::TensorOptions(device).dtype(at::kDouble)) * 0.98;
  };
  const Tensor gamma = draws(), uniform = draws();
  const Tensor lambda = mixmatch::detail::beta_of_draws_on_cuda(gamma, uniform, 0.75, at::kFloat,
                                                                /*dominant=*/false);
  const Tensor logs = gamma.log() + (1 - uniform).log() / 0.75;
  checks.push_back({"sample_symmetric_beta", difference(lambda, at::sigmoid(logs[0] - logs[1])), 1e-6});
  mixmatch::Meter meter(device);
  const Tensor finite = at::ones({}, at::TensorOptions(device).dtype(at::kBool));
  for (int64_t step = 1; step < 4; ++step) {
    const Tensor number = at::full({}, step, at::TensorOptions(device).dtype(at::kFloat));
    meter.add({number, {{"none", number.log().neg().sqrt()}, {"half", number.to(at::kHalf)}}}, finite);
  }
  const auto means = meter.read();
  checks.push_back(
      {"Meter", std::abs(means.values[0] - 2) + std::abs(means.values[2] - 2) + std::abs(means.counts[1] - 1),
       0});
}

/// A step's views, against the CPU's to the bit.
inline void check_feed(std::vector<Check>& checks, torch::Device device) {
  const auto shapes = mixmatch::data::make_shapes(60, 3);
  const auto split = mixmatch::data::split_labels(shapes.labels, 20, 10, 1);
  for (const int64_t ranks : {1, 2}) {
    const auto views = [&](torch::Device where) {
      const mixmatch::training::Feed feed(
          {mixmatch::data::ImagePool({mixmatch::data::to_device(shapes, where)}), split, {}, {}},
          mixmatch::training::FeedOptions()
              .batch_size(6)
              .weak_views(2)
              .strong_views(1)
              .world_size(ranks)
              .rank(ranks - 1));
      const auto batch = feed(at::full({}, 7, at::TensorOptions(where).dtype(at::kLong)));
      return at::cat({batch.labeled, batch.weak[0], batch.weak[1], batch.strong[0]}).cpu();
    };
    checks.push_back({c10::str("Feed, ", ranks, " ranks"), difference(views(device), views(torch::kCPU)), 0});
  }
}

/// A linear model that takes several batches as one.
struct GroupedProduct {
  Tensor weight;

  Tensor operator()(const Tensor& rows) const { return rows.matmul(weight); }
  void set_batch_norm_groups(int64_t) {}
};

/// What a MixMatch step does around the network, against the CPU's.
inline void check_mixmatch(std::vector<Check>& checks, torch::Device device) {
  const Tensor x = at::randn({7, 5}, at::kDouble), u = at::randn({14, 5}, at::kDouble);
  const Tensor weight = at::randn({5, 4}, at::kDouble), labels = at::randint(4, {7}, at::kLong);
  const auto run = [&](torch::Device where) {
    GroupedProduct model{weight.to(where, at::kDouble, false, true).requires_grad_()};
    const Tensor rows = x.to(where), others = u.to(where);
    const auto batch = mixmatch::with_guessed_labels(model, rows, labels.to(where), others.chunk(2));
    const auto logits = mixmatch::forward_interleaved(model, rows, others);
    const mixmatch::RampedLoss criterion(mixmatch::RampedLossOptions().lambda_u(75).rampup_steps(10));
    const auto loss = criterion(logits.labeled, batch.labeled_targets, logits.unlabeled,
                                batch.unlabeled_targets, at::full({}, 3, rows.options().dtype(at::kLong)));
    loss.total.backward();
    return std::vector<Tensor>{
        batch.labeled_targets, batch.unlabeled_targets, logits.labeled.detach(), logits.unlabeled.detach(),
        loss.weight,           loss.total.detach(),     model.weight.grad()};
  };
  const auto found = run(device), expected = run(torch::kCPU);
  for (size_t i = 0; i < found.size(); ++i) {
    checks.push_back(
        {c10::str("around the network, result ", i), difference(found[i].cpu(), expected[i]), 1e-10});
  }
  torch::nn::BatchNorm2d norm(3), there(3);
  there->to(device);
  mixmatch::training::BatchNormStatistics statistics(norm), statistics_there(there);
  for (int64_t step = 0; step < 4; ++step) {
    const Tensor images = at::randn({6, 3, 5, 5}) + static_cast<double>(step);
    const Tensor number = at::full({}, step, at::kLong), number_there = number.to(device);
    const auto here_moves = statistics.update_at(number, 0.3);
    const auto there_moves = statistics_there.update_at(number_there, 0.3);
    norm->forward(images);
    there->forward(images.to(device));
  }
  checks.push_back({"BatchNormStatistics", difference(there->running_var.cpu(), norm->running_var), 1e-5});
}

inline void check_losses(std::vector<Check>& checks, torch::Device device,
                         const std::vector<at::ScalarType>& types) {
  for (const auto type : types) {
    for (const bool squared : {true, false}) {
      const Tensor logits = (at::randn({192, 10}, device) * 3).to(type).requires_grad_();
      const Tensor targets =
          at::softmax(at::randn({192, 10}, device), 1).to(type == at::kDouble ? type : at::kFloat);
      const Tensor there = logits.detach().to(at::kDouble).requires_grad_();
      const Tensor wide = targets.to(at::kDouble);
      const auto loss_of = [&](const Tensor& z, const Tensor& t) {
        return squared ? mixmatch::softmax_mse(z, t) : mixmatch::soft_cross_entropy(z, t);
      };
      const mixmatch::detail::ClassLoss loss{squared, squared ? 1920.0 : 192.0};
      const Tensor found = loss_of(logits, targets);
      const Tensor exact = mixmatch::detail::class_loss_composite(there, wide, loss);
      const char* name = squared ? "softmax_mse" : "soft_cross_entropy";
      checks.push_back({named(name, type), difference(found, exact), type == at::kDouble ? 1e-11 : 1e-5});
      checks.push_back({c10::str(named(name, type), ": gradient"),
                        difference(torch::autograd::grad({found * 100}, {logits})[0],
                                   torch::autograd::grad({exact * 100}, {there})[0]),
                        rounding_of(type)});
    }
  }
}

inline void check_guess_quality(std::vector<Check>& checks, torch::Device device,
                                const std::vector<at::ScalarType>& types) {
  for (const auto type : types) {
    const Tensor guessed = at::softmax(at::randn({448, 10}, device) * 2, 1).to(type);
    const Tensor labels = at::randint(-1, 10, {448}, at::TensorOptions(device).dtype(at::kLong));
    const auto numbers = [](const mixmatch::training::GuessQuality& q) {
      return at::stack({q.class_entropy, q.mean_max_probability, q.mean_entropy, q.accuracy}).cpu();
    };
    checks.push_back({named("guess_quality", type),
                      difference(numbers(mixmatch::training::guess_quality(guessed, labels)),
                                 numbers(mixmatch::training::guess_quality(guessed.cpu(), labels.cpu()))),
                      1e-12});
  }
}

using Part = std::function<void(std::vector<Check>&, torch::Device)>;

/// What throws is a check that failed, and the others are made all the same.
inline std::vector<Check> run_parts(const std::vector<std::pair<std::string, Part>>& parts,
                                    torch::Device device) {
  torch::manual_seed(1);
  std::vector<Check> checks;
  for (const auto& [name, part] : parts) {
    try {
      part(checks, device);
    } catch (const std::exception& error) {
      checks.push_back({name + ": " + mixmatch::training::detail::one_line_of(error), INFINITY, 0});
    }
  }
  return checks;
}

/// All of them; `brief`: each kernel for two types, in small sizes. On a device without kernels it is the
/// composites that are checked.
inline std::vector<Check> run_all(torch::Device device, bool brief = false) {
  const auto types = brief ? std::vector<at::ScalarType>{at::kFloat, at::kBFloat16} : all_types;
  const auto of_types = [&types](auto* check) -> Part {
    return [&types, check](auto& checks, auto on) { check(checks, on, types); };
  };
  return run_parts({{"sharpen", of_types(check_sharpen)},
                    {"mixup", of_types(check_mixup)},
                    {"augmentation", of_types(check_augmentation)},
                    {"RandAugment", check_rand_augment},
                    {"streams", check_stream},
                    {"Adam", [](auto& made, auto on) { check_optimizer(made, on, true); }},
                    {"SGD", [](auto& made, auto on) { check_optimizer(made, on, false); }},
                    {"guess_quality", of_types(check_guess_quality)},
                    {"losses", of_types(check_losses)},
                    {"step", check_step_kernels},
                    {"feed", check_feed},
                    {"mixmatch", check_mixmatch},
                    {"norm",
                     [&](std::vector<Check>& checks, torch::Device where) {
                       if (brief) {
                         check_norm(checks, where, types, {32, 135}, 8);
                         return;
                       }
                       check_norm(checks, where, types, {16, 32, 128, 135}, 16);
                       // Many rows a thread.
                       check_norm(checks, where, {at::kBFloat16, at::kFloat}, {32, 40}, 64);
                     }}},
                   device);
}

}  // namespace kernel_checks
