#pragma once

#include <torch/types.h>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/counter_rng.hpp>
#include <mixmatch/detail/cpu/parallel.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>

namespace mixmatch::data {

namespace detail {

// How hard the task is. Lengths are in eighths of a pixel, colours and noise in grey levels.
struct ShapeDifficulty {
  int64_t min_radius = 58;
  int64_t max_radius = 90;
  int64_t max_squeeze = 20;         ///< Width and height each shrink by up to so many percent.
  int64_t max_half_turn = 240;      ///< 1024 times the tangent of half the largest rotation.
  int64_t margin = 10;              ///< How far a shape's circle may reach over the border.
  int64_t max_background = 50;      ///< Each channel of the background's colours is at most this,
  int64_t min_foreground = 205;     ///< and of the shape's at least this.
  int64_t max_clutter = 5;          ///< Patches behind the shape,
  int64_t max_clutter_radius = 24;  ///< of this radius,
  int64_t max_occluders = 1;        ///< and patches before it,
  int64_t max_occluder_radius = 14;
  int64_t max_noise = 36;
};
inline constexpr ShapeDifficulty shape_difficulty{};

inline constexpr int64_t shape_side = 32;
inline constexpr int64_t shape_pixel = 96;   // units of position a pixel
inline constexpr int64_t shape_samples = 3;  // a pixel in each direction, against jagged edges
inline constexpr int64_t shape_unit = 1024;  // a shape's radius in its own coordinates
inline constexpr int64_t shape_matrix_bits = 20;

constexpr int64_t square_of(int64_t value) { return value * value; }

/// Whether (u, v) lies in the shape of class `kind`, in the shape's own coordinates: v points down, radius
/// 1024.
inline bool inside_shape(int64_t kind, int64_t u, int64_t v) {
  const int64_t au = std::abs(u);
  const int64_t av = std::abs(v);
  switch (kind) {
    case 0:  // circle
      return u * u + v * v < square_of(900);
    case 1:  // square
      return std::max(au, av) < 780;
    case 2:  // triangle
      return v < 560 && au * 1560 < 900 * (v + 1000);
    case 3: {  // star: inside at least four of the five lines of a pentagram
      constexpr std::array<std::array<int64_t, 2>, 5> normals{
          {{0, 1024}, {974, 316}, {602, -828}, {-602, -828}, {-974, 316}}};
      int lines = 0;
      for (const auto& normal : normals) {
        lines += normal[0] * u + normal[1] * v < 360 * 1024 ? 1 : 0;
      }
      return lines >= 4;
    }
    case 4:  // cross
      return std::min(au, av) < 300 && std::max(au, av) < 950;
    case 5: {  // ring
      const int64_t distance = u * u + v * v;
      return distance < square_of(950) && distance > square_of(560);
    }
    case 6:  // crescent
      return u * u + v * v < square_of(950) && square_of(u - 420) + v * v > square_of(760);
    case 7: {  // heart: a square on its tip and discs on its upper sides
      const int64_t w = v - 80;
      return au + std::abs(w) < 720 || square_of(au - 360) + square_of(w + 360) < square_of(509);
    }
    case 8:  // arrow
      return (au < 240 && v >= -100 && v < 950) || (v < 0 && au * 1000 < 800 * (v + 1000));
    default:  // hourglass
      return av < 850 && au < 110 + av * 4 / 5;
  }
}

using ShapeColor = std::array<int64_t, 3>;

/// One picture being painted: 3 x 32 x 32 in grey levels.
class ShapeCanvas {
 public:
  /// A gradient from one colour to the other along a random direction.
  void fill(const ShapeColor& from, const ShapeColor& to, mixmatch::detail::CounterRng& rng) {
    const int64_t gx = rng.between(-16, 16);
    const int64_t gy = rng.between(-16, 16);
    const int64_t length = std::max<int64_t>(1, (std::abs(gx) + std::abs(gy)) * (shape_side - 1));
    const int64_t origin = (gx < 0 ? -gx : 0) + (gy < 0 ? -gy : 0);
    for (int64_t y = 0; y < shape_side; ++y) {
      for (int64_t x = 0; x < shape_side; ++x) {
        const int64_t along = gx * x + gy * y + origin * (shape_side - 1);
        for (size_t c = 0; c < 3; ++c) {
          at(c, y, x) = from[c] + (to[c] - from[c]) * along / length;
        }
      }
    }
  }

