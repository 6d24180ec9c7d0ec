#pragma once

#include <mixmatch/models/network.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/program/training_options.hpp>

namespace mixmatch::training {

/// Puts the numbers of the method o.method in the place of MixMatch's (presets.hpp).
inline void use_method_preset(TrainingOptions& o) {
  const auto consistency = [&o](double weight) {
    o.lambda_u = weight;
    o.rampup_steps = -1;
  };
  const auto strong = [&o](double weight, double threshold) {
    o.lambda_u = weight;
    o.rampup_steps = 0;
    o.threshold = threshold;
    o.strong = o.method;
    o.unlabeled_ratio = presets::unlabeled_ratio;
    o.optimizer = "sgd";
    o.lr_schedule = "cosine";
    o.learning_rate = presets::sgd_learning_rate;
    o.momentum = presets::sgd_momentum;
    o.l2 = presets::sgd_l2;
    o.weight_decay = 0;
  };
  if (o.method == "pseudo_label") {
    consistency(presets::pseudo_label_weight);
  } else if (o.method == "pi_model") {
    consistency(presets::pi_model_weight);
  } else if (o.method == "mean_teacher") {
    consistency(presets::mean_teacher_weight);
  } else if (o.method == "vat") {
    consistency(presets::vat_weight);
    o.radius = presets::vat_radius;
    o.entropy_weight = presets::vat_entropy_weight;
  } else if (o.method == "ict") {
    consistency(presets::ict_weight);
    o.alpha = presets::ict_alpha;
  } else if (o.method == "mixup") {
    o.lambda_u = presets::mixup_weight;
    o.rampup_steps = 0;
    o.alpha = presets::mixup_alpha;
  } else if (o.method == "uda") {
    strong(presets::uda_weight, presets::uda_threshold);
    o.temperature = presets::uda_temperature;
  } else if (o.method == "fixmatch") {
    strong(presets::fixmatch_weight, presets::fixmatch_threshold);
  }
}

/// Puts the numbers of `--preset fast` in the place of the papers': FixMatch for a budget of steps over which
/// the learning rate falls to 0.
inline void use_fast_preset(TrainingOptions& o) {
  o.method = "fixmatch";
  use_method_preset(o);
  o.steps = presets::fast_steps;
  o.unlabeled_ratio = presets::fast_unlabeled_ratio;
  o.optimizer = "adam";
  o.learning_rate = presets::fast_learning_rate;
  o.lr_schedule = "half_cosine";
  o.weight_decay = presets::fast_weight_decay;
  o.l2 = 0;
  o.eval_every = presets::fast_steps_per_evaluation;
}

/// Puts the settings of fine-tuning in the place of those for random weights, where o.weights are given.
inline void use_fine_tuning_preset(TrainingOptions& o) {
  if (o.weights.empty()) {
    return;
  }
  if (models::script_file_of(o.model).empty()) {  // a script's layers are not known
    o.head = "probe";
    o.freeze_statistics = true;
    o.backbone_rate = presets::fine_tuning_backbone_rate;
  }
  o.optimizer = "adam";
  o.learning_rate = presets::fine_tuning_learning_rate;
  o.lr_schedule = "half_cosine";
  o.warmup_steps = presets::fine_tuning_warmup;
  o.weight_decay = presets::fine_tuning_weight_decay;
  o.l2 = 0;
  o.ema_decay = presets::fine_tuning_ema_decay;
}

}  // namespace mixmatch::training
