#pragma once

// Colour jitter: brightness, contrast and saturation as Pillow's ImageEnhance does them, to the bit, and hue
// in whole numbers, so that every device gives the same.

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/cpu/rand_augment_kernel.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace mixmatch::detail {

/// torchvision's numbers of the four.
enum class ColorOp : int64_t { brightness, contrast, saturation, hue };

/// A sixth of the circle of hues.
inline constexpr int64_t kHueSector = 4096;

/// What becomes of each image, on its device.
struct ColorJitterPlan {
  Tensor order;              ///< int64 [N, 4]: ColorOps, in the order in which they are applied
  Tensor factor;             ///< float32 [N, 3]: of brightness, contrast, saturation
  Tensor shift;              ///< int64 [N]: of the hue, in [-3, 3] sectors
  std::array<bool, 4> used;  ///< those that change nothing are left out
};

/// Turns the hue of one pixel (hexagonal HSV) by `shift`, which is not negative.
inline void turn_hue(uint8_t* pixel, int32_t shift) {
  constexpr auto sector = static_cast<int32_t>(kHueSector);
  const int32_t r = pixel[0], g = pixel[1], b = pixel[2];
  const int32_t most = std::max({r, g, b}), least = std::min({r, g, b}), chroma = most - least;
  if (chroma == 0) {
    return;
  }
  // Sectors from red over green to blue, and how far into the sector: the middle value's place.
  const auto part = [&](int32_t above) { return (above * sector + chroma / 2) / chroma; };
  int32_t place = 0;
  if (most == r) {
    place = g >= b ? part(g - b) : 6 * sector - part(b - g);
  } else if (most == g) {
    place = b >= r ? 2 * sector + part(b - r) : 2 * sector - part(r - b);
  } else {
    place = r >= g ? 4 * sector + part(r - g) : 4 * sector - part(g - r);
  }
  place = (place + shift) % (6 * sector);
  const int32_t within = place % sector;
  const auto into = [&](int32_t share) { return (chroma * share + sector / 2) / sector; };
  const auto up = static_cast<uint8_t>(least + into(within));
  const auto down = static_cast<uint8_t>(most - into(within));
  const auto high = static_cast<uint8_t>(most), low = static_cast<uint8_t>(least);
  const auto set = [pixel](uint8_t red, uint8_t green, uint8_t blue) {
    pixel[0] = red;
    pixel[1] = green;
    pixel[2] = blue;
  };
  switch (place / sector) {
    case 0:
      return set(high, up, low);
    case 1:
      return set(down, high, low);
    case 2:
      return set(low, high, up);
    case 3:
      return set(low, down, high);
    case 4:
      return set(up, low, high);
    default:
      return set(high, low, down);
  }
}

/// uint8 [N, 3, H, W] images on the CPU.
inline Tensor color_jitter_on_cpu(const Tensor& images, const ColorJitterPlan& jitter) {
  Tensor out = at::empty(images.sizes(), images.options().memory_format(at::MemoryFormat::ChannelsLast));
  if (out.numel() == 0) {
    return out;
  }
  RandAugmentPlan plan{};
  plan.height = static_cast<int32_t>(images.size(2));
  plan.width = static_cast<int32_t>(images.size(3));
  const int64_t pixels = images.size(2) * images.size(3);
  auto* target = out.data_ptr<uint8_t>();
  const auto* source = images.data_ptr<uint8_t>();
  const auto* orders = jitter.order.data_ptr<int64_t>();
  const auto* factors = jitter.factor.data_ptr<float>();
  const auto* shifts = jitter.shift.data_ptr<int64_t>();
  parallel_for(0, images.size(0), std::max<int64_t>(1, 10922 / pixels), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      uint8_t* image = target + 3 * pixels * n;
      gather_image(image, source + n * images.stride(0), images);
      ImageUnderAugmentation under(image, nullptr, plan);  // no operation here needs a second image
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t op = orders[4 * n + k];
        if (!jitter.used[static_cast<size_t>(op)]) {
          continue;
        }
        switch (static_cast<ColorOp>(op)) {
          case ColorOp::brightness:
            under.brightness(factors[3 * n]);
            break;
          case ColorOp::contrast:
            under.contrast(factors[3 * n + 1]);
            break;
          case ColorOp::saturation:
            under.color(factors[3 * n + 2]);
            break;
          case ColorOp::hue: {
            const auto shift = static_cast<int32_t>((shifts[n] + 6 * kHueSector) % (6 * kHueSector));
            for (int64_t i = 0; shift != 0 && i < pixels; ++i) {
              turn_hue(image + 3 * i, shift);
            }
            break;
          }
        }
      }
    }
  });
  return out;
}

