#pragma once

#include <fmt/format.h>
#include <unistd.h>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Signs of life of a group's ranks, by a store of c10d, and what the first of them to fail said.
///
/// A thread of its own gives a sign each second, whatever the program does, and is the only one that asks the
/// store, which may never answer. With it goes how many collectives the rank has begun, which tells one that
/// lives and does not join the others. blame() says who has failed. Rank 0 also finds a rank that has given
/// no sign, or has begun fewer than another, for longer than the timeout. A rank that does not end within
/// eight seconds of another's failure, because it hangs in a GPU's kernel or in another library, is ended
/// with a line on stderr and status 2. Safe to call from several threads.
class PeerWatch {
 public:
  /// `store`: a connection for this object alone. `place`: where rank 0 keeps it, for messages.
  PeerWatch(c10::intrusive_ptr<c10d::Store> store, int64_t rank, int64_t world_size,
            std::chrono::milliseconds timeout, std::string place)
      : state_(std::make_shared<State>()) {
    state_->rank = rank;
    state_->world_size = world_size;
    state_->timeout = timeout;
    state_->place = std::move(place);
    std::thread([state = state_, connection = std::move(store)] { run(*state, *connection); }).detach();
  }
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;
  ~PeerWatch() {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    state_->wake.notify_all();
    state_->wake.wait_for(lock, kSign, [this] { return state_->stopped; });  // it may be waiting for ever
  }

