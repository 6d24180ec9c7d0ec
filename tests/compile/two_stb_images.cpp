// A program's stb_image and the library's in one file, without optimisation: no function is dropped or
// inlined, and so names that are the same to the linker meet.
#if __has_include(<stb/stb_image.h>)
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
#undef STB_IMAGE_IMPLEMENTATION
#endif

#include <mixmatch/detail/io/stb_image.hpp>
