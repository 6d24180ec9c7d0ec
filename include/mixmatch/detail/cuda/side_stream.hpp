#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cuda/cuda.hpp>
#include <mixmatch/detail/version.hpp>

#include <utility>
#include <vector>

#ifdef MIXMATCH_HAS_CUDA
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <cstddef>
#include <deque>
#include <optional>
#include <type_traits>
#endif

namespace mixmatch::detail {

/// Work that a GPU does beside what its current stream goes on with, in a graph's capture too:
///
///     SideStream side;
///     side.run(device, {x, y}, [&] { z = x.mm(y); });  // when all that the stream has so far is done
///     … other work, which does not wait for it …
///     side.wait();                                     // the stream's next work sees z
///
/// `inputs` are held until the current stream waits, as the memory of one that is let go of could be given
/// out anew; once `most` runs are under way it waits for the oldest. Let go of what run() makes after wait()
/// only. On the CPU, and in a capture where a second stream's memory is not the graph's, run() does its work
/// in turn. Of one device and one thread at a time; throws CUDA's errors.
class SideStream {
 public:
  template <class Work>
  void run(torch::Device device, std::vector<at::Tensor> inputs, const Work& work) {
#ifdef MIXMATCH_HAS_CUDA
    if (device.is_cuda() && can_run_beside(device)) {
      if (!stream_.has_value()) {
        stream_ = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index());
      }
      const auto current = c10::cuda::getCurrentCUDAStream(device.index());
      at::cuda::CUDAEvent begin;
      begin.record(current);
      begin.block(*stream_);
      runs_.push_back({{}, std::move(inputs)});  // before work(), which may throw
      {
        const c10::cuda::CUDAStreamGuard guard(*stream_);
        work();
      }
      runs_.back().end.record(*stream_);
      if (runs_.size() > most) {
        runs_.front().end.block(current);
        runs_.pop_front();
      }
      return;
    }
#else
    static_cast<void>(device);
    static_cast<void>(inputs);
#endif
    work();
  }

  void wait() {
#ifdef MIXMATCH_HAS_CUDA
    if (!runs_.empty()) {
      // An event of its own: those of a capture that failed are of no use.
      at::cuda::CUDAEvent end;
      end.record(*stream_);
      end.block(c10::cuda::getCurrentCUDAStream(stream_->device_index()));
      runs_.clear();
    }
#endif
  }

#ifdef MIXMATCH_HAS_CUDA
 private:
  static constexpr size_t most = 8;
  struct Run {
    at::cuda::CUDAEvent end;
    std::vector<at::Tensor> inputs;
  };

  static bool can_run_beside(torch::Device device) {
    if constexpr (captures_second_streams<
                      std::remove_pointer_t<decltype(c10::cuda::CUDACachingAllocator::get())>>()) {
      return true;
    } else {
      return !is_capturing(device);
    }
  }

  std::optional<c10::cuda::CUDAStream> stream_;
  std::deque<Run> runs_;
#endif
};

}  // namespace mixmatch::detail
