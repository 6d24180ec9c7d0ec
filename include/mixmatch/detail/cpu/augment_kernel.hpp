#pragma once

#include <torch/types.h>
#include <mixmatch/detail/cpu/parallel.hpp>
#include <mixmatch/detail/cuda/cuda_augment.hpp>
#include <mixmatch/detail/float_types.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// Pixel x of channel c becomes (x - shift[c]) / scale[c]. A difference and a quotient round the same
/// everywhere, with fused multiply-adds or without: CPU and GPU results are equal to the bit.
struct PixelScale {
  std::vector<double> shift, scale;
};

/// What is cut from each padded image: int64 [N] on the images' device, offsets in [0, 2 * padding], flip 0
/// or 1. Without them the images are left whole.
struct CropFlip {
  int64_t padding = 0;
  Tensor flip, row, column;

  bool any() const { return flip.defined(); }
  /// Those of images first … first + count - 1.
  CropFlip narrow(int64_t first, int64_t count) const {
    return {padding, flip.narrow(0, first, count), row.narrow(0, first, count),
            column.narrow(0, first, count)};
  }
};

/// Reflection without repeating the edge, for positions less than `size` outside.
inline int64_t reflect(int64_t position, int64_t size) {
  return size - 1 - std::abs(size - 1 - std::abs(position));
}

/// Each channel's 256 results: a look-up costs less than conversion and division, for any result type.
template <class Scalar>
std::vector<Scalar> pixel_table(const PixelScale& scale) {
  using C = Compute<Scalar>;
  std::vector<Scalar> table;
  table.reserve(scale.shift.size() * 256);
  for (size_t c = 0; c < scale.shift.size(); ++c) {
    for (int value = 0; value < 256; ++value) {
      table.push_back(static_cast<Scalar>((static_cast<C>(value) - static_cast<C>(scale.shift[c])) /
                                          static_cast<C>(scale.scale[c])));
    }
  }
  return table;
}

/// Images in any strides to channels-last ones, every pixel read and written once. `convert(c, pixel)` makes
/// the result. `fixed_channels` is a channel count known to the compiler, or 0.
template <int64_t fixed_channels, class Target, class Source, class Convert>
void crop_images(Target* target, const Source* source, const Tensor& images, const CropFlip& crops,
                 int64_t begin, int64_t end, const Convert& convert) {
  const int64_t channels = fixed_channels > 0 ? fixed_channels : images.size(1);
  const int64_t height = images.size(2);
  const int64_t width = images.size(3);
  const int64_t channel_stride = images.stride(1);
  const bool cuts = crops.any();
  const int64_t* flip = cuts ? crops.flip.data_ptr<int64_t>() : nullptr;
  const int64_t* row_offset = cuts ? crops.row.data_ptr<int64_t>() : nullptr;
  const int64_t* column_offset = cuts ? crops.column.data_ptr<int64_t>() : nullptr;
  std::vector<int64_t> columns(static_cast<size_t>(width));
  for (int64_t n = begin; n < end; ++n) {
    const int64_t dy = cuts ? row_offset[n] - crops.padding : 0;
    const int64_t dx = cuts ? column_offset[n] - crops.padding : 0;
    const bool mirrored = cuts && flip[n] != 0;
    for (int64_t x = 0; x < width; ++x) {
      const int64_t from = reflect(x + dx, width);
      columns[static_cast<size_t>(x)] = (mirrored ? width - 1 - from : from) * images.stride(3);
    }
    const Source* image = source + n * images.stride(0);
    Target* out = target + n * height * width * channels;
    for (int64_t y = 0; y < height; ++y) {
      const Source* row = image + reflect(y + dy, height) * images.stride(2);
      for (const int64_t column : columns) {
        for (int64_t c = 0; c < channels; ++c) {
          out[c] = convert(c, row[c * channel_stride + column]);
        }
        out += channels;
      }
    }
  }
}

template <class Target, class Source, class Convert>
void crop_all_images(Tensor& out, const Tensor& images, const CropFlip& crops, const Convert& convert) {
  const int64_t image_size = images.size(1) * images.size(2) * images.size(3);
  if (image_size == 0) {
    return;
  }
  auto* target = out.data_ptr<Target>();
  const auto* source = images.data_ptr<Source>();
  parallel_for(0, images.size(0), std::max<int64_t>(1, 32768 / image_size), [&](int64_t begin, int64_t end) {
    if (images.size(1) == 3) {
      crop_images<3>(target, source, images, crops, begin, end, convert);
    } else {
      crop_images<0>(target, source, images, crops, begin, end, convert);
    }
  });
}

