#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mixmatch::detail {

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

/// Tables of a reflected CRC for eight bytes at a time (slicing-by-8).
inline CrcTables make_crc_tables(uint32_t reflected_polynomial) {
  CrcTables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1) ^ ((value & 1U) != 0 ? reflected_polynomial : 0U);
    }
    tables[0][byte] = value;
  }
  for (size_t slice = 1; slice < tables.size(); ++slice) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t previous = tables[slice - 1][byte];
      tables[slice][byte] = (previous >> 8) ^ tables[0][previous & 0xFFU];
    }
  }
  return tables;
}

// Tables are made when first used: as constants every file that includes this would pay for them, in compile
// time.
template <uint32_t ReflectedPolynomial>
uint32_t crc_update(std::string_view bytes, uint32_t previous) {
  static const CrcTables tables = make_crc_tables(ReflectedPolynomial);
  uint32_t crc = ~previous;
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  size_t left = bytes.size();
  for (; left >= 8; data += 8, left -= 8) {
    const uint32_t low = crc ^ (uint32_t{data[0]} | uint32_t{data[1]} << 8 | uint32_t{data[2]} << 16 |
                                uint32_t{data[3]} << 24);
    crc = tables[7][low & 0xFFU] ^ tables[6][(low >> 8) & 0xFFU] ^ tables[5][(low >> 16) & 0xFFU] ^
          tables[4][low >> 24] ^ tables[3][data[4]] ^ tables[2][data[5]] ^ tables[1][data[6]] ^
          tables[0][data[7]];
  }
  for (; left > 0; ++data, --left) {
    crc = (crc >> 8) ^ tables[0][(crc ^ *data) & 0xFFU];
  }
  return ~crc;
}

/// CRC-32C (Castagnoli) of `bytes`, or of what `previous` covered followed by `bytes`.
inline uint32_t crc32c(std::string_view bytes, uint32_t previous = 0) {
  return crc_update<0x82F63B78U>(bytes, previous);
}

/// CRC-32 as zip, gzip and PNG use it.
inline uint32_t crc32(std::string_view bytes, uint32_t previous = 0) {
  return crc_update<0xEDB88320U>(bytes, previous);
}

/// The masked CRC-32C of TFRecord files.
inline uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
}

}  // namespace mixmatch::detail
