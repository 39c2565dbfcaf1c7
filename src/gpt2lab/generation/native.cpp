// One token after the other for several texts at once: what the model computes for a token (GPT-2 with any of the
// switches that are built in), and the draw of the next one, without anything in between. step.py calls it and holds the
// memory that it reads and writes: the weights, and the rings of keys and values of model/cache.py.
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
#include <new>
#include <thread>
#include <vector>

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
    int64_t rotary_dim, activation, precision, threads;  // at most so many threads
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
    const double *noise;  // for each new token a number in [0, 1)
};

}  // extern "C"

namespace {

enum { GELU_TANH, GELU, RELU };
enum { FLOAT32, BFLOAT16, INT8 };

// ---------------------------------------------------------------------------------------------- vectors of numbers

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

inline Vec load(const uint16_t *from) {  // bfloat16 is the upper half of a float32
    Ints bits;
    for (int i = 0; i < LANES; i++) bits[i] = from[i];
    bits <<= 16;
    Vec x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline Vec load(const int8_t *from) {
    Ints x;
    for (int i = 0; i < LANES; i++) x[i] = from[i];
    return __builtin_convertvector(x, Vec);
}

inline Vec all(float x) { return x - Vec{}; }  // x in every lane

inline float sum(Vec x) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
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
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) y = y * r + c;
    return (y * r * r + r + 1.0f) * power;
}

inline Vec activate(Vec x, int64_t kind) {
    if (kind == RELU) return x < all(0.0f) ? all(0.0f) : x;
    if (kind == GELU) {
        for (int i = 0; i < LANES; i++) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
        return x;
    }
    const Vec inside = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x - x / (1.0f + exp(2.0f * inside));  // tanh(z) = 1 - 2 / (1 + e^2z), so ½ x (1 + tanh z)
}

// ------------------------------------------------------------------------------------------------ threads that sleep

class Threads {
  public:
    ~Threads() { resize(1); }

    int count() const { return 1 + int(others.size()); }

    void resize(int number) {
        if (number == count()) return;
        ending = true;
        announce();
        for (std::thread &thread : others) thread.join();
        others.clear();
        ending = false;
        const unsigned now = round;
        for (int i = 1; i < number; i++) others.emplace_back([this, i, now] { work(i, now); });
    }

    // Call job(thread, threads) in every thread, and wait for all.
    template <class Job> void each(const Job &job) {
        if (others.empty()) return job(0, 1);
        task = [&](int thread) { job(thread, count()); };
        left = int(others.size());
        announce();
        task(0);
        for (int n; (n = left) != 0;) left.wait(n);
    }

  private:
    void announce() {
        round++;
        round.notify_all();
    }

    void work(int thread, unsigned known) {
        while (true) {
            round.wait(known);
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

// Weights are stored in panels of 32 outputs, input after input, so that reading them is one stream, and that outputs
// lie side by side in the lanes.
constexpr int PANEL = 32;
constexpr int VECS = PANEL / LANES;
constexpr int MOST_ROWS = LANES == 8 ? 3 : LANES == 16 ? 6 : 2;  // which a panel is multiplied with in registers
constexpr int TOGETHER = LANES == 4 ? 1 : 2;                      // panels at once for a single row

// PANELS panels from `weights` on, times ROWS vectors of `in` numbers from x on; y is (ROWS, PANELS · PANEL).
template <int PANELS, int ROWS, class Stored>
void multiply(const Stored *weights, int64_t in, const float *x, int64_t stride, float *y) {
    Vec sums[PANELS][ROWS][VECS] = {};
    for (int64_t i = 0; i < in; i++)
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 8
            for (int j = 0; j < VECS; j++) {
                const Vec column = load(weights + (p * in + i) * PANEL + j * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) sums[p][r][j] += column * x[r * stride + i];
            }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++)
            for (int j = 0; j < VECS; j++) store(y + (r * PANELS + p) * PANEL + j * LANES, sums[p][r][j]);
}

template <int ROWS = MOST_ROWS> void multiply_rows(int64_t rows, const float *weights, int64_t in, const float *x, int64_t stride, float *y) {
    if constexpr (ROWS > 1)
        if (rows < ROWS) return multiply_rows<ROWS - 1>(rows, weights, in, x, stride, y);
    multiply<1, ROWS>(weights, in, x, stride, y);
}

uint16_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}

class Matrix {
  public:
    int64_t in = 0, out = 0, panels = 0;

