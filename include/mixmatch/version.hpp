#pragma once

/// The library's version (https://semver.org), for the preprocessor and as text. CMake reads it from here.
#define MIXMATCH_VERSION_MAJOR 0
#define MIXMATCH_VERSION_MINOR 1
#define MIXMATCH_VERSION_PATCH 0

#define MIXMATCH_VERSION_TEXT_OF(number) #number
#define MIXMATCH_VERSION_JOIN(major, minor, patch) \
  MIXMATCH_VERSION_TEXT_OF(major) "." MIXMATCH_VERSION_TEXT_OF(minor) "." MIXMATCH_VERSION_TEXT_OF(patch)
/// "MAJOR.MINOR.PATCH"
#define MIXMATCH_VERSION \
  MIXMATCH_VERSION_JOIN(MIXMATCH_VERSION_MAJOR, MIXMATCH_VERSION_MINOR, MIXMATCH_VERSION_PATCH)
