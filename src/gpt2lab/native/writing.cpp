// One token after the other for several texts at once: what the model computes for a token (GPT-2 with any of the
// switches that are built in), and the draw of the next one, without anything in between. step.py calls it, and holds
// the memory that it reads and writes: the weights, and the rings of keys and values of model/cache.py.
//
// Shapes are named as in the rest of the project: B rows (texts), C width, H query heads, K key/value heads, D width of
// a head, F hidden width, S slots of a ring, V vocabulary.
//
// Every output is summed in one order, whatever the number of rows and threads: so a text does not depend, not even in
// its last bits, on what else is written beside it.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "vectors.h"

extern "C" {

// The structures that step.py fills in; all members take eight bytes.

struct Linear {  // y = W x + b
    const float *weight;  // (out, in)
    const float *bias;    // (out), or null
    int64_t in, out;
};

struct Layer {
    const float *attention_norm, *attention_norm_bias;        // (C), biases may be null
    const float *feed_forward_norm, *feed_forward_norm_bias;  // (C)
    const float *query_norm, *key_norm;                       // (D), null without qk_norm
    const float *sinks;                                       // (H), or null
    Linear query_key_value, output, expand, contract;
    int64_t kv_heads, rotates, slots;
    float *k, *v;        // (rows, K, S, D)
    int64_t *positions;  // (rows, S), of the keys in the ring
};

struct Model {
    int64_t width, heads, head_dim, hidden, vocabulary, num_layers, rows;
    int64_t rotary_dim, activation, bits, threads;  // bits of a stored weight; at most so many threads
    double theta, epsilon;
    const float *tokens;   // embeddings (V, C); null: they are the unembedding's, as it is stored here
    const float *learned;  // of positions (T, C), or null
    const float *final_norm, *final_norm_bias;
    Linear unembed;
    const Layer *layers;
};

struct Row {
    int64_t place;     // in the cache
    int64_t position;  // of the token that is read
    int64_t token;     // which is read
    int64_t top_k;     // 0: none
    double temperature, top_p, min_p, penalty;  // temperature 0: the likeliest; top_p 1, min_p 0, penalty 1: none
    uint8_t *seen;        // (V), which tokens occurred; null: not asked
    const double *noise;  // for each new token a number in [0, 1); not read at temperature 0
};

}  // extern "C"

namespace {

inline Vec activate(Vec x, int64_t kind) {
    return kind == RELU ? activation<RELU>(x) : kind == GELU ? activation<GELU>(x) : activation<GELU_TANH>(x);
}

// ------------------------------------------------------------------------------------------------ threads that sleep

class Threads {
  public:
    ~Threads() { resize(1); }

    int count() const { return 1 + int(others.size()); }

    // If the system has no more threads, there are fewer.
    void resize(int number) noexcept {
        if (number == count()) return;
        ending = true;
        announce();
        for (std::thread &thread : others) thread.join();
        others.clear();
        ending = false;
        const unsigned now = round;
        try {
            for (int i = 1; i < number; i++) others.emplace_back([this, i, now] { work(i, now); });
        } catch (...) {
        }
    }

    // Call job(thread, threads) in every thread, and wait for all.
    template <class Job> void each(const Job &job) {
        if (others.empty()) return job(0, 1);
        task = [&](int thread) { job(thread, count()); };
        left = int(others.size());
        announce();
        task(0);
        for (int n; (n = left) != 0;) await(left, n);
    }

  private:
    // Wait until a number is another one: for some microseconds by letting others go first, then asleep.
    template <class Number> static void await(const std::atomic<Number> &number, Number known) {
        for (int i = 0; i < 100 && number == known; i++) std::this_thread::yield();
        number.wait(known);
    }

    void announce() {
        round++;
        round.notify_all();
    }

    void work(int thread, unsigned known) {
        while (true) {
            await(round, known);
            if (ending) return;
            known = round;
            task(thread);
            if (--left == 0) left.notify_all();
        }
    }

