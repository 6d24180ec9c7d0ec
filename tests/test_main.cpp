#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <ATen/Parallel.h>

// Two threads, wherever the tests run, so that threaded paths are threaded.
int main(int argc, char** argv) {
  at::set_num_threads(2);
  return Catch::Session().run(argc, argv);
}
