# Libraries that one part alone needs; without them everything else works, and that part says what is missing.
# The target mixmatch_optional links to those that are found.
if(NOT TARGET mixmatch_optional)
  add_library(mixmatch_optional INTERFACE IMPORTED GLOBAL)

  # load_svhn reads MATLAB files (Debian: libmatio-dev).
  find_path(MIXMATCH_MATIO_INCLUDE_DIR matio.h)
  find_library(MIXMATCH_MATIO_LIBRARY matio)
  mark_as_advanced(MIXMATCH_MATIO_INCLUDE_DIR MIXMATCH_MATIO_LIBRARY)
  if(MIXMATCH_MATIO_INCLUDE_DIR AND MIXMATCH_MATIO_LIBRARY)
    target_include_directories(mixmatch_optional INTERFACE ${MIXMATCH_MATIO_INCLUDE_DIR})
    target_link_libraries(mixmatch_optional INTERFACE ${MIXMATCH_MATIO_LIBRARY})
    target_compile_definitions(mixmatch_optional INTERFACE MIXMATCH_HAS_MATIO)
  endif()

  # Kernels that are compiled at run time, and CUDA graphs: where LibTorch was built with CUDA. No nvcc, and nothing of
  # CUDA's but what LibTorch links to.
  if(TARGET torch_cuda)
    find_path(MIXMATCH_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ${CUDA_INCLUDE_DIRS}
      ${CUDA_TOOLKIT_ROOT_DIR}/include /usr/local/cuda/include)
    mark_as_advanced(MIXMATCH_CUDA_INCLUDE_DIR)
    if(MIXMATCH_CUDA_INCLUDE_DIR)
      target_include_directories(mixmatch_optional INTERFACE ${MIXMATCH_CUDA_INCLUDE_DIR})
      target_link_libraries(mixmatch_optional INTERFACE ${CMAKE_DL_LIBS})
      target_compile_definitions(mixmatch_optional INTERFACE MIXMATCH_HAS_CUDA)
    endif()
  endif()
endif()