    void pack(const Linear &from, int64_t in_precision, Threads &threads) {
        in = from.in, out = from.out, precision = in_precision;
        panels = (out + PANEL - 1) / PANEL;
        const int64_t numbers = panels * PANEL * in;
        if (precision == FLOAT32) floats.assign(numbers, 0);
        if (precision == BFLOAT16) halves.assign(numbers, 0);
        if (precision == INT8) bytes.assign(numbers, 0);
        scale.assign(panels * PANEL, 1), bias.assign(panels * PANEL, 0);
        if (from.bias != nullptr) std::copy(from.bias, from.bias + out, bias.begin());
        threads.each([&](int thread, int count) {
            for (Share share(panels, thread, count); share.first < share.last; share.first++)
                for (int64_t o = share.first * PANEL; o < std::min(out, (share.first + 1) * PANEL); o++) pack_output(from.weight + o * in, o);
        });
    }

    // Call use(row, first output, how many, their values) for all outputs of each row that are this thread's.
    template <class Use>
    void times(const float *x, int64_t stride, int64_t rows, int thread, int threads, float *expanded, const Use &use) const {
        float y[std::max(MOST_ROWS, TOGETHER) * PANEL];
        const auto finish = [&](int64_t row, int64_t panel, float *values) {
            const int64_t first = panel * PANEL;
            for (int j = 0; j < PANEL; j += LANES) store(values + j, load(values + j) * load(&scale[first + j]) + load(&bias[first + j]));
            use(row, first, std::min<int64_t>(PANEL, out - first), values);
        };
        const Share share(panels, thread, threads);
        for (int64_t panel = share.first; panel < share.last;) {
            if (rows == 1) {
                const bool two = TOGETHER == 2 && panel + 1 < share.last;
                if (two) times_row<TOGETHER>(panel, x, y);
                else times_row<1>(panel, x, y);
                for (int p = 0; p <= int(two); p++) finish(0, panel + p, y + p * PANEL);
                panel += 1 + int(two);
                continue;
            }
            const float *weights = as_floats(panel, expanded);
            for (int64_t row = 0; row < rows; row += MOST_ROWS) {
                const int64_t some = std::min<int64_t>(MOST_ROWS, rows - row);
                multiply_rows(some, weights, in, x + row * stride, stride, y);
                for (int64_t r = 0; r < some; r++) finish(row + r, panel, y + r * PANEL);
            }
            panel++;
        }
    }

    // The weights of one output.
    void output(int64_t o, float *to) const {
        const int64_t first = o / PANEL * PANEL * in + o % PANEL;
        for (int64_t i = 0; i < in; i++) {
            const int64_t at = first + i * PANEL;
            if (precision == FLOAT32) to[i] = floats[at];
            if (precision == INT8) to[i] = float(bytes[at]) * scale[o];
            if (precision == BFLOAT16) {
                const uint32_t bits = uint32_t(halves[at]) << 16;
                std::memcpy(to + i, &bits, 4);
            }
        }
    }

  private:
    void pack_output(const float *weights, int64_t o) {
        float most = 0;
        bool sound = true;
        for (int64_t i = 0; i < in; i++) most = std::max(most, std::fabs(weights[i])), sound &= std::isfinite(weights[i]);
        if (precision == INT8) scale[o] = sound ? most / 127 : std::numeric_limits<float>::quiet_NaN();
        for (int64_t i = 0; i < in; i++) {
            const int64_t at = (o / PANEL * in + i) * PANEL + o % PANEL;
            if (precision == FLOAT32) floats[at] = weights[i];
            if (precision == BFLOAT16) halves[at] = to_bfloat16(weights[i]);
            if (precision == INT8) bytes[at] = sound && most > 0 ? int8_t(std::lrint(weights[i] / scale[o])) : int8_t(1);
        }
    }

