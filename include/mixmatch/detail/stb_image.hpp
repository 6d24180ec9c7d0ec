#pragma once

// The stb_image library (Debian: libstb-dev) in a namespace and with functions of its own, so that a program
// may use stb_image for itself, in the same file even, before or after. MIXMATCH_HAS_STB_IMAGE tells whether
// it is here; MIXMATCH_NO_STB_IMAGE, defined by the user, leaves it out.

#if !defined(MIXMATCH_NO_STB_IMAGE) && __has_include(<stb/stb_image.h>)
#define MIXMATCH_HAS_STB_IMAGE 1
#define MIXMATCH_STB_IMAGE_HEADER <stb/stb_image.h>
#elif !defined(MIXMATCH_NO_STB_IMAGE) && __has_include(<stb_image.h>)
#define MIXMATCH_HAS_STB_IMAGE 1
#define MIXMATCH_STB_IMAGE_HEADER <stb_image.h>
#endif

#ifdef MIXMATCH_HAS_STB_IMAGE

// All that it includes, so that nothing of this lands in the namespace.
#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#pragma push_macro("STBI_INCLUDE_STB_IMAGE_H")
#pragma push_macro("STB_IMAGE_IMPLEMENTATION")
#pragma push_macro("STB_IMAGE_STATIC")
#pragma push_macro("STBIDEF")
#pragma push_macro("STBI_NO_STDIO")
#pragma push_macro("stbi__err")  // a function of the same name comes before the macro
#undef STBI_INCLUDE_STB_IMAGE_H
#undef STB_IMAGE_IMPLEMENTATION
#undef STB_IMAGE_STATIC
#undef STBIDEF
#undef STBI_NO_STDIO
#undef stbi__err
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_NO_STDIO  // FILE would find the global functions beside these

// Those that end up in the program: being extern "C", their names would be the same in any namespace.
#define stbi_load_from_callbacks mixmatch_stbi_load_from_callbacks
#define stbi_image_free mixmatch_stbi_image_free
#define stbi_failure_reason mixmatch_stbi_failure_reason
#define stbi_zlib_decode_malloc_guesssize_headerflag mixmatch_stbi_zlib_decode_malloc_guesssize_headerflag

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wextra"
#endif
namespace mixmatch::detail::stb {
#include MIXMATCH_STB_IMAGE_HEADER
}  // namespace mixmatch::detail::stb
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#undef stbi_load_from_callbacks
#undef stbi_image_free
#undef stbi_failure_reason
#undef stbi_zlib_decode_malloc_guesssize_headerflag
#pragma pop_macro("STBI_INCLUDE_STB_IMAGE_H")
#pragma pop_macro("STB_IMAGE_IMPLEMENTATION")
#pragma pop_macro("STB_IMAGE_STATIC")
#pragma pop_macro("STBIDEF")
#pragma pop_macro("STBI_NO_STDIO")
#pragma pop_macro("stbi__err")

#endif