    std::vector<std::thread> others;
    std::function<void(int)> task;
    std::atomic<unsigned> round{0};
    std::atomic<int> left{0};
    std::atomic<bool> ending{false};
};

// What falls to one of several threads of n pieces.
struct Share {
    int64_t first, last;
    Share(int64_t n, int thread, int threads) : first(n * thread / threads), last(n * (thread + 1) / threads) {}
};

// ------------------------------------------------------------------------------------------------ products of matrices

// Weights are stored in panels of four vectors of outputs, input after input, so that reading them is one stream, and
// that outputs lie side by side in the lanes. Two or four outputs share a word where they have fewer bits: those of one
// lane in the four vectors, so that a shift brings all lanes of a vector to their places.
constexpr int VECS = 4;
constexpr int PANEL = VECS * LANES;
constexpr int MOST_ROWS = LANES == 8 ? 3 : 6;  // which are multiplied at once, in 16 registers (of 8 lanes) or 32
constexpr int64_t MOST_TOGETHER = 4 * MOST_ROWS;  // which go through a panel before the next one is begun
constexpr int64_t DEPTH = 64;                     // inputs whose weights stay in the nearest cache (16 kB)
constexpr int64_t LINE = 64;                      // bytes that memory gives at once
constexpr int64_t CLOSE = 4 << 20;                // bytes of all weights that stay in caches

// Vector j of the panel's outputs for one input; int8 comes times 2^24, which is cheaper than to shift it down again.
template <int BITS> inline Vec widen(const int32_t *words, int j) {
    Ints bits;
    std::memcpy(&bits, words + j * BITS / 32 * LANES, sizeof bits);
    if constexpr (BITS == 8) return __builtin_convertvector((bits << (24 - 8 * j)) & int32_t(0xFF000000), Vec);
    if constexpr (BITS == 16) bits = j % 2 ? bits & int32_t(0xFFFF0000) : bits << 16;  // a float32's upper half
    Vec x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// PANELS panels from `words` on, times ROWS vectors of `in` numbers from x on; y is (ROWS, PANELS · PANEL).
template <int BITS, int PANELS, int ROWS>
void multiply(const int32_t *words, int64_t in, const float *x, int64_t stride, float *y) {
    constexpr int64_t SIZE = BITS * PANEL / 32;  // words of an input
    Vec sums[PANELS][ROWS][VECS] = {};
    for (int64_t i = 0; i < in; i++)
#pragma GCC unroll 2
        for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 4
            for (int j = 0; j < VECS; j++) {
                const Vec column = widen<BITS>(words + (p * in + i) * SIZE, j);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) sums[p][r][j] += column * x[r * stride + i];
            }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++)
            for (int j = 0; j < VECS; j++) store(y + (r * PANELS + p) * PANEL + j * LANES, sums[p][r][j]);
}

// n inputs of a panel of floats times some rows, added to y (rows, PANEL); for each input some lines are fetched ahead.
template <int ROWS = MOST_ROWS>
void add_products(int64_t rows, const float *panel, int64_t n, const float *x, int64_t stride, float *y, const float *ahead,
                  int64_t lines) {
    if constexpr (ROWS > 1)
        if (rows < ROWS) return add_products<ROWS - 1>(rows, panel, n, x, stride, y, ahead, lines);
    Vec sums[ROWS][VECS];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < VECS; j++) sums[r][j] = load(y + r * PANEL + j * LANES);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t line = 0; line < lines; line++) __builtin_prefetch(ahead + (i * lines + line) * LINE / 4, 0, 2);
#pragma GCC unroll 4
        for (int j = 0; j < VECS; j++) {
            const Vec column = load(panel + i * PANEL + j * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sums[r][j] += column * x[r * stride + i];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < VECS; j++) store(y + r * PANEL + j * LANES, sums[r][j]);
}

int32_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return int32_t(bits >> 16 | 0x40);
    return int32_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}

// With large pages of memory, large matrices were read 6 to 40 % faster.
constexpr int64_t LARGE_PAGE = 1 << 21;
constexpr std::align_val_t ALIGNED{LARGE_PAGE};

