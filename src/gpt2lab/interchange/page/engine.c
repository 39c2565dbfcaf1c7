// GPT-2 with every built-in switch, one token at a time, as WebAssembly. No library: see build.sh for the compiler.
//
// The page makes room, puts settings, tables and weights there, calls begin(), and then step() for each token, and
// attention() for what the token of the last step has looked at. Weights come as the file has them: a matrix as a factor
// for each row and whole numbers of 8 bits, a vector as floats. begin() makes floats of them all, since computing with 8
// bits is slower here. The same algorithm: native/writing.cpp.

typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef int i4 __attribute__((vector_size(16)));
typedef struct { const float *weight, *bias; int rows, columns; } Linear;
typedef struct { const float *scale, *bias; } Norm;
typedef struct {
  Norm attention_norm, feed_forward_norm;
  Linear query_key_value, output, expand, contract;
  const float *query_norm, *key_norm, *sinks;  // or 0
  float *keys, *values;                        // (slots, K, D): the token at position p lies in slot p mod slots
  float *weights, *totals;                     // of the last step's attention: (H, stride), and their sums (H)
  int slots, stride, rotates;
} Layer;

enum { GELU_TANH, GELU, RELU };

static struct {
  int vocabulary, width, heads, kv_heads, head_dim, hidden, layers, activation, rotary, position;
  float epsilon;
  const float *tokens, *positions;  // (V, C), (T, C) or 0
  Norm final_norm;
  Linear unembed;
  Layer *layer;
  float *x, *normed, *qkv, *mixed, *inner, *logits, *attention;
} m;

extern unsigned char __heap_base;
static unsigned long top = 0;

// Memory that is never given back.
void *room(unsigned long bytes) {
  if (top == 0) top = (unsigned long)&__heap_base;
  top = (top + 15) & ~15ul;
  unsigned long begin = top, end = top + bytes, pages = __builtin_wasm_memory_size(0);
  if (end > pages << 16 && __builtin_wasm_memory_grow(0, (end - (pages << 16) + 65535) >> 16) == -1ul) return 0;
  top = end;
  return (void *)begin;
}

static v4 all(float x) { return (v4){x, x, x, x}; }

static v4 pick(i4 where, v4 these, v4 others) { return (v4)((where & (i4)these) | (~where & (i4)others)); }

