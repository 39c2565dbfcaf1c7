// What lies between the matrix products of a training step, forward and backward, on the CPU. model/fused.py calls it,
// and holds the memory that it reads and writes; torch multiplies the matrices.
//
// Shapes are named as in the rest of the project: N tokens of all texts, C width, F hidden width; B texts, T tokens of
// each, H query heads, K key/value heads, D width of a head. Pointers that may be null are said to be.
//
// Whatever the number of threads, everything is summed in one order, so that a training repeats bit for bit.

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "vectors.h"

extern "C" {

struct Shape {  // of attention
    int64_t batch, length, heads, kv_heads, head_dim;
    int64_t window;       // how many latest tokens are seen, from 1 to the length
    int64_t half_rotary;  // pairs of dimensions that are rotated
};

}  // extern "C"

namespace {

// ----------------------------------------------------------------------------------------------------------- threads

// Torch's own: its OpenMP is in the process, and a second pool of threads would fight with it for the cores. Every
// thread does its share of n jobs, one after the other. Where there is no GNU OpenMP, one thread does them all.
template <class Job> void each(int64_t threads, int64_t n, const Job &job) {
    using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    static const auto number = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    static const auto team = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
    struct Jobs {
        const Job &job;
        int64_t n;
        void share(int64_t thread, int64_t threads) const {
            for (int64_t i = n * thread / threads; i < n * (thread + 1) / threads; i++) job(i);
        }
    } jobs{job, n};
    if (threads == 1 || !parallel || !number || !team) return jobs.share(0, 1);
    parallel([](void *data) { static_cast<const Jobs *>(data)->share(number(), team()); }, &jobs, unsigned(threads), 0);
}

constexpr int64_t PIECES = 32;  // in which sums over tokens are made

template <class Job> void each_token(int64_t threads, int64_t N, const Job &job) {
    each(threads, PIECES, [&](int64_t piece) {
        for (int64_t n = N * piece / PIECES; n < N * (piece + 1) / PIECES; n++) job(piece, n);
    });
}

// Sums of n numbers over some pieces, (pieces, n).
void add_up(const std::vector<float> &pieces, int64_t n, float *sums) {
    std::fill_n(sums, n, 0.0f);
    for (size_t first = 0; first < pieces.size(); first += n)
        for (int64_t i = 0; i < n; i++) sums[i] += pieces[first + i];
}

// ------------------------------------------------------------------------------------------------------- ends of rows

template <int... I> constexpr Ints counted(std::integer_sequence<int, I...>) { return Ints{I...}; }
constexpr Ints LANE = counted(std::make_integer_sequence<int, LANES>());

// The first n lanes of what follows; the others are 0.
inline Vec load(const float *from, int64_t n) {
    if (n >= LANES) return load(from);
    Vec x{};
    std::memcpy(&x, from, n * sizeof *from);
    return x;
}

inline void store(float *to, Vec x, int64_t n) {
    if (n >= LANES) return store(to, x);
    std::memcpy(to, &x, n * sizeof *to);
}

inline Vec first(Vec x, int64_t n) { return n >= LANES ? x : LANE < int32_t(n) ? x : Vec{}; }

// Those from place `at` on, of what may be null.
inline Vec load_any(const float *from, int64_t at, int64_t n) { return from ? load(from + at, n) : Vec{}; }

// -------------------------------------------------------------------------------------------------------- activations

// The derivative of activation<KIND>.
template <int KIND> inline Vec slope(Vec x) {
    if constexpr (KIND == RELU) return x > Vec{} ? all(1.0f) : Vec{};
    if constexpr (KIND == GELU) {
        Vec below;
        for (int i = 0; i < LANES; i++) below[i] = 0.5f * (1.0f + std::erf(x[i] * 0.70710678f));
        return below + x * 0.39894228f * exp(-0.5f * x * x);
    }
    const Vec inside = 0.7978845608f * (x + 0.044715f * x * x * x);
    const Vec half = 1.0f - 1.0f / (1.0f + exp(2.0f * inside));  // ½ (1 + tanh)
    return half + 2.0f * x * half * (1.0f - half) * 0.7978845608f * (1.0f + 0.134145f * x * x);
}

template <int KIND> void activate(int64_t threads, int64_t N, int64_t F, const float *x, const float *bias, float *y) {
    each_token(threads, N, [=](int64_t, int64_t n) {
        for (int64_t f = 0; f < F; f += LANES)
            store(y + n * F + f, activation<KIND>(load(x + n * F + f, F - f) + load_any(bias, f, F - f)), F - f);
    });
}

template <int KIND>
void activate_backward(int64_t threads, int64_t N, int64_t F, const float *x, const float *bias, const float *of_y,
                       float *of_x, float *of_bias) {
    std::vector<float> sums(PIECES * F);
    each_token(threads, N, [&](int64_t piece, int64_t n) {
        for (int64_t f = 0; f < F; f += LANES) {
            const Vec z = load(x + n * F + f, F - f) + load_any(bias, f, F - f);
            const Vec d = load(of_y + n * F + f, F - f) * slope<KIND>(z);
            store(of_x + n * F + f, d, F - f);
            float *sum = &sums[piece * F + f];
            store(sum, load(sum, F - f) + d, F - f);
        }
    });
    if (of_bias) add_up(sums, F, of_bias);
}

// ---------------------------------------------------------------------------------------------------------- attention

// Lane j of x[i] and lane i of x[j] change places: in halves of halves, down to single lanes.
template <int HALF, int... I> inline void transpose(Vec (&x)[LANES], std::integer_sequence<int, I...> lanes) {
    if constexpr (HALF > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & HALF)) {
                const Vec a = x[i], b = x[i + HALF];
                x[i] = PICK(a, b, I & HALF ? LANES + I - HALF : I);
                x[i + HALF] = PICK(a, b, I & HALF ? LANES + I : I + HALF);
            }
        transpose<HALF / 2>(x, lanes);
    }
}