class Matrix {
  public:
    int64_t in = 0, out = 0;

    void pack(const Linear &from, int64_t in_bits, Threads &threads) {
        in = from.in, out = from.out, bits = in_bits;
        panels = (out + PANEL - 1) / PANEL, size = bits * PANEL / 32;
        const int64_t number = panels * in * size;
        words.reset(static_cast<int32_t *>(operator new[](number * 4, ALIGNED)));
#ifdef __linux__
        if (number * 4 >= LARGE_PAGE) madvise(words.get(), number * 4 / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE);
#endif
        std::fill_n(words.get(), number, 0);
        scale.assign(panels * PANEL, 1), bias.assign(panels * PANEL, 0);
        if (from.bias != nullptr) std::copy(from.bias, from.bias + out, bias.begin());
        threads.each([&](int thread, int count) {
            for (Share share(panels, thread, count); share.first < share.last; share.first++)
                for (int64_t o = share.first * PANEL; o < std::min(out, (share.first + 1) * PANEL); o++)
                    pack_output(from.weight + o * in, o);
        });
    }

    int64_t bytes() const { return panels * in * size * 4; }

    // Call use(row, first output, how many, their values) for all outputs of each row that are this thread's.
    // fetch: the weights come from memory, so that it pays to ask for them beforehand.
    template <class Use>
    void times(const float *x, int64_t rows, int thread, int threads, bool fetch, int32_t *expanded,
               const Use &use) const {
        float y[MOST_TOGETHER * PANEL];
        const auto finish = [&](int64_t row, int64_t panel, float *values) {
            const int64_t first = panel * PANEL;
            for (int j = 0; j < PANEL; j += LANES)
                store(values + j, load(values + j) * load(&scale[first + j]) + load(&bias[first + j]));
            use(row, first, std::min<int64_t>(PANEL, out - first), values);
        };
        Share share(panels, thread, threads);
        if (rows == 1) {
            for (; share.first + 1 < share.last; share.first += 2) {
                times_row<2>(share.first, x, y);
                finish(0, share.first, y);
                finish(0, share.first + 1, y + PANEL);
            }
            if (share.first == share.last) return;
            times_row<1>(share.first, x, y);
            return finish(0, share.first, y);
        }
        for (; share.first < share.last; share.first++) {
            const float *floats = as_floats(share.first, expanded);
            for (int64_t row = 0, some; row < rows; row += some) {
                some = std::min(rows - row, MOST_TOGETHER);
                std::fill_n(y, some * PANEL, 0.0f);
                times_rows(floats, x + row * in, some, fetch && bits == 32, y);
                for (int64_t r = 0; r < some; r++) finish(row + r, share.first, y + r * PANEL);
            }
        }
    }

    // The weights of one output.
    void output(int64_t o, float *to) const {
        for (int64_t i = 0; i < in; i++) {
            float column[PANEL];
            expand(&words[(o / PANEL * in + i) * size], column);
            to[i] = column[o % PANEL] * scale[o];
        }
    }

  private:
    void pack_output(const float *weights, int64_t o) {
        float most = 0;
        bool sound = true;
        for (int64_t i = 0; i < in; i++) {
            most = std::max(most, std::fabs(weights[i]));
            sound &= std::isfinite(weights[i]);
        }
        const float step = most / 127;
        if (bits == 8) scale[o] = sound ? std::ldexp(step, -24) : std::numeric_limits<float>::quiet_NaN();
        const int64_t j = o % PANEL / LANES, share = 32 / bits;  // vector, and how many outputs share a word
        for (int64_t i = 0; i < in; i++) {
            int32_t &word = words[(o / PANEL * in + i) * size + j / share * LANES + o % LANES];
            if (bits == 32) std::memcpy(&word, &weights[i], 4);
            else if (bits == 16) word |= int32_t(uint32_t(to_bfloat16(weights[i])) << (16 * (j % 2)));
            else word |= int32_t(uint32_t(sound && most > 0 ? std::lrint(weights[i] / step) & 0xFF : 1) << (8 * j));
        }
    }

