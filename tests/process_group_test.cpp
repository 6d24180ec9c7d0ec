#include <mixmatch/distributed/c10d_process_group.hpp>
#include <mixmatch/distributed/launch_environment.hpp>

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "thread_group.hpp"

namespace mt = mixmatch::training;
using torch::Tensor;

namespace {

std::optional<mt::LaunchEnvironment> environment_of(const std::map<std::string, std::string>& variables) {
  return mt::launch_environment([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

}  // namespace

TEST_CASE("launch_environment: what launchers say") {
  CHECK(!environment_of({}).has_value());
  CHECK(!environment_of({{"RANK", "1"}}).has_value());  // a variable of that name alone says nothing
  const auto torchrun = environment_of({{"RANK", "3"},
                                        {"WORLD_SIZE", "8"},
                                        {"LOCAL_RANK", "1"},
                                        {"LOCAL_WORLD_SIZE", "2"},
                                        {"MASTER_ADDR", "node0"},
                                        {"MASTER_PORT", "4000"},
                                        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                        {"TORCHELASTIC_RESTART_COUNT", "2"},
                                        {"TORCHELASTIC_RUN_ID", "job"}});
  REQUIRE(torchrun.has_value());
  CHECK(torchrun->rank == 3);
  CHECK(torchrun->world_size == 8);
  CHECK(torchrun->local_rank == 1);
  CHECK(torchrun->local_world_size == 2);
  CHECK(torchrun->master_addr == "node0");
  CHECK(torchrun->master_port == 4000);
  CHECK(torchrun->launcher_listens);
  CHECK(torchrun->restarts == 2);
  CHECK(torchrun->job == "job");

  const auto mpi = environment_of({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}});
  REQUIRE(mpi.has_value());
  CHECK(mpi->launcher == "mpirun");
  CHECK(mpi->master_addr == "127.0.0.1");
  CHECK(mpi->master_port == 29500);
  CHECK(environment_of({{"PMI_RANK", "0"}, {"PMI_SIZE", "4"}})->world_size == 4);
  CHECK(environment_of({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}})->world_size == 1);
  // The only task of a step, which meets nobody.
  CHECK(environment_of({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}})->launcher == "Slurm");

  const auto slurm = environment_of({{"SLURM_PROCID", "5"},
                                     {"SLURM_STEP_NUM_TASKS", "6"},
                                     {"SLURM_LOCALID", "1"},
                                     {"SLURM_JOB_ID", "123456"},
                                     {"SLURM_STEP_NODELIST", "gpu[07-09,12],big1"}});
  REQUIRE(slurm.has_value());
  CHECK(slurm->rank == 5);
  CHECK(slurm->master_addr == "gpu07");
  CHECK(slurm->master_port == 20000 + 123456 % 20000);
  // Slurm's own PMI does not hide it, and a step may be smaller than its job.
  const auto pmi = environment_of({{"PMI_RANK", "1"},
                                   {"PMI_SIZE", "2"},
                                   {"SLURM_PROCID", "1"},
                                   {"SLURM_STEP_NUM_TASKS", "2"},
                                   {"SLURM_NTASKS_PER_NODE", "4"},
                                   {"SLURM_STEP_NODELIST", "a,b"}});
  REQUIRE(pmi.has_value());
  CHECK(pmi->launcher == "Slurm");
  CHECK(pmi->master_addr == "a");
  CHECK(pmi->local_world_size == 2);
  // A batch script has this much, and is one process.
  CHECK(!environment_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "6"}}).has_value());
}

TEST_CASE("launch_environment: bad variables are named") {
  CHECK_THROWS_WITH(environment_of({{"RANK", "x"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}}),
                    contains("RANK must be a whole number in [0, 1], got x"));
  CHECK_THROWS_WITH(environment_of({{"RANK", "2"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}}),
                    contains("RANK must be a whole number in [0, 1], got 2"));
  CHECK_THROWS_WITH(environment_of({{"RANK", "0"}, {"WORLD_SIZE", "0"}}), contains("WORLD_SIZE"));
  CHECK_THROWS_WITH(environment_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}}), contains("MASTER_ADDR is not set"));
  CHECK_THROWS_WITH(
      environment_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "70000"}}),
      contains("MASTER_PORT"));
}

