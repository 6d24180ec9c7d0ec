// An NVRTC that opens and compiles nothing, as one does that misses its libnvrtc-builtins.

#include <cstddef>
#include <cstring>

namespace {

constexpr char log_text[] = "nvrtc: error: failed to open libnvrtc-builtins.so.\n";

}  // namespace

extern "C" {

int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*) {
  return 0;
}
int nvrtcDestroyProgram(void**) { return 0; }
int nvrtcCompileProgram(void*, int, const char* const*) { return 7; }
int nvrtcAddNameExpression(void*, const char*) { return 0; }
int nvrtcGetLoweredName(void*, const char*, const char**) { return 7; }
int nvrtcGetProgramLogSize(void*, std::size_t* size) {
  *size = sizeof log_text;
  return 0;
}
int nvrtcGetProgramLog(void*, char* log) {
  std::memcpy(log, log_text, sizeof log_text);
  return 0;
}
int nvrtcGetPTXSize(void*, std::size_t*) { return 7; }
int nvrtcGetPTX(void*, char*) { return 7; }
const char* nvrtcGetErrorString(int) { return "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE"; }
}