    void expand(const int32_t *from, float *to) const {
        for (int j = 0; j < VECS; j++, to += LANES)
            store(to, bits == 32 ? widen<32>(from, j) : bits == 16 ? widen<16>(from, j) : widen<8>(from, j));
    }

    template <int PANELS> void times_row(int64_t panel, const float *x, float *y) const {
        const int32_t *from = &words[panel * in * size];
        if (bits == 32) multiply<32, PANELS, 1>(from, in, x, 0, y);
        if (bits == 16) multiply<16, PANELS, 1>(from, in, x, 0, y);
        if (bits == 8) multiply<8, PANELS, 1>(from, in, x, 0, y);
    }

    // Several rows need the same panel again and again, so it is widened once.
    const float *as_floats(int64_t panel, int32_t *expanded) const {
        const int32_t *from = &words[panel * in * size];
        if (bits == 32) return reinterpret_cast<const float *>(from);
        for (int64_t i = 0; i < in; i++) expand(from + i * size, reinterpret_cast<float *>(expanded + i * PANEL));
        return reinterpret_cast<const float *>(expanded);
    }

    // Where a panel is gone through several times, that is done for some inputs after the other, so that they stay
    // close; and while they are gone through again, those behind them are fetched.
    void times_rows(const float *panel, const float *x, int64_t rows, bool fetch, float *y) const {
        const int64_t times = (rows + MOST_ROWS - 1) / MOST_ROWS, some = (rows + times - 1) / times;  // in equal parts
        const int64_t lines = fetch ? PANEL * 4 / LINE / std::max<int64_t>(1, times - 1) : 0;  // for each input
        for (int64_t i = 0, n; i < in; i += n) {
            n = std::min(DEPTH, in - i);
            const float *ahead = panel + (i + n) * PANEL;
            for (int64_t r = 0; r < rows; r += some) {
                const int64_t fetched = r > 0 || times == 1 ? lines : 0;
                add_products(std::min(some, rows - r), panel + i * PANEL, n, x + r * in + i, in, y + r * PANEL, ahead,
                             fetched);
                ahead += n * fetched * LINE / 4;
            }
        }
    }

    struct Free {
        void operator()(int32_t *memory) const { operator delete[](memory, ALIGNED); }
    };

    int64_t bits = 32, panels = 0, size = 0;  // size: words of an input in a panel
    std::unique_ptr<int32_t[], Free> words;
    std::vector<float> scale, bias;
};

// --------------------------------------------------------------------------------------------- what is done to a row

inline float dot(const float *a, const float *b, int64_t n) {
    Vec sums = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < n; i++) rest += a[i] * b[i];
    return sum(sums) + rest;
}

inline float total(const float *x, int64_t n) {
    Vec sums = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(x + i);
    float rest = 0;
    for (; i < n; i++) rest += x[i];
    return sum(sums) + rest;
}

void layer_norm(const float *x, const float *weight, const float *bias, int64_t n, double epsilon, float *y) {
    const float mean = total(x, n) / float(n);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - mean;
    const float scale = float(1 / std::sqrt(double(dot(y, y, n)) / double(n) + epsilon));
    for (int64_t i = 0; i < n; i++) y[i] = y[i] * scale * weight[i] + (bias != nullptr ? bias[i] : 0.0f);
}

void rms_norm(float *x, const float *weight, int64_t n, double epsilon) {
    const float scale = float(1 / std::sqrt(double(dot(x, x, n)) / double(n) + epsilon));
    for (int64_t i = 0; i < n; i++) x[i] *= scale * weight[i];
}