TEST_CASE("the first host of Slurm's lists") {
  CHECK(mt::detail::first_host("node1") == "node1");
  CHECK(mt::detail::first_host("node1,node2") == "node1");
  CHECK(mt::detail::first_host("node[01-04]") == "node01");
  CHECK(mt::detail::first_host("node[3,5-7],other[1-2]") == "node3");
  CHECK(mt::detail::first_host("rack[1-2]n[05-09]x") == "rack1n05x");
}

TEST_CASE("own_address: loopback where that is meant, an outer address elsewhere") {
  CHECK(mt::own_address("127.0.0.1", 29500) == "127.0.0.1");
  CHECK(mt::own_address("localhost", 29500) == "127.0.0.1");
  CHECK(mt::own_address("no.such.host.invalid", 29500) == "");
  const std::string six = mt::own_address("::1", 29500);
  CHECK((six == "::1" || six.empty()));  // empty where this machine has no IPv6
  const auto outer = mt::detail::first_outer_address();
  if (!outer.empty()) {  // as rank 0 is told to listen at its own
    CHECK(mt::own_address(outer, 29500) == outer);
  }
}

TEST_CASE("own_address: interfaces that are down, loopback or for containers lead to no other machine") {
  using mt::detail::is_outer_interface;
  for (const char* name : {"eth0", "enp3s0", "ib0", "bond0", "wlan0", "br0", "tun0"}) {
    INFO(name);
    CHECK(is_outer_interface(name, IFF_UP));
    CHECK(!is_outer_interface(name, 0));
  }
  CHECK(!is_outer_interface("lo", IFF_UP | IFF_LOOPBACK));
  for (const char* name : {"docker0", "br-1f2e3d", "virbr0", "veth12ab", "cni0", "flannel.1", "lxcbr0"}) {
    INFO(name);
    CHECK(!is_outer_interface(name, IFF_UP));
  }
}

#ifdef MIXMATCH_HAS_GLOO

namespace {

/// body(group) on a thread for each rank, over Gloo on this machine.
void on_gloo(int64_t ranks, const mt::ProcessGroupOptions& options,
             const std::function<void(mt::C10dProcessGroup&)>& body) {
  const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::HashStore>();
  on_threads(
      ranks,
      [&](int64_t rank) {
        return std::make_unique<mt::C10dProcessGroup>(store, store, rank, ranks, options, "here");
      },
      body);
}

}  // namespace

TEST_CASE("arrive_anew: all ranks of a start find each other in a store that has seen others") {
  using mt::detail::Start;
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const auto arrive = [&](int64_t rank, int64_t ranks, double seconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(int64_t(1000 * seconds));
    return mt::detail::arrive_anew(*store, rank, ranks, until, seconds);
  };
  /// The ranks come in this order, some time apart.
  const auto start_of = [&](const std::vector<int64_t>& order) {
    std::vector<Start> starts(order.size());
    std::vector<std::thread> threads;
    for (const int64_t rank : order) {
      threads.emplace_back([&, rank] {
        starts[static_cast<size_t>(rank)] = arrive(rank, static_cast<int64_t>(order.size()), 10);
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(120));
    }
    for (auto& thread : threads) {
      thread.join();
    }
    for (const Start& start : starts) {
      CHECK(start.name == starts[0].name);
    }
    return starts[0];
  };
  const Start first = start_of({0, 1});
  CHECK(!first.again);
  const Start second = start_of({1, 0});  // rank 1 finds the former name
  CHECK(second.again);
  CHECK(second.name != first.name);
  CHECK_THROWS_WITH(arrive(1, 2, 0.3), "rank 0 of 2 did not come within 0.3 s");
  CHECK_THROWS_WITH(arrive(0, 2, 0.3), "rank 1 of 2 did not come within 0.3 s");
  const Start larger = start_of({3, 2, 1, 0});  // two of them are new, after a start that failed
  CHECK(larger.again);
  CHECK(start_of({0, 1, 2}).name != larger.name);
}

TEST_CASE("C10dProcessGroup: where all meet, a rank whose store does not answer is not waited for") {
  /// A store that falls silent.
  struct SilentStore : c10d::HashStore {
    std::atomic<bool> silent{false};
    void wait_for_ever() const {
      while (silent) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    }
    int64_t add(const std::string& key, int64_t value) override {
      wait_for_ever();
      return c10d::HashStore::add(key, value);
    }
    void set(const std::string& key, const std::vector<uint8_t>& value) override {
      wait_for_ever();
      c10d::HashStore::set(key, value);
    }
  };
  const auto store = c10::make_intrusive<SilentStore>();
  {
    mt::C10dProcessGroup group(store, store, 0, 1, mt::ProcessGroupOptions().timeout(1), "here");
    group.meet();
    store->silent = true;
    const auto began = std::chrono::steady_clock::now();
    CHECK(thrown_by([&] { group.meet(); }) == "rank 0 at here cannot be reached");
    CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(8));
    store->silent = false;  // so that the threads end
  }
}

