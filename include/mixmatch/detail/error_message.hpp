#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string_view>

namespace mixmatch::detail {

/// What an error says, one of LibTorch's without the stack that its what() goes on with; as long as it lives.
inline std::string_view error_message(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
}

}  // namespace mixmatch::detail
