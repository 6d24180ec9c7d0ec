# Libraries that one loader alone needs; without them everything else works, and that loader says what is missing.
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
endif()
