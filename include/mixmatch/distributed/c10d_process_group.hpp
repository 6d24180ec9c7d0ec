#pragma once

#include <fmt/format.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/detail/error_message.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/version.hpp>
#include <mixmatch/distributed/launch_environment.hpp>
#include <mixmatch/distributed/own_address.hpp>
#include <mixmatch/distributed/peer_watch.hpp>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/distributed/rendezvous.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#ifdef MIXMATCH_HAS_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#endif
#ifdef MIXMATCH_HAS_MPI
#include <torch/csrc/distributed/c10d/ProcessGroupMPI.hpp>
#endif
#ifdef MIXMATCH_HAS_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace mixmatch::training {

namespace detail {

#if MIXMATCH_TORCH_AT_LEAST(2, 0)
using C10dBackend = c10d::Backend;
#else
using C10dBackend = c10d::ProcessGroup;
#endif

/// The first line of what LibTorch says.
inline std::string peer_message(const std::exception& error) {
  const std::string_view text = mixmatch::detail::error_message(error);
  return mixmatch::detail::printable_beginning(text.substr(0, text.find('\n')), 300);
}

/// Not every LibTorch has the store that later ones take by default; they all have the other.
template <class Options>
void without_libuv(Options& options) {
  if constexpr (requires { options.useLibUV; }) {
    options.useLibUV = false;
  }
}

/// Gloo's writes to a rank that is gone raise SIGPIPE, which ends a process where nothing else is said; they
/// are to fail, as they do under Python, which ignores it.
inline void ignore_broken_pipes() {
  struct sigaction action {};
  if (::sigaction(SIGPIPE, nullptr, &action) == 0 && action.sa_handler == SIG_DFL) {
    static_cast<void>(std::signal(SIGPIPE, SIG_IGN));
  }
}

/// What a call that may never end has returned or thrown.
template <class Result>
struct Answer {
  Result value{};
  std::string error;
  bool is_peers = false;  // a PeerError's, which says all
};

/// f() on a thread of its own, which is left alone where it takes longer than so many seconds.
template <class F>
auto answer_within(double seconds, F f) -> Answer<decltype(f())> {
  using Result = Answer<decltype(f())>;
  const auto answer = std::make_shared<std::promise<Result>>();
  auto found = answer->get_future();
  std::thread([answer, f] {
    Result result;
    try {
      result.value = f();
    } catch (const PeerError& error) {
      result.error = error.what();
      result.is_peers = true;
    } catch (const std::exception& error) {
      result.error = peer_message(error);
    }
    answer->set_value(std::move(result));
  }).detach();
  if (found.wait_for(std::chrono::duration<double>(seconds)) != std::future_status::ready) {
    Result nothing;
    nothing.error = "what listens there does not answer";
    return nothing;
  }
  return found.get();
}

}  // namespace detail

struct ProcessGroupOptions {
  /// Where the tensors of collectives live.
  TORCH_ARG(torch::Device, device) = torch::kCPU;
  /// Seconds after which a collective that others do not join has failed.
  TORCH_ARG(double, timeout) = 60;
  /// By which others reach this process over Gloo; empty: join() finds it (own_address()), else that of the
  /// host's name. GLOO_SOCKET_IFNAME, the name of an interface, comes before both.
  TORCH_ARG(std::string, address) = "";
};

/// A ProcessGroup on LibTorch's own engine, c10d: Gloo (else MPI) on the CPU, NCCL on a GPU, where this
/// LibTorch has them (MIXMATCH_HAS_GLOO and so on). Without NCCL a GPU's tensors go by way of the host.
///
///     if (const auto environment = launch_environment()) {       // torchrun, mpirun, srun
///       auto group = C10dProcessGroup::join(*environment, ProcessGroupOptions());
///       …
///       group->leave();
///     }
///
/// Which rank failed, and of what, the group's store says: fail() writes it there, and every rank gives a
/// sign of life each second, so that the others can name one that was killed or cut off, or that lives and
/// does not join them. SIGPIPE is ignored from then on, unless the program handles it.
class C10dProcessGroup : public ProcessGroup {
 public:
  using Store = c10::intrusive_ptr<c10d::Store>;

