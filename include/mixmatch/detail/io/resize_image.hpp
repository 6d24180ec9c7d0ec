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

/// A part of a picture of interleaved RGB bytes: where it begins and how long it is, in pixels that need not
/// be whole.
struct PicturePart {
  double x, y, width, height;
};

/// That part, resized to `columns` x `rows` pixels (before it is turned) and turned upright as EXIF's
/// `orientation` says, into the middle of three planes of size x size, of which it leaves the rest as it is.
inline void resize_part(const uint8_t* pixels, int64_t width, int64_t height, const PicturePart& part,
                        int64_t columns, int64_t rows, int orientation, int64_t size, uint8_t* out) {
  const bool transposed = orientation >= 5;
  const bool rows_back = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool columns_back = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const auto row_taps = resize_taps(part.y, part.height, height, rows);
  const auto column_taps = resize_taps(part.x, part.width, width, columns);
  const int64_t begin = column_taps.front().begin;
  const int64_t end = column_taps.back().begin + static_cast<int64_t>(column_taps.back().weights.size());
  const int64_t above = (size - (transposed ? columns : rows)) / 2;
  const int64_t beside = (size - (transposed ? rows : columns)) / 2;
  uint8_t* first_pixel = out + above * size + beside;
  std::vector<float> row(static_cast<size_t>(3 * (end - begin)));
  for (int64_t i = 0; i < rows; ++i) {
    const auto& [first, row_weights] = row_taps[static_cast<size_t>(i)];
    std::fill(row.begin(), row.end(), 0.0F);
    const uint8_t* in = pixels + 3 * (width * first + begin);
    for (const float weight : row_weights) {
      for (size_t k = 0; k < row.size(); ++k) {
        row[k] += weight * static_cast<float>(in[k]);
      }
      in += 3 * width;
    }
    const int64_t down = rows_back ? rows - 1 - i : i;
    for (int64_t j = 0; j < columns; ++j) {
      const auto& [left, weights] = column_taps[static_cast<size_t>(j)];
      const int64_t across = columns_back ? columns - 1 - j : j;
      uint8_t* to = first_pixel + (transposed ? across * size + down : down * size + across);
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

/// The square of a picture of interleaved RGB bytes that begins at (x, y), which need not be whole numbers,
/// resized to three planes of size x size and turned upright as EXIF's `orientation` says.
inline void crop_and_resize(const uint8_t* pixels, int64_t width, int64_t height, double x, double y,
                            double side, int orientation, int64_t size, uint8_t* out) {
  resize_part(pixels, width, height, {x, y, side, side}, size, size, orientation, size, out);
}

/// The first `part_width` x `part_height` of a picture, resized so that the longer side is `size`, turned
/// upright, in the middle of three planes of size x size whose rest is grey. The shorter side is rounded, and
/// at least 1.
inline void resize_whole(const uint8_t* pixels, int64_t width, int64_t height, double part_width,
                         double part_height, int orientation, int64_t size, uint8_t* out) {
  const double scale = static_cast<double>(size) / std::max(part_width, part_height);
  const auto length = [&](double whole) { return std::clamp<int64_t>(std::llround(whole * scale), 1, size); };
  std::fill_n(out, 3 * size * size, uint8_t{127});
  resize_part(pixels, width, height, {0, 0, part_width, part_height}, length(part_width), length(part_height),
              orientation, size, out);
}

}  // namespace mixmatch::detail