/// The CPU kernel, into channels-last `out`; without a scale images keep their values.
inline void crop_flip_fused(Tensor& out, const Tensor& images, const CropFlip& crops,
                            const std::optional<PixelScale>& scale) {
  if (out.scalar_type() == at::kByte) {
    crop_all_images<uint8_t, uint8_t>(out, images, crops, [](int64_t, uint8_t pixel) { return pixel; });
    return;
  }
  const bool known = for_float_type(out.scalar_type(), [&](auto element) {
    using Target = decltype(element);
    if (!scale.has_value()) {
      crop_all_images<Target, Target>(out, images, crops, [](int64_t, Target pixel) { return pixel; });
      return;
    }
    const auto table = pixel_table<Target>(*scale);
    const Target* values = table.data();
    crop_all_images<Target, uint8_t>(out, images, crops,
                                     [values](int64_t c, uint8_t pixel) { return values[c * 256 + pixel]; });
  });
  TORCH_CHECK(known, "crop_flip: no kernel for ", out.scalar_type());
}

/// (images - shift) / scale in ATen calls, without copies from host to device.
inline Tensor scale_pixels_composite(const Tensor& images, const PixelScale& scale, at::ScalarType dtype) {
  const auto compute = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor pixels =
      images.to(compute, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::ChannelsLast);
  // Filled tensors, not numbers: on CUDA a quotient by a number is a product with its reciprocal.
  const auto constants = [&](const std::vector<double>& values) {
    const auto options = images.options().dtype(compute);
    const bool same = std::equal(values.begin() + (values.empty() ? 0 : 1), values.end(), values.begin());
    if (same) {
      return at::full({1, 1, 1, 1}, values.empty() ? 0.0 : values[0], options);
    }
    std::vector<Tensor> channels;
    for (const double value : values) {
      channels.push_back(at::full({1, 1, 1, 1}, value, options));
    }
    return at::cat(channels, 1);
  };
  return pixels.sub(constants(scale.shift)).div_(constants(scale.scale)).to(dtype);
}

/// The crops in ATen calls: one gather of pixels. Differentiable, any device.
inline Tensor crop_flip_composite(const Tensor& images, const CropFlip& crops) {
  const int64_t count = images.size(0);
  const int64_t channels = images.size(1);
  const int64_t height = images.size(2);
  const int64_t width = images.size(3);
  const auto options = crops.row.options();
  const auto reflected = [&](const Tensor& offset, int64_t size) {
    const Tensor position = at::arange(size, options).unsqueeze(0) + (offset - crops.padding).unsqueeze(1);
    return (size - 1) - ((size - 1) - position.abs()).abs();
  };
  const Tensor rows = reflected(crops.row, height);
  const Tensor straight = reflected(crops.column, width);
  // Without a branch on data: mirrored columns are width - 1 - column.
  const Tensor flip = crops.flip.unsqueeze(1);
  const Tensor columns = straight + flip * ((width - 1) - 2 * straight);
  const Tensor image = at::arange(count, options).view({count, 1, 1});
  const Tensor pixel = (image * height + rows.unsqueeze(2)) * width + columns.unsqueeze(1);
  return images.permute({0, 2, 3, 1})
      .reshape({count * height * width, channels})
      .index_select(0, pixel.reshape({-1}))
      .view({count, height, width, channels})
      .permute({0, 3, 1, 2});
}

inline bool augment_on_cpu(const Tensor& images) {
  return images.device().is_cpu() && !(images.requires_grad() && at::GradMode::is_enabled());
}

/// Crops and flips, where there are crops, and scales where a scale is given (uint8 images); else the images
/// keep their values and dtype. Channels-last.
inline Tensor crop_flip(const Tensor& images, const CropFlip& crops, const std::optional<PixelScale>& scale,
                        at::ScalarType dtype) {
  if (augment_on_cpu(images)) {
    Tensor out = at::empty(images.sizes(), images.options()
                                               .dtype(scale.has_value() ? dtype : images.scalar_type())
                                               .memory_format(at::MemoryFormat::ChannelsLast));
    crop_flip_fused(out, images, crops, scale);
    return out;
  }
  const auto pixels = scale.value_or(PixelScale{});
  const Tensor made = crop_flip_on_cuda(images, crops.flip, crops.row, crops.column, crops.padding,
                                        pixels.shift, pixels.scale, dtype);
  if (made.defined()) {
    return made;
  }
  const Tensor cropped = crops.any() ? crop_flip_composite(images, crops) : images;
  return scale.has_value() ? scale_pixels_composite(cropped, *scale, dtype) : cropped;
}

/// crop_flip() into channels-last `out`.
inline void crop_flip_out(Tensor& out, const Tensor& images, const CropFlip& crops,
                          const std::optional<PixelScale>& scale) {
  if (augment_on_cpu(images)) {
    crop_flip_fused(out, images, crops, scale);
    if (!out.is_inference()) {  // autograd must see the change as it would see an ATen call's
      out.unsafeGetTensorImpl()->bump_version();
    }
  } else {
    const at::NoGradGuard no_grad;
    out.copy_(crop_flip(images, crops, scale, out.scalar_type()));
  }
}

}  // namespace mixmatch::detail
