#pragma once

// The second umbrella: all of training/, for programs that keep runs. But for training/command_line.hpp,
// which needs CLI11.

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