static v4 exponential(v4 x) {  // to 2e-7 of itself
  x = pick((i4)(x < -87), all(-87), pick((i4)(x > 88), all(88), x));
  v4 turns = x * 1.44269504f;
  i4 k = __builtin_convertvector(turns + pick((i4)(turns < 0), all(-0.5f), all(0.5f)), i4);
  v4 whole = __builtin_convertvector(k, v4), r = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  v4 p = 1 + r * (1 + r * (0.5f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
  return p * (v4)((k + 127) << 23);
}

static v4 activated(v4 x) {
  if (m.activation == RELU) return pick((i4)(x > 0), x, all(0));
  if (m.activation == GELU_TANH) {
    v4 inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x * (1 - 1 / (exponential(2 * inner) + 1));  // (1 + tanh) / 2
  }
  v4 z = pick((i4)(x < 0), -x, x) * 0.7071067812f, t = 1 / (1 + 0.3275911f * z);  // Abramowitz and Stegun, 7.1.26
  v4 series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  v4 rest = 0.5f * series * exponential(-z * z);  // of the normal distribution, beyond |x|
  return x * pick((i4)(x < 0), rest, 1 - rest);
}

static float dot(const float *a, const float *b, int n) {
  v4 sums[4] = {0};
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int k = 0; k < 4; k++) sums[k] += *(const v4 *)(a + i + 4 * k) * *(const v4 *)(b + i + 4 * k);
  v4 s = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = (s[0] + s[1]) + (s[2] + s[3]);
  for (; i < n; i++) total += a[i] * b[i];
  return total;
}

static void add(float *y, float factor, const float *x, int n) {
  int i = 0;
  for (; i + 4 <= n; i += 4) *(v4 *)(y + i) += factor * *(const v4 *)(x + i);
  for (; i < n; i++) y[i] += factor * x[i];
}

static void linear(float *y, const Linear *l, const float *x) {
  for (int row = 0; row < l->rows; row++)
    y[row] = dot(l->weight + (unsigned long)row * l->columns, x, l->columns) + (l->bias ? l->bias[row] : 0);
}

static void layer_norm(float *y, const Norm *norm, const float *x) {
  float mean = 0, variance = 0;
  for (int i = 0; i < m.width; i++) mean += x[i];
  mean /= m.width;
  for (int i = 0; i < m.width; i++) variance += (x[i] - mean) * (x[i] - mean);
  float factor = 1 / __builtin_sqrtf(variance / m.width + m.epsilon);
  for (int i = 0; i < m.width; i++) y[i] = (x[i] - mean) * factor * norm->scale[i] + norm->bias[i];
}

static void root_mean_square(float *x, const float *scale) {
  float factor = 1 / __builtin_sqrtf(dot(x, x, m.head_dim) / m.head_dim + m.epsilon);
  for (int i = 0; i < m.head_dim; i++) x[i] *= factor * scale[i];
}

static void rotate(float *x, const float *turn) {  // dimension d with d + R/2; cosines, then sines
  int half = m.rotary / 2;
  for (int i = 0; i < half; i++) {
    float a = x[i], b = x[i + half], c = turn[i], s = turn[half + i];
    x[i] = a * c - b * s;
    x[i + half] = b * c + a * s;
  }
}

static void attend(Layer *l, int position, const float *turn) {
  int D = m.head_dim, K = m.kv_heads, H = m.heads, slot = position % l->slots;
  int seen = position < l->slots ? position + 1 : l->slots;
  float *queries = m.qkv, *k = l->keys + (unsigned long)slot * K * D, *v = l->values + (unsigned long)slot * K * D;
  for (int i = 0; i < K * D; i++) k[i] = m.qkv[H * D + i], v[i] = m.qkv[H * D + K * D + i];
  for (int h = 0; h < H; h++) {
    if (l->query_norm) root_mean_square(queries + h * D, l->query_norm);
    if (l->rotates) rotate(queries + h * D, turn);
  }
  for (int h = 0; h < K; h++) {
    if (l->key_norm) root_mean_square(k + h * D, l->key_norm);
    if (l->rotates) rotate(k + h * D, turn);
  }
  float scale = 1 / __builtin_sqrtf(D);
  for (int h = 0; h < H; h++) {
    int shared = h / (H / K) * D;
    float *out = m.mixed + h * D, *weights = l->weights + h * l->stride, most = l->sinks ? l->sinks[h] : -1e30f;
    for (int s = 0; s < seen; s++) {
      weights[s] = dot(queries + h * D, l->keys + (unsigned long)s * K * D + shared, D) * scale;
      if (weights[s] > most) most = weights[s];
    }
    for (int s = 0; s < seen; s += 4) *(v4 *)(weights + s) = exponential(*(v4 *)(weights + s) - most);
    float total = l->sinks ? exponential(all(l->sinks[h] - most))[0] : 0;
    for (int i = 0; i < D; i++) out[i] = 0;
    for (int s = 0; s < seen; s++) {
      const float *value = l->values + (unsigned long)s * K * D + shared;
      total += weights[s];
      add(out, weights[s], value, D);
    }
    for (int i = 0; i < D; i++) out[i] /= total;
    l->totals[h] = total;
  }
}

// Logits (V) behind a token; turn: cosines and sines of its position, R/2 each.
float *step(int token, int position, const float *turn) {
  m.position = position;
  for (int i = 0; i < m.width; i++)
    m.x[i] = m.tokens[(unsigned long)token * m.width + i] + (m.positions ? m.positions[position * m.width + i] : 0);
  for (int n = 0; n < m.layers; n++) {
    Layer *l = m.layer + n;
    layer_norm(m.normed, &l->attention_norm, m.x);
    linear(m.qkv, &l->query_key_value, m.normed);
    attend(l, position, turn);
    linear(m.normed, &l->output, m.mixed);
    for (int i = 0; i < m.width; i++) m.x[i] += m.normed[i];
    layer_norm(m.normed, &l->feed_forward_norm, m.x);
    linear(m.inner, &l->expand, m.normed);
    for (int i = 0; i < m.hidden; i += 4) *(v4 *)(m.inner + i) = activated(*(v4 *)(m.inner + i));
    linear(m.normed, &l->contract, m.inner);
    for (int i = 0; i < m.width; i++) m.x[i] += m.normed[i];
  }
  layer_norm(m.normed, &m.final_norm, m.x);
  linear(m.logits, &m.unembed, m.normed);
  return m.logits;
}

// How the token of the last step looked at those that it sees in a layer, from the oldest to itself: (H, seen). What is
// missing to 1 went to the sink.
float *attention(int layer) {
  Layer *l = m.layer + layer;
  int seen = m.position < l->slots ? m.position + 1 : l->slots, oldest = m.position + 1 - seen;
  for (int h = 0; h < m.heads; h++)
    for (int i = 0; i < seen; i++)
      m.attention[h * seen + i] = l->weights[h * l->stride + (oldest + i) % l->slots] / l->totals[h];
  return m.attention;
}

static const unsigned char *next;  // what of the weights comes next

static const float *floats(int count) {
  const float *found = (const float *)next;
  next += 4ul * count;
  return found;
}

static const float *matrix(int rows, int columns) {
  const float *factors = floats(rows);
  unsigned long size = (unsigned long)rows * columns;
  float *whole = room(4 * size);
  for (int row = 0; row < rows; row++)
    for (int i = 0; i < columns; i++)
      whole[(unsigned long)row * columns + i] = factors[row] * ((const signed char *)next)[(unsigned long)row * columns + i];
  next += (size + 3) & ~3ul;
  return whole;
}

static Linear linear_layer(int rows, int columns) {
  Linear l = {matrix(rows, columns), floats(rows), rows, columns};
  return l;
}

static Norm norm(void) {
  Norm n = {floats(m.width), floats(m.width)};
  return n;
}

// Settings as the page has them, slots and rotates of every layer behind them; weights in the order of this function.
void begin(const int *settings, float epsilon, const unsigned char *weights) {
  int context = settings[1], learned = settings[9], tied = settings[10], normed = settings[12], sinks = settings[13];
  m.vocabulary = settings[0], m.width = settings[2], m.heads = settings[3], m.kv_heads = settings[4];
  m.head_dim = settings[5], m.hidden = settings[6], m.layers = settings[7], m.activation = settings[8];
  m.rotary = settings[11], m.epsilon = epsilon, next = weights;
  int projected = (m.heads + 2 * m.kv_heads) * m.head_dim, most = 0;
  m.unembed.weight = matrix(m.vocabulary, m.width), m.unembed.rows = m.vocabulary, m.unembed.columns = m.width;
  m.tokens = tied ? m.unembed.weight : floats(m.vocabulary * m.width);
  m.positions = learned ? floats(context * m.width) : 0;
  m.layer = room(m.layers * sizeof(Layer));
  for (int n = 0; n < m.layers; n++) {
    Layer *l = m.layer + n;
    l->slots = settings[14 + 2 * n], l->rotates = settings[15 + 2 * n];
    if (l->slots > most) most = l->slots;
    l->attention_norm = norm();
    l->query_key_value = linear_layer(projected, m.width);
    l->query_norm = normed ? floats(m.head_dim) : 0;
    l->key_norm = normed ? floats(m.head_dim) : 0;
    l->sinks = sinks ? floats(m.heads) : 0;
    l->output = linear_layer(m.width, m.width);
    l->feed_forward_norm = norm();
    l->expand = linear_layer(m.hidden, m.width);
    l->contract = linear_layer(m.width, m.hidden);
    l->keys = room(4ul * l->slots * m.kv_heads * m.head_dim);
    l->values = room(4ul * l->slots * m.kv_heads * m.head_dim);
    l->stride = (l->slots + 3) & ~3;  // four floats are computed at once
    l->weights = room(4ul * m.heads * l->stride), l->totals = room(4ul * m.heads);
  }
  m.final_norm = norm();
  m.x = room(4ul * m.width), m.normed = room(4ul * m.width), m.mixed = room(4ul * m.width);
  m.qkv = room(4ul * projected), m.inner = room(4ul * m.hidden + 16);  // and as many as four more
  m.logits = room(4ul * m.vocabulary), m.attention = room(4ul * m.heads * most);
}
