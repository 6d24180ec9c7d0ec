#pragma once

// Needs CLI11 (Debian: libcli11-dev), so it is in neither umbrella.

#include <fmt/format.h>
#include <signal.h>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/memory.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <CLI/CLI.hpp>

#include <concepts>
#include <cstdio>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// The last of a repeated option counts, so that a script can append to a user's options.
inline void take_last_of_repeated(CLI::App& app) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

/// An option that takes a number in [least, most], written as in C whatever the program's locale is. A number
/// out of range and a text that is no number are refused in a line that says what was expected.
template <class T>
CLI::Option* add_number(CLI::App& app, const std::string& name, T& target, const std::string& description,
                        T least, T most = std::numeric_limits<T>::max()) {
  const bool bounded = most < std::numeric_limits<T>::max();
  const std::string range = bounded ? fmt::format("in [{}, {}]", least, most) : fmt::format(">= {}", least);
  // Said where a number is too large for its type, not for its meaning.
  const std::string beyond = bounded ? "" : fmt::format(" and <= {}", most);
  const auto take = [&target, name, range, beyond, least, most](const std::string& text) {
    const auto number = mixmatch::detail::parse_number<T>(text);
    // Not a number compares as false.
    if (!number.has_value() || !(*number >= least && *number <= most)) {
      const auto real = mixmatch::detail::parse_number<double>(text);
      const bool too_large = std::integral<T> && real.has_value() && *real >= static_cast<double>(most);
      // No fmt::format here: g++ 14 takes a lambda with one in a template for a consteval function.
      throw CLI::ValidationError(name, std::string("expected a ") + (std::integral<T> ? "whole" : "finite") +
                                           " number " + range + (too_large ? beyond : "") + ", got " +
                                           (text.empty() ? "nothing" : mixmatch::detail::printable(text)));
    }
    target = *number;
  };
  return app.add_option_function<std::string>(name, take, description)
      ->type_name(fmt::format("{} ({})", std::integral<T> ? "INT" : "NUMBER",
                              bounded ? fmt::format("{} to {}", least, most) : range))
      ->default_str(fmt::format("{}", target));
}

/// The options that every training program has, with what `o` holds as defaults. `methods`: those that the
/// program knows.
inline void add_training_options(CLI::App& app, TrainingOptions& o,
                                 const std::vector<std::string>& methods = {"mixmatch", "supervised"}) {
  take_last_of_repeated(app);
  const auto number = [&app](const std::string& name, auto& target, const std::string& text, auto... range) {
    add_number(app, name, target, text, std::remove_reference_t<decltype(target)>(range)...);
  };
  app.add_option("--data", o.data, "Directory of the data set")->required();
  // A program whose default is 0 has a meaning for it.
  number("--labels", o.labels, "Labeled images, class-balanced", o.labels == 0 ? 0 : 1);
  number("--validation", o.validation, "Images held out from training", 0);
  app.add_option(
      "--split", o.split,
      "File that says which images are labeled, as a run's split.txt, in place of --labels and --validation");
  number("--steps", o.steps, "Optimiser steps", 1);
  number("--batch", o.batch, "Labeled images a step, and unlabeled ones", 1, 65536);
  number("--seed", o.seed, "Seed of split, weights, batches, augmentation and MixUp", 0);
  app.add_option("--out", o.out, "Run directory to write")->capture_default_str();
  app.add_flag("--resume", o.resume, "Go on from the run directory's checkpoint");
  app.add_option("--eval", o.eval, "Only print the EMA model's test error of this run directory");
  app.add_option("--method", o.method, "supervised: the labeled images alone")
      ->check(CLI::IsMember(methods))
      ->capture_default_str();
  app.add_option("--device", o.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}))->capture_default_str();
  app.add_option("--precision", o.precision,
                 "bf16: autocast, weights stay fp32; auto: bf16 where the processor computes in it")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}))
      ->capture_default_str();
  number("--threads", o.threads, "CPU threads; 0 = one a processor, at most 16", 0, 1024);
  app.add_option("--prefetch", o.prefetch, "Augment the next batch on a thread of its own; changes no result")
      ->capture_default_str();
  number("--depth", o.depth, "6 n + 4 layers", 1);
  number("--widen", o.widen, "Widen factor", 1);
  number("--filters", o.filters, "Filters of the first scale; 0 = 16 times the widen factor", 0);
  number("--scales", o.scales, "Scales of the network, each half the size of the one before", 1);
  number("--lr", o.learning_rate, "Adam's learning rate", 0);
  number("--weight-decay", o.weight_decay, "Decoupled, times the learning rate", 0);
  number("--lambda-u", o.lambda_u, "Weight of the unlabeled loss", 0);
  number("--rampup-steps", o.rampup_steps, "Steps until that weight; -1 = 40 % of --steps", -1);
  number("--threshold", o.threshold, "Pseudo-labels: least probability of a label that is trained on", 0.0,
         1.0);
  number("--alpha", o.alpha, "MixUp's Beta(alpha, alpha)", 0);
  number("--temperature", o.temperature, "Sharpening", 0);
  number("--num-augmentations", o.num_augmentations, "K, views of each unlabeled image", 1, 1024);
  app.add_option("--mix-mode", o.mix_mode, ". xx. .yy xx.yy xxy. .yxy xx.yxy xx.yx xxy.yxy")
      ->capture_default_str();
  number("--ema-decay", o.ema_decay, "Of the weights' moving average", 0.0, 1.0);
  app.add_option("--warmup", o.warmup,
                 "Let EMA and batch-norm statistics forget the random start sooner; matters in the first "
                 "thousands of steps only. false = as in the paper")
      ->capture_default_str();
  number("--padding", o.padding, "Pixels of reflection before the random crop", 0);
  app.add_option("--mirror", o.mirror, "Mirror at random")->capture_default_str();
  number("--eval-every", o.eval_every, "Steps between evaluations", 1);
  number("--log-every", o.log_every, "Steps between rows of metrics.csv", 1);
  number("--checkpoint-every", o.checkpoint_every,
         "Steps between checkpoints; 0 = at each evaluation, and each minute", 0);
  app.add_flag("--no-graph{false}", o.graph,
               "On a GPU: launch the step piece by piece, not as one CUDA graph");
  number("--recalibrate", o.recalibrate,
         "Images for recomputed batch-norm statistics in the last evaluation; 0 = none", 0);
}

