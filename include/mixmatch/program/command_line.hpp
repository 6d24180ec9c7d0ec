#pragma once

// Needs CLI11 (Debian: libcli11-dev), so it is in neither umbrella.

#include <fmt/format.h>
#include <signal.h>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/evaluation/evaluate.hpp>
#include <mixmatch/evaluation/test_time_flips.hpp>
#include <mixmatch/program/classifier_file.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/error_text.hpp>
#include <mixmatch/program/join_processes.hpp>
#include <mixmatch/program/joined_processes.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/network.hpp>
#include <mixmatch/program/option_presets.hpp>
#include <mixmatch/program/own_pictures.hpp>
#include <mixmatch/program/suggest_settings.hpp>
#include <mixmatch/program/threads.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/checkpoint.hpp>
#include <mixmatch/run/memory.hpp>
#include <mixmatch/run/run_record.hpp>
#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/run/training_run.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdio>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
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

namespace detail {

template <class T>
void add_described(CLI::App& app, const OptionText& text, T& value, const Range<T>& range) {
  add_number(app, std::string("--") + text.name, value, text.description, range.least, range.most);
}
inline void add_described(CLI::App& app, const OptionText& text, std::string& value, const Choice& names) {
  app.add_option(std::string("--") + text.name, value, text.description)
      ->check(CLI::IsMember(names))
      ->capture_default_str();
}
inline void add_described(CLI::App& app, const OptionText& text, std::string& value,
                          const ChoiceOrFile& choice) {
  std::string names;
  for (const auto& name : choice.names) {
    names += name + ", ";
  }
  const auto check = [choice, names](const std::string& given) {
    const bool file = given.starts_with(choice.prefix) && given.size() > choice.prefix.size();
    return file || std::find(choice.names.begin(), choice.names.end(), given) != choice.names.end()
               ? std::string()
               : "expected one of " + names + choice.prefix + "FILE, got " +
                     mixmatch::detail::printable(given);
  };
  app.add_option(std::string("--") + text.name, value, text.description)
      ->check(CLI::Validator(check, "{" + names + choice.prefix + "FILE}"))
      ->capture_default_str();
}
inline void add_described(CLI::App& app, const OptionText& text, bool& value, const Off&) {
  app.add_flag(std::string("--") + text.name + "{false}", value, text.description);
}
inline void add_described(CLI::App& app, const OptionText& text, bool& value, const On&) {
  app.add_flag(std::string("--") + text.name, value, text.description);
}
template <class T>
void add_described(CLI::App& app, const OptionText& text, T& value) {
  app.add_option(std::string("--") + text.name, value, text.description)->capture_default_str();
}

/// The names of the options that the command line gives, without "--".
inline std::vector<std::string> given_options(const CLI::App& app) {
  std::vector<std::string> names;
  for (const auto* option : app.get_options()) {
    if (option->count() > 0 && !option->get_lnames().empty()) {
      names.push_back(option->get_lnames().front());
    }
  }
  return names;
}

}  // namespace detail

/// The options that visit_options() names, with what `o` holds as defaults, and `--resume` and `--eval`;
/// those that only other methods than o.methods look at are left out, unless `all` are asked for. Parsing
/// fills o.given.
template <class Options>
void add_options(CLI::App& app, Options& o, bool all = false) {
  take_last_of_repeated(app);
  visit_options(o, [&](const OptionText& text, auto& value, const auto&... limits) {
    if (all || text.methods.empty() ||
        std::find_first_of(o.methods.begin(), o.methods.end(), text.methods.begin(), text.methods.end()) !=
            o.methods.end()) {
      detail::add_described(app, text, value, limits...);
    }
  });
  app.get_option("--data")->required();
  app.add_flag("--resume", o.resume, "Go on from the run directory's checkpoint");
  app.add_option("--eval", o.eval, "Only print the EMA model's test error of this run directory");
  app.callback([&app, &o] { o.given = detail::given_options(app); });
}

/// Takes the stored settings that the command line leaves open; with `names`, of these alone.
inline void adopt_settings(CLI::App& app, const Config& stored,
                           const std::optional<std::vector<std::string>>& names = std::nullopt) {
  for (const auto& [name, value] : stored) {
    const bool wanted = !names.has_value() || std::find(names->begin(), names->end(), name) != names->end();
    CLI::Option* option = wanted ? app.get_option_no_throw("--" + name) : nullptr;
    if (option != nullptr && option->count() == 0) {
      option->add_result(value);
      option->run_callback();
    }
  }
}