  /// Joins the processes that a launcher has started; waits for all of them, at most the timeout. Throws
  /// PeerError where they do not come, or where rank 0 is not to be reached.
  static std::shared_ptr<C10dProcessGroup> join(const LaunchEnvironment& environment,
                                                ProcessGroupOptions options = {}) {
    check_options(options);
    detail::ignore_broken_pipes();
    if (environment.world_size == 1) {  // it listens nowhere, and nobody watches it
      options.address(options.address().empty() ? "127.0.0.1" : options.address());
      const Store store = c10::make_intrusive<c10d::HashStore>();
      return std::make_shared<C10dProcessGroup>(store, Store(), 0, 1, options);
    }
    if (options.address().empty()) {
      options.address(own_address(environment.master_addr, environment.master_port));
    }
    const auto place = fmt::format("{}:{}", environment.master_addr, environment.master_port);
    const bool listens = environment.rank == 0 && !environment.launcher_listens;
    if (const int error = listens ? detail::cannot_listen(environment.master_port) : 0; error != 0) {
      throw PeerError(fmt::format("rank 0 cannot listen at {}: {}; choose another MASTER_PORT", place,
                                  std::strerror(error)));
    }
    const auto connect = [environment, options](bool is_server) -> Store {
      c10d::TCPStoreOptions tcp;
      tcp.port = static_cast<uint16_t>(environment.master_port);
      tcp.isServer = is_server;
      tcp.waitWorkers = false;
      tcp.timeout = milliseconds(options.timeout());
      detail::without_libuv(tcp);
      return c10::make_intrusive<c10d::PrefixStore>(
          fmt::format("mixmatch/{}", environment.job),
          c10::make_intrusive<c10d::TCPStore>(environment.master_addr, tcp));
    };
    const auto until = std::chrono::steady_clock::now() + milliseconds(options.timeout());
    struct Joined {
      Store store, watch;  // connections of their own: the first may be waiting
      bool again = false;
    };
    const auto joined = detail::answer_within(options.timeout() + 2, [=]() -> Joined {
      const Store store = connect(listens);
      if (!environment.launcher_listens) {
        detail::arrive(*store, environment.rank, environment.world_size, until, options.timeout());
        return {store, connect(false)};
      }
      const auto start =
          detail::arrive_anew(*store, environment.rank, environment.world_size, until, options.timeout());
      const auto of_start = [&start](const Store& all) -> Store {
        return c10::make_intrusive<c10d::PrefixStore>(start.name, all);
      };
      return {of_start(store), of_start(connect(false)), start.again};
    });
    if (!joined.error.empty()) {
      throw PeerError(joined.is_peers ? joined.error
                                      : fmt::format("rank {} cannot reach rank 0 at {}: {}", environment.rank,
                                                    place, joined.error));
    }
    auto group = std::make_shared<C10dProcessGroup>(joined.value.store, joined.value.watch, environment.rank,
                                                    environment.world_size, options, place);
    group->started_again_ = joined.value.again;
    return group;
  }

  /// Of rank 0: whether the launcher has started these processes before.
  bool started_again() const { return started_again_; }

  /// By a store of c10d that all ranks share. `watch` is another connection to the same store, or null: then
  /// nobody gives signs of life. `place` is where rank 0 keeps it, for messages.
  C10dProcessGroup(const Store& store, const Store& watch, int64_t rank, int64_t world_size,
                   const ProcessGroupOptions& options = {}, const std::string& place = "")
      : rank_(rank), world_size_(world_size), options_(options), store_(store) {
    check_options(options);
    detail::ignore_broken_pipes();
    if (watch) {
      watch_ = std::make_unique<PeerWatch>(watch, rank, world_size, milliseconds(options.timeout()), place);
    }
    try {
      guarded([&] {
        connect_cpu(store);
        connect_nccl(store);
      });
    } catch (const PeerError& error) {
      fail(error.what());
      throw;
    }
  }

  int64_t rank() const override { return rank_; }
  int64_t world_size() const override { return world_size_; }