TEST_CASE("C10dProcessGroup: sums, copies and texts of any dtype") {
  on_gloo(3, {}, [](mt::C10dProcessGroup& group) {
    const auto rank = static_cast<double>(group.rank());
    CHECK_ON_RANK(group.world_size() == 3);
    for (const auto type : {at::kFloat, at::kDouble, at::kLong}) {
      const Tensor sum = at::full({5}, rank, at::TensorOptions(type));
      group.start_sum(sum)->wait();
      CHECK_ON_RANK(sum.equal(at::full({5}, 3, at::TensorOptions(type))));
    }
    Tensor mean = at::full({2, 2}, rank);
    group.mean_(mean);
    CHECK_ON_RANK(mean.equal(at::ones({2, 2})));
    for (const auto type : {at::kFloat, at::kBFloat16, at::kBool, at::kByte, at::kLong}) {
      const Tensor own = at::arange(6).view({2, 3}).add(rank).remainder(2).to(type);
      const Tensor all = group.gather(own.t());  // not contiguous
      CHECK_ON_RANK(all.sizes() == at::IntArrayRef({3, 3, 2}));
      CHECK_ON_RANK(all[group.rank()].equal(own.t()));
      CHECK_ON_RANK(all[2].equal(at::arange(6).view({2, 3}).remainder(2).to(type).t()));
      Tensor copy = own.clone();
      group.broadcast_(copy);
      CHECK_ON_RANK(copy.equal(at::arange(6).view({2, 3}).remainder(2).to(type)));
    }
    CHECK_ON_RANK(group.gather(at::full({}, rank)).sizes() == at::IntArrayRef({3}));
    const std::vector<std::string> texts{"", "one", "a longer one"};
    CHECK_ON_RANK(group.gather_texts(texts[static_cast<size_t>(group.rank())]) == texts);
    CHECK_ON_RANK(group.broadcast_text(group.rank() == 0 ? "said" : "unsaid") == "said");
    CHECK_ON_RANK(group.max_of(group.rank() * 7) == 14);
  });
}

TEST_CASE("C10dProcessGroup: a rank that takes longer than the timeout is waited for where they meet") {
  on_gloo(2, mt::ProcessGroupOptions().timeout(0.5), [](mt::C10dProcessGroup& group) {
    if (group.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    }
    group.meet();
    CHECK_ON_RANK(group.max_of(group.rank()) == 1);
  });
}

TEST_CASE("C10dProcessGroup: who failed, and of what, is what the others throw") {
  on_gloo(2, mt::ProcessGroupOptions().timeout(2), [](mt::C10dProcessGroup& group) {
    if (group.rank() == 1) {
      group.fail("rank 1 failed: no space left");
      return;
    }
    thrown_by([&] { group.max_of(1); });  // the connection breaks
    CHECK_ON_RANK(thrown_by([&] { group.max_of(1); }) == "rank 1 failed: no space left");
  });
}

TEST_CASE("C10dProcessGroup: a rank that lives and does not join the others is named at the timeout") {
  std::atomic<int> waited = 0;
  on_gloo(3, mt::ProcessGroupOptions().timeout(1), [&](mt::C10dProcessGroup& group) {
    group.max_of(1);
    if (group.rank() == 2) {  // it is busy with something else
      while (waited < 2) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      return;
    }
    const auto began = std::chrono::steady_clock::now();
    const std::string said = thrown_by([&] { group.max_of(1); });
    ++waited;
    CHECK_ON_RANK(said.rfind("rank 2 has not arrived where the others wait (", 0) == 0);
    CHECK_ON_RANK(std::chrono::steady_clock::now() - began < std::chrono::seconds(12));
  });
}