void rotate(float *x, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

constexpr int64_t BLOCK = 64;  // slots whose keys stay close while the heads of a group read them

// N vectors of values from v on, of every slot, each times its weight, are added to y.
template <int N> void add_values(const float *v, int64_t width, const float *weights, int64_t slots, float *y) {
    Vec even[N], odd[N] = {};  // two sums, so that none waits for the one before
    for (int j = 0; j < N; j++) even[j] = load(y + j * LANES);
    int64_t s = 0;
    for (; s + 1 < slots; s += 2)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
            even[j] += load(v + s * width + j * LANES) * weights[s];
            odd[j] += load(v + (s + 1) * width + j * LANES) * weights[s + 1];
        }
    for (int j = 0; j < N && s < slots; j++) even[j] += load(v + s * width + j * LANES) * weights[s];
    for (int j = 0; j < N; j++) store(y + j * LANES, even[j] + odd[j]);
}

void add_values(const float *v, int64_t width, const float *weights, int64_t slots, float *y) {
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) add_values<4>(v + d, width, weights, slots, y + d);
    for (; d + LANES <= width; d += LANES) add_values<1>(v + d, width, weights, slots, y + d);
    for (; d < width; d++)
        for (int64_t s = 0; s < slots; s++) y[d] += v[s * width + d] * weights[s];
}

// Scores become e to the score minus the highest; returns their sum, with that of the sink.
float weigh(float *scores, int64_t n, const float *sink) {
    Vec most = all(sink != nullptr ? *sink : scores[0]);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) most = load(scores + i) > most ? load(scores + i) : most;
    float highest = most[0];
    for (int lane = 1; lane < LANES; lane++) highest = std::max(highest, most[lane]);
    for (; i < n; i++) highest = std::max(highest, scores[i]);
    Vec sums = {};
    i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Vec weights = exp(load(scores + i) - highest);
        store(scores + i, weights);
        sums += weights;
    }
    float rest = sink != nullptr ? std::exp(*sink - highest) : 0.0f;
    for (; i < n; i++) rest += scores[i] = std::exp(scores[i] - highest);
    return sum(sums) + rest;
}

// The products of a query with n keys.
void score(const float *q, const float *k, int64_t n, int64_t D, float *scores) {
    int64_t s = 0;
    for (; s + LANES <= n; s += LANES) {
        Vec sums[LANES] = {};
        int64_t d = 0;
        for (; d + LANES <= D; d += LANES)
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) sums[i] += load(q + d) * load(k + (s + i) * D + d);
        store(scores + s, sums_of(sums));
        for (; d < D; d++)
            for (int i = 0; i < LANES; i++) scores[s + i] += q[d] * k[(s + i) * D + d];
    }
    for (; s < n; s++) scores[s] = dot(q, k + s * D, D);
}

// Query heads q (heads, D) of one group, which are scaled, read a ring in which so many slots are used: y (heads, D).
// There is room for heads · (used + 1) scores.
void attend(const float *q, const float *k, const float *v, const float *sinks, int64_t heads, int64_t used, int64_t D,
            float *scores, float *y) {
    float *whole = scores + heads * used;
    for (int64_t begin = 0; begin < used; begin += BLOCK)
        for (int64_t h = 0; h < heads; h++)
            score(q + h * D, k + begin * D, std::min(BLOCK, used - begin), D, scores + h * used + begin);
    std::fill(y, y + heads * D, 0.0f);
    for (int64_t h = 0; h < heads; h++)
        whole[h] = weigh(scores + h * used, used, sinks != nullptr ? sinks + h : nullptr);
    for (int64_t begin = 0; begin < used; begin += BLOCK)
        for (int64_t h = 0; h < heads; h++)
            add_values(v + begin * D, D, scores + h * used + begin, std::min(BLOCK, used - begin), y + h * D);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t d = 0; d < D; d++) y[h * D + d] /= whole[h];
}

// ---------------------------------------------------------------------------------------------------- the next token

struct Drawing {  // memory for one draw
    std::vector<double> scores, others;
    std::vector<int64_t> order;
};