    template <int PANELS> void times_row(int64_t panel, const float *x, float *y) const {
        const int64_t at = panel * PANEL * in;
        if (precision == FLOAT32) multiply<PANELS, 1>(&floats[at], in, x, 0, y);
        if (precision == BFLOAT16) multiply<PANELS, 1>(&halves[at], in, x, 0, y);
        if (precision == INT8) multiply<PANELS, 1>(&bytes[at], in, x, 0, y);
    }

    // Several rows need the same panel again and again, so it is widened once.
    const float *as_floats(int64_t panel, float *expanded) const {
        const int64_t at = panel * PANEL * in;
        if (precision == FLOAT32) return &floats[at];
        for (int64_t i = 0; i < PANEL * in; i += LANES)
            store(expanded + i, precision == INT8 ? load(&bytes[at + i]) : load(&halves[at + i]));
        return expanded;
    }

    int64_t precision = FLOAT32;
    std::vector<float> floats, scale, bias;
    std::vector<uint16_t> halves;
    std::vector<int8_t> bytes;
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

void layer_norm(const float *x, const float *weight, const float *bias, int64_t n, double epsilon, float *y) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= double(n);
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    const float centre = float(mean), scale = float(1 / std::sqrt(square / double(n) + epsilon));
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - centre) * scale * weight[i] + (bias != nullptr ? bias[i] : 0.0f);
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
    Vec sums[N];
    for (int j = 0; j < N; j++) sums[j] = load(y + j * LANES);
    for (int64_t s = 0; s < slots; s++)
        for (int j = 0; j < N; j++) sums[j] += load(v + s * width + j * LANES) * weights[s];
    for (int j = 0; j < N; j++) store(y + j * LANES, sums[j]);
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
    float highest = sink != nullptr ? *sink : scores[0];
    for (int64_t i = 0; i < n; i++) highest = std::max(highest, scores[i]);
    Vec sums = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Vec weights = exp(load(scores + i) - highest);
        store(scores + i, weights);
        sums += weights;
    }
    float rest = sink != nullptr ? std::exp(*sink - highest) : 0.0f;
    for (; i < n; i++) rest += scores[i] = std::exp(scores[i] - highest);
    return sum(sums) + rest;
}

// Query heads q (heads, D) of one group, which are scaled, read a ring in which so many slots are used: y (heads, D).
void attend(const float *q, const float *k, const float *v, const float *sinks, int64_t heads, int64_t used, int64_t D, float *scores, float *y) {
    for (int64_t begin = 0; begin < used; begin += BLOCK)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t s = begin; s < std::min(used, begin + BLOCK); s++) scores[h * used + s] = dot(q + h * D, k + s * D, D);
    std::fill(y, y + heads * D, 0.0f);
    for (int64_t h = 0; h < heads; h++) {
        const float total = weigh(scores + h * used, used, sinks != nullptr ? sinks + h : nullptr);
        for (int64_t s = 0; s < used; s++) scores[h * used + s] /= total;
    }
    for (int64_t begin = 0; begin < used; begin += BLOCK)
        for (int64_t h = 0; h < heads; h++) add_values(v + begin * D, D, scores + h * used + begin, std::min(BLOCK, used - begin), y + h * D);
}

// ---------------------------------------------------------------------------------------------------- the next token

struct Drawing {  // memory for one draw
    std::vector<double> scores, others;
    std::vector<int64_t> order;
};

