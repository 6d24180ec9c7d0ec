#pragma once

// The umbrella: the method, its parts, data, models, and what a training step and its evaluation are made of.
// What a program keeps around them (options, checkpoints, metrics, reports) has an umbrella beside it:
// <mixmatch/training.hpp>.

#include <mixmatch/model.hpp>

#include <mixmatch/adversarial.hpp>
#include <mixmatch/alignment.hpp>
#include <mixmatch/annealing.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/energy_gate.hpp>
#include <mixmatch/guess_filter.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/interleave.hpp>
#include <mixmatch/logit_adjustment.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/mixup.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/schedules.hpp>
#include <mixmatch/selection.hpp>
#include <mixmatch/sharpen.hpp>
#include <mixmatch/version.hpp>
#include <mixmatch/weight_decay.hpp>

#include <mixmatch/augment/color_jitter.hpp>
#include <mixmatch/augment/cutout.hpp>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/augment/rand_augment.hpp>
#include <mixmatch/augment/random_crop_flip.hpp>
#include <mixmatch/augment/random_resized_crop.hpp>

#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/data/cifar10.hpp>
#include <mixmatch/data/cifar100.hpp>
#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/decode_image.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/image_pool.hpp>
#include <mixmatch/data/label_file.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/labeled_pictures.hpp>
#include <mixmatch/data/list_images.hpp>
#include <mixmatch/data/picture_cache.hpp>
#include <mixmatch/data/picture_fit.hpp>
#include <mixmatch/data/picture_list.hpp>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/data/split_file.hpp>
#include <mixmatch/data/stl10.hpp>
#include <mixmatch/data/svhn.hpp>
#include <mixmatch/data/training_data.hpp>

#include <mixmatch/distributed/gradient_reducer.hpp>
#include <mixmatch/distributed/joint_rows.hpp>
#include <mixmatch/distributed/launch_environment.hpp>
#include <mixmatch/distributed/own_address.hpp>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/distributed/same_on_all.hpp>
#include <mixmatch/distributed/sync_norm.hpp>
#include <mixmatch/evaluation/calibration.hpp>
#include <mixmatch/evaluation/class_scores.hpp>
#include <mixmatch/evaluation/confidence_rule.hpp>
#include <mixmatch/evaluation/confident_errors.hpp>
#include <mixmatch/evaluation/confusion_matrix.hpp>
#include <mixmatch/evaluation/cross_validated_probe.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/evaluation/guess_chance.hpp>
#include <mixmatch/evaluation/guess_collapse.hpp>
#include <mixmatch/evaluation/guess_quality.hpp>
#include <mixmatch/evaluation/label_errors.hpp>
#include <mixmatch/evaluation/linear_probe.hpp>
#include <mixmatch/evaluation/paired_comparison.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/evaluation/proportion.hpp>
#include <mixmatch/evaluation/review_order.hpp>
#include <mixmatch/evaluation/test_time_flips.hpp>
#include <mixmatch/evaluation/update_bn.hpp>

#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/io/script_file.hpp>

#include <mixmatch/methods/fixmatch.hpp>
#include <mixmatch/methods/ict.hpp>
#include <mixmatch/methods/mean_teacher.hpp>
#include <mixmatch/methods/mixmatch.hpp>
#include <mixmatch/methods/mixup.hpp>
#include <mixmatch/methods/pi_model.hpp>
#include <mixmatch/methods/pseudo_label.hpp>
#include <mixmatch/methods/supervised.hpp>
#include <mixmatch/methods/uda.hpp>
#include <mixmatch/methods/vat.hpp>

#include <mixmatch/models/efficientnet_lite.hpp>
#include <mixmatch/models/load_pretrained.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/models/resnet.hpp>
#include <mixmatch/models/script_network.hpp>
#include <mixmatch/models/vision_transformer.hpp>
#include <mixmatch/models/wide_resnet.hpp>

#include <mixmatch/nn/batch_norm.hpp>
#include <mixmatch/nn/batch_norm_leaky_relu.hpp>
#include <mixmatch/nn/batch_norm_statistics.hpp>
#include <mixmatch/nn/channels_last.hpp>
#include <mixmatch/nn/convolve.hpp>
#include <mixmatch/nn/forward_each.hpp>
#include <mixmatch/nn/kept_gradients.hpp>
#include <mixmatch/nn/precision.hpp>
#include <mixmatch/nn/sync_batch_norm.hpp>

#include <mixmatch/optim/flat_gradients.hpp>
#include <mixmatch/optim/flat_layout.hpp>
#include <mixmatch/optim/low_precision_weights.hpp>
#include <mixmatch/optim/muon.hpp>
#include <mixmatch/optim/muon_kernels.hpp>
#include <mixmatch/optim/optimizer.hpp>

#include <mixmatch/step/batch.hpp>
#include <mixmatch/step/data_parallel.hpp>
#include <mixmatch/step/feed.hpp>
#include <mixmatch/step/graphed_predictor.hpp>
#include <mixmatch/step/graphed_step.hpp>
#include <mixmatch/step/host_batches.hpp>
#include <mixmatch/step/learner.hpp>
#include <mixmatch/step/meter.hpp>
#include <mixmatch/step/method_state.hpp>
#include <mixmatch/step/prefetch.hpp>
#include <mixmatch/step/run_evaluation.hpp>
#include <mixmatch/step/step_loss.hpp>
#include <mixmatch/step/train_state.hpp>
#include <mixmatch/step/trainer.hpp>
