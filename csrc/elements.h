// Element types of rows, their conversion to and from what sums are formed in, and vectors of them.
//
// Shared by the CPU and the GPU. Everything is local to the file that includes it: the same source is
// compiled for several processors, and the linker must not take one's code for another.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif

#ifdef __CUDA_ARCH__
#define UNROLL_LOOP _Pragma("unroll")
#else
#define UNROLL_LOOP
#endif

namespace megatron_llava {

enum class Element { kFloat32, kFloat64, kBFloat16, kFloat16 };

namespace {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// Sums are formed in float32, or in float64 where the rows are float64.
template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <typename T>
using Sum = typename SumOf<T>::type;

template <typename To, typename From>
HOST_DEVICE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "reinterprets bits");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

HOST_DEVICE float widen(float value) { return value; }
HOST_DEVICE double widen(double value) { return value; }
HOST_DEVICE float widen(BFloat16 value) { return bits_as<float>(uint32_t{value.bits} << 16); }

HOST_DEVICE float widen(Float16 value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  // Without branches, so that compilers vectorise it: both cases are computed and one is chosen.
  const uint32_t shifted = uint32_t{value.bits} << 17;
  const uint32_t sign = (uint32_t{value.bits} & 0x8000u) << 16;
  const float normal = bits_as<float>((shifted >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = bits_as<float>((shifted >> 17) | (126u << 23)) - 0.5f;
  const float chosen = shifted < (1u << 27) ? subnormal : normal;
  return bits_as<float>(sign | bits_as<uint32_t>(chosen));
#endif
}

HOST_DEVICE void narrow(float value, float& result) { result = value; }
HOST_DEVICE void narrow(double value, double& result) { result = value; }

// To the nearest, ties to even, as torch rounds.
HOST_DEVICE void narrow(float value, BFloat16& result) {
#ifdef __CUDA_ARCH__
  result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  result.bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
#endif
}

HOST_DEVICE void narrow(float value, Float16& result) {
#ifdef __CUDA_ARCH__
  result.bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t shifted = bits << 1;
  // Overflows become infinite; then an addition rounds at float16's last place.
  const float magnitude = bits_as<float>(bits & 0x7FFFFFFFu);
  const float scaled = (magnitude * 0x1.0p+112f) * 0x1.0p-110f;
  const uint32_t exponent = shifted & 0xFF000000u;
  const uint32_t bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const uint32_t sum = bits_as<uint32_t>(bits_as<float>((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t finite = ((sum >> 13) & 0x7C00u) + (sum & 0x0FFFu);
  const uint32_t unsigned_bits = shifted > 0xFF000000u ? 0x7E00u : finite;
  result.bits = static_cast<uint16_t>((bits >> 16 & 0x8000u) | unsigned_bits);
#endif
}

// Calls f with a zero of an element's type.
template <typename F>
void for_element(Element element, F f) {
  switch (element) {
    case Element::kFloat32:
      return f(float{});
    case Element::kFloat64:
      return f(double{});
    case Element::kBFloat16:
      return f(BFloat16{});
    case Element::kFloat16:
      return f(Float16{});
  }
}

// N neighbouring elements. On the GPU a load or store of one is a single instruction of up to
// 16 bytes, so rows must lie at multiples of its size there.
template <typename T, int N>
struct alignas(sizeof(T) * N <= 16 ? sizeof(T) * N : 16) Vector {
  T values[N];
};

// On the GPU not by memcpy, which nvcc makes of single bytes, and of two the wrong ones.
template <typename T, int N>
HOST_DEVICE Vector<T, N> load(const T* from) {
  Vector<T, N> result;
#ifdef __CUDA_ARCH__
  static_assert(N == 1 || sizeof(result) == 16, "one element, or 16 bytes");
  if constexpr (N == 1) {
    result.values[0] = *from;
  } else {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(&result, &words, 16);
  }
#else
  memcpy(&result, from, sizeof(result));
#endif
  return result;
}

// N of a thread's own elements.
template <typename T, int N>
HOST_DEVICE Vector<T, N> load_own(const T* from) {
  Vector<T, N> result;
  UNROLL_LOOP
  for (int i = 0; i < N; ++i) result.values[i] = from[i];
  return result;
}

template <typename T, int N>
HOST_DEVICE void store(T* to, const Vector<T, N>& vector) {
#ifdef __CUDA_ARCH__
  static_assert(N == 1 || sizeof(vector) == 16, "one element, or 16 bytes");
  if constexpr (N == 1) {
    *to = vector.values[0];
  } else {
    uint4 words;
    memcpy(&words, &vector, 16);
    // The plain store in one instruction: written as an assignment, sums were stored in pieces.
    __stwb(reinterpret_cast<uint4*>(to), words);
  }
#else
  memcpy(to, &vector, sizeof(vector));
#endif
}

}  // namespace
}  // namespace megatron_llava
