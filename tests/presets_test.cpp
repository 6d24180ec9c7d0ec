#include <mixmatch/presets.hpp>

#include <vector>

#include "catch.hpp"

using mixmatch::Preset;

TEST_CASE("presets: the papers' table") {
  struct Row {
    Preset preset;
    double alpha, lambda_u, decay;
    int64_t scales, filters, padding, ramp;
    bool mirror;
  };
  using namespace mixmatch::presets;
  for (const Row& row : std::vector<Row>{{cifar10, .75, 75, .02, 3, 32, 4, 16384, true},
                                         {cifar10_large, .75, 75, .04, 3, 135, 4, 16384, true},
                                         {cifar100, .75, 150, .04, 3, 135, 4, 16384, true},
                                         {svhn, .75, 250, .02, 3, 32, 4, 16384, false},
                                         {svhn_extra, .25, 250, .02, 3, 32, 4, 16384, false},
                                         {stl10, .75, 50, .02, 4, 32, 12, 16384, true},
                                         {ablation, .75, 100, .02, 3, 32, 4, 2048, true}}) {
    INFO(std::string(row.preset.name));
    CHECK(row.preset.alpha == row.alpha);
    CHECK(row.preset.lambda_u == row.lambda_u);
    CHECK(row.preset.weight_decay == row.decay);
    CHECK(row.preset.scales == row.scales);
    CHECK(row.preset.filters == row.filters);
    CHECK(row.preset.padding == row.padding);
    CHECK(row.preset.rampup_steps == row.ramp);
    CHECK(row.preset.mirror == row.mirror);
    CHECK(row.preset.temperature == .5);
    CHECK(row.preset.num_augmentations == 2);
    CHECK(row.preset.batch_size == 64);
    CHECK(row.preset.learning_rate == 2e-3);
    CHECK(row.preset.ema_decay == .999);
    CHECK(row.preset.total_steps == 1048576);
    CHECK(row.preset.steps_per_checkpoint == 1024);
  }
}

TEST_CASE("presets: the numbers of the other methods") {
  using namespace mixmatch::presets;
  CHECK(pseudo_label_weight == 1);
  CHECK(pi_model_weight == 20);
  CHECK(mean_teacher_weight == 50);
  CHECK(consistency_rampup == .4);
  CHECK(vat_weight == .3);
  CHECK(vat_entropy_weight == .06);
  CHECK(vat_radius == 6);
  CHECK(vat_xi == 1e-6);
  CHECK(ict_weight == 100);
  CHECK(ict_alpha == 1);
  CHECK(mixup_weight == 1);
  CHECK(mixup_alpha == .75);
  CHECK(uda_weight == 1);
  CHECK(uda_threshold == .8);
  CHECK(uda_temperature == .4);
  CHECK(fixmatch_weight == 1);
  CHECK(fixmatch_threshold == .95);
  CHECK(unlabeled_ratio == 7);
  CHECK(sgd_learning_rate == .03);
  CHECK(sgd_momentum == .9);
  CHECK(sgd_l2 == 5e-4);
}
