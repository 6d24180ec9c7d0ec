#pragma once

#include <c10/util/Exception.h>
#include <torch/types.h>
#include <mixmatch/augment/color_jitter.hpp>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/augment/random_resized_crop.hpp>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/guess_filter.hpp>
#include <mixmatch/logit_adjustment.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/schedules.hpp>
#include <mixmatch/step/trainer.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mixmatch::training {

/// --prior as shares, float64 [num_classes]. Throws on anything but as many numbers >= 0, not all 0.
inline Tensor parse_prior(const std::string& text, int64_t num_classes) {
  std::vector<double> shares;
  size_t begin = 0;
  bool right = true;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const auto number = mixmatch::detail::parse_number<double>(text.substr(begin, end - begin));
    right = right && number.has_value() && *number >= 0 && std::isfinite(*number);
    shares.push_back(number.value_or(0));
    begin = end + 1;
  }
  right = right && std::any_of(shares.begin(), shares.end(), [](double share) { return share > 0; });
  TORCH_CHECK(right && static_cast<int64_t>(shares.size()) == num_classes, "--prior: expected the shares of ",
              num_classes, " classes, numbers >= 0 with commas between that are not all 0, got ",
              text.empty() ? "nothing" : mixmatch::detail::printable_beginning(text, 80));
  const Tensor prior = at::tensor(shares, at::kDouble);
  return prior / prior.sum();
}

/// The labeled images' shares of the classes, float64 [L]. Throws before adopt_data().
inline Tensor labeled_prior(const TrainingOptions& o) {
  TORCH_CHECK(!o.class_counts.empty(), "labeled_prior: no data was adopted (adopt_data)");
  const Tensor counts = at::tensor(o.class_counts, at::kLong).to(at::kDouble);
  return counts / counts.sum();
}

/// What --alignment and --open-set ask for.
inline GuessFilter guess_filter(const TrainingOptions& o) {
  GuessFilterOptions options;
  if (o.alignment == "labeled") {
    options.prior(labeled_prior(o));
  } else if (o.alignment == "uniform") {
    options.prior(at::ones_like(labeled_prior(o)));
  } else if (o.alignment == "prior") {
    options.prior(parse_prior(o.prior, static_cast<int64_t>(o.class_counts.size())));
  }
  return GuessFilter(options.open_set(o.open_set == "energy"));
}

inline MixMatchOptions mixmatch_options(const TrainingOptions& o) {
  return MixMatchOptions()
      .temperature(o.temperature)
      .num_augmentations(o.num_augmentations)
      .alpha(o.alpha)
      .mix_mode(parse_mix_mode(o.mix_mode));
}

inline RampedLossOptions ramped_loss_options(const TrainingOptions& o) {
  return RampedLossOptions().lambda_u(o.lambda_u).rampup_steps(o.rampup_steps);
}

/// Steps of a schedule over the whole run.
inline int64_t schedule_length(const TrainingOptions& o) {
  return std::max<int64_t>(1, o.schedule_steps < 0 ? o.steps : o.schedule_steps);
}

inline OptimizerOptions optimizer_options(const TrainingOptions& o) {
  const UpdateRule rule =
      o.optimizer == "sgd" ? UpdateRule(SgdRule{o.momentum, /*nesterov=*/true}) : UpdateRule(AdamRule{});
  auto options = OptimizerOptions(o.learning_rate).rule(rule).weight_decay(o.weight_decay).l2(o.l2);
  if (o.optimizer == "muon") {
    options.muon(MuonOptions().momentum(o.momentum));
  }
  if (o.backbone_rate != 1) {
    options.rate_factor([factor = o.backbone_rate, head = models::head_name(o.model) + "."](
                            const std::string& name) { return name.rfind(head, 0) == 0 ? 1.0 : factor; });
  }
  if (o.lr_schedule != "constant" || o.warmup_steps > 0) {
    options.schedule([length = schedule_length(o), name = o.lr_schedule,
                      warmup = o.warmup_steps](const Tensor& step) -> Tensor {
      const Tensor decay = name == "cosine"        ? cosine_decay(step, length)
                           : name == "half_cosine" ? half_cosine_decay(step, length)
                                                   : at::ones_like(step, at::kDouble);
      return warmup > 0 ? decay * linear_rampup(step + 1, warmup) : decay;
    });
  }
  return options;
}

inline TrainStateOptions train_state_options(const TrainingOptions& o) {
  return TrainStateOptions()
      .seed(o.seed)
      .ema(EmaModelOptions().decay(o.ema_decay).warmup(o.debias))
      .optimizer(optimizer_options(o));
}

inline augment::RandomCropFlipOptions augment_options(const TrainingOptions& o) {
  return augment::RandomCropFlipOptions().padding(o.padding).mirror(o.mirror);
}

inline std::optional<augment::RandomResizedCropOptions> resized_crop_options(const TrainingOptions& o) {
  return o.augment == "resized_crop"
             ? std::optional(augment::RandomResizedCropOptions().min_scale(o.crop_scale).mirror(o.mirror))
             : std::nullopt;
}

namespace detail {

/// For features in the place of images: neither augmented nor normalised.
inline augment::RandomCropFlipOptions unchanged_features() {
  return augment::RandomCropFlipOptions().padding(0).mirror(false).normalization(
      augment::NormalizeOptions().mean({0.0}).stddev({1.0}));
}

}  // namespace detail

inline TrainerOptions trainer_options(const TrainingOptions& o) {
  const bool features = o.train == "head";
  const auto options =
      TrainerOptions()
          .feed(FeedOptions()
                    .batch_size(o.batch)
                    .unlabeled_ratio(o.unlabeled_ratio)
                    .balanced(o.imbalance == "balanced_batches")
                    .weak_views(o.num_augmentations)
                    .seed(o.seed)
                    .augmentation(features ? detail::unchanged_features() : augment_options(o))
                    .resized_crop(features ? std::nullopt : resized_crop_options(o))
                    .color_jitter(augment::ColorJitterOptions::of_strength(features ? 0 : o.color_jitter))
                    .strong_augmentation(o.strong == "uda" ? augment::RandAugmentOptions::uda()
                                                           : augment::RandAugmentOptions::fixmatch()))
          // Published statistics are no random start to be forgotten.
          .learner(LearnerOptions().warmup(o.debias && o.weights.empty()))
          .precision(parse_precision(o.precision))
          .logit_adjustment(o.imbalance == "logit_adjustment" ? logit_adjustment(labeled_prior(o)) : Tensor())
          .graph(o.graph)
          .overlap_weight_gradients(o.overlap)
          .measure_convolutions(o.measure_convolutions)
          .prefetch(o.prefetch)
          .data_parallel(DataParallelOptions()
                             .batches(o.ranks == "separate" ? RankBatches::separate : RankBatches::joint)
                             .seed(o.seed)
                             .check_every(o.check_replicas));
  return use_processes(options, o.processes);
}

inline EvaluateOptions evaluate_options(const TrainingOptions& o, torch::Device device) {
  return EvaluateOptions().device(device).precision(parse_precision(o.precision)).processes(o.processes);
}

}  // namespace mixmatch::training