  std::unique_ptr<Work> start_sum(Tensor tensor) override {
    TORCH_CHECK(tensor.is_contiguous(), "ProcessGroup: the tensor must be contiguous");
    begin("sum", tensor);
    const bool copies = !backend_takes(tensor);
    std::vector<Tensor> tensors{copies ? tensor.cpu() : tensor};
    auto work = guarded([&] { return backend_of(tensors[0]).allreduce(tensors); });
    return std::make_unique<PendingWork>(*this, std::move(work), tensors[0], copies ? tensor : Tensor());
  }

  Tensor gather(const Tensor& tensor) override {
    begin("gather", tensor);
    // By bytes: not every backend knows every dtype.
    const Tensor flat = tensor.contiguous().view({-1}).view(at::kByte);
    std::vector<Tensor> input{backend_takes(flat) ? flat : flat.cpu()};
    const Tensor all = at::empty({world_size_, flat.numel()}, input[0].options());
    std::vector<std::vector<Tensor>> outputs{all.unbind(0)};
    guarded([&] { backend_of(input[0]).allgather(outputs, input)->wait(); });
    auto sizes = tensor.sizes().vec();
    sizes.insert(sizes.begin(), world_size_);
    return all.to(tensor.device()).view({-1}).view(tensor.scalar_type()).view(sizes);
  }

  void broadcast_(Tensor tensor) override {
    TORCH_CHECK(tensor.is_contiguous(), "ProcessGroup: the tensor must be contiguous");
    begin("broadcast", tensor);
    const Tensor flat = tensor.view({-1}).view(at::kByte);
    const bool copies = !backend_takes(flat);
    std::vector<Tensor> tensors{copies ? flat.cpu() : flat};
    guarded([&] { backend_of(tensors[0]).broadcast(tensors)->wait(); });
    if (copies) {
      flat.copy_(tensors[0]);
    }
  }

  void begin_step() override {
    if (watch_) {
      watch_->begin("a step");
    }
  }

  bool capturable(torch::Device device) const override { return device.is_cuda() && nccl_; }

