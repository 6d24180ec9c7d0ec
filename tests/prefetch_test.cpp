#include <mixmatch/step/host_batches.hpp>
#include <mixmatch/step/prefetch.hpp>

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::training::HostBatches;
using mixmatch::training::Prefetch;

TEST_CASE("Prefetch: batches by their step's number, in order or not, ahead or not") {
  for (const bool ahead : {true, false}) {
    std::atomic<int> calls{0};
    Prefetch<int64_t> batches(
        [&](int64_t step) {
          ++calls;
          return 10 * step;
        },
        ahead);
    for (int64_t step = 0; step < 50; ++step) {
      CHECK(batches(step) == 10 * step);
    }
    CHECK(batches(7) == 70);  // a resumed run
    CHECK(batches(8) == 80);
    CHECK(batches(8) == 80);
    CHECK(batches(100) == 1000);
    if (!ahead) {
      CHECK(calls == 54);
    }
  }
}

TEST_CASE("Prefetch: the next batch is made on another thread, one thread wide, without gradients") {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  std::atomic<int> wide{0}, recording{0};
  std::vector<std::thread::id> threads;
  {
    Prefetch<int> batches([&](int64_t) {
      threads.push_back(std::this_thread::get_id());
      if (std::this_thread::get_id() != threads.front()) {
        wide = std::max(wide.load(), at::get_num_threads());
      }
      recording += torch::GradMode::is_enabled() ? 1 : 0;
      return 0;
    });
    for (int64_t step = 0; step < 5; ++step) {
      batches(step);
    }
  }
  CHECK(threads.size() == 6);
  CHECK(threads[0] == std::this_thread::get_id());
  CHECK(std::count(threads.begin(), threads.end(), threads[0]) == 1);
  CHECK(wide == 1);
  CHECK(recording == 0);
  CHECK(at::get_num_threads() == 2);  // the step's own number is left alone
  CHECK(torch::GradMode::is_enabled());
  at::set_num_threads(before);
}

TEST_CASE("Prefetch: what goes wrong is told by the call for that step") {
  Prefetch<int> batches([](int64_t step) -> int {
    if (step == 2) {
      throw std::runtime_error("image 17 cannot be read");
    }
    return static_cast<int>(step);
  });
  CHECK(batches(0) == 0);
  CHECK(batches(1) == 1);
  CHECK_THAT(error_of([&] { batches(2); }), contains("image 17 cannot be read"));
  CHECK(batches(1) == 1);
  CHECK(batches(5) == 5);  // the one that failed ahead of time is forgotten
}

TEST_CASE("Prefetch: gone while a batch is being made, or before the first") {
  {
    Prefetch<int> unused([](int64_t) { return 1; });
  }
  std::atomic<bool> done{false};
  {
    Prefetch<int> batches([&](int64_t step) {
      if (step == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        done = true;
      }
      return 1;
    });
    batches(0);
  }
  CHECK(done);
}

namespace {

/// 20 images, each of its row's number.
class SlowImages : public mixmatch::data::ImageSource {
 public:
  explicit SlowImages(std::chrono::milliseconds each) : each_(each) {}
  int64_t size() const override { return 20; }
  std::vector<int64_t> image_sizes() const override { return {1, 4, 4}; }
  torch::Tensor gather(const torch::Tensor& rows) const override {
    std::this_thread::sleep_for(each_);
    return rows.view({-1, 1, 1, 1}).expand({rows.numel(), 1, 4, 4}).to(at::kByte).contiguous();
  }
  uint32_t checksum(const torch::Tensor& /*rows*/) const override { return 1; }

 private:
  std::chrono::milliseconds each_;
};

}  // namespace

TEST_CASE("HostBatches: the feed's batches, and the share of their time in which steps waited for them") {
  using namespace std::chrono;
  const auto pictures = [](milliseconds each) {
    mixmatch::data::ImageDataset set;
    set.source = std::make_shared<SlowImages>(each);
    set.labels = at::zeros({20}, at::kLong);
    set.class_names = {"a"};
    return mixmatch::training::TrainingData{
        mixmatch::data::ImagePool({set}),
        {at::arange(8, at::kLong), at::arange(8, 20, at::kLong), at::empty({0}, at::kLong)},
        {},
        {}};
  };
  const auto waited = [&](milliseconds reading, milliseconds computing, bool ahead) {
    const auto data = pictures(reading);
    const mixmatch::training::Feed feed(data, mixmatch::training::FeedOptions().batch_size(2));
    HostBatches batches(feed, torch::kCPU, ahead);
    CHECK(batches.waited() == 0);
    mixmatch::training::RawBatch raw;
    for (int64_t step = 0; step < 8; ++step) {
      const auto begin = steady_clock::now();
      batches.take(step, raw);
      const auto expected = feed.gather(at::full({}, step, at::kLong));
      CHECK(raw.images.equal(expected.images));
      CHECK(raw.unlabeled_rows.equal(expected.unlabeled_rows));
      std::this_thread::sleep_for(computing);
      batches.end_step();
      batches.count(duration<double>(steady_clock::now() - begin).count());
    }
    CHECK(batches.seconds_waited() >= 1e-3 * static_cast<double>(reading.count()));  // the first at least
    return batches.waited();
  };
  // Each step reads once more here, to compare.
  CHECK(waited(milliseconds(20), milliseconds(0), /*ahead=*/false) > 0.3);
  CHECK(waited(milliseconds(5), milliseconds(60), /*ahead=*/true) < 0.3);
}