// What Sampling.choose does with the same number of noise: the token, or -1 if the logits are not numbers.
int64_t draw(const float *logits, int64_t V, const Row &row, const double *noise, Drawing &memory, double &logprob) {
    double highest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t i = 0; i < V; i++) highest = std::max<double>(highest, logits[i]);
    for (int64_t i = 0; i < V; i++) total += std::exp(logits[i] - highest);
    if (!std::isfinite(highest) || std::isnan(total)) return -1;
    const double all_of_it = highest + std::log(total);
    double *p = memory.scores.data();
    for (int64_t i = 0; i < V; i++) {
        p[i] = logits[i];
        if (row.seen != nullptr && row.seen[i]) p[i] = p[i] > 0 ? p[i] / row.penalty : p[i] * row.penalty;
    }
    const auto likeliest = [&] { return std::max_element(p, p + V) - p; };
    if (row.temperature == 0) {
        const int64_t chosen = likeliest();
        logprob = logits[chosen] - all_of_it;
        return chosen;
    }
    for (int64_t i = 0; i < V; i++) p[i] /= row.temperature;
    if (row.top_k > 0 && row.top_k < V) {
        double *others = memory.others.data();
        std::copy(p, p + V, others);
        std::nth_element(others, others + row.top_k - 1, others + V, std::greater<>());
        const double least = others[row.top_k - 1];
        for (int64_t i = 0; i < V; i++)
            if (p[i] < least) p[i] = -std::numeric_limits<double>::infinity();
    }
    highest = p[likeliest()], total = 0;
    for (int64_t i = 0; i < V; i++) total += p[i] = std::exp(p[i] - highest);
    for (int64_t i = 0; i < V; i++) p[i] /= total;
    if (row.top_p < 1) {
        std::iota(memory.order.begin(), memory.order.end(), 0);
        std::sort(memory.order.begin(), memory.order.end(), [p](int64_t a, int64_t b) { return p[a] > p[b]; });
        double before = 0;
        for (int64_t i : memory.order) {
            const double own = p[i];
            if (before >= row.top_p) p[i] = 0;
            before += own;
        }
    }
    const double floor = row.min_p * p[likeliest()];
    total = 0;
    for (int64_t i = 0; i < V; i++) total += p[i] = p[i] < floor ? 0 : p[i];
    const double threshold = *noise * total;
    int64_t chosen = 0;
    double so_far = 0;
    for (int64_t i = 0; i < V && so_far <= threshold; i++)
        if (p[i] > 0) chosen = i, so_far += p[i];
    logprob = logits[chosen] - all_of_it;
    return chosen;
}

// ----------------------------------------------------------------------------------------------------------- the step

struct Block {
    Layer layer;
    Matrix query_key_value, output, expand, contract;
};

}  // namespace

struct Step {
    Model model;
    Threads threads;
    std::vector<Block> blocks;
    Matrix unembed;
    std::vector<float> x, h, qkv, y, hidden, cosines, sines;  // of all rows
    std::vector<std::vector<int32_t>> expanded;               // this and the next two: of each thread
    std::vector<std::vector<float>> scores;
    std::vector<Drawing> drawings;
    std::vector<double> frequencies;
    bool fetch = false;