inline void transpose(Vec (&x)[LANES]) { transpose<LANES / 2>(x, std::make_integer_sequence<int, LANES>()); }

// Heads are turned: a row for each dimension, whose neighbours are tokens, with LANES zeros on both sides. So a vector
// holds one dimension of many queries, or their scores of the keys that lie equally far back.
struct Turned : Shape {
    int64_t tokens = (length + LANES - 1) / LANES * LANES, row = tokens + 2 * LANES, head = head_dim * row;
    int64_t projected = (heads + 2 * kv_heads) * head_dim, width = heads * head_dim, group = heads / kv_heads;
    float scale = 1 / std::sqrt(float(head_dim));

    // One head of a text, whose first number is at `from`, in rows of so many.
    void turn(const float *from, int64_t stride, const float *bias, float *to) const {
        for (int64_t d = 0; d < head_dim; d++) {
            store(to + d * row, Vec{});
            store(to + d * row + LANES + tokens, Vec{});
        }
        for (int64_t d = 0; d < head_dim; d += LANES) {
            const Vec more = load_any(bias, d, head_dim - d);
            for (int64_t t = 0; t < tokens; t += LANES) {
                Vec x[LANES] = {};
                for (int64_t i = 0; i < std::min<int64_t>(LANES, length - t); i++)
                    x[i] = load(from + (t + i) * stride + d, head_dim - d) + more;
                transpose(x);
                for (int64_t i = 0; i < std::min<int64_t>(LANES, head_dim - d); i++)
                    store(to + (d + i) * row + LANES + t, x[i]);
            }
        }
    }

    // The tokens from t on, whose dimensions are at `from`, so many numbers apart; `to` is of token 0.
    void turn_back(const float *from, int64_t apart, int64_t t, float *to, int64_t stride) const {
        for (int64_t d = 0; d < head_dim; d += LANES) {
            Vec x[LANES] = {};
            for (int64_t i = 0; i < std::min<int64_t>(LANES, head_dim - d); i++) x[i] = load(from + (d + i) * apart);
            transpose(x);
            for (int64_t i = 0; i < std::min<int64_t>(LANES, length - t); i++)
                store(to + (t + i) * stride + d, x[i], head_dim - d);
        }
    }

    // By the angles whose cosines and sines are given, (half_rotary, tokens); forwards 1, or back -1.
    void rotate(float *head, const float *cos, const float *sin, float forwards) const {
        for (int64_t r = 0; r < half_rotary; r++)
            for (int64_t t = 0; t < tokens; t += LANES) {
                float *a = head + r * row + LANES + t, *b = a + half_rotary * row;
                const Vec x = load(a), y = load(b);
                const Vec c = load(cos + r * tokens + t), s = load(sin + r * tokens + t) * forwards;
                store(a, x * c - y * s), store(b, y * c + x * s);
            }
    }