/// Takes what the command line leaves open from a run's own configuration, and refuses to change the rest,
/// but for what may change.
template <class Options>
void adopt_config(CLI::App& app, const Config& stored, const Options& o) {
  adopt_settings(app, stored);
  const auto changed = find_changed_setting(stored, config_of(o), changeable_of(o));
  TORCH_CHECK(!changed.has_value(), "--", changed->name, " ", changed->now,
              " is not the run's: it was started with ", changed->stored);
}

/// Joins the processes of a launcher (join_processes()), and takes the run that o.out holds and that goes on,
/// if it does (o.resume): `o` takes its configuration and its split. The run is locked while what is returned
/// lives.
template <class Options>
std::optional<RunDirectory> adopt_run(CLI::App& app, Options& o) {
  const bool asked = o.resume;
  join_processes(o);
  if (o.resume && !asked) {
    o.split.clear();  // started anew by the launcher: the run has its own
  }
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
  for (auto [name, steps] :
       {std::pair{"rampup-steps", &o.rampup_steps}, {"schedule-steps", &o.schedule_steps}}) {
    if (const auto* settled = find_setting(stored, name); settled != nullptr && *steps < 0) {
      *steps = mixmatch::detail::parse_number<int64_t>(*settled).value_or(*steps);
    }
  }
  adopt_config(app, stored, o);
  o.split = directory.split();
  o.network_file = directory.network().string();
  return directory;
}

/// What a run takes from the one that it starts from, `--from RUN`: its weights, and what the command line
/// leaves open of its network and its images' size; how it was optimised too, where it is the same method, or
/// RUN itself started from weights. A head for other classes starts as a linear probe. Throws where RUN is
/// not finished, or `--weights` is given too.
template <class Options>
void start_from(CLI::App& app, const std::string& from, Options& o) {
  TORCH_CHECK(app.count("--weights") == 0, "--from and --weights both say which weights to start from");
  const auto run = RunDirectory::open(from);
  o.weights = weights_file(run.path()).string();
  if (app.count("--head") == 0) {
    o.head = "probe";
  }
  const bool model_given = app.count("--model") > 0;  // adopted settings count as given
  const auto* train = app.get_option_no_throw("--train");
  const bool train_given = train != nullptr && train->count() > 0;
  const auto stored = read_json_object(run.config());
  std::vector<std::string> names{"model", "depth", "widen", "filters", "scales", "size", "fit"};
  const auto *method = find_setting(stored, "method"), *weights = find_setting(stored, "weights");
  if ((method != nullptr && *method == o.method) || (weights != nullptr && !weights->empty())) {
    for (const char* name : {"train", "freeze", "freeze-statistics", "optimizer", "lr", "backbone-rate",
                             "lr-schedule", "warmup-steps", "momentum", "weight-decay", "l2", "ema-decay"}) {
      names.emplace_back(name);
    }
  }
  adopt_settings(app, stored, names);
  if (!train_given && detail::compares_views(o.method)) {
    o.train = "all";
  }
  if (!models::script_file_of(o.model).empty()) {
    TORCH_CHECK(!model_given, "--model ", o.model, " has no effect with --from ", from,
                ", whose own network goes on");
    o.model = "torchscript:" + run.network().string();
    if (app.count("--head") == 0) {
      o.head = "random";
    }
  }
}

/// `--labels` as a number or a label file, of which there may be several (take_labels).
inline void add_labels_option(CLI::App& app, int64_t& labels, std::vector<std::string>& files) {
  app.remove_option(app.get_option("--labels"));
  app.add_option_function<std::vector<std::string>>(
         "--labels",
         [&labels, &files](const std::vector<std::string>& values) {
           files.clear();
           for (const auto& value : values) {
             take_labels(value, labels, files);
           }
         },
         "Pictures that keep their label, class-balanced; 0 = all. Or a CSV file,label[,split] of the "
         "labels: "
         "a list of all pictures, or a predictions.csv with its column label filled in")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false)
      ->type_name("INT or FILE")
      ->default_str(fmt::format("{}", labels));
}

/// `o` with what defines the run that a configuration was stored of, and everything else as it is.
inline TrainingOptions with_config(TrainingOptions o, const Config& stored) {
  CLI::App app;
  const auto* method = find_setting(stored, "method");
  o.methods = {method != nullptr ? *method : o.method};  // whichever program's it was
  add_options(app, o, /*all=*/true);
  adopt_config(app, stored, o);
  return o;
}