TEST_CASE(
    "C10dProcessGroup: a rank that stays behind is named also where no collective of the host's fails") {
  std::atomic<bool> named = false;
  on_gloo(2, mt::ProcessGroupOptions().timeout(1), [&](mt::C10dProcessGroup& group) {
    group.begin_step();
    if (group.rank() == 1) {
      while (!named) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      return;
    }
    group.begin_step();  // of a graph, which waits on the device
    const std::string said = thrown_by([&] { group.meet(); });
    named = true;
    CHECK_ON_RANK(said == "rank 1 has not arrived where the others wait");
  });
}

TEST_CASE("C10dProcessGroup: ranks in different collectives are told apart") {
  std::atomic<int> waited = 0;
  on_gloo(2, mt::ProcessGroupOptions().timeout(1), [&](mt::C10dProcessGroup& group) {
    const std::string said = thrown_by([&] {
      group.rank() == 0 ? group.broadcast_(group.gather(at::ones({2}))) : group.mean_(at::ones({5}));
    });
    ++waited;
    while (waited < 2) {  // the other looks at this one's
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    CHECK_ON_RANK(
        said.rfind("rank 1 is in another collective, sum of 5 Float values, than rank 0, gather of 2 "
                   "Float values (",
                   0) == 0);
  });
}

TEST_CASE("C10dProcessGroup: of what rank 0 fails of too it speaks alone") {
  on_gloo(3, mt::ProcessGroupOptions().timeout(5), [](mt::C10dProcessGroup& group) {
    if (group.rank() == 0) {
      group.fail(mt::PeerWatch::failure_of(0, "no folder; look there"));
    } else if (group.rank() == 1) {
      CHECK_ON_RANK(group.is_said_by_rank_0("no folder"));
    } else {
      CHECK_ON_RANK(!group.is_said_by_rank_0("no space"));
    }
  });
}

TEST_CASE("C10dProcessGroup: one process needs no port and no name") {
  mt::LaunchEnvironment environment;
  environment.master_addr = "no.such.host.invalid";
  const auto group = mt::C10dProcessGroup::join(environment, mt::ProcessGroupOptions().timeout(1));
  CHECK(group->world_size() == 1);
  CHECK(group->max_of(7) == 7);
  group->meet();
  group->leave();
}

TEST_CASE("C10dProcessGroup: a connection that broke is no end of the process, unless the program says so") {
  const mt::LaunchEnvironment environment;
  const auto before = std::signal(SIGPIPE, SIG_DFL);
  mt::C10dProcessGroup::join(environment)->leave();
  CHECK(std::signal(SIGPIPE, [](int) {}) == SIG_IGN);
  mt::C10dProcessGroup::join(environment)->leave();
  const auto kept = std::signal(SIGPIPE, before);
  CHECK((kept != SIG_IGN && kept != SIG_DFL));
}

TEST_CASE("C10dProcessGroup: a rank that does not come is named within the timeout") {
  mt::LaunchEnvironment environment;
  environment.world_size = 2;
  for (environment.master_port = 29377; mt::detail::cannot_listen(environment.master_port) != 0;) {
    ++environment.master_port;
  }
  const auto began = std::chrono::steady_clock::now();
  CHECK_THROWS_WITH(mt::C10dProcessGroup::join(environment, mt::ProcessGroupOptions().timeout(1)),
                    "rank 1 of 2 did not come within 1 s");
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(10));
  CHECK_THROWS_WITH(mt::C10dProcessGroup::join(environment, mt::ProcessGroupOptions().timeout(0)),
                    contains("timeout must be > 0"));
}

#else

TEST_CASE("C10dProcessGroup without a backend says what is missing") {
  mt::LaunchEnvironment environment;
  CHECK_THROWS_WITH(mt::C10dProcessGroup::join(environment), contains("libgloo-dev"));
}

#endif