  /// Paints the points with inside(dx, dy), offsets from (cx, cy) in units; nothing lies further out than
  /// `radius`.
  template <class Inside>
  void paint(int64_t cx, int64_t cy, int64_t radius, const ShapeColor& color, const Inside& inside) {
    constexpr int64_t all = shape_samples * shape_samples;
    constexpr int64_t step = shape_pixel / shape_samples;
    const auto first = [&](int64_t center) { return std::max<int64_t>(0, (center - radius) / shape_pixel); };
    const auto last = [&](int64_t center) {
      return std::min(shape_side - 1, (center + radius) / shape_pixel);
    };
    for (int64_t y = first(cy); y <= last(cy); ++y) {
      for (int64_t x = first(cx); x <= last(cx); ++x) {
        int64_t covered = 0;
        for (int64_t sample = 0; sample < all; ++sample) {
          const int64_t px = x * shape_pixel + (sample % shape_samples) * step + step / 2;
          const int64_t py = y * shape_pixel + (sample / shape_samples) * step + step / 2;
          covered += inside(px - cx, py - cy) ? 1 : 0;
        }
        for (size_t c = 0; c < 3 && covered > 0; ++c) {
          at(c, y, x) += (color[c] - at(c, y, x)) * covered / all;
        }
      }
    }
  }

  /// The picture as bytes, each with noise of mean 0 between -amplitude and amplitude.
  void write(uint8_t* out, int64_t amplitude, mixmatch::detail::CounterRng& rng) const {
    for (size_t i = 0; i < levels_.size(); i += 2) {
      const uint64_t bits = rng.next();
      for (size_t k = 0; k < 2; ++k) {
        // The sum of four bytes, centred: near enough to a normal distribution.
        int64_t sum = -510;
        for (size_t byte = 0; byte < 4; ++byte) {
          sum += static_cast<int64_t>((bits >> (8 * (4 * k + byte))) & 0xFFU);
        }
        out[i + k] =
            static_cast<uint8_t>(std::clamp<int64_t>(levels_[i + k] + sum * amplitude / 510, 0, 255));
      }
    }
  }

 private:
  int64_t& at(size_t channel, int64_t y, int64_t x) {
    return levels_[(channel * shape_side + static_cast<size_t>(y)) * shape_side + static_cast<size_t>(x)];
  }
  std::array<int64_t, 3 * shape_side * shape_side> levels_{};
};

inline ShapeColor random_color(int64_t low, int64_t high, mixmatch::detail::CounterRng& rng) {
  ShapeColor color{};
  for (auto& channel : color) {
    channel = rng.between(low, high);
  }
  return color;
}

/// Small discs and diamonds anywhere.
inline void paint_patches(ShapeCanvas& canvas, int64_t count, int64_t max_radius, int64_t high,
                          mixmatch::detail::CounterRng& rng) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t radius = rng.between(8, max_radius) * shape_pixel / 8;
    const int64_t cx = rng.below(shape_side * shape_pixel);
    const int64_t cy = rng.below(shape_side * shape_pixel);
    const ShapeColor color = random_color(0, high, rng);
    if (rng.below(2) == 0) {
      canvas.paint(cx, cy, radius, color,
                   [=](int64_t x, int64_t y) { return x * x + y * y < radius * radius; });
    } else {
      canvas.paint(cx, cy, radius, color,
                   [=](int64_t x, int64_t y) { return std::abs(x) + std::abs(y) < radius; });
    }
  }
}

