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

#include <cstddef>
#include <cstdint>
#include <cstdlib>

// stb_image takes what a file asks for, as a few bytes that unpack to gigabytes: its memory comes from here.
namespace mixmatch::detail::stb_memory {

/// What a thread's decoder may still take, and whether it was refused something.
struct Budget {
  size_t left = 0;
  bool exceeded = false;
};
inline thread_local Budget budget;

/// In front of each block, as aligned as malloc's.
struct alignas(alignof(std::max_align_t)) Block {
  size_t size;
};

/// Zeroed, but for what memory grows by, so that what a damaged picture leaves out is the same at each read.
inline void* allocate(size_t size) {
  Block* block = nullptr;
  if (size <= budget.left) {
    block = static_cast<Block*>(std::calloc(1, sizeof(Block) + size));
  }
  if (block == nullptr) {
    budget.exceeded = true;
    return nullptr;
  }
  budget.left -= size;
  block->size = size;
  return block + 1;
}

inline void release(void* memory) {
  if (memory != nullptr) {
    Block* block = static_cast<Block*>(memory) - 1;
    budget.left += block->size;
    std::free(block);
  }
}

inline void* reallocate(void* memory, size_t size) {
  if (memory == nullptr) {
    return allocate(size);
  }
  Block* block = static_cast<Block*>(memory) - 1;
  const size_t before = block->size;
  Block* moved = nullptr;
  if (size <= before || size - before <= budget.left) {
    moved = static_cast<Block*>(std::realloc(block, sizeof(Block) + size));
  }
  if (moved == nullptr) {
    budget.exceeded = true;
    return nullptr;
  }
  budget.left += before;
  budget.left -= size;
  moved->size = size;
  return moved + 1;
}

}  // namespace mixmatch::detail::stb_memory

// The program's own settings of stb_image are put aside.
#pragma push_macro("STBI_INCLUDE_STB_IMAGE_H")
#undef STBI_INCLUDE_STB_IMAGE_H
#pragma push_macro("STB_IMAGE_IMPLEMENTATION")
#undef STB_IMAGE_IMPLEMENTATION
#pragma push_macro("STB_IMAGE_STATIC")
#undef STB_IMAGE_STATIC
#pragma push_macro("STBIDEF")
#undef STBIDEF
#pragma push_macro("STBI_NO_STDIO")
#undef STBI_NO_STDIO
#pragma push_macro("STBI_ONLY_JPEG")
#undef STBI_ONLY_JPEG
#pragma push_macro("STBI_ONLY_PNG")
#undef STBI_ONLY_PNG
#pragma push_macro("STBI_ONLY_BMP")
#undef STBI_ONLY_BMP
#pragma push_macro("STBI_ONLY_PSD")
#undef STBI_ONLY_PSD
#pragma push_macro("STBI_ONLY_TGA")
#undef STBI_ONLY_TGA
#pragma push_macro("STBI_ONLY_GIF")
#undef STBI_ONLY_GIF
#pragma push_macro("STBI_ONLY_HDR")
#undef STBI_ONLY_HDR
#pragma push_macro("STBI_ONLY_PIC")
#undef STBI_ONLY_PIC
#pragma push_macro("STBI_ONLY_PNM")
#undef STBI_ONLY_PNM
#pragma push_macro("STBI_ONLY_ZLIB")
#undef STBI_ONLY_ZLIB
#pragma push_macro("STBI_NO_JPEG")
#undef STBI_NO_JPEG
#pragma push_macro("STBI_NO_PNG")
#undef STBI_NO_PNG
#pragma push_macro("STBI_NO_BMP")
#undef STBI_NO_BMP
#pragma push_macro("STBI_NO_PSD")
#undef STBI_NO_PSD
#pragma push_macro("STBI_NO_TGA")
#undef STBI_NO_TGA
#pragma push_macro("STBI_NO_GIF")
#undef STBI_NO_GIF
#pragma push_macro("STBI_NO_HDR")
#undef STBI_NO_HDR
#pragma push_macro("STBI_NO_PIC")
#undef STBI_NO_PIC
#pragma push_macro("STBI_NO_PNM")
#undef STBI_NO_PNM
#pragma push_macro("STBI_NO_ZLIB")
#undef STBI_NO_ZLIB
#pragma push_macro("STBI_NO_LINEAR")
#undef STBI_NO_LINEAR
#pragma push_macro("STBI_SUPPORT_ZLIB")
#undef STBI_SUPPORT_ZLIB
#pragma push_macro("STBI_NO_FAILURE_STRINGS")
#undef STBI_NO_FAILURE_STRINGS
#pragma push_macro("STBI_FAILURE_USERMSG")
#undef STBI_FAILURE_USERMSG
#pragma push_macro("STBI_MALLOC")
#undef STBI_MALLOC
#pragma push_macro("STBI_REALLOC")
#undef STBI_REALLOC
#pragma push_macro("STBI_REALLOC_SIZED")
#undef STBI_REALLOC_SIZED
#pragma push_macro("STBI_FREE")
#undef STBI_FREE
#pragma push_macro("STBI_MAX_DIMENSIONS")
#undef STBI_MAX_DIMENSIONS
#pragma push_macro("stbi__err")  // a function of the same name comes before the macro
#undef stbi__err
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_NO_STDIO  // FILE would find the global functions beside these
// Only formats that are documented; PNM is read without it.
#define STBI_NO_PSD
#define STBI_NO_HDR
#define STBI_NO_PIC
#define STBI_NO_PNM
#define STBI_NO_LINEAR
#define STBI_MALLOC(size) ::mixmatch::detail::stb_memory::allocate(size)
#define STBI_REALLOC(memory, size) ::mixmatch::detail::stb_memory::reallocate(memory, size)
#define STBI_FREE(memory) ::mixmatch::detail::stb_memory::release(memory)

