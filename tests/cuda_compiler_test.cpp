#include <mixmatch/detail/cuda_augment.hpp>
#include <mixmatch/detail/cuda_compiler.hpp>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::detail::CudaCompiler;

TEST_CASE("without NVRTC the compiler says why") {
  const CudaCompiler none({"libno_such_library.so"});
  CHECK_FALSE(none.can_compile());
  CHECK_FALSE(none.can_launch());
  CHECK_THAT(none.why_not(), contains("libno_such_library.so"));
  CHECK_THAT(error_of([&] { none.compile(mixmatch::detail::cuda_augment_source, "crop_flip<float>", 90); }),
             contains("cannot compile CUDA kernels: "));
}
