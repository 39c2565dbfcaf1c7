// Vectors of numbers, as long as the processor's own, and what is computed with them.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

enum { GELU_TANH, GELU, RELU };

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

inline Vec load(const float *from) {
    Vec x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float *to, Vec x) { std::memcpy(to, &x, sizeof x); }

inline Vec all(float x) { return x - Vec{}; }  // x in every lane

#ifdef __clang__
#define PICK(a, b, from) __builtin_shufflevector(a, b, (from)...)
#else
#define PICK(a, b, from) __builtin_shuffle(a, b, Ints{(from)...})
#endif

// Lane I becomes the sum of all lanes of x[I]: in each round pairs of vectors become one, whose lanes are sums of two.
template <int HALF, int... I> inline Vec sums_of(Vec (&x)[LANES], std::integer_sequence<int, I...> lanes) {
    if constexpr (HALF == 0) return x[0];
    else {
#pragma GCC unroll 8
        for (int i = 0; i < HALF; i++)
            x[i] = PICK(x[i], x[i + HALF], I + (I & HALF ? LANES : 0)) +
                   PICK(x[i], x[i + HALF], (I ^ HALF) + (I & HALF ? LANES : 0));
        return sums_of<HALF / 2>(x, lanes);
    }
}

inline Vec sums_of(Vec (&x)[LANES]) { return sums_of<LANES / 2>(x, std::make_integer_sequence<int, LANES>()); }

inline float sum(Vec x) {
    Vec all_of_them[LANES] = {x};
    return sums_of(all_of_them)[0];
}

// e to the x, with an error of one or two units in the last place: e^x = 2^n · e^r with |r| <= ln 2 / 2, whose
// polynomial is that of Cephes (Moshier 1992). What is not a number stays so.
inline Vec exp(Vec x) {
    x = x < all(-87.0f) ? all(-87.0f) : x;
    x = x > all(88.0f) ? all(88.0f) : x;
    const Vec shift = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number, in the lowest bits
    Vec n = x * 1.44269504f + shift;
    Ints bits;
    std::memcpy(&bits, &n, sizeof n);
    bits = (bits - (0x4B400000 - 127)) << 23;
    Vec power;  // 2^n
    std::memcpy(&power, &bits, sizeof n);
    n -= shift;
    const Vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Vec y = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = y * r + c;
    return (y * r * r + r + 1.0f) * power;
}

template <int KIND> inline Vec activation(Vec x) {
    if constexpr (KIND == RELU) return x < all(0.0f) ? all(0.0f) : x;
    if constexpr (KIND == GELU) {
        for (int i = 0; i < LANES; i++) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
        return x;
    }
    const Vec inside = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x - x / (1.0f + exp(2.0f * inside));  // tanh(z) = 1 - 2 / (1 + e^2z), so ½ x (1 + tanh z)
}

}  // namespace