// Being extern "C", their names would be the same in any namespace.
#define stbi__unpremultiply_on_load_thread mixmatch_stbi__unpremultiply_on_load_thread
#define stbi_convert_iphone_png_to_rgb mixmatch_stbi_convert_iphone_png_to_rgb
#define stbi_convert_iphone_png_to_rgb_thread mixmatch_stbi_convert_iphone_png_to_rgb_thread
#define stbi_failure_reason mixmatch_stbi_failure_reason
#define stbi_hdr_to_ldr_gamma mixmatch_stbi_hdr_to_ldr_gamma
#define stbi_hdr_to_ldr_scale mixmatch_stbi_hdr_to_ldr_scale
#define stbi_image_free mixmatch_stbi_image_free
#define stbi_info_from_callbacks mixmatch_stbi_info_from_callbacks
#define stbi_info_from_memory mixmatch_stbi_info_from_memory
#define stbi_is_16_bit_from_callbacks mixmatch_stbi_is_16_bit_from_callbacks
#define stbi_is_16_bit_from_memory mixmatch_stbi_is_16_bit_from_memory
#define stbi_is_hdr_from_callbacks mixmatch_stbi_is_hdr_from_callbacks
#define stbi_is_hdr_from_memory mixmatch_stbi_is_hdr_from_memory
#define stbi_ldr_to_hdr_gamma mixmatch_stbi_ldr_to_hdr_gamma
#define stbi_ldr_to_hdr_scale mixmatch_stbi_ldr_to_hdr_scale
#define stbi_load_16_from_callbacks mixmatch_stbi_load_16_from_callbacks
#define stbi_load_16_from_memory mixmatch_stbi_load_16_from_memory
#define stbi_load_from_callbacks mixmatch_stbi_load_from_callbacks
#define stbi_load_from_memory mixmatch_stbi_load_from_memory
#define stbi_load_gif_from_memory mixmatch_stbi_load_gif_from_memory
#define stbi_set_flip_vertically_on_load mixmatch_stbi_set_flip_vertically_on_load
#define stbi_set_flip_vertically_on_load_thread mixmatch_stbi_set_flip_vertically_on_load_thread
#define stbi_set_unpremultiply_on_load mixmatch_stbi_set_unpremultiply_on_load
#define stbi_set_unpremultiply_on_load_thread mixmatch_stbi_set_unpremultiply_on_load_thread
#define stbi_zlib_decode_buffer mixmatch_stbi_zlib_decode_buffer
#define stbi_zlib_decode_malloc mixmatch_stbi_zlib_decode_malloc
#define stbi_zlib_decode_malloc_guesssize mixmatch_stbi_zlib_decode_malloc_guesssize
#define stbi_zlib_decode_malloc_guesssize_headerflag mixmatch_stbi_zlib_decode_malloc_guesssize_headerflag
#define stbi_zlib_decode_noheader_buffer mixmatch_stbi_zlib_decode_noheader_buffer
#define stbi_zlib_decode_noheader_malloc mixmatch_stbi_zlib_decode_noheader_malloc

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

