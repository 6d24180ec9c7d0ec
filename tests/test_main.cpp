#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using ListenerBase = Catch::EventListenerBase;
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
using ListenerBase = Catch::TestEventListenerBase;
#endif

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstdio>

#include "skip.hpp"

namespace {

/// LibTorch seeds its default generator by chance: each test begins with the same one, alone or not.
class SeedListener : public ListenerBase {
 public:
  using ListenerBase::ListenerBase;
  void testCaseStarting(const Catch::TestCaseInfo&) override { at::manual_seed(1); }
};

}  // namespace

CATCH_REGISTER_LISTENER(SeedListener)

// Two threads, wherever the tests run, so that threaded paths are threaded.
int main(int argc, char** argv) {
  at::set_num_threads(2);
  const int status = Catch::Session().run(argc, argv);
  for (const auto& reason : skip_reasons()) {
    std::printf("%s: %s\n", status == 0 ? "SKIPPED" : "left out", reason.c_str());
  }
  return status;
}
