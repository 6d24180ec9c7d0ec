#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mixmatch::detail {

/// The weights with which one row or column of a picture becomes an output pixel.
struct ResizeTap {
  int64_t first = 0;
  std::vector<float> weights;  ///< of first, first + 1, …; they add up to 1
};

/// Taps of `size` pixels that cover the middle size * scale of `extent` pixels: a triangle as wide as an
/// output pixel's distance to its neighbours (bilinear, and antialiased where the picture shrinks).
inline std::vector<ResizeTap> resize_taps(int64_t extent, int64_t size, double scale) {
  const double support = std::max(scale, 1.0);
  std::vector<ResizeTap> taps(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    auto& tap = taps[static_cast<size_t>(i)];
    const double center = static_cast<double>(extent) / 2 +
                          (static_cast<double>(i) + 0.5 - static_cast<double>(size) / 2) * scale;
    tap.first = std::clamp<int64_t>(static_cast<int64_t>(std::floor(center - support + 0.5)), 0, extent - 1);
    const int64_t end =
        std::clamp<int64_t>(static_cast<int64_t>(std::floor(center + support + 0.5)), tap.first + 1, extent);
    std::vector<double> weights;
    double sum = 0;
    for (int64_t pixel = tap.first; pixel < end; ++pixel) {
      weights.push_back(std::max(0.0, 1 - std::abs(static_cast<double>(pixel) + 0.5 - center) / support));
      sum += weights.back();
    }
    for (const double weight : weights) {
      tap.weights.push_back(
          static_cast<float>(sum > 0 ? weight / sum : 1 / static_cast<double>(weights.size())));
    }
  }
  return taps;
}

/// A picture of interleaved RGB bytes, resized so that its shorter side is `size`, and its middle cut out:
/// three planes of size x size. Needs memory for height x size pixels beside its arguments.
inline void resize_and_crop(const uint8_t* pixels, int64_t width, int64_t height, int64_t size,
                            uint8_t* out) {
  const double scale = static_cast<double>(std::min(width, height)) / static_cast<double>(size);
  const auto across = resize_taps(width, size, scale);
  const auto down = resize_taps(height, size, scale);
  const int64_t first_row = down.front().first;
  const int64_t end_row = down.back().first + static_cast<int64_t>(down.back().weights.size());
  const auto row_values = static_cast<size_t>(3 * size);
  std::vector<float> rows(static_cast<size_t>(end_row - first_row) * row_values);
  for (int64_t y = first_row; y < end_row; ++y) {
    float* row = rows.data() + static_cast<size_t>(y - first_row) * row_values;
    for (const auto& tap : across) {
      const uint8_t* pixel = pixels + (y * width + tap.first) * 3;
      float red = 0;
      float green = 0;
      float blue = 0;
      for (const float weight : tap.weights) {
        red += weight * static_cast<float>(pixel[0]);
        green += weight * static_cast<float>(pixel[1]);
        blue += weight * static_cast<float>(pixel[2]);
        pixel += 3;
      }
      row[0] = red;
      row[1] = green;
      row[2] = blue;
      row += 3;
    }
  }
  std::vector<float> sums(row_values);
  for (int64_t y = 0; y < size; ++y) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    const auto& tap = down[static_cast<size_t>(y)];
    const float* row = rows.data() + static_cast<size_t>(tap.first - first_row) * row_values;
    for (const float weight : tap.weights) {
      for (size_t i = 0; i < row_values; ++i) {
        sums[i] += weight * row[i];
      }
      row += row_values;
    }
    for (int64_t x = 0; x < size; ++x) {
      for (int64_t c = 0; c < 3; ++c) {
        out[(c * size + y) * size + x] =
            static_cast<uint8_t>(std::clamp(sums[static_cast<size_t>(3 * x + c)] + 0.5F, 0.0F, 255.0F));
      }
    }
  }
}

}  // namespace mixmatch::detail
