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

double median(std::vector<double> numbers) {
  std::sort(numbers.begin(), numbers.end());
  return numbers[numbers.size() / 2];
}

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
  return median(times);
}

/// Another group that notes when sums begin.
class RecordingGroup : public mt::ProcessGroup {
 public:
  explicit RecordingGroup(mt::ProcessGroup& group) : group_(&group) {}
  int64_t rank() const override { return group_->rank(); }
  int64_t world_size() const override { return group_->world_size(); }
  std::unique_ptr<Work> start_sum(at::Tensor tensor) override {
    begun.push_back({tensor.nbytes(), std::chrono::steady_clock::now()});
    return group_->start_sum(tensor);
  }
  at::Tensor gather(const at::Tensor& tensor) override { return group_->gather(tensor); }
  void broadcast_(at::Tensor tensor) override { group_->broadcast_(tensor); }
  bool capturable(torch::Device device) const override { return group_->capturable(device); }

  struct Begun {
    size_t bytes;
    std::chrono::steady_clock::time_point at;
  };
  std::vector<Begun> begun;

 private:
  mt::ProcessGroup* group_;
};

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

  print(*group, "\nwhen buckets of 4 MB are full, after the beginning of the backward pass");
  RecordingGroup recorder(*group);
  mt::GradientReducer reducer(model, recorder, mt::GradientReducerOptions());
  std::vector<std::vector<double>> begins(static_cast<size_t>(reducer.buckets()));
  std::vector<double> ends, waits;
  for (int i = 0; i < 15; ++i) {
    using Milliseconds = std::chrono::duration<double, std::milli>;
    clear();
    recorder.begun.clear();
    const auto loss = model(images).square().mean();
    group->max_of(0);
    const auto began = std::chrono::steady_clock::now();
    reducer.begin();
    loss.backward();
    const auto ended = std::chrono::steady_clock::now();
    reducer.finish();
    ends.push_back(Milliseconds(ended - began).count());
    waits.push_back(Milliseconds(std::chrono::steady_clock::now() - ended).count());
    for (size_t bucket = 0; bucket < begins.size(); ++bucket) {
      begins[bucket].push_back(Milliseconds(recorder.begun[bucket].at - began).count());
    }
  }
  for (size_t bucket = 0; bucket < begins.size(); ++bucket) {
    print(*group,
          fmt::format("bucket {}, {:>4.1f} MB {:>36.1f} ms", bucket,
                      static_cast<double>(recorder.begun[bucket].bytes) / 1048576.0, median(begins[bucket])));
  }
  print(*group, fmt::format("{:<44} {:>8.1f} ms", "the backward pass", median(ends)));
  print(*group, fmt::format("{:<44} {:>8.1f} ms", "what is waited for after it", median(waits)));
  group->leave();
  return 0;
}
