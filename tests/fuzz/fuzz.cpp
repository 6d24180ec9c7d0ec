// Reads changed copies of good files with the library's readers, in one process under the address and the
// undefined-behaviour sanitizer. An input that takes a path that none took before is changed further. Each
// execution must end well or with one clean line of c10::Error, within a second of processor time, and must
// not allocate out of proportion to its input; what is read must not depend on what memory held before.
//
//   fuzz TARGET|all [--executions N] [--minutes M] [--seed S] [--save DIR] [--leaks] [--trace]
//   fuzz TARGET --replay DIR     one execution of an input that was saved
//
// Status 0 if nothing was found. The checksum of all results that a run prints must be the same under
// ASAN_OPTIONS=malloc_fill_byte=0 and =255. Where it is not, --trace prints it after each execution, and
// --executions N saves the input of the first that differs as TARGET-last.

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <mixmatch/detail/io/utf8.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <new>
#include <optional>
#include <system_error>
#include <thread>

#include "coverage.hpp"
#include "fuzz.hpp"
#include "mutation.hpp"

namespace fs = std::filesystem;

extern "C" {
// Of sanitizer/allocator_interface.h, which g++ comes without.
int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                              void (*)(const volatile void*));
size_t __sanitizer_get_allocated_size(const volatile void*);

// LibTorch is not instrumented; its own start leaves memory behind.
const char* __asan_default_options() {
  return "detect_leaks=1:leak_check_at_exit=0:handle_abort=1:allocator_may_return_null=1:"
         "max_allocation_size_mb=512:max_malloc_fill_size=1048576:quarantine_size_mb=16:"
         "malloc_context_size=12:detect_odr_violation=0";
}
const char* __ubsan_default_options() { return "print_stacktrace=1:abort_on_error=1"; }
}

// The sanitizer's operator new ends the process where there is no memory; a program has an exception to
// catch.
namespace {
constexpr size_t largest_allocation = size_t{512} << 20;
using Allocate = void* (*)(size_t);
void* allocate(Allocate next, size_t size) {
  if (size > largest_allocation) {
    throw std::bad_alloc();
  }
  return next(size);
}
}  // namespace
void* operator new(size_t size) {
  static const auto next = reinterpret_cast<Allocate>(::dlsym(RTLD_NEXT, "_Znwm"));
  return allocate(next, size);
}
void* operator new[](size_t size) {
  static const auto next = reinterpret_cast<Allocate>(::dlsym(RTLD_NEXT, "_Znam"));
  return allocate(next, size);
}

