#pragma once

#include <ATen/MemoryOverlap.h>
#include <torch/types.h>

#include <string>

namespace mixmatch::detail {

inline void check_type_and_device(const char* function, const at::Tensor& out, at::ScalarType type,
                                  c10::Device device) {
  TORCH_CHECK(out.defined() && out.scalar_type() == type && out.device() == device, function,
              ": out must be ", type, " on ", device, ", got ",
              out.defined() ? c10::str(out.scalar_type(), " on ", out.device()) : std::string("undefined"));
}

inline void check_not_expanded(const char* function, const at::Tensor& out) {
  TORCH_CHECK(at::has_internal_overlap(out) != at::MemOverlap::Yes, function,
              ": out must have memory for each element, got an expanded tensor of strides ", out.strides());
}

/// A result may be its source, or be apart from it; a part in common would be read after it was written.
inline void check_same_or_separate(const char* function, const at::Tensor& out, const at::Tensor& source,
                                   const char* source_name) {
  check_not_expanded(function, out);
  const auto status = at::get_overlap_status(out, source);
  const bool same = out.data_ptr() == source.data_ptr() && out.strides() == source.strides();
  TORCH_CHECK(status != at::MemOverlapStatus::Partial &&
                  (status != at::MemOverlapStatus::TooHard || same || !out.is_alias_of(source)),
              function, ": out must be ", source_name, " itself or share no memory with it");
}

/// A result must be apart from its source. Two slices of one buffer are; where strides make it too hard to
/// tell, one buffer counts as shared.
inline void check_separate(const char* function, const at::Tensor& out, const at::Tensor& source,
                           const char* source_name) {
  check_not_expanded(function, out);
  const auto status = at::get_overlap_status(out, source);
  TORCH_CHECK(status == at::MemOverlapStatus::No ||
                  (status == at::MemOverlapStatus::TooHard && !out.is_alias_of(source)),
              function, ": out must not share memory with ", source_name);
}

}  // namespace mixmatch::detail
