// Element types of tensors and files, and the conversions between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#if defined(__CUDACC__)
#define AGOQ_HD __host__ __device__
#else
#define AGOQ_HD
#endif

namespace agoq {

enum class DType : uint8_t { F32, BF16, F16, I32, I64, I16, U16, U8, F64, E4M3, E5M2 };

size_t size_of(DType dtype);
std::string_view name_of(DType dtype);                        // "fp32", "bf16", ...
std::optional<DType> dtype_from_name(std::string_view name);  // the inverse of name_of

// The upper half of an fp32 number. Plain bits, so that it means the same on every device and in files.
struct Bf16 {
  uint16_t bits = 0;
};

AGOQ_HD inline float to_float(float x) {
  return x;
}
AGOQ_HD inline float to_float(Bf16 x) {
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
AGOQ_HD inline Bf16 to_bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  return Bf16{static_cast<uint16_t>(nan ? ((u >> 16) | 0x40u) : rounded)};
}

// The two 8-bit floats of the OCP specification (OFP8, 2023): sign, exponent, mantissa. e4m3 has no infinity and one
// NaN of each sign; e5m2 is the upper byte of fp16.
struct E4M3 {
  uint8_t bits = 0;
};
struct E5M2 {
  uint8_t bits = 0;
};

// Moved to its places in an fp32 number a code is that number divided by a power of two, also where it is subnormal.
AGOQ_HD inline float to_float(E4M3 x) {
  const uint32_t sign = uint32_t{x.bits & 0x80u} << 24, magnitude = x.bits & 0x7fu;
  const uint32_t value = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f);
  return std::bit_cast<float>(sign | (magnitude == 0x7fu ? 0x7fc00000u : value));
}
AGOQ_HD inline float to_float(E5M2 x) {
  const uint32_t sign = uint32_t{x.bits & 0x80u} << 24, magnitude = x.bits & 0x7fu;
  const uint32_t value = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 21) * 0x1p112f);
  return std::bit_cast<float>(sign | (magnitude >= 0x7cu ? 0x7f800000u | magnitude << 21 : value));
}

float half_to_float(uint16_t bits);  // IEEE fp16
uint16_t float_to_half(float x);     // round to nearest, ties to even

template <class T>
AGOQ_HD inline T from_float(float x);
template <>
AGOQ_HD inline float from_float<float>(float x) {
  return x;
}
template <>
AGOQ_HD inline Bf16 from_float<Bf16>(float x) {
  return to_bf16(x);
}

template <class T>
inline constexpr DType dtype_of = DType::U8;
template <>
inline constexpr DType dtype_of<float> = DType::F32;
template <>
inline constexpr DType dtype_of<double> = DType::F64;
template <>
inline constexpr DType dtype_of<Bf16> = DType::BF16;
template <>
inline constexpr DType dtype_of<E4M3> = DType::E4M3;
template <>
inline constexpr DType dtype_of<E5M2> = DType::E5M2;
template <>
inline constexpr DType dtype_of<int32_t> = DType::I32;
template <>
inline constexpr DType dtype_of<int64_t> = DType::I64;
template <>
inline constexpr DType dtype_of<int16_t> = DType::I16;
template <>
inline constexpr DType dtype_of<uint16_t> = DType::U16;

}  // namespace agoq
