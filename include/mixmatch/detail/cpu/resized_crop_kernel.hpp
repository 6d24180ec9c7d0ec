#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// The rectangles that are cut from images, all inside of them, and which results are mirrored (flip 1, else
/// 0): int64 [N] on the images' device.
struct CropBoxes {
  Tensor top, left, height, width, flip;
};

// Bilinear weights are whole numbers of 2048ths, and sums whole numbers: the same result on every device.
inline constexpr int64_t kLerpOne = 2048;
inline constexpr int kLerpBits = 11;

/// The two pixels of `length` in a line that make pixel `at` of `size`, and the second one's weight. Sample
/// points are pixels' centres; the line goes on beyond its ends as it is there.
struct LerpTap {
  int64_t low, high;
  int32_t weight;
};

inline LerpTap lerp_tap(int64_t at, int64_t length, int64_t size) {
  const int64_t place = std::clamp<int64_t>((2 * at + 1) * length - size, 0, 2 * size * (length - 1));
  const int64_t low = place / (2 * size);
  const int64_t weight = (place % (2 * size) * kLerpOne + size) / (2 * size);
  return {low, std::min(low + 1, length - 1), static_cast<int32_t>(weight)};
}

/// Boxes of uint8 [N, C, H, W] images, enlarged to H x W, on the CPU.
inline Tensor resized_crop_on_cpu(const Tensor& images, const CropBoxes& boxes) {
  Tensor out = at::empty(images.sizes(), images.options().memory_format(at::MemoryFormat::ChannelsLast));
  const int64_t channels = images.size(1), height = images.size(2), width = images.size(3);
  const int64_t image_size = channels * height * width;
  if (out.numel() == 0) {
    return out;
  }
  auto* target = out.data_ptr<uint8_t>();
  const auto* source = images.data_ptr<uint8_t>();
  const int64_t channel_step = images.stride(1), row_step = images.stride(2), column_step = images.stride(3);
  const auto* tops = boxes.top.data_ptr<int64_t>();
  const auto* lefts = boxes.left.data_ptr<int64_t>();
  const auto* heights = boxes.height.data_ptr<int64_t>();
  const auto* widths = boxes.width.data_ptr<int64_t>();
  const auto* flips = boxes.flip.data_ptr<int64_t>();
  parallel_for(0, images.size(0), std::max<int64_t>(1, 32768 / image_size), [&](int64_t begin, int64_t end) {
    std::vector<LerpTap> columns(static_cast<size_t>(width));
    std::vector<int32_t> line(static_cast<size_t>(channels * width));  // a line of the box, by channels
    for (int64_t n = begin; n < end; ++n) {
      const int64_t length = widths[n];
      for (int64_t x = 0; x < width; ++x) {
        columns[static_cast<size_t>(x)] = lerp_tap(flips[n] != 0 ? width - 1 - x : x, length, width);
      }
      const uint8_t* box = source + n * images.stride(0) + tops[n] * row_step + lefts[n] * column_step;
      uint8_t* to = target + n * image_size;
      for (int64_t y = 0; y < height; ++y) {
        const LerpTap row = lerp_tap(y, heights[n], height);
        const int32_t low_weight = static_cast<int32_t>(kLerpOne) - row.weight;
        for (int64_t c = 0; c < channels; ++c) {
          const uint8_t* low = box + c * channel_step + row.low * row_step;
          const uint8_t* high = box + c * channel_step + row.high * row_step;
          int32_t* values = line.data() + c * width;
          if (column_step == 1) {
            for (int64_t x = 0; x < length; ++x) {
              values[x] = low[x] * low_weight + high[x] * row.weight;
            }
          } else {
            for (int64_t x = 0; x < length; ++x) {
              values[x] = low[x * column_step] * low_weight + high[x * column_step] * row.weight;
            }
          }
        }
        for (const LerpTap& column : columns) {
          const int32_t* values = line.data();
          for (int64_t c = 0; c < channels; ++c, values += width) {
            const int32_t sum = values[column.low] * (static_cast<int32_t>(kLerpOne) - column.weight) +
                                values[column.high] * column.weight;
            *to++ = static_cast<uint8_t>((sum + (1 << (2 * kLerpBits - 1))) >> (2 * kLerpBits));
          }
        }
      }
    }
  });
  return out;
}

/// lerp_tap() of `size` pixels for each of N boxes: int64 [N, size].
struct LerpTaps {
  Tensor low, high, weight;
};

inline LerpTaps lerp_taps(const Tensor& length, const Tensor& at, int64_t size) {
  const Tensor lengths = length.unsqueeze(1);
  const Tensor place = at::minimum(((2 * at + 1) * lengths - size).clamp_min(0), (lengths - 1) * (2 * size));
  const Tensor low = place.div(2 * size, "floor");
  return {low, at::minimum(low + 1, lengths - 1),
          (place.remainder(2 * size) * kLerpOne + size).div(2 * size, "floor")};
}

/// The same in ATen's calls, on any device.
inline Tensor resized_crop_composite(const Tensor& images, const CropBoxes& boxes) {
  const int64_t count = images.size(0), channels = images.size(1), height = images.size(2),
                width = images.size(3);
  const auto options = boxes.top.options();
  const Tensor plain = at::arange(width, options).unsqueeze(0);
  const Tensor flip = boxes.flip.unsqueeze(1);
  const auto rows = lerp_taps(boxes.height, at::arange(height, options).unsqueeze(0), height);
  const auto columns = lerp_taps(boxes.width, plain + flip * ((width - 1) - 2 * plain), width);
  const Tensor pixels = images.permute({0, 2, 3, 1}).reshape({count * height, width * channels});
  const Tensor first_row = at::arange(count, options).unsqueeze(1) * height + boxes.top.unsqueeze(1);
  const auto mix = [](const Tensor& from, const Tensor& low, const Tensor& high, const Tensor& weight) {
    const Tensor share = weight.reshape({-1, 1}).to(at::kInt);
    return from.index_select(0, low.reshape({-1})).to(at::kInt) * (kLerpOne - share) +
           from.index_select(0, high.reshape({-1})).to(at::kInt) * share;
  };
  const Tensor lines = mix(pixels, first_row + rows.low, first_row + rows.high, rows.weight);
  // Pixel `left + column` of line (n, y).
  const Tensor line = at::arange(count * height, options).view({count, height, 1}) * width;
  const auto pixel = [&](const Tensor& column) {
    return line + (boxes.left.unsqueeze(1) + column).unsqueeze(1);
  };
  const Tensor mixed = mix(lines.view({count * height * width, channels}), pixel(columns.low),
                           pixel(columns.high), columns.weight.unsqueeze(1).expand({count, height, width}));
  return (mixed + (1 << (2 * kLerpBits - 1)))
      .bitwise_right_shift(2 * kLerpBits)
      .to(at::kByte)
      .view({count, height, width, channels})
      .permute({0, 3, 1, 2});
}

}  // namespace mixmatch::detail
