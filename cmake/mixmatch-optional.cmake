# Libraries that one part alone needs; without them everything else works, and that part says what is missing.
# The target mixmatch_optional links to those that are found.
if(NOT TARGET mixmatch_optional)
  add_library(mixmatch_optional INTERFACE IMPORTED GLOBAL)

  # MIXMATCH_HAS_<name> where the header and the library are there.
  function(mixmatch_find_optional name header library)
    find_path(MIXMATCH_${name}_INCLUDE_DIR ${header})
    find_library(MIXMATCH_${name}_LIBRARY ${library})
    mark_as_advanced(MIXMATCH_${name}_INCLUDE_DIR MIXMATCH_${name}_LIBRARY)
    if(MIXMATCH_${name}_INCLUDE_DIR AND MIXMATCH_${name}_LIBRARY)
      target_include_directories(mixmatch_optional INTERFACE ${MIXMATCH_${name}_INCLUDE_DIR})
      target_link_libraries(mixmatch_optional INTERFACE ${MIXMATCH_${name}_LIBRARY})
      target_compile_definitions(mixmatch_optional INTERFACE MIXMATCH_HAS_${name})
    endif()
  endfunction()
  mixmatch_find_optional(MATIO matio.h matio)  # load_svhn (Debian: libmatio-dev)
  # decode_image, each for its format (libjpeg-dev, libpng-dev, libwebp-dev, libtiff-dev).
  mixmatch_find_optional(JPEG jpeglib.h jpeg)
  mixmatch_find_optional(PNG png.h png)
  mixmatch_find_optional(WEBP webp/decode.h webp)
  mixmatch_find_optional(TIFF tiffio.h tiff)

  # Several processes: backends of c10d that this LibTorch was built with. Its headers want their library's own (Debian:
  # libgloo-dev); the library itself LibTorch brings.
  function(mixmatch_find_backend name target header)
    set(definitions "")
    if(TARGET ${target})
      get_target_property(definitions ${target} INTERFACE_COMPILE_DEFINITIONS)
    endif()
    set(missing "")
    if(NOT "USE_C10D_${name}" IN_LIST definitions)
      set(missing "this LibTorch was built without it")
    else()
      find_path(MIXMATCH_${name}_INCLUDE_DIR ${header} HINTS ${ARGN})
      mark_as_advanced(MIXMATCH_${name}_INCLUDE_DIR)
      if(NOT MIXMATCH_${name}_INCLUDE_DIR)
        set(missing "there is no ${header}")
      endif()
    endif()
    if(missing STREQUAL "")
      target_include_directories(mixmatch_optional INTERFACE ${MIXMATCH_${name}_INCLUDE_DIR})
      target_compile_definitions(mixmatch_optional INTERFACE MIXMATCH_HAS_${name})
    elseif(PROJECT_NAME STREQUAL "mixmatch")
      message(STATUS "Several processes: without ${name}, ${missing}")
    endif()
  endfunction()
  mixmatch_find_backend(GLOO torch_cpu gloo/algorithm.h)
  mixmatch_find_backend(NCCL torch_cuda nccl.h ${TORCH_INSTALL_PREFIX}/../nvidia/nccl/include)
  mixmatch_find_backend(MPI torch_cpu mpi.h)

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
