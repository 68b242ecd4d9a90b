// Vectors of 16 numbers, and the two formats in which weights are stored. The compiler turns the vectors into what the
// processor has; only the dot product of bfloat16 is named, for it has no other way to be asked for.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rebus {

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));

constexpr int kVector = 16;        // numbers of a vector
constexpr int kPair = 2 * kVector;  // and of two

inline float as_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

inline uint32_t as_word(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}

// e to the x, from -87 to 88, within 2 units in the last place.
// Source: Moshier, Cephes mathematical library, expf.
inline Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x > 88.0f ? Floats{} + 88.0f : x;
  const Integers power = __builtin_convertvector(x * 1.44269504f + (x < 0.0f ? Floats{} - 0.5f : Floats{} + 0.5f), Integers);
  const Floats whole = __builtin_convertvector(power, Floats);
  const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  series = series * rest + 8.3334519073e-3f;
  series = series * rest + 4.1665795894e-2f;
  series = series * rest + 1.6666665459e-1f;
  series = series * rest + 0.5f;
  return reinterpret_cast<Floats>((power + 127) << 23) * (series * rest * rest + rest + 1.0f);
}

inline Floats load(const float* values) {
  Floats result;
  std::memcpy(&result, values, sizeof result);
  return result;
}

// The sum of all numbers, by halves.
inline float sum(Floats x) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight low, high;
  std::memcpy(&low, &x, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
  low += high;
  Four first, second;
  std::memcpy(&first, &low, sizeof first);
  std::memcpy(&second, reinterpret_cast<const char*>(&low) + sizeof first, sizeof second);
  first += second;
  return (first[0] + first[2]) + (first[1] + first[3]);
}

// How numbers are stored; an element is what torch's tensor holds, a word what is multiplied at once. ``load_pair`` gives
// 32 elements as numbers, in its own order: number i is the element at ``place(i)``.
struct Float32 {
  using Element = float;
  static constexpr int kPerWord = 1;
  static float load(float element) { return element; }
  static void load_pair(const float* elements, Floats& first, Floats& second) {
    first = rebus::load(elements), second = rebus::load(elements + kVector);
  }
  static int place(int number) { return number; }
  static float store(float value) { return value; }
  static Floats multiply_add(Floats sum, Words weights, uint32_t word) {
    return sum + reinterpret_cast<Floats>(weights) * as_float(word);
  }
};

struct BFloat16 {
  using Element = uint16_t;
  static constexpr int kPerWord = 2;
  static float load(uint16_t element) { return as_float(uint32_t(element) << 16); }
  // Takes 32 elements apart as is cheapest: those at even places come first.
  static void load_pair(const uint16_t* elements, Floats& first, Floats& second) {
    Words words;
    std::memcpy(&words, elements, sizeof words);
    first = reinterpret_cast<Floats>(words << 16), second = reinterpret_cast<Floats>(words & 0xffff0000u);
  }
  static int place(int number) { return number < kVector ? 2 * number : 2 * (number - kVector) + 1; }
  static uint16_t store(float value) {  // rounds to nearest, ties to even
    const uint32_t word = as_word(value);
    return uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  static Floats multiply_add(Floats sum, Words weights, uint32_t word) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(int(word)));
#else
    sum += reinterpret_cast<Floats>(weights << 16) * as_float(word << 16);
    return sum + reinterpret_cast<Floats>(weights & 0xffff0000u) * as_float(word & 0xffff0000u);
#endif
  }
};

}  // namespace rebus
