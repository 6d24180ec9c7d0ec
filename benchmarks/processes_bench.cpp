// What several processes cost: sums by size, and a training step's gradients with and without overlap. To be
// started by a launcher: mpirun -np 2 build/benchmarks/processes_bench

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/distributed/c10d_process_group.hpp>
#include <mixmatch/distributed/gradient_reducer.hpp>
#include <mixmatch/distributed/launch_environment.hpp>
#include <mixmatch/models/wide_resnet.hpp>
#include <mixmatch/nn/channels_last.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "machine.hpp"

namespace mt = mixmatch::training;

namespace {

/// The median of `count` calls after three others, in milliseconds; all ranks begin each together.
template <class F>
double median_of(mt::ProcessGroup& group, int count, const F& f) {
  std::vector<double> times;
  for (int i = -3; i < count; ++i) {
    group.max_of(0);
    const auto began = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    if (i >= 0) {
      times.push_back(took.count());
    }
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void print(const mt::ProcessGroup& group, const std::string& line) {
  if (group.rank() == 0) {
    fmt::print("{}\n", line);
    std::fflush(stdout);
  }
}

}  // namespace

int main() {
  const auto environment = mt::launch_environment();
  if (!environment.has_value()) {
    fmt::print(stderr, "processes_bench: start it by torchrun, mpirun or srun\n");
    return 2;
  }
  at::set_num_threads(1);
  const auto group = mt::C10dProcessGroup::join(*environment);
  print(*group,
        fmt::format("{}, {} processes of one thread each; medians", machine_line(), group->world_size()));

  print(*group, "\nsum of float32 over all processes");
  for (const int64_t kilobytes : {1, 64, 1024, 4096, 16384, 94208}) {
    const auto block = at::ones({kilobytes * 256});
    const double time =
        median_of(*group, kilobytes > 4096 ? 20 : 50, [&] { group->start_sum(block)->wait(); });
    block.fill_(1);
    print(*group, fmt::format("{:>8} KB {:>9.3f} ms {:>8.2f} GB/s", kilobytes, time,
                              static_cast<double>(kilobytes) / 1e6 / (time / 1e3)));
  }

  print(*group, "\nforward and backward pass of WRN-28-2, 32 rows each, and the mean of its gradients");
  torch::manual_seed(1);
  mixmatch::models::WideResNet model(10);
  mt::to_channels_last(model);
  const auto images = at::randn({32, 3, 32, 32}).contiguous(at::MemoryFormat::ChannelsLast);
  const auto clear = [&] {
    for (auto& parameter : model->parameters()) {
      parameter.mutable_grad().reset();
    }
  };
  const double alone = median_of(*group, 15, [&] {
    clear();
    model(images).square().mean().backward();
  });
  print(*group, fmt::format("{:<44} {:>8.1f} ms", "the passes alone", alone));
  for (const int64_t megabytes : {1, 4, 64}) {
    for (const bool overlap : {false, true}) {
      mt::GradientReducer reducer(
          model, *group, mt::GradientReducerOptions().bucket_bytes(megabytes << 20).overlap(overlap));
      const double time = median_of(*group, 15, [&] {
        clear();
        reducer.begin();
        model(images).square().mean().backward();
        reducer.finish();
      });
      print(*group, fmt::format("{:<44} {:>8.1f} ms",
                                fmt::format("{} bucket{} of {} MB{}", reducer.buckets(),
                                            reducer.buckets() == 1 ? "" : "s", megabytes,
                                            overlap ? ", overlapped" : " afterwards"),
                                time));
    }
  }
  group->leave();
  return 0;
}