/// Takes what the command line leaves open from a run's own configuration, and refuses to change the rest
/// but `steps` and `threads`. `now` gives the configuration after that.
template <class Now>
void adopt_config(CLI::App& app, const Config& stored, Now&& now) {
  for (const auto& [name, value] : stored) {
    CLI::Option* option = app.get_option_no_throw("--" + name);
    if (option != nullptr && option->count() == 0) {
      option->add_result(value);
      option->run_callback();
    }
  }
  const auto changed = find_changed_setting(stored, now());
  TORCH_CHECK(!changed.has_value(), "--", changed->name, " ", changed->now,
              " is not the run's: it was started with ", changed->stored);
}

/// The run that o.out holds and that goes on, if it does (o.resume): `o` takes its configuration and its
/// split. The run is locked while what is returned lives.
template <class Now>
std::optional<RunDirectory> adopt_run(CLI::App& app, TrainingOptions& o, Now&& now) {
  if (!o.resume) {
    return std::nullopt;
  }
  TORCH_CHECK(o.split.empty(), "--split: a run that is resumed keeps its own");
  auto directory = RunDirectory::resume(o.out);
  const auto stored = read_config(directory.checkpoint());
  if (const auto* precision = find_setting(stored, "precision");
      precision != nullptr && o.precision == "auto") {
    o.precision = *precision;
  }
  if (const auto* rampup = find_setting(stored, "rampup-steps"); rampup != nullptr && o.rampup_steps < 0) {
    o.rampup_steps = mixmatch::detail::parse_number<int64_t>(*rampup).value_or(o.rampup_steps);
  }
  adopt_config(app, stored, now);
  o.split = directory.split();
  return directory;
}

/// `o` with what defines the run that a configuration was stored of, and everything else as it is.
inline TrainingOptions with_config(TrainingOptions o, const Config& stored) {
  CLI::App app;
  const auto* method = find_setting(stored, "method");
  add_training_options(app, o, {method != nullptr ? *method : o.method});  // whichever program's it was
  adopt_config(app, stored, [&] { return config_of(o); });
  return o;
}

/// The value of an option that decides the other options' defaults, before they are parsed: the last one
/// given, else `usual`.
inline std::string find_option(int argc, char** argv, std::string_view name, std::string usual) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == name && i + 1 < argc) {
      usual = argv[i + 1];
    } else if (argument.starts_with(name) && argument.substr(name.size()).starts_with("=")) {
      usual = argument.substr(name.size() + 1);
    }
  }
  return usual;
}

/// What `--eval` does: the errors of a run's raw and averaged weights on the test set that `load_test`
/// returns, the latter as the last line of output.
template <class LoadTest>
int evaluate_saved_run(const TrainingOptions& given, LoadTest&& load_test) {
  set_threads(given.threads);
  const auto run = RunDirectory::open(given.eval);
  const auto o = with_config(given, read_config(run.checkpoint()));
  const data::ImageDataset test = load_test();
  const auto device = parse_device(given.device);
  auto model = make_wide_resnet(o, test.num_classes(), device);
  EmaModel ema(model);
  const std::string damaged = Checkpoint(run.checkpoint()).add("model", model).add("ema", ema).load();
  if (!damaged.empty()) {
    print_message(stderr, "{}; this is the checkpoint before it\n", damaged);
  }
  const auto options = evaluate_options(o, device);
  print_result("raw test error: {:.2f} %\n", evaluate_model(model, test, options));
  print_result("test error: {:.2f} %\n", evaluate_ema(ema, test, options));
  return 0;
}

namespace detail {

/// What a program says of arguments that it does not take, which may hold anything and be long.
inline std::string usage_error(const std::string& program, const CLI::Error& error) {
  return program + ": " + mixmatch::detail::printable_beginning(error.what(), 500) +
         " (--help lists the options)\n";
}

}  // namespace detail

/// A program's main(): sees to the standard streams, parses, runs `body`, and turns what is thrown into one
/// line and an exit status: 2 for bad usage or unreadable input, 1 for a run that cannot go on because its
/// loss is not finite.
template <class Body>
int run_program(CLI::App& app, int argc, char** argv, Body&& body) {
  const std::string name = app.get_name();
  app.failure_message(
      [name](const CLI::App*, const CLI::Error& error) { return detail::usage_error(name, error); });
  const auto complain = [&name](std::string_view what, int status) {
    print_message(stderr, "{}: {}\n", name, mixmatch::detail::printable(what));
    return status;
  };
  open_standard_streams();
  ::signal(SIGPIPE, SIG_IGN);  // LibTorch's own warnings are no reason to stop either
  keep_freed_memory();
  try {
    app.parse(argc, argv);
    return std::forward<Body>(body)();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const NonFiniteError& error) {
    return complain(error.what(), 1);
  } catch (const c10::Error& error) {
    return complain(error.what_without_backtrace(), 2);
  } catch (const std::exception& error) {
    return complain(error.what(), 2);
  }
}

}  // namespace mixmatch::training