inline void paint_shape(uint8_t* out, int64_t kind, mixmatch::detail::CounterRng rng) {
  constexpr ShapeDifficulty level = shape_difficulty;
  ShapeCanvas canvas;
  const ShapeColor from = random_color(0, level.max_background, rng);
  const ShapeColor to = random_color(0, level.max_background, rng);
  const ShapeColor color = random_color(level.min_foreground, 255, rng);
  canvas.fill(from, to, rng);
  paint_patches(canvas, rng.between(0, level.max_clutter), level.max_clutter_radius, level.max_background,
                rng);

  // Rotation by theta in integers: with t = tan(theta / 2), cos = (1 - t^2) / (1 + t^2) and sin = 2t / (1 +
  // t^2).
  const int64_t t = rng.between(-level.max_half_turn, level.max_half_turn);
  const int64_t one = shape_unit;
  const int64_t hypotenuse = one * one + t * t;
  const int64_t radius = rng.between(level.min_radius, level.max_radius) * shape_pixel / 8;
  const int64_t slack = level.margin * shape_pixel / 8;
  const int64_t cx = rng.between(radius - slack, shape_side * shape_pixel - radius + slack);
  const int64_t cy = rng.between(radius - slack, shape_side * shape_pixel - radius + slack);
  const auto axis = [&](int64_t numerator) {
    const int64_t squeezed = radius * (100 - rng.between(0, level.max_squeeze)) / 100;
    const int64_t scale = (shape_unit << shape_matrix_bits) / squeezed;
    return std::array<int64_t, 2>{scale * (one * one - t * t) / hypotenuse,
                                  scale * 2 * t * one / hypotenuse * numerator};
  };
  const auto across = axis(1);
  const auto down = axis(-1);
  canvas.paint(cx, cy, radius * 5 / 4, color, [&](int64_t x, int64_t y) {
    const int64_t u = (across[0] * x + across[1] * y) >> shape_matrix_bits;
    const int64_t v = (down[0] * y + down[1] * x) >> shape_matrix_bits;
    return inside_shape(kind, u, v);
  });
  paint_patches(canvas, rng.between(0, level.max_occluders), level.max_occluder_radius, 255, rng);
  canvas.write(out, rng.between(0, level.max_noise), rng);
}

}  // namespace detail

/// A data set without a download: `count` colour pictures of 32 x 32 pixels, each of one shape out of ten
/// classes (circle, square, triangle, star, cross, ring, crescent, heart, arrow, hourglass) in random order.
///
/// Position, size, proportions, rotation, colours, background, clutter, occlusion and noise vary. Classes
/// differ by at most one picture in number. A pure function of its arguments in integer arithmetic: the same
/// bytes on every machine and with any number of threads; other seeds give other pictures. Meant for
/// demonstrations and tests: four labeled pictures a class are too few for a network to learn it alone, a few
/// thousand unlabeled ones make up for it.
inline ImageDataset make_shapes(int64_t count, uint64_t seed) {
  TORCH_CHECK(count >= 0, "make_shapes: count must be >= 0, got ", count);
  ImageDataset dataset;
  dataset.class_names = {"circle", "square",   "triangle", "star",  "cross",
                         "ring",   "crescent", "heart",    "arrow", "hourglass"};
  dataset.images = at::empty({count, 3, detail::shape_side, detail::shape_side}, at::kByte);
  dataset.labels = at::empty({count}, at::kLong);
  auto* labels = dataset.labels.data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    labels[i] = i % dataset.num_classes();
  }
  mixmatch::detail::CounterRng order(seed);
  order.shuffle(labels, count);
  auto* pixels = dataset.images.data_ptr<uint8_t>();
  mixmatch::detail::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      detail::paint_shape(pixels + i * 3 * detail::shape_side * detail::shape_side, labels[i],
                          mixmatch::detail::CounterRng(seed, static_cast<uint64_t>(i) + 1));
    }
  });
  return dataset;
}

}  // namespace mixmatch::data