    explicit Step(const Model &given) : model(given), blocks(given.num_layers) {
        const Model &m = model;
        threads.resize(int(m.threads));  // for packing
        int64_t widest = std::max(m.width, m.hidden), most_slots = 0, projected = 0;
        for (int64_t l = 0; l < m.num_layers; l++) {
            Block &block = blocks[l];
            block.layer = m.layers[l];
            block.query_key_value.pack(block.layer.query_key_value, m.bits, threads);
            block.output.pack(block.layer.output, m.bits, threads);
            block.expand.pack(block.layer.expand, m.bits, threads);
            block.contract.pack(block.layer.contract, m.bits, threads);
            most_slots = std::max(most_slots, block.layer.slots);
            projected = std::max(projected, block.layer.query_key_value.out);
        }
        unembed.pack(m.unembed, m.bits, threads);
        int64_t bytes = unembed.bytes();
        for (const Block &b : blocks)
            bytes += b.query_key_value.bytes() + b.output.bytes() + b.expand.bytes() + b.contract.bytes();
        fetch = bytes > CLOSE;
        for (int64_t i = 0; i < m.rotary_dim; i += 2)
            frequencies.push_back(std::pow(m.theta, -double(i) / double(m.rotary_dim)));
        x.resize(m.rows * m.width), h.resize(m.rows * m.width), y.resize(m.rows * m.width);
        qkv.resize(m.rows * projected), hidden.resize(m.rows * m.hidden);
        cosines.resize(m.rows * m.rotary_dim / 2), sines.resize(m.rows * m.rotary_dim / 2);
        expanded.assign(m.threads, std::vector<int32_t>(m.bits == 32 || m.rows == 1 ? 0 : PANEL * widest));
        scores.assign(m.threads, std::vector<float>(m.heads * (most_slots + 1)));
        Drawing memory;
        memory.scores.resize(m.vocabulary), memory.others.resize(m.vocabulary), memory.order.resize(m.vocabulary);
        drawings.assign(m.threads, memory);
    }

    // Logits (B, V) of the next token of each row.
    void read(const Row *rows, int64_t B, float *logits) {
        const Model &m = model;
        const int64_t C = m.width, half = m.rotary_dim / 2;
        for (int64_t b = 0; b < B; b++) {
            float *to = &x[b * C];
            if (m.tokens == nullptr) unembed.output(rows[b].token, to);
            else std::copy(m.tokens + rows[b].token * C, m.tokens + (rows[b].token + 1) * C, to);
            for (int64_t i = 0; m.learned != nullptr && i < C; i++) to[i] += m.learned[rows[b].position * C + i];
            for (int64_t i = 0; i < half; i++) {
                const double angle = double(rows[b].position) * frequencies[i];
                cosines[b * half + i] = float(std::cos(angle)), sines[b * half + i] = float(std::sin(angle));
            }
        }
        for (Block &block : blocks) {
            const Layer &layer = block.layer;
            const int64_t projected = block.query_key_value.out;
            norm(layer.attention_norm, layer.attention_norm_bias, B);
            product(block.query_key_value, h.data(), B, [&](int64_t b, int64_t first, int64_t n, const float *values) {
                std::copy(values, values + n, &qkv[b * projected + first]);
            });
            for (int64_t b = 0; b < B; b++) remember(layer, rows[b], &qkv[b * projected], b);
            threads.each([&](int thread, int count) {
                attend_share(layer, projected, rows, Share(B * m.heads, thread, count), scores[thread].data());
            });
            const auto add = [&](int64_t b, int64_t first, int64_t n, const float *values) {
                for (int64_t i = 0; i < n; i++) x[b * C + first + i] += values[i];
            };
            product(block.output, y.data(), B, add);
            norm(layer.feed_forward_norm, layer.feed_forward_norm_bias, B);
            product(block.expand, h.data(), B, [&](int64_t b, int64_t first, int64_t n, float *values) {
                for (int j = 0; j < PANEL; j += LANES) store(values + j, activate(load(values + j), m.activation));
                std::copy(values, values + n, &hidden[b * m.hidden + first]);
            });
            product(block.contract, hidden.data(), B, add);
        }
        norm(m.final_norm, m.final_norm_bias, B);
        product(unembed, h.data(), B, [&](int64_t b, int64_t first, int64_t n, const float *values) {
            std::copy(values, values + n, logits + b * m.vocabulary + first);
        });
    }

    // Draw a token for each row; the first row whose logits are not numbers, or -1.
    int64_t choose(const Row *rows, int64_t B, int64_t t, const float *logits, int64_t *ids, double *logprobs) {
        std::atomic<int64_t> bad{-1};
        threads.each([&](int thread, int count) {
            for (Share share(B, thread, count); share.first < share.last; share.first++) {
                const int64_t b = share.first;
                const float *own = logits + b * model.vocabulary;
                ids[b] = draw(own, model.vocabulary, rows[b], rows[b].noise + t, drawings[thread], logprobs[b]);
                if (ids[b] < 0) bad = b;
            }
        });
        return bad;
    }