  /// That this rank begins a collective, or a step with collectives that a graph replays, the same on every
  /// rank in their order: "sum of 5 Float values".
  void begin(std::string collective) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    ++state_->own.begun;
    state_->own.collective = std::move(collective);
  }

  /// What the first rank to fail said, which has given no sign of life for some seconds, or which lives and
  /// has not begun what the others wait in; `text`, what is known already, where that cannot be told. Waits
  /// for at most five seconds.
  std::string blame(const std::string& text) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    const auto began = Clock::now();
    state_->asking = true;
    state_->wake.notify_all();
    state_->wake.wait_for(lock, kGrace + kSign, [this] { return !state_->cause.empty(); });
    if (!state_->cause.empty()) {
      return state_->cause;
    }
    if (state_->last_answer < began) {
      return fmt::format("rank 0 at {} cannot be reached ({})", state_->place, text);
    }
    for (size_t rank = 0; rank < state_->seen.size(); ++rank) {
      if (static_cast<int64_t>(rank) != state_->rank && Clock::now() - state_->seen[rank].changed > kGrace) {
        return fmt::format("rank {} gives no sign of life ({})", rank, text);
      }
    }
    const std::string late = who_is_late(*state_);
    return late.empty() ? text : fmt::format("{} ({})", late, text);
  }

  /// Whether rank 0 fails of the same as this rank, and so speaks for both. Waits for it for at most two
  /// seconds.
  bool is_said_by_rank_0(const std::string& what) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->asking = true;
    state_->wake.notify_all();
    state_->wake.wait_for(lock, 2 * kSign, [this] { return !state_->cause.empty(); });
    return state_->cause.rfind(failure_of(0, what), 0) == 0;  // it may say more, such as a file of its own
  }

  /// What the others of a rank's failure say.
  static std::string failure_of(int64_t rank, std::string_view what) {
    return fmt::format("rank {} failed: {}", rank, what);
  }

  /// What blame() would say at once; "" where nobody has failed, and rank 0 has answered within the timeout.
  std::string cause() {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    const auto patience = std::max<Clock::duration>(state_->timeout, kGrace);
    return state_->cause.empty() && Clock::now() - state_->last_answer > patience
               ? fmt::format("rank 0 at {} cannot be reached", state_->place)
               : state_->cause;
  }

  /// Where a rank that cannot be ended otherwise says why; the standard error, unless set.
  void set_error_stream(int descriptor) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->error_stream = descriptor;
  }

  /// What is done before the process is ended so.
  void before_exit(std::function<void()> act) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->before_exit = std::move(act);
  }

  /// Says to the others why all of them end, unless another has before: blame() returns it. Rank 0, at which
  /// the others look, waits for three seconds, in which they read it.
  void fail(const std::string& cause) noexcept {
    try {
      std::unique_lock<std::mutex> lock(state_->mutex);
      end(lock, cause, 3 * kSign);
    } catch (const std::exception&) {  // nobody is left to tell
    }
  }

  /// The end of a rank that has done all. Rank 0 waits for the others, at most the timeout.
  void leave() {
    std::unique_lock<std::mutex> lock(state_->mutex);
    end(lock, "", state_->timeout);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kSign{1}, kGrace{4};

  /// A rank's sign of life: its number, and the collectives that the rank has begun: how many, and the last.
  struct Sign {
    int64_t number = 0, begun = 0;
    std::string collective;

    static constexpr int64_t kEnded = -1;  // as a number: it gives no more
    std::vector<uint8_t> bytes() const {
      const std::string text = fmt::format("{} {} {}", number, begun, collective);
      return {text.begin(), text.end()};
    }
    static Sign of(const std::string& text) {
      Sign sign;
      size_t begin = 0;
      for (int64_t* place : {&sign.number, &sign.begun}) {
        const size_t end = std::min(text.find(' ', begin), text.size());
        *place = mixmatch::detail::parse_number<int64_t>(text.substr(begin, end - begin)).value_or(0);
        begin = std::min(end + 1, text.size());
      }
      sign.collective = mixmatch::detail::printable_beginning(std::string_view(text).substr(begin), 100);
      return sign;
    }
  };

  /// A rank as this one sees it: its last sign, when that was another than before, and when it last had begun
  /// as many collectives as any, or one more.
  struct Seen {
    Sign sign;
    Clock::time_point changed, in_time;
  };

  struct State {
    int64_t rank = 0, world_size = 1;
    std::chrono::milliseconds timeout{};
    std::string place;

    std::mutex mutex;  // of all below
    std::condition_variable wake;
    bool asking = false;  // blame() wants every rank's signs, soon
    Sign own;
    bool ending = false;  // `last_words` is to be said, "" for a good end
    bool said = false, all_ended = false;
    int error_stream = 2;
    std::function<void()> before_exit;
    bool stopping = false, stopped = false;
    std::string last_words, cause;
    Clock::time_point last_answer = Clock::now();
    std::vector<Seen> seen;  // of each rank; empty before anyone has looked
  };

  /// The fewest collectives that a rank has begun, and the most.
  static std::pair<int64_t, int64_t> fewest_and_most(const State& state) {
    int64_t fewest = state.own.begun, most = fewest;
    for (const auto& rank : state.seen) {
      if (rank.sign.number != Sign::kEnded) {
        fewest = std::min(fewest, rank.sign.begun);
        most = std::max(most, rank.sign.begun);
      }
    }
    return {fewest, most};
  }

  /// The ranks that have begun the fewest collectives, fewer than this one, or, where all have begun as many,
  /// one that is in another; "" where nothing can be told.
  static std::string who_is_late(const State& state) {
    const int64_t fewest = fewest_and_most(state).first;
    std::string ranks;
    int64_t late = 0;
    for (size_t rank = 0; fewest < state.own.begun && rank < state.seen.size(); ++rank) {
      const Sign& sign = state.seen[rank].sign;
      if (sign.number != Sign::kEnded && sign.begun == fewest) {
        ranks += fmt::format("{}{}", late == 0 ? "" : ", ", rank);
        ++late;
      }
    }
    if (late > 0) {
      return fmt::format("rank{} {} {} not arrived where the others wait", late == 1 ? "" : "s", ranks,
                         late == 1 ? "has" : "have");
    }
    for (size_t rank = 1; rank < state.seen.size(); ++rank) {
      const auto &first = state.seen[0].sign, &other = state.seen[rank].sign;
      if (first.begun == other.begun && first.collective != other.collective) {
        return fmt::format("rank {} is in another collective, {}, than rank 0, {}", rank, other.collective,
                           first.collective);
      }
    }
    return "";
  }

  void end(std::unique_lock<std::mutex>& lock, const std::string& last_words,
           std::chrono::milliseconds patience) {
    state_->last_words = last_words;
    state_->ending = true;
    state_->wake.notify_all();
    state_->wake.wait_for(lock, patience, [this] {
      return state_->stopped || (state_->rank == 0 ? state_->all_ended : state_->said);
    });
  }

  static std::string text_of(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
  static std::string key(const char* kind, int64_t rank) { return fmt::format("{}/{}", kind, rank); }

  /// One exchange with the store, without the lock.
  static void exchange(State& state, c10d::Store& store, bool all, bool ending, const std::string& last_words,
                       const Sign& own) {
    store.set(key("alive", state.rank), own.bytes());
    if (ending) {
      if (!last_words.empty()) {
        say(store, last_words);
      }
      store.set(key("ended", state.rank), std::vector<uint8_t>{1});
      const std::lock_guard<std::mutex> lock(state.mutex);
      state.said = true;  // rank 0 may be gone before it answers more
    }
    std::string cause;
    if (store.check({"failed"})) {
      cause = text_of(store.get("failed"));
    }
    std::vector<Sign> signs;
    bool all_ended = true;
    for (int64_t rank = 0; (all || state.rank == 0) && rank < state.world_size; ++rank) {
      Sign sign;
      if (store.check({key("ended", rank)})) {
        sign.number = Sign::kEnded;
      } else if (store.check({key("alive", rank)})) {
        sign = Sign::of(text_of(store.get(key("alive", rank))));
      }
      all_ended = all_ended && sign.number == Sign::kEnded;
      signs.push_back(std::move(sign));
    }
    const std::lock_guard<std::mutex> lock(state.mutex);
    const auto now = Clock::now();
    state.last_answer = now;
    if (state.cause.empty() && !(ending && cause == last_words)) {
      state.cause = cause;
    }
    if (signs.empty()) {
      return;
    }
    state.all_ended = all_ended;
    look_at(state, std::move(signs), now);
    // Rank 0 notices also where no collective fails of it: in a GPU's, say.
    if (state.rank == 0 && state.cause.empty()) {
      state.cause = who_is_gone(state, now);
      if (!state.cause.empty()) {
        say(store, state.cause);
      }
    }
  }

  static void look_at(State& state, std::vector<Sign> signs, Clock::time_point now) {
    const auto before = state.seen;
    state.seen.resize(signs.size());
    for (size_t rank = 0; rank < signs.size(); ++rank) {
      state.seen[rank].sign = std::move(signs[rank]);
    }
    const int64_t most = fewest_and_most(state).second;
    for (size_t rank = 0; rank < state.seen.size(); ++rank) {
      auto& seen = state.seen[rank];
      const bool unknown = before.empty() || seen.sign.number == Sign::kEnded;
      if (unknown || seen.sign.number != before[rank].sign.number) {
        seen.changed = now;
      }
      if (unknown || seen.sign.begun == most || seen.sign.begun != before[rank].sign.begun) {
        seen.in_time = now;
      }
    }
  }

  /// A rank whose signs have stopped, or for which another has waited, for longer than the timeout: for the
  /// latter also as long as the collective takes that says so itself.
  static std::string who_is_gone(const State& state, Clock::time_point now) {
    for (size_t rank = 0; rank < state.seen.size(); ++rank) {
      if (now - state.seen[rank].changed > std::max<Clock::duration>(state.timeout, kGrace)) {
        return fmt::format("rank {} gives no sign of life", rank);
      }
    }
    for (size_t rank = 0; rank < state.seen.size(); ++rank) {
      if (now - state.seen[rank].in_time > state.timeout + 2 * kGrace) {
        return fmt::format("rank {} has not arrived where the others wait", rank);
      }
    }
    return "";
  }

  static void say(c10d::Store& store, const std::string& cause) {
    store.compareSet("failed", std::vector<uint8_t>(), std::vector<uint8_t>(cause.begin(), cause.end()));
  }

  static void run(State& state, c10d::Store& store) {
    std::unique_lock<std::mutex> lock(state.mutex);
    while (!state.stopping) {
      const bool all = state.asking, ending = state.ending && (!state.said || state.rank == 0);
      const std::string last_words = state.last_words;
      ++state.own.number;
      const Sign own = state.own;
      lock.unlock();
      bool answered = true;
      try {
        exchange(state, store, all, ending, last_words, own);
      } catch (const std::exception&) {
        answered = false;
      }
      lock.lock();
      if (!answered && state.cause.empty()) {
        state.cause = fmt::format("rank 0 at {} is gone", state.place);
      }
      state.wake.notify_all();
      if (!state.cause.empty() && !state.ending) {
        // The step's own collectives fail by now, or will at their timeout. If nothing comes of it:
        const std::string cause = state.cause;
        state.wake.wait_for(lock, 2 * kGrace, [&] { return state.stopping || state.ending; });
        if (!state.stopping && !state.ending) {
          const std::string line = fmt::format("rank {}: {}\n", state.rank, cause);
          static_cast<void>(!::write(state.error_stream, line.data(), line.size()));
          if (state.before_exit) {
            state.before_exit();
          }
          std::_Exit(2);
        }
        continue;
      }
      if (!answered) {
        break;
      }
      const auto pause =
          state.asking || state.ending ? std::chrono::milliseconds(100) : std::chrono::milliseconds(kSign);
      const bool was_asking = state.asking, was_ending = state.ending;
      state.wake.wait_for(lock, pause, [&] {
        return state.stopping || state.asking != was_asking || state.ending != was_ending;
      });
    }
    state.stopped = true;
    state.wake.notify_all();
  }

  std::shared_ptr<State> state_;
};

}  // namespace mixmatch::training
