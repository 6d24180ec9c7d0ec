#include <mixmatch/detail/cuda/cuda_augment.hpp>
#include <mixmatch/detail/cuda/cuda_compiler.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <string>

using mixmatch::detail::CudaCompiler;

TEST_CASE("without NVRTC the compiler says why") {
  const CudaCompiler none({"libno_such_library.so"});
  CHECK_FALSE(none.can_compile());
  CHECK_FALSE(none.can_launch());
  CHECK_THAT(none.why_not(), contains("libno_such_library.so"));
  CHECK_THAT(error_of([&] { none.compile(mixmatch::detail::cuda_augment_source, "crop_flip<float>", 90); }),
             contains("cannot compile CUDA kernels: "));
}

TEST_CASE("an NVRTC that compiles nothing is passed over, with its reason in one line") {
  const CudaCompiler broken({MIXMATCH_BROKEN_NVRTC, "libno_such_library.so"});
  CHECK_FALSE(broken.can_compile());
  CHECK_THAT(broken.why_not(), contains("failed to open libnvrtc-builtins.so"));
  CHECK_THAT(broken.why_not(), contains("libno_such_library.so"));
  CHECK(broken.why_not().find('\n') == std::string::npos);
}

TEST_CASE("NVRTC of the program's own CUDA version comes first") {
  CHECK(mixmatch::detail::nvrtc_libraries(12).front() == "libnvrtc.so.12");
  CHECK(mixmatch::detail::nvrtc_libraries(11).front() == "libnvrtc.so.11.2");
  CHECK(mixmatch::detail::nvrtc_libraries(12).size() == mixmatch::detail::nvrtc_libraries().size());
}