/// turn_hue() of int32 [N, H, W, 3] by `shift`, int64 [N].
inline Tensor turn_hue_composite(const Tensor& pixels, const Tensor& shift) {
  const Tensor r = pixels.select(3, 0), g = pixels.select(3, 1), b = pixels.select(3, 2);
  const Tensor most = at::maximum(at::maximum(r, g), b), least = at::minimum(at::minimum(r, g), b);
  const Tensor chroma = most - least, divisor = chroma.clamp_min(1);
  const auto part = [&](const Tensor& from, const Tensor& to) {  // rounded alike in both directions
    const Tensor above = to - from;
    return (above.abs() * kHueSector + chroma.div(2, "floor")).div(divisor, "floor") * above.sign();
  };
  const Tensor place =
      at::where(most.eq(r), part(b, g) + 6 * kHueSector,
                at::where(most.eq(g), part(r, b) + 2 * kHueSector, part(g, r) + 4 * kHueSector));
  const Tensor turned =
      (place + (shift.to(at::kInt) + 6 * kHueSector).view({-1, 1, 1})).remainder(6 * kHueSector);
  const Tensor into = (chroma * turned.remainder(kHueSector) + kHueSector / 2).div(kHueSector, "floor");
  const Tensor up = least + into, down = most - into, sector = turned.div(kHueSector, "floor");
  const auto choose = [&](std::array<const Tensor*, 6> by_sector) {
    Tensor chosen = *by_sector[5];
    for (int64_t i = 0; i < 5; ++i) {
      chosen = at::where(sector.eq(i), *by_sector[static_cast<size_t>(i)], chosen);
    }
    return chosen;
  };
  return at::stack(
      {choose({&most, &down, &least, &least, &up, &most}), choose({&up, &most, &most, &down, &least, &least}),
       choose({&least, &least, &up, &most, &most, &down})},
      3);
}

/// The same in ATen's calls, on any device.
inline Tensor color_jitter_composite(const Tensor& images, const ColorJitterPlan& jitter) {
  const auto each = [](const Tensor& numbers) { return numbers.view({-1, 1, 1, 1}); };
  const auto luma = [](const Tensor& x) {
    return (x.select(3, 0) * 19595 + x.select(3, 1) * 38470 + x.select(3, 2) * 7471 + 0x8000)
        .bitwise_right_shift(16)
        .unsqueeze(3);
  };
  // A product and a sum, rounded one after the other.
  const auto blend = [&](const Tensor& base, const Tensor& x, int64_t which) {
    const Tensor product = (x - base).to(at::kFloat) * each(jitter.factor.select(1, which));
    return (base.to(at::kFloat) + product).clamp(0, 255).to(at::kInt);
  };
  const int64_t pixels = images.size(2) * images.size(3);
  Tensor x = images.permute({0, 2, 3, 1}).to(at::kInt);
  for (int64_t k = 0; k < 4; ++k) {
    const Tensor op = each(jitter.order.select(1, k));
    const Tensor before = x;
    const auto where_chosen = [&](ColorOp which, const auto& apply) {
      if (jitter.used[static_cast<size_t>(which)]) {
        x = at::where(op.eq(static_cast<int64_t>(which)), apply(), x);
      }
    };
    where_chosen(ColorOp::brightness, [&] { return blend(at::zeros_like(before), before, 0); });
    where_chosen(ColorOp::contrast, [&] {
      const Tensor mean = (2 * luma(before).sum({1, 2, 3}) + pixels).div(2 * pixels, "floor").to(at::kInt);
      return blend(each(mean), before, 1);
    });
    where_chosen(ColorOp::saturation, [&] { return blend(luma(before), before, 2); });
    where_chosen(ColorOp::hue, [&] { return turn_hue_composite(before, jitter.shift); });
  }
  return x.to(at::kByte).permute({0, 3, 1, 2});
}

}  // namespace mixmatch::detail
