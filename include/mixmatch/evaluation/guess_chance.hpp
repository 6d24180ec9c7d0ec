#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/evaluation/proportion.hpp>

#include <cstdint>

namespace mixmatch::training {

/// Whether guesses, of which `right` of `total` are, are shown to be about as good as chance, 1 / L of L
/// classes: the one-sided binomial test at 1 - level does not show them to be better, and rejects that as
/// many as
///
///     1/L + (1 - 1/L) / 4
///
/// are right, a quarter of the way to all. Of few guesses that second test cannot be passed (of ten classes
/// it takes 8, of two 4), so that they raise no false alarm. Throws on fewer than 2 classes, a count outside
/// [0, total] and a level outside (0, 1).
inline bool guesses_at_chance(int64_t right, int64_t total, int64_t num_classes, double level = 0.95) {
  detail::check_count("guesses_at_chance", right, total, level);
  TORCH_CHECK(num_classes >= 2, "guesses_at_chance: num_classes must be >= 2, got ", num_classes);
  const double chance = 1 / static_cast<double>(num_classes), useful = chance + (1 - chance) / 4;
  return detail::binomial_upper_tail(right, total, chance) >= 1 - level && right < total &&
         1 - detail::binomial_upper_tail(right + 1, total, useful) < 1 - level;
}

}  // namespace mixmatch::training
