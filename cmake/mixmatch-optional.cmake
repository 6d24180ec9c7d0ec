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