  void meet() override {
    // The store may never answer: it is asked on a thread that can be left alone.
    const auto asks = std::make_shared<std::atomic<bool>>(true);
    const auto all_here = std::make_shared<std::promise<void>>();
    auto met = all_here->get_future();
    std::thread([asks, all_here, store = store_, world_size = world_size_,
                 key = fmt::format("met/{}", meetings_++)] {
      try {
        for (int64_t here = store->add(key, 1); here < world_size && *asks; here = store->add(key, 0)) {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        all_here->set_value();
      } catch (...) {
        all_here->set_exception(std::current_exception());
      }
    }).detach();
    while (met.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
      if (const std::string cause = watch_ ? watch_->cause() : ""; !cause.empty()) {
        *asks = false;
        throw PeerError(cause);
      }
    }
    guarded([&] { met.get(); });
  }

  /// As PeerWatch's.
  bool is_said_by_rank_0(const std::string& what) { return watch_ && watch_->is_said_by_rank_0(what); }
  void set_error_stream(int descriptor) {
    if (watch_) {
      watch_->set_error_stream(descriptor);
    }
  }

  void before_exit(std::function<void()> act) {
    if (watch_) {
      watch_->before_exit(std::move(act));
    }
  }

  /// Tells the others why this rank ends, unless one of them has failed before.
  void fail(const std::string& cause) noexcept {
    if (watch_) {
      watch_->fail(cause);
    }
  }

  /// The end: rank 0, at which the others look, waits until all are here.
  void leave() {
    end_nccl();
    if (watch_) {
      watch_->leave();
    }
  }

  ~C10dProcessGroup() override {
    try {
      end_nccl();
    } catch (const std::exception&) {  // it ends with the process
    }
  }

 private:
  static std::chrono::milliseconds milliseconds(double seconds) {
    return std::chrono::milliseconds(static_cast<int64_t>(1000 * seconds));
  }

  class PendingWork : public Work {
   public:
    PendingWork(C10dProcessGroup& group, c10::intrusive_ptr<c10d::Work> work, Tensor sum, Tensor place)
        : group_(&group), work_(std::move(work)), sum_(std::move(sum)), place_(std::move(place)) {}
    void wait() override {
      group_->guarded([this] { work_->wait(); });
      if (place_.defined()) {
        place_.copy_(sum_);
      }
    }

   private:
    C10dProcessGroup* group_;
    c10::intrusive_ptr<c10d::Work> work_;
    Tensor sum_, place_;
  };

  static void check_options(const ProcessGroupOptions& options) {
    TORCH_CHECK(options.timeout() > 0, "ProcessGroup: timeout must be > 0, got ", options.timeout());
#if !defined(MIXMATCH_HAS_GLOO) && !defined(MIXMATCH_HAS_MPI)
    TORCH_CHECK(false,
                "this program was built without Gloo and MPI, so it runs in one process: install Gloo's "
                "headers (Debian: libgloo-dev) and build it again");
#endif
  }

  void connect_cpu([[maybe_unused]] const Store& store) {
#ifdef MIXMATCH_HAS_GLOO
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(options_.timeout()));
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
    options->devices.push_back(
        interface != nullptr          ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
        : !options_.address().empty() ? c10d::ProcessGroupGloo::createDeviceForHostname(options_.address())
                                      : c10d::ProcessGroupGloo::createDefaultDevice());
    cpu_ = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", store),
                                                       static_cast<int>(rank_), static_cast<int>(world_size_),
                                                       options);
#elif defined(MIXMATCH_HAS_MPI)
    cpu_ = c10d::ProcessGroupMPI::createProcessGroupMPI();
    TORCH_CHECK(cpu_ && cpu_->getRank() == rank_ && cpu_->getSize() == world_size_,
                "MPI counts the processes otherwise than their environment: rank ", rank_, " of ",
                world_size_);
#endif
  }

  void connect_nccl([[maybe_unused]] const Store& store) {
#ifdef MIXMATCH_HAS_NCCL
    if (options_.device().is_cuda()) {
      auto options = c10d::ProcessGroupNCCL::Options::create();
      // Its own watchdog ends the process with a signal: the others are to have been named before.
      options->timeout = milliseconds(options_.timeout() + 30);
      nccl_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(
          c10::make_intrusive<c10d::PrefixStore>("nccl", store), static_cast<int>(rank_),
          static_cast<int>(world_size_), options);
    }
#endif
  }

  /// As long as there is a store, which NCCL's threads look at.
  void end_nccl() {
#ifdef MIXMATCH_HAS_NCCL
    if (const auto nccl = std::exchange(nccl_, {})) {
      mixmatch::detail::shut_down(static_cast<c10d::ProcessGroupNCCL&>(*nccl));
    }
#endif
  }

  void begin(const char* what, const Tensor& tensor) {
    if (watch_) {
      watch_->begin(
          fmt::format("{} of {} {} values", what, tensor.numel(), c10::toString(tensor.scalar_type())));
    }
  }

  bool backend_takes(const Tensor& tensor) const { return tensor.is_cpu() ? bool(cpu_) : bool(nccl_); }
  detail::C10dBackend& backend_of(const Tensor& tensor) const {
    TORCH_CHECK(backend_takes(tensor), "this program has no backend for tensors on ", tensor.device(),
                ": build it where Gloo's headers are (Debian: libgloo-dev)");
    return tensor.is_cpu() ? *cpu_ : *nccl_;
  }

  /// What fails in a collective is another rank's fault, as a rule: the store knows whose.
  template <class F>
  auto guarded(const F& f) -> decltype(f()) {
    try {
      return f();
    } catch (const std::exception& error) {
      const std::string text = detail::peer_message(error);
      throw PeerError(watch_ ? watch_->blame(text) : text);
    }
  }

  int64_t rank_, world_size_;
  ProcessGroupOptions options_;
  Store store_;
  int64_t meetings_ = 0;
  bool started_again_ = false;
  std::unique_ptr<PeerWatch> watch_;
  c10::intrusive_ptr<detail::C10dBackend> cpu_, nccl_;
};

}  // namespace mixmatch::training
