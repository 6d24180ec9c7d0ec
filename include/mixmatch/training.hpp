#pragma once

// The second umbrella: what a program keeps around its steps, and what needs {fmt}. But for
// program/command_line.hpp, which needs CLI11.

#include <mixmatch/distributed/c10d_process_group.hpp>
#include <mixmatch/distributed/peer_watch.hpp>
#include <mixmatch/program/cache_memory.hpp>
#include <mixmatch/program/check_options.hpp>
#include <mixmatch/program/classifier_file.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/error_text.hpp>
#include <mixmatch/program/example_images.hpp>
#include <mixmatch/program/feed_watch.hpp>
#include <mixmatch/program/finish_run.hpp>
#include <mixmatch/program/join_processes.hpp>
#include <mixmatch/program/joined_processes.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/network.hpp>
#include <mixmatch/program/option_presets.hpp>
#include <mixmatch/program/own_pictures.hpp>
#include <mixmatch/program/predictions_file.hpp>
#include <mixmatch/program/ramp_watch.hpp>
#include <mixmatch/program/review.hpp>
#include <mixmatch/program/run_split.hpp>
#include <mixmatch/program/run_tensors.hpp>
#include <mixmatch/program/same_run.hpp>
#include <mixmatch/program/start_run.hpp>
#include <mixmatch/program/suggest_settings.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/program/train_classifier.hpp>
#include <mixmatch/program/trained_on.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/program/verdict.hpp>
#include <mixmatch/program/with_method.hpp>
#include <mixmatch/report/html.hpp>
#include <mixmatch/report/line_chart.hpp>
#include <mixmatch/report/report.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/run/config.hpp>
#include <mixmatch/run/image_grid.hpp>
#include <mixmatch/run/interrupt.hpp>
#include <mixmatch/run/json.hpp>
#include <mixmatch/run/memory.hpp>
#include <mixmatch/run/metrics_table.hpp>
#include <mixmatch/run/metrics_writer.hpp>
#include <mixmatch/run/png.hpp>
#include <mixmatch/run/progress.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/run_lock.hpp>
#include <mixmatch/run/run_record.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/run/tensorboard.hpp>
#include <mixmatch/run/training_run.hpp>

#include <mixmatch/serve/classifier.hpp>
#include <mixmatch/serve/classifier_metadata.hpp>
#include <mixmatch/serve/saved_classifier.hpp>