// What Sampling.choose does with the same number of noise: the token, or -1 if the logits are not numbers.
int64_t draw(const float *logits, int64_t V, const Row &row, double noise, Drawing &memory, double &logprob) {
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
        std::copy(p, p + V, memory.others.begin());
        std::nth_element(memory.others.begin(), memory.others.begin() + row.top_k - 1, memory.others.end(), std::greater<>());
        const double least = memory.others[row.top_k - 1];
        for (int64_t i = 0; i < V; i++)
            if (p[i] < least) p[i] = -std::numeric_limits<double>::infinity();
    }
    highest = p[likeliest()], total = 0;
    for (int64_t i = 0; i < V; i++) total += p[i] = std::exp(p[i] - highest);
    for (int64_t i = 0; i < V; i++) p[i] /= total;
    if (row.top_p < 1) {
        for (int64_t i = 0; i < V; i++) memory.order[i] = i;
        std::sort(memory.order.begin(), memory.order.end(), [p](int64_t a, int64_t b) { return p[a] != p[b] ? p[a] > p[b] : a < b; });
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
    const double threshold = noise * total;
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
    std::vector<float> x, h, qkv, y, hidden, cosines, sines;      // each of all rows
    std::vector<std::vector<float>> expanded, scores;              // each of a thread
    std::vector<Drawing> drawings;                                 // of a thread, too
    std::vector<double> frequencies;

    explicit Step(const Model &given) : model(given), blocks(given.num_layers) {
        const Model &m = model;
        threads.resize(int(m.threads));  // for packing
        int64_t widest = std::max(m.width, m.hidden), most_slots = 0, projected = 0;
        for (int64_t l = 0; l < m.num_layers; l++) {
            Block &block = blocks[l];
            block.layer = m.layers[l];
            block.query_key_value.pack(block.layer.query_key_value, m.precision, threads);
            block.output.pack(block.layer.output, m.precision, threads);
            block.expand.pack(block.layer.expand, m.precision, threads);
            block.contract.pack(block.layer.contract, m.precision, threads);
            most_slots = std::max(most_slots, block.layer.slots);
            projected = std::max(projected, block.layer.query_key_value.out);
        }
        unembed.pack(m.unembed, m.precision, threads);
        for (int64_t i = 0; i < m.rotary_dim; i += 2) frequencies.push_back(std::pow(m.theta, -double(i) / double(m.rotary_dim)));
        x.resize(m.rows * m.width), h.resize(m.rows * m.width), y.resize(m.rows * m.width);
        qkv.resize(m.rows * projected), hidden.resize(m.rows * m.hidden);
        cosines.resize(m.rows * m.rotary_dim / 2), sines.resize(m.rows * m.rotary_dim / 2);
        expanded.assign(m.threads, std::vector<float>(m.precision == FLOAT32 || m.rows == 1 ? 0 : PANEL * widest));
        scores.assign(m.threads, std::vector<float>(m.heads * most_slots));
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
            norm(layer.attention_norm, layer.attention_norm_bias, B);
            product(block.query_key_value, h.data(), B, [&](int64_t b, int64_t first, int64_t n, const float *values) {
                std::copy(values, values + n, &qkv[b * block.query_key_value.out + first]);
            });
            for (int64_t b = 0; b < B; b++) remember(layer, block.query_key_value.out, rows[b], b);
            threads.each([&](int thread, int count) { attend_share(layer, block.query_key_value.out, rows, Share(B * m.heads, thread, count), scores[thread].data()); });
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
                const double noise = rows[b].noise != nullptr ? rows[b].noise[t] : 0;
                ids[b] = draw(logits + b * model.vocabulary, model.vocabulary, rows[b], noise, drawings[thread], logprobs[b]);
                if (ids[b] < 0) bad = b;
            }
        });
        return bad;
    }

  private:
    void norm(const float *weight, const float *bias, int64_t B) {
        for (int64_t b = 0; b < B; b++) layer_norm(&x[b * model.width], weight, bias, model.width, model.epsilon, &h[b * model.width]);
    }

    template <class Use> void product(const Matrix &matrix, const float *from, int64_t B, const Use &use) {
        threads.each([&](int thread, int count) { matrix.times(from, matrix.in, B, thread, count, expanded[thread].data(), use); });
    }

    // Normalise and rotate a row's queries and keys, and write keys and values into its ring.
    void remember(const Layer &layer, int64_t projected, const Row &row, int64_t b) {
        const int64_t H = model.heads, K = layer.kv_heads, D = model.head_dim, half = model.rotary_dim / 2;
        float *own = &qkv[b * projected];
        for (int64_t head = 0; head < H + K; head++) {
            if (layer.query_norm != nullptr) rms_norm(own + head * D, head < H ? layer.query_norm : layer.key_norm, D, model.epsilon);
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
            attend(&qkv[b * projected + head * D], layer.k + ring, layer.v + ring, layer.sinks != nullptr ? layer.sinks + head : nullptr, heads, used,
                   D, memory, &y[b * model.width + head * D]);
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
