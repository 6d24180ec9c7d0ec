#pragma once

// The umbrella: every public header.

#include <mixmatch/model.hpp>

#include <mixmatch/batch_norm.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/forward_each.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/interleave.hpp>
#include <mixmatch/losses.hpp>
#include <mixmatch/mixmatch_batch.hpp>
#include <mixmatch/mixup.hpp>
#include <mixmatch/one_hot.hpp>
#include <mixmatch/presets.hpp>
#include <mixmatch/ramped_loss.hpp>
#include <mixmatch/safetensors.hpp>
#include <mixmatch/schedules.hpp>
#include <mixmatch/sharpen.hpp>
#include <mixmatch/weight_decay.hpp>

#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/augment/random_crop_flip.hpp>

#include <mixmatch/data/batch_stream.hpp>
#include <mixmatch/data/cifar10.hpp>
#include <mixmatch/data/cifar100.hpp>
#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/device_batch_stream.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/image_pool.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/data/split_file.hpp>
#include <mixmatch/data/stl10.hpp>
#include <mixmatch/data/svhn.hpp>

#include <mixmatch/methods/mixmatch.hpp>

#include <mixmatch/models/batch_norm_leaky_relu.hpp>
#include <mixmatch/models/classifier_file.hpp>
#include <mixmatch/models/wide_resnet.hpp>

#include <mixmatch/training/atomic_file.hpp>
#include <mixmatch/training/augmented_batch.hpp>
#include <mixmatch/training/batch_norm_statistics.hpp>
#include <mixmatch/training/checkpoint.hpp>
#include <mixmatch/training/confident_errors.hpp>
#include <mixmatch/training/config.hpp>
#include <mixmatch/training/confusion_matrix.hpp>
#include <mixmatch/training/device.hpp>
#include <mixmatch/training/device_adam.hpp>
#include <mixmatch/training/device_step.hpp>
#include <mixmatch/training/device_training.hpp>
#include <mixmatch/training/evaluate.hpp>
#include <mixmatch/training/example_images.hpp>
#include <mixmatch/training/finish_run.hpp>
#include <mixmatch/training/fused_adam.hpp>
#include <mixmatch/training/graphed_step.hpp>
#include <mixmatch/training/guess_quality.hpp>
#include <mixmatch/training/html.hpp>
#include <mixmatch/training/image_grid.hpp>
#include <mixmatch/training/interrupt.hpp>
#include <mixmatch/training/json.hpp>
#include <mixmatch/training/line_chart.hpp>
#include <mixmatch/training/memory.hpp>
#include <mixmatch/training/metrics.hpp>
#include <mixmatch/training/metrics_table.hpp>
#include <mixmatch/training/optimizer_step.hpp>
#include <mixmatch/training/png.hpp>
#include <mixmatch/training/precision.hpp>
#include <mixmatch/training/predict.hpp>
#include <mixmatch/training/predictions_file.hpp>
#include <mixmatch/training/prefetch.hpp>
#include <mixmatch/training/progress.hpp>
#include <mixmatch/training/recalibrate_batch_norm.hpp>
#include <mixmatch/training/report.hpp>
#include <mixmatch/training/run_directory.hpp>
#include <mixmatch/training/run_record.hpp>
#include <mixmatch/training/step_loss.hpp>
#include <mixmatch/training/tensorboard.hpp>
#include <mixmatch/training/train_classifier.hpp>
#include <mixmatch/training/train_state.hpp>
#include <mixmatch/training/training_data.hpp>
#include <mixmatch/training/training_options.hpp>
#include <mixmatch/training/training_run.hpp>