namespace fuzz {

namespace {

constexpr int64_t allowed_bytes = int64_t{64} << 20;
constexpr double allowed_seconds = 1;
constexpr double longest_wait = 60;  // of a reader that does not even compute
constexpr size_t longest_message = 2500;
constexpr size_t largest_corpus = 4096;

// Memory of the process; what the sanitizer's allocator calls.
std::atomic<int64_t> live_bytes{0}, peak_bytes{0};
void on_allocation(const volatile void*, size_t size) {
  const int64_t now = live_bytes += static_cast<int64_t>(size);
  if (now > peak_bytes) {
    peak_bytes = now;
  }
}
void on_free(const volatile void* memory) {
  live_bytes -= static_cast<int64_t>(__sanitizer_get_allocated_size(memory));
}

double cpu_seconds(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double wall_seconds() { return cpu_seconds(CLOCK_MONOTONIC); }

struct Settings {
  int64_t executions = 0;
  double minutes = 0;
  uint64_t seed = 1;
  fs::path save = "fuzz_findings";
  bool leaks = false;
  bool trace = false;
};

uint64_t digest_state = 0;
const Target* current_target = nullptr;
Input current_input;
std::string current_save;

/// Writes the input that runs, so that it can be replayed; where to.
std::string save_input(const fs::path& base, const std::string& kind) {
  if (current_target == nullptr) {
    return "";
  }
  const fs::path place = base / (current_target->name + "-" + kind);
  std::error_code error;
  fs::create_directories(place, error);
  for (size_t i = 0; i < current_input.size(); ++i) {
    std::ofstream(place / current_target->parts[i], std::ios::binary) << current_input[i];
  }
  return place.string();
}

/// Before a sanitizer ends the process.
void on_death() {
  coverage::watching = false;
  if (current_target != nullptr) {
    const auto place = save_input(current_save, "crash");
    std::fprintf(stderr, "%s: FINDING: a crash; the input is in %s\n", current_target->name.c_str(),
                 place.c_str());
  }
  std::error_code ignored;
  fs::remove_all(scratch(), ignored);
}

/// Ends the process where an execution takes too long.
class Watchdog {
 public:
  Watchdog() {
    ::pthread_getcpuclockid(::pthread_self(), &clock_);
    thread_ = std::thread([this] {
      while (!stop_) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        const double began = began_, wall = wall_;
        if (began > 0 &&
            (cpu_seconds(clock_) - began > 10 * allowed_seconds || wall_seconds() - wall > longest_wait) &&
            began == began_) {
          std::fprintf(stderr, "%s: FINDING: does not end\n", current_target->name.c_str());
          std::abort();  // which the sanitizer answers with on_death()
        }
      }
    });
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog() {
    stop_ = true;
    thread_.join();
  }
  void begin() {
    wall_ = wall_seconds();
    began_ = cpu_seconds(clock_);
  }
  /// The processor time since begin().
  double end() {
    const double seconds = cpu_seconds(clock_) - began_;
    began_ = 0;
    return seconds;
  }

 private:
  clockid_t clock_{};
  std::atomic<double> began_{0}, wall_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

/// What is wrong with a message for a terminal; "" if nothing is.
std::string fault_of_message(std::string_view message) {
  if (message.empty()) {
    return "an empty message";
  }
  if (message.size() > longest_message) {
    return fmt::format("a message of {} bytes", message.size());
  }
  for (std::string_view rest = message; !rest.empty();) {
    const auto c = static_cast<unsigned char>(rest[0]);
    const size_t length = mixmatch::detail::utf8_length(rest);
    if (length == 0) {
      return "a message that is not UTF-8";
    }
    const bool c1 = c == 0xC2 && static_cast<unsigned char>(rest[1]) < 0xA0;
    if (c < 0x20 || c == 0x7F || c1) {
      return "a message with a line break or control character";
    }
    rest.remove_prefix(length);
  }
  return "";
}

/// The message as it can be printed whatever it holds.
std::string printable(std::string_view message) {
  std::string text;
  for (const char c : message.substr(0, 300)) {
    text +=
        c >= 0x20 && c < 0x7F ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return text;
}

/// The message without the name of the directory, which is another in each run.
std::string without_scratch(std::string message) {
  const std::string& name = scratch().native();
  for (size_t at = message.find(name); at != std::string::npos; at = message.find(name)) {
    message.erase(at, name.size());
  }
  return message;
}

struct Outcome {
  bool accepted = false, is_new = false;
  double seconds = 0;
  int64_t bytes = 0;
  std::string message, finding;
};

Outcome execute(const Target& target, const Input& input, Watchdog& watchdog) {
  Outcome outcome;
  current_input = input;
  for (size_t i = 0; i < input.size(); ++i) {
    write(target.name + "/" + target.parts[i], input[i]);
  }
  const fs::path directory = scratch() / target.name;
  const int64_t before = live_bytes;
  peak_bytes = before;
  coverage::begin();
  watchdog.begin();
  try {
    target.run(directory, current_input);
    outcome.accepted = true;
  } catch (const c10::Error& error) {
    outcome.message = error.what_without_backtrace();
  } catch (const Refused& error) {
    outcome.message = error.what();
  } catch (const Finding& error) {
    outcome.finding = error.what();
  } catch (const std::exception& error) {
    outcome.finding = std::string("another exception: ") + error.what();
  }
  outcome.seconds = watchdog.end();
  outcome.is_new = coverage::end();
  outcome.bytes = peak_bytes - before;
  size_t size = 0;
  for (const auto& part : input) {
    size += part.size();
  }
  if (outcome.finding.empty() && !outcome.accepted) {
    outcome.finding = fault_of_message(outcome.message);
    digest_text(without_scratch(outcome.message));
  }
  if (outcome.finding.empty() && !target.reserves_memory &&
      outcome.bytes > allowed_bytes + target.times_input * static_cast<int64_t>(size)) {
    outcome.finding = fmt::format("{} bytes of memory for {} of input", outcome.bytes, size);
  }
  if (outcome.finding.empty() && outcome.seconds > allowed_seconds) {
    outcome.finding = fmt::format("{:.1f} s of processor time", outcome.seconds);
  }
  return outcome;
}

/// How many different findings there were.
int64_t fuzz_target(const Target& target, const Settings& settings, Watchdog& watchdog) {
  current_target = &target;
  digest_state = 0;
  size_t largest_seed = 0;
  for (const auto& seed : target.seeds) {
    expect(seed.size() == target.parts.size(), "a seed of another number of parts");
    for (const auto& part : seed) {
      largest_seed = std::max(largest_seed, part.size());
    }
  }
  Mutator mutator(settings.seed, target.dictionary, std::max<size_t>(4 * largest_seed, 4096));
  std::vector<Input> corpus;
  std::map<std::string, int64_t> findings;  // by kind
  int64_t executions = 0, accepted = 0, bytes = 0, live = 0;
  uint64_t edges = 0;
  double slowest = 0;
  const double begun = wall_seconds();
  const auto one = [&](const Input& input) {
    const Outcome outcome = execute(target, input, watchdog);
    ++executions;
    accepted += outcome.accepted ? 1 : 0;
    slowest = std::max(slowest, outcome.seconds);
    bytes = std::max(bytes, outcome.bytes);
    if (!outcome.finding.empty()) {
      std::string kind = outcome.finding.substr(0, 40);
      std::replace_if(
          kind.begin(), kind.end(), [](char c) { return c >= '0' && c <= '9'; }, '#');
      if (findings[kind]++ == 0) {
        const auto place = save_input(settings.save, std::to_string(findings.size()));
        fmt::print("{}: FINDING: {}: {}; the input is in {}\n", target.name, printable(outcome.finding),
                   printable(outcome.message), place);
        std::fflush(stdout);
      }
    }
    if (settings.trace) {
      fmt::print("{} {:016x}\n", executions, digest_state);
      if (executions == settings.executions) {
        save_input(settings.save, "last");
      }
    }
    // What is slow would be all that is done in the end.
    edges += coverage::edges;
    const bool quick = coverage::edges < 20 * edges / static_cast<uint64_t>(executions) + 1000;
    if (outcome.is_new && quick && corpus.size() < largest_corpus) {
      corpus.push_back(input);
    }
    return outcome;
  };
  for (const auto& seed : target.seeds) {
    const Outcome outcome = one(seed);
    if (!outcome.accepted) {
      fmt::print("{}: FINDING: a seed is refused: {}\n", target.name, printable(outcome.message));
      ++findings["seed"];
    }
  }
  if (corpus.empty()) {  // compiled without coverage
    corpus = target.seeds;
  }
  const int64_t warm = std::min<int64_t>(settings.executions / 2, 10000);
  while (executions < settings.executions &&
         (settings.minutes <= 0 || wall_seconds() - begun < 60 * settings.minutes)) {
    // Half of the time one of the newest, which lead furthest.
    const size_t newest = std::min<size_t>(corpus.size(), 16);
    const size_t index =
        mutator.below(2) == 0 ? mutator.below(corpus.size()) : corpus.size() - 1 - mutator.below(newest);
    Input input = corpus[index];
    mutator.change(input, corpus[mutator.below(corpus.size())]);
    one(input);
    if (executions == warm) {
      live = live_bytes;
    }
  }
  // What the corpus holds is ours; what else stays is the reader's.
  const int64_t kept = live > 0 ? std::max<int64_t>(live_bytes - live, 0) : 0;
  current_target = nullptr;
  int64_t leaks = 0;
  if (settings.leaks && __lsan_do_recoverable_leak_check() != 0) {
    fmt::print("{}: FINDING: memory was not freed (above)\n", target.name);
    leaks = 1;
  }
  const double wall = wall_seconds() - begun;
  fmt::print(
      "{}: {} executions in {:.1f} s ({:.0f} a second), {} accepted, {} refused, {} inputs of new paths, "
      "slowest {:.1f} ms, most memory {:.1f} MB, kept {:.1f} MB, checksum {:016x}, findings {}\n",
      target.name, executions, wall, static_cast<double>(executions) / wall, accepted, executions - accepted,
      corpus.size(), 1e3 * slowest, static_cast<double>(bytes) / 1e6, static_cast<double>(kept) / 1e6,
      digest_state, findings.size() + static_cast<size_t>(leaks));
  std::fflush(stdout);
  return static_cast<int64_t>(findings.size()) + leaks;
}

int replay(const Target& target, const fs::path& place, Watchdog& watchdog) {
  Input input;
  for (const auto& part : target.parts) {
    input.push_back(read(place / part));
  }
  current_target = &target;
  const Outcome outcome = execute(target, input, watchdog);
  current_target = nullptr;
  fmt::print("{}: {}, {:.1f} ms, {:.1f} MB, checksum {:016x}: {}\n", target.name,
             outcome.accepted ? "accepted" : "refused", 1e3 * outcome.seconds,
             static_cast<double>(outcome.bytes) / 1e6, digest_state, printable(outcome.message));
  if (!outcome.finding.empty()) {
    fmt::print("{}: FINDING: {}\n", target.name, printable(outcome.finding));
  }
  return outcome.finding.empty() ? 0 : 1;
}

template <class T>
T number_of(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end) {
    throw std::invalid_argument("expected a number, got " + text);
  }
  return value;
}

int run(const std::vector<std::string>& arguments) {
  Settings settings;
  std::string name;
  fs::path replayed;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& argument = arguments[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == arguments.size()) {
        throw std::invalid_argument(argument + " needs a value");
      }
      return arguments[++i];
    };
    if (argument == "--executions") {
      settings.executions = number_of<int64_t>(value());
    } else if (argument == "--minutes") {
      settings.minutes = number_of<double>(value());
    } else if (argument == "--seed") {
      settings.seed = number_of<uint64_t>(value());
    } else if (argument == "--save") {
      settings.save = value();
    } else if (argument == "--replay") {
      replayed = value();
    } else if (argument == "--leaks") {
      settings.leaks = true;
    } else if (argument == "--trace") {
      settings.trace = true;
    } else if (name.empty() && !argument.starts_with('-')) {
      name = argument;
    } else {
      throw std::invalid_argument("unknown argument " + argument);
    }
  }
  current_save = settings.save.string();

  std::vector<Target> targets;
  add_data_targets(targets);
  add_picture_targets(targets);
  add_weight_targets(targets);
  add_run_targets(targets);
  std::string names = "all";
  for (const auto& target : targets) {
    names += " " + target.name;
  }
  if (settings.executions == 0) {
    settings.executions = settings.minutes > 0 ? INT64_MAX : 1000;
  }
  Watchdog watchdog;
  int64_t findings = 0;
  bool known = false;
  for (const auto& target : targets) {
    if (name == target.name || name == "all") {
      known = true;
      findings +=
          replayed.empty() ? fuzz_target(target, settings, watchdog) : replay(target, replayed, watchdog);
    }
  }
  if (!known) {
    throw std::invalid_argument(
        "usage: fuzz TARGET [--executions N] [--minutes M] [--seed S] [--save DIR] "
        "[--replay DIR] [--leaks] [--trace], TARGET one of " +
        names);
  }
  return findings == 0 ? 0 : 1;
}

}  // namespace

const fs::path& scratch() {
  static const fs::path path = [] {
    std::error_code error;
    const bool memory = fs::is_directory("/dev/shm", error) && ::access("/dev/shm", W_OK) == 0;
    std::string name = ((memory ? fs::path("/dev/shm") : fs::temp_directory_path()) / "mixmatch_fuzz_XXXXXX");
    if (::mkdtemp(name.data()) == nullptr) {
      throw std::system_error(errno, std::generic_category(), name);
    }
    return fs::path(name);
  }();
  return path;
}

fs::path write(const std::string& name, std::string_view bytes) {
  static std::map<std::string, int> files;
  const fs::path path = scratch() / name;
  auto found = files.find(name);
  if (found == files.end()) {
    fs::create_directories(path.parent_path());
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
      throw std::system_error(errno, std::generic_category(), path.string());
    }
    found = files.emplace(name, file).first;
  }
  if (::ftruncate(found->second, 0) != 0 ||
      ::pwrite(found->second, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw std::system_error(errno, std::generic_category(), path.string());
  }
  return path;
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void expect_clean(std::string_view text, const char* what) {
  const std::string fault = fault_of_message(text);
  if (!fault.empty()) {
    throw Finding(std::string(what) + ": " + fault + ": " + printable(text));
  }
}

void digest(const void* data, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) {
    digest_state = (digest_state ^ bytes[i]) * 0x100000001B3;  // FNV-1a
  }
}

std::string from_hex(std::string_view digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) {
    unsigned value = 0;
    std::from_chars(digits.data() + i, digits.data() + i + 2, value, 16);
    bytes += static_cast<char>(value);
  }
  return bytes;
}

}  // namespace fuzz

int main(int argc, char** argv) {
  // No backtraces: they take longer than what is tested.
  c10::SetStackTraceFetcher([] { return std::string(); });
  at::set_num_threads(1);
  __sanitizer_install_malloc_and_free_hooks(fuzz::on_allocation, fuzz::on_free);
  __sanitizer_set_death_callback(fuzz::on_death);
  int status = 2;
  try {
    status = fuzz::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "fuzz: {}\n", error.what());
  }
  std::error_code ignored;
  fs::remove_all(fuzz::scratch(), ignored);
  return status;
}
