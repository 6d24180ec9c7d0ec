#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/run/memory.hpp>

#include <cstdint>
#include <string>

namespace mixmatch::training {

/// The bytes that `--cache-memory` names: a number with K, M, G or T behind it or not, or "auto", a quarter
/// of machine_memory(). Throws on another text.
inline int64_t parse_cache_memory(const std::string& text) {
  if (text == "auto") {
    return machine_memory() / 4;
  }
  const auto bytes = mixmatch::detail::parse_bytes(text);
  TORCH_CHECK(bytes.has_value(), "--cache-memory: expected bytes, as 500M or 4G, or auto, got ",
              mixmatch::detail::quote_for_message(text));
  return *bytes;
}

}  // namespace mixmatch::training
