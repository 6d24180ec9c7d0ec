#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace mixmatch::training {

struct Interval {
  double low = 0, high = 0;
};

namespace detail {

inline void check_count(const char* function, int64_t count, int64_t total, double level) {
  TORCH_CHECK(count >= 0 && count <= total, function, ": count must be in [0, ", total, "], got ", count);
  TORCH_CHECK(level > 0 && level < 1, function, ": level must be in (0, 1), got ", level);
}

/// z with P(Z <= z) = probability for a standard normal Z; by bisection, to the last bits.
inline double normal_quantile(double probability) {
  double low = -40, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / std::sqrt(2.0)) / 2 < probability ? low : high) = middle;
  }
  return (low + high) / 2;
}

/// The regularised incomplete beta function I_x(a, b) for a, b > 0 by its continued fraction (DLMF 8.17.22)
/// with Lentz's method, on the side of x where it converges fast.
inline double incomplete_beta(double x, double a, double b) {
  if (x <= 0 || x >= 1) {
    return x <= 0 ? 0 : 1;
  }
  if (x > (a + 1) / (a + b + 2)) {
    return 1 - incomplete_beta(1 - x, b, a);
  }
  constexpr double tiny = 1e-300;
  const auto away_from_zero = [](double value) { return std::abs(value) < tiny ? tiny : value; };
  double c = 1, d = 1 / away_from_zero(1 - (a + b) * x / (a + 1)), fraction = d;
  for (int m = 1; m < 100000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    double factor = 1;
    for (const double coefficient : {even, odd}) {
      d = 1 / away_from_zero(1 + coefficient * d);
      c = away_from_zero(1 + coefficient / c);
      factor = c * d;
      fraction *= factor;
    }
    if (std::abs(factor - 1) < 1e-15) {
      break;
    }
  }
  return fraction *
         std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) +
                  b * std::log1p(-x)) /
         a;
}

/// P(X >= count) of a binomial X with `total` draws of probability p.
inline double binomial_upper_tail(int64_t count, int64_t total, double p) {
  return count <= 0 ? 1.0
                    : incomplete_beta(p, static_cast<double>(count), static_cast<double>(total - count + 1));
}

}  // namespace detail

/// Wilson's score interval for a proportion of which `count` of `total` independent draws were seen (Wilson
/// 1927; Newcombe 1998, Statistics in Medicine 17:857, method 3):
///
///     (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = count / n
///
/// with z the two-sided normal quantile of `level`. Within [0, 1], sensible for few draws and at 0 and n; of
/// no draws it is [0, 1]. Throws on a count outside [0, total] and a level outside (0, 1). For an error in
/// percent: 100 times it. It says what the choice of the held-out pictures leaves open, not what another seed
/// of training would change.
inline Interval wilson_interval(int64_t count, int64_t total, double level = 0.95) {
  detail::check_count("wilson_interval", count, total, level);
  if (total == 0) {
    return {0, 1};
  }
  const double z = detail::normal_quantile((1 + level) / 2);
  const auto n = static_cast<double>(total);
  const double p = static_cast<double>(count) / n, z2 = z * z / n;
  const double middle = (p + z2 / 2) / (1 + z2);
  const double half = std::sqrt(z2 * (p * (1 - p) + z2 / 4)) / (1 + z2);
  return {count == 0 ? 0.0 : std::max(0.0, middle - half),
          count == total ? 1.0 : std::min(1.0, middle + half)};
}

/// One-sided lower bound of a proportion (Clopper and Pearson 1934): the p at which `count` or more of
/// `total` draws have probability 1 - level; 0 for count = 0. Exact: below the true proportion in at least
/// the share `level` of all samples. Throws as wilson_interval().
inline double clopper_pearson_lower(int64_t count, int64_t total, double level = 0.95) {
  detail::check_count("clopper_pearson_lower", count, total, level);
  double low = 0, high = count == 0 ? 0.0 : 1.0;
  for (int i = 0; i < 60 && low < high; ++i) {
    const double middle = (low + high) / 2;
    (detail::binomial_upper_tail(count, total, middle) < 1 - level ? low : high) = middle;
  }
  return low;
}

}  // namespace mixmatch::training