/// Puts the settings in the place of what the command line leaves open, and says so on stdout, a line each.
inline void use_suggested(CLI::App& app, const std::vector<SuggestedSetting>& settings) {
  for (const auto& [name, value, reason] : settings) {
    CLI::Option* option = app.get_option("--" + name);
    if (option->count() == 0) {
      option->add_result(value);
      option->run_callback();
      print_message(stdout, "--{} {}: {}\n", name, value, reason);
    }
  }
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

/// The settings of fine-tuning as defaults where `--weights` is given, before the options are parsed. Of
/// programs that have --train, the last layer alone, but with methods that need augmentations and with
/// TorchScript, whose last layer is not known.
inline void use_weights_preset(int argc, char** argv, TrainingOptions& o, bool has_train = false) {
  o.weights = find_option(argc, argv, "--weights", "");
  o.model = find_option(argc, argv, "--model", o.model);
  use_fine_tuning_preset(o);
  if (has_train && !o.weights.empty() && !detail::compares_views(o.method) &&
      models::script_file_of(o.model).empty()) {
    o.train = "head";
  }
}

/// What `--eval` does: the errors of a run's raw and averaged weights on the test set that `load_test`
/// returns, with their intervals, and the latter alone as the last line of output. Throws at options that
/// were given and have no effect on that. Of several processes rank 0 does it alone.
template <class LoadTest>
int evaluate_saved_run(const TrainingOptions& given, LoadTest&& load_test) {
  if (left_to_rank_0()) {
    return 0;
  }
  constexpr std::array<std::string_view, 6> used{"eval",   "data",    "dataset",
                                                 "device", "threads", "test-time-flips"};
  for (const auto& name : given.given) {
    TORCH_CHECK(std::find(used.begin(), used.end(), name) != used.end(), "--", name,
                " has no effect with --eval, which takes what the run was trained with");
  }
  set_threads(given.threads);
  const auto run = RunDirectory::open(given.eval);
  auto o = with_config(given, read_config(run.checkpoint()));
  o.network_file = run.network().string();
  const data::ImageDataset test = load_test();
  const auto device = parse_device(given.device);
  auto model = make_network(o, test.num_classes(), device);
  EmaModel ema(model);
  const std::string damaged = Checkpoint(run.checkpoint()).add("model", model).add("ema", ema).load();
  if (!damaged.empty()) {
    print_message(stderr, "{}; this is the checkpoint before it\n", damaged);
  }
  const auto options = evaluate_options(o, device);
  print_result("raw test error: {}\n", error_text(evaluate_model(model, test, options), test.size()));
  const double error = evaluate_ema(ema, test, options);
  print_result("averaged weights: {} of {} images\n", error_text(error, test.size()), test.size());
  if (given.test_time_flips) {
    const double flipped = error_percent(
        with_test_time_flips([&](const Tensor& images) { return ema.forward(images); }), test, options);
    print_result("averaged weights, with test-time flips: {}\n", error_text(flipped, test.size()));
  }
  print_result("test error: {:.2f} %\n", error);
  return 0;
}

namespace detail {

/// What a program says of arguments that it does not take, which may hold anything and be long.
inline std::string usage_error(const CLI::Error& error) {
  return mixmatch::detail::printable_beginning(error.what(), 500) + " (--help lists the options)";
}

}  // namespace detail

/// A program's main(): sees to the standard streams, parses, runs `body`, and turns what is thrown into one
/// line and an exit status: 2 for bad usage or unreadable input, 1 for a run that cannot go on because its
/// loss is not finite.
template <class Body>
int run_program(CLI::App& app, int argc, char** argv, Body&& body) {
  const std::string name = app.get_name();
  const auto complain = [&name](std::string_view what, int status,
                                detail::Failure failure = detail::Failure::own) {
    if (failure == detail::Failure::own && !detail::joined_processes()) {
      detail::join_to_fail();
    }
    auto& joined = detail::joined_processes();
    if (!joined) {
      print_message(stderr, "{}: {}\n", name, mixmatch::detail::printable(what));
      return status;
    }
    detail::end_processes(*joined, name, what, status, failure);
  };
  open_standard_streams();
  ::signal(SIGPIPE, SIG_IGN);  // LibTorch's own warnings are no reason to stop either
  keep_freed_memory();
  try {
    app.parse(argc, argv);
    const int status = std::forward<Body>(body)();
    if (auto& joined = detail::joined_processes()) {
      joined->group->leave();
      joined.reset();
    }
    return status;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      return complain(detail::usage_error(error), 2);
    }
    return left_to_rank_0() ? 0 : app.exit(error);  // --help
  } catch (const SilentPeerError& error) {
    return complain(error.what(), 2, detail::Failure::of_peer_silently);
  } catch (const PeerError& error) {
    return complain(error.what(), 2, detail::Failure::of_peer);
  } catch (const NonFiniteError& error) {
    return complain(error.what(), 1);
  } catch (const c10::Error& error) {
    return complain(error.what_without_backtrace(), 2);
  } catch (const std::exception& error) {
    return complain(error.what(), 2);
  }
}

}  // namespace mixmatch::training