    // out[o], a vector each: the products of a (at some tokens) and b (o tokens earlier), for n distances o.
    template <int TILE = 8> void scores(const float *a, const float *b, int64_t n, float *out) const {
        int64_t o = 0;
        for (; o + TILE <= n; o += TILE) {
            Vec sums[TILE] = {};
            for (int64_t d = 0; d < head_dim; d++) {
                const Vec x = load(a + d * row);
#pragma GCC unroll 8
                for (int i = 0; i < TILE; i++) sums[i] += x * load(b + d * row - o - i);
            }
            for (int i = 0; i < TILE; i++) store(out + (o + i) * LANES, sums[i]);
        }
        if constexpr (TILE > 1)
            if (o < n) scores<TILE / 2>(a, b - o, n - o, out + o * LANES);
    }

    // use(d, sum) for each dimension from d on: the sum of n weights, `step` apart, times b's numbers, `shift` apart.
    template <int TILE = 8, class Use>
    void weighted(const float *weights, int64_t step, const float *b, int64_t shift, int64_t n, const Use &use,
                  int64_t d = 0) const {
        for (; d + TILE <= head_dim; d += TILE) {
            Vec sums[TILE] = {};
            for (int64_t o = 0; o < n; o++) {
                const Vec x = load(weights + o * step);
#pragma GCC unroll 8
                for (int i = 0; i < TILE; i++) sums[i] += x * load(b + (d + i) * row + o * shift);
            }
            for (int i = 0; i < TILE; i++) use(d + i, sums[i]);
        }
        if constexpr (TILE > 1)
            if (d < head_dim) weighted<TILE / 2>(weights, step, b, shift, n, use, d);
    }

    // How many distances the queries from t on have to look at.
    int64_t distances(int64_t t) const { return std::min(window, t + LANES); }

    // Which of the queries from t on have a key at that distance.
    static Ints have(int64_t t, int64_t distance) { return LANE >= int32_t(std::min<int64_t>(distance - t, LANES)); }
};

inline Vec log(Vec x) {
    for (int i = 0; i < LANES; i++) x[i] = std::log(x[i]);
    return x;
}

}  // namespace

