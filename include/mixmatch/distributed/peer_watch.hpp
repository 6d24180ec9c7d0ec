#pragma once

#include <fmt/format.h>
#include <unistd.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Signs of life of a group's ranks, by a store of c10d, and what the first of them to fail said.
///
/// A thread of its own gives a sign each second, whatever the program does, and is the only one that asks the
/// store, which may never answer. blame() says who has failed. Rank 0 also finds a rank that has given no
/// sign for longer than the timeout. A rank that does not end within eight seconds of another's failure,
/// because it hangs in a GPU's kernel or in another library, is ended with a line on stderr and status 2.
/// Safe to call from several threads.
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

  /// What the first rank to fail said, or which has given no sign of life for some seconds; `text`, what is
  /// known already, where that cannot be told. Waits for at most five seconds.
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
    for (size_t rank = 0; rank < state_->changed.size(); ++rank) {
      if (static_cast<int64_t>(rank) != state_->rank && Clock::now() - state_->changed[rank] > kGrace) {
        return fmt::format("rank {} gives no sign of life ({})", rank, text);
      }
    }
    return text;
  }

  /// What blame() would say at once; "" where nobody has failed.
  std::string cause() {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    return state_->cause;
  }

  /// Where a rank that cannot be ended otherwise says why; the standard error, unless set.
  void set_error_stream(int descriptor) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->error_stream = descriptor;
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

  struct State {
    int64_t rank = 0, world_size = 1;
    std::chrono::milliseconds timeout{};
    std::string place;

    std::mutex mutex;  // of all below
    std::condition_variable wake;
    bool asking = false;  // blame() wants every rank's signs
    bool ending = false;  // `last_words` is to be said, "" for a good end
    bool said = false, all_ended = false;
    int error_stream = 2;
    bool stopping = false, stopped = false;
    std::string last_words, cause;
    Clock::time_point last_answer = Clock::now();
    std::vector<int64_t> signs;
    std::vector<Clock::time_point> changed;  // when each of them changed
  };

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
  static void exchange(State& state, c10d::Store& store, bool all, bool ending,
                       const std::string& last_words) {
    store.add(key("alive", state.rank), 1);
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
    std::vector<int64_t> signs;
    bool all_ended = true;
    if (all || state.rank == 0) {
      for (int64_t rank = 0; rank < state.world_size; ++rank) {
        const bool ended = store.check({key("ended", rank)});
        all_ended = all_ended && ended;
        signs.push_back(ended ? -1 : store.add(key("alive", rank), 0));
      }
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
    if (state.signs.empty()) {
      state.changed.assign(signs.size(), now);
    } else {
      for (size_t i = 0; i < signs.size(); ++i) {
        if (signs[i] != state.signs[i] || signs[i] < 0) {
          state.changed[i] = now;
        }
      }
    }
    state.signs = std::move(signs);
    // A rank that is gone is noticed by rank 0 even where no collective fails of it: in a GPU's, say.
    for (size_t i = 0; state.rank == 0 && state.cause.empty() && i < state.signs.size(); ++i) {
      if (now - state.changed[i] > state.timeout) {
        state.cause = fmt::format("rank {} gives no sign of life", i);
        say(store, state.cause);
      }
    }
  }

  static void say(c10d::Store& store, const std::string& cause) {
    store.compareSet("failed", std::vector<uint8_t>(), std::vector<uint8_t>(cause.begin(), cause.end()));
  }

  static void run(State& state, c10d::Store& store) {
    std::unique_lock<std::mutex> lock(state.mutex);
    while (!state.stopping) {
      const bool all = state.asking, ending = state.ending && (!state.said || state.rank == 0);
      const std::string last_words = state.last_words;
      lock.unlock();
      bool answered = true;
      try {
        exchange(state, store, all, ending, last_words);
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
