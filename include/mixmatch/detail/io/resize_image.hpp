#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mixmatch::detail {

/// The pixels along one side that make one of the resized picture, and each one's share.
struct ResizeTap {
  int64_t begin = 0;
  std::vector<float> weights;
};

/// Resizes `side` pixels of `length`, of those from `begin` on, to `size`: each new pixel is a mean weighted
/// by a triangle around its centre, wider where the picture shrinks (antialiased), as torch's interpolate and
/// Pillow's resize do it.
inline std::vector<ResizeTap> resize_taps(double begin, double side, int64_t length, int64_t size) {
  const double scale = side / static_cast<double>(size), reach = std::max(scale, 1.0);
  const double first = std::floor(begin),
               last = std::min(std::ceil(begin + side), static_cast<double>(length));
  std::vector<ResizeTap> taps(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const double centre = begin + (static_cast<double>(i) + 0.5) * scale;
    const double from = std::max(std::floor(centre - reach + 0.5), first);
    const double to = std::min(std::floor(centre + reach + 0.5), last);
    auto& [at, weights] = taps[static_cast<size_t>(i)];
    at = static_cast<int64_t>(from);
    float sum = 0;
    for (double pixel = from; pixel < to; ++pixel) {
      const double share = 1 - std::abs(pixel + 0.5 - centre) / reach;
      const double covered = std::min(pixel + 1, begin + side) - std::max(pixel, begin);  // at an end
      weights.push_back(static_cast<float>(std::max(share, 0.0) * covered));
      sum += weights.back();
    }
    for (float& weight : weights) {
      weight /= sum;
    }
  }
  return taps;
}

/// The square of a picture of interleaved RGB bytes that begins at (x, y), which need not be whole numbers,
/// resized to three planes of size x size and turned upright as EXIF's `orientation` says.
inline void crop_and_resize(const uint8_t* pixels, int64_t width, int64_t height, double x, double y,
                            double side, int orientation, int64_t size, uint8_t* out) {
  const bool transposed = orientation >= 5;
  const bool rows_back = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool columns_back = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const auto rows = resize_taps(y, side, height, size), columns = resize_taps(x, side, width, size);
  const int64_t begin = columns.front().begin;
  const int64_t end = columns.back().begin + static_cast<int64_t>(columns.back().weights.size());
  std::vector<float> row(static_cast<size_t>(3 * (end - begin)));
  for (int64_t i = 0; i < size; ++i) {
    const auto& [first, row_weights] = rows[static_cast<size_t>(i)];
    std::fill(row.begin(), row.end(), 0.0F);
    const uint8_t* in = pixels + 3 * (width * first + begin);
    for (const float weight : row_weights) {
      for (size_t k = 0; k < row.size(); ++k) {
        row[k] += weight * static_cast<float>(in[k]);
      }
      in += 3 * width;
    }
    const int64_t down = rows_back ? size - 1 - i : i;
    for (int64_t j = 0; j < size; ++j) {
      const auto& [left, weights] = columns[static_cast<size_t>(j)];
      const int64_t across = columns_back ? size - 1 - j : j;
      uint8_t* to = out + (transposed ? across * size + down : down * size + across);
      for (int64_t c = 0; c < 3; ++c, to += size * size) {
        float sum = 0;
        const float* from = row.data() + 3 * (left - begin) + c;
        for (const float weight : weights) {
          sum += weight * *from;
          from += 3;
        }
        *to = static_cast<uint8_t>(std::clamp(std::nearbyint(sum), 0.0F, 255.0F));
      }
    }
  }
}

}  // namespace mixmatch::detail