extern "C" {

int64_t gpt2lab_lanes() { return LANES; }

// y = activation(x + bias), (N, F); bias may be null
void gpt2lab_activate(int64_t threads, int64_t N, int64_t F, int64_t kind, const float *x, const float *bias, float *y) {
    const auto run = kind == RELU ? activate<RELU> : kind == GELU ? activate<GELU> : activate<GELU_TANH>;
    run(threads, N, F, x, bias, y);
}

// of_bias (F) may be null
void gpt2lab_activate_backward(int64_t threads, int64_t N, int64_t F, int64_t kind, const float *x, const float *bias,
                               const float *of_y, float *of_x, float *of_bias) {
    const auto run = kind == RELU   ? activate_backward<RELU>
                     : kind == GELU ? activate_backward<GELU>
                                    : activate_backward<GELU_TANH>;
    run(threads, N, F, x, bias, of_y, of_x, of_bias);
}

// added = x + y + y_bias, and its LayerNorm, all (N, C), with the means and the factors (N) that it takes; y_bias and
// bias may be null
void gpt2lab_add_norm(int64_t threads, int64_t N, int64_t C, const float *x, const float *y, const float *y_bias,
                      const float *weight, const float *bias, double epsilon, float *added, float *normed, float *means,
                      float *factors) {
    each_token(threads, N, [=](int64_t, int64_t n) {
        float *row = added + n * C;
        Vec total{}, squares{};
        for (int64_t c = 0; c < C; c += LANES) {
            const Vec more = load(y + n * C + c, C - c) + load_any(y_bias, c, C - c);
            const Vec sum = load(x + n * C + c, C - c) + more;
            store(row + c, sum, C - c);
            total += sum;
        }
        const float mean = sum(total) / C;
        for (int64_t c = 0; c < C; c += LANES) {
            const Vec d = first(load(row + c, C - c) - mean, C - c);
            squares += d * d;
        }
        const float factor = 1 / std::sqrt(sum(squares) / C + float(epsilon));
        for (int64_t c = 0; c < C; c += LANES) {
            const Vec h = (load(row + c, C - c) - mean) * factor * load(weight + c, C - c);
            store(normed + n * C + c, h + load_any(bias, c, C - c), C - c);
        }
        means[n] = mean, factors[n] = factor;
    });
}

// of_x, which is also that of y; of_parameters (3, C): weight, bias, y_bias. of_added may be null.
void gpt2lab_add_norm_backward(int64_t threads, int64_t N, int64_t C, const float *added, const float *means,
                               const float *factors, const float *weight, const float *of_normed, const float *of_added,
                               float *of_x, float *of_parameters) {
    std::vector<float> sums(PIECES * 3 * C);
    each_token(threads, N, [&](int64_t piece, int64_t n) {
        const float *row = added + n * C, *of = of_normed + n * C;
        const float mean = means[n], factor = factors[n];
        Vec a{}, b{};
        for (int64_t c = 0; c < C; c += LANES) {
            const Vec h = (load(row + c, C - c) - mean) * factor, d = load(of + c, C - c) * load(weight + c, C - c);
            a += d, b += d * h;
        }
        const float mean_a = sum(a) / C, mean_b = sum(b) / C;
        for (int64_t c = 0; c < C; c += LANES) {
            const Vec h = (load(row + c, C - c) - mean) * factor, g = load(of + c, C - c);
            Vec d = factor * (g * load(weight + c, C - c) - mean_a - h * mean_b);
            if (of_added) d += load(of_added + n * C + c, C - c);
            store(of_x + n * C + c, d, C - c);
            float *sum = &sums[piece * 3 * C + c];
            store(sum, load(sum, C - c) + g * h, C - c);
            store(sum + C, load(sum + C, C - c) + g, C - c);
            store(sum + 2 * C, load(sum + 2 * C, C - c) + d, C - c);
        }
    });
    add_up(sums, 3 * C, of_parameters);
}

// Attention of what was projected, (B, T, (H + 2 K) · D): y, (B, T, H · D); the turned heads (B, H + 2 K, D, row) and
// the logarithms of the softmax's denominators (B, H, tokens) are kept for the way back. bias (as what is projected),
// cos and sin, and sinks (H) may be null.
void gpt2lab_attend(int64_t threads, Shape shape, const float *projected, const float *bias, const float *cos,
                    const float *sin, const float *sinks, float *turned, float *denominators, float *y) {
    const Turned s{shape};
    each(threads, s.batch * s.kv_heads, [&](int64_t job) {
        const int64_t b = job / s.kv_heads, g = job % s.kv_heads, D = s.head_dim;
        const auto head = [&](int64_t h) {
            float *to = turned + (b * (s.heads + 2 * s.kv_heads) + h) * s.head;
            s.turn(projected + b * s.length * s.projected + h * D, s.projected, bias ? bias + h * D : nullptr, to);
            if (cos && h < s.heads + s.kv_heads) s.rotate(to, cos, sin, 1);
            return to;
        };
        const float *k = head(s.heads + g), *v = head(s.heads + s.kv_heads + g);
        std::vector<float> memory(s.window * LANES + s.head_dim * LANES);
        float *p = memory.data(), *result = p + s.window * LANES;
        for (int64_t h = g * s.group; h < (g + 1) * s.group; h++) {
            float *q = head(h);
            for (int64_t i = 0; i < s.head; i++) q[i] *= s.scale;
            for (int64_t t = 0; t < s.tokens; t += LANES) {
                const int64_t n = s.distances(t);
                s.scores(q + LANES + t, k + LANES + t, n, p);
                Vec highest = load(p);
                for (int64_t o = 1; o < n; o++) {
                    const Vec x = load(p + o * LANES);
                    highest = (s.have(t, o) & (x > highest)) ? x : highest;
                }
                Vec total{};
                if (sinks) {
                    highest = highest < all(sinks[h]) ? all(sinks[h]) : highest;
                    total = exp(sinks[h] - highest);
                }
                for (int64_t o = 0; o < n; o++) {
                    const Vec e = s.have(t, o) ? exp(load(p + o * LANES) - highest) : Vec{};
                    store(p + o * LANES, e);
                    total += e;
                }
                store(denominators + (b * s.heads + h) * s.tokens + t, highest + log(total));
                s.weighted(p, LANES, v + LANES + t, -1, n, [&](int64_t d, Vec x) { store(result + d * LANES, x / total); });
                s.turn_back(result, LANES, t, y + b * s.length * s.width + h * D, s.width);
            }
        }
    });
}

// of_projected, of_bias and of_sinks (the last two may be null) from of_y.
//
// With scores s, p = softmax(s), y = p v: of v is pᵀ dy; dp = dy vᵀ; ds = p (dp - sum of p dp); of q is ds k, of k is
// dsᵀ q. A key's sums run over the queries behind it, so the p and ds of a head are kept, (window, row) each.
void gpt2lab_attend_backward(int64_t threads, Shape shape, const float *turned, const float *denominators,
                             const float *cos, const float *sin, const float *sinks, const float *of_y,
                             float *of_projected, float *of_bias, float *of_sinks) {
    const Turned s{shape};
    std::vector<float> biases(s.batch * s.projected), sink_sums(s.batch * s.heads);
    each(threads, s.batch * s.kv_heads, [&](int64_t job) {
        const int64_t b = job / s.kv_heads, g = job % s.kv_heads, D = s.head_dim;
        const auto head = [&](int64_t h) { return turned + (b * (s.heads + 2 * s.kv_heads) + h) * s.head; };
        const float *k = head(s.heads + g), *v = head(s.heads + s.kv_heads + g);
        std::vector<float> memory(4 * s.head + 2 * s.window * s.row + 2 * s.window * LANES);
        float *dq = memory.data(), *dk = dq + s.head, *dv = dk + s.head, *dy = dv + s.head, *p = dy + s.head;
        float *ds = p + s.window * s.row, *now = ds + s.window * s.row, *dp = now + s.window * LANES;
        const auto give = [&](float *from, int64_t h, bool rotated) {
            if (cos && rotated) s.rotate(from, cos, sin, -1);
            float *to = of_projected + b * s.length * s.projected + h * D;
            for (int64_t t = 0; t < s.tokens; t += LANES)
                s.turn_back(from + LANES + t, s.row, t, to, s.projected);
            for (int64_t d = 0; d < D; d++) {
                Vec total{};
                for (int64_t t = 0; t < s.length; t += LANES)
                    total += first(load(from + d * s.row + LANES + t), s.length - t);
                biases[b * s.projected + h * D + d] = sum(total);
            }
        };
        for (int64_t h = g * s.group; h < (g + 1) * s.group; h++) {
            const float *q = head(h);
            s.turn(of_y + b * s.length * s.width + h * D, s.width, nullptr, dy);
            Vec of_sink{};
            for (int64_t t = 0; t < s.tokens; t += LANES) {
                const int64_t n = s.distances(t), at = LANES + t;
                const Vec denominator = load(denominators + (b * s.heads + h) * s.tokens + t);
                s.scores(q + at, k + at, n, now);
                s.scores(dy + at, v + at, n, dp);
                Vec total{};
                for (int64_t o = 0; o < n; o++) {
                    const Vec e = s.have(t, o) ? exp(load(now + o * LANES) - denominator) : Vec{};
                    store(p + o * s.row + at, e);
                    total += e * load(dp + o * LANES);
                }
                for (int64_t o = 0; o < n; o++) {
                    const Vec d = load(p + o * s.row + at) * (load(dp + o * LANES) - total);
                    store(ds + o * s.row + at, d);
                    store(now + o * LANES, d);
                }
                if (sinks) of_sink -= exp(sinks[h] - denominator) * total;  // of which tokens behind the end have 0
                s.weighted(now, LANES, k + at, -1, n, [&](int64_t d, Vec x) { store(dq + d * s.row + at, x * s.scale); });
            }
            if (sinks) sink_sums[b * s.heads + h] = sum(of_sink);
            for (int64_t t = 0; t < s.tokens; t += LANES) {
                const int64_t n = std::min(s.window, s.length - t), at = LANES + t;
                const auto add_to = [&](float *to) {
                    return [=](int64_t d, Vec x) { store(to + d * s.row + at, load(to + d * s.row + at) + x); };
                };
                s.weighted(ds + at, s.row + 1, q + at, 1, n, add_to(dk));
                s.weighted(p + at, s.row + 1, dy + at, 1, n, add_to(dv));
            }
            give(dq, h, true);
        }
        give(dk, s.heads + g, true);
        give(dv, s.heads + s.kv_heads + g, false);
    });
    if (of_bias) add_up(biases, s.projected, of_bias);
    if (of_sinks) add_up(sink_sums, s.heads, of_sinks);
}

}  // extern "C"