#undef stbi__unpremultiply_on_load_thread
#undef stbi_convert_iphone_png_to_rgb
#undef stbi_convert_iphone_png_to_rgb_thread
#undef stbi_failure_reason
#undef stbi_hdr_to_ldr_gamma
#undef stbi_hdr_to_ldr_scale
#undef stbi_image_free
#undef stbi_info_from_callbacks
#undef stbi_info_from_memory
#undef stbi_is_16_bit_from_callbacks
#undef stbi_is_16_bit_from_memory
#undef stbi_is_hdr_from_callbacks
#undef stbi_is_hdr_from_memory
#undef stbi_ldr_to_hdr_gamma
#undef stbi_ldr_to_hdr_scale
#undef stbi_load_16_from_callbacks
#undef stbi_load_16_from_memory
#undef stbi_load_from_callbacks
#undef stbi_load_from_memory
#undef stbi_load_gif_from_memory
#undef stbi_set_flip_vertically_on_load
#undef stbi_set_flip_vertically_on_load_thread
#undef stbi_set_unpremultiply_on_load
#undef stbi_set_unpremultiply_on_load_thread
#undef stbi_zlib_decode_buffer
#undef stbi_zlib_decode_malloc
#undef stbi_zlib_decode_malloc_guesssize
#undef stbi_zlib_decode_malloc_guesssize_headerflag
#undef stbi_zlib_decode_noheader_buffer
#undef stbi_zlib_decode_noheader_malloc
#pragma pop_macro("STBI_INCLUDE_STB_IMAGE_H")
#pragma pop_macro("STB_IMAGE_IMPLEMENTATION")
#pragma pop_macro("STB_IMAGE_STATIC")
#pragma pop_macro("STBIDEF")
#pragma pop_macro("STBI_NO_STDIO")
#pragma pop_macro("STBI_ONLY_JPEG")
#pragma pop_macro("STBI_ONLY_PNG")
#pragma pop_macro("STBI_ONLY_BMP")
#pragma pop_macro("STBI_ONLY_PSD")
#pragma pop_macro("STBI_ONLY_TGA")
#pragma pop_macro("STBI_ONLY_GIF")
#pragma pop_macro("STBI_ONLY_HDR")
#pragma pop_macro("STBI_ONLY_PIC")
#pragma pop_macro("STBI_ONLY_PNM")
#pragma pop_macro("STBI_ONLY_ZLIB")
#pragma pop_macro("STBI_NO_JPEG")
#pragma pop_macro("STBI_NO_PNG")
#pragma pop_macro("STBI_NO_BMP")
#pragma pop_macro("STBI_NO_PSD")
#pragma pop_macro("STBI_NO_TGA")
#pragma pop_macro("STBI_NO_GIF")
#pragma pop_macro("STBI_NO_HDR")
#pragma pop_macro("STBI_NO_PIC")
#pragma pop_macro("STBI_NO_PNM")
#pragma pop_macro("STBI_NO_ZLIB")
#pragma pop_macro("STBI_NO_LINEAR")
#pragma pop_macro("STBI_SUPPORT_ZLIB")
#pragma pop_macro("STBI_NO_FAILURE_STRINGS")
#pragma pop_macro("STBI_FAILURE_USERMSG")
#pragma pop_macro("STBI_MALLOC")
#pragma pop_macro("STBI_REALLOC")
#pragma pop_macro("STBI_REALLOC_SIZED")
#pragma pop_macro("STBI_FREE")
#pragma pop_macro("STBI_MAX_DIMENSIONS")
#pragma pop_macro("stbi__err")

#endif
