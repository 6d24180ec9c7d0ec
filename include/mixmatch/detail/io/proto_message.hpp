#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

namespace mixmatch::detail {

/// A message of protocol buffers, of the few kinds of fields that TensorBoard's files and ONNX need. An
/// integer below 0 is written as its two's complement, as int64 fields want it.
class ProtoMessage {
 public:
  ProtoMessage& varint(unsigned field, uint64_t value) {
    put_varint(uint64_t{field} << 3);
    put_varint(value);
    return *this;
  }
  ProtoMessage& fixed64(unsigned field, double value) {
    put_varint(uint64_t{field} << 3 | 1);
    put_little_endian(bytes_, std::bit_cast<uint64_t>(value), 8);
    return *this;
  }
  ProtoMessage& fixed32(unsigned field, float value) {
    put_varint(uint64_t{field} << 3 | 5);
    put_little_endian(bytes_, std::bit_cast<uint32_t>(value), 4);
    return *this;
  }
  ProtoMessage& bytes(unsigned field, std::string_view value) {
    put_varint(uint64_t{field} << 3 | 2);
    put_varint(value.size());
    bytes_ += value;
    return *this;
  }
  ProtoMessage& message(unsigned field, const ProtoMessage& value) { return bytes(field, value.bytes_); }
  const std::string& str() const { return bytes_; }

  static void put_little_endian(std::string& out, uint64_t value, int count) {
    for (int i = 0; i < count; ++i) {
      out += static_cast<char>(value >> (8 * i) & 0xFFU);
    }
  }

 private:
  void put_varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      bytes_ += static_cast<char>((value & 0x7FU) | 0x80U);
    }
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

}  // namespace mixmatch::detail