  private:
    void norm(const float *weight, const float *bias, int64_t B) {
        const int64_t C = model.width;
        for (int64_t b = 0; b < B; b++) layer_norm(&x[b * C], weight, bias, C, model.epsilon, &h[b * C]);
    }

    template <class Use> void product(const Matrix &matrix, const float *from, int64_t B, const Use &use) {
        threads.each([&](int thread, int count) {
            matrix.times(from, B, thread, count, fetch, expanded[thread].data(), use);
        });
    }

    // Normalise and rotate a row's queries and keys, and write keys and values into its ring.
    void remember(const Layer &layer, const Row &row, float *own, int64_t b) {
        const int64_t H = model.heads, K = layer.kv_heads, D = model.head_dim, half = model.rotary_dim / 2;
        for (int64_t head = 0; head < H + K; head++) {
            const float *norm = head < H ? layer.query_norm : layer.key_norm;
            if (norm != nullptr) rms_norm(own + head * D, norm, D, model.epsilon);
            if (layer.rotates) rotate(own + head * D, &cosines[b * half], &sines[b * half], half);
        }
        for (int64_t i = 0; i < H * D; i++) own[i] *= float(1 / std::sqrt(double(D)));
        const int64_t slot = row.position % layer.slots;
        layer.positions[row.place * layer.slots + slot] = row.position;
        for (int64_t head = 0; head < K; head++) {
            const int64_t at = ((row.place * K + head) * layer.slots + slot) * D;
            std::copy_n(own + (H + head) * D, D, layer.k + at);
            std::copy_n(own + (H + K + head) * D, D, layer.v + at);
        }
    }

    // A share of all query heads of all rows; those of one group that follow each other are done together.
    void attend_share(const Layer &layer, int64_t projected, const Row *rows, Share share, float *memory) {
        const int64_t H = model.heads, K = layer.kv_heads, D = model.head_dim, group = H / K;
        for (int64_t unit = share.first; unit < share.last;) {
            const int64_t b = unit / H, head = unit % H, kv = head / group;
            const int64_t heads = std::min((kv + 1) * group - head, share.last - unit);
            const int64_t used = std::min(rows[b].position + 1, layer.slots);
            const int64_t ring = (rows[b].place * K + kv) * layer.slots * D;
            const float *sinks = layer.sinks != nullptr ? layer.sinks + head : nullptr;
            float *q = &qkv[b * projected + head * D], *to = &y[b * model.width + head * D];
            attend(q, layer.k + ring, layer.v + ring, sinks, heads, used, D, memory, to);
            unit += heads;
        }
    }
};

extern "C" {

// Pack the weights; null if there is no room. The rings that the layers name have to outlive the step.
Step *gpt2lab_begin(const Model *model) {
    try {
        return new Step(*model);
    } catch (...) {
        return nullptr;
    }
}

// Write n tokens into each of B rows, whose tokens and positions are those of the next call afterwards. Returns -1, or
// the first row whose logits are not numbers; then nothing of the step is of use any more.
int64_t gpt2lab_write(Step *step, Row *rows, int64_t B, int64_t n, float *logits, int64_t *ids, double *logprobs) {
    for (int64_t t = 0; t < n; t++) {
        step->read(rows, B, logits);
        const int64_t bad = step->choose(rows, B, t, logits, ids + t * B, logprobs + t * B);
        if (bad >= 0) return bad;
        for (int64_t b = 0; b < B; b++) {
            rows[b].token = ids[t * B + b];
            rows[b].position++;
            if (rows[b].seen != nullptr) rows[b].seen[rows[b].token] = 1;
        }
    }
    return -1;
}

// How many threads the next calls use, at most as many as the model said.
void gpt2lab_threads(Step *step, int64_t number) { step->threads.resize(int(std::min(number, step->model.threads))); }

void gpt2lab_end(Step *step) { delete step; }

}  // extern "C"
