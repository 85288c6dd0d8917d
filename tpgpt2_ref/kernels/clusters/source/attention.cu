// The first half of a layer in one kernel: x + c_proj(attention(c_attn(LayerNorm(x)))), a cluster a head.
//
//     block r of the 8 of a head                                      who waits for whom
//     1  sums its eighth of x, sends it to all 8                       all for all
//     2  q, k, v: 8 outputs of each, sends them to all 8               all for all
//     3  attends to every eighth group of 4 tokens, sends its part     all for all
//     4  c_proj: its eighth of the outputs, the head's 64 inputs  ──►  slot of the head
//
// The head's weights and its cached keys and values are asked for before the kernel waits for the one before it.
// Split of the tokens: flash decoding (Dao et al. 2023). A cluster a head: ClusterFusion (arXiv 2508.18850).
#include "product.cuh"

// HEADS    of this rank         PAGE   tokens a page of the cache
#define HEAD 64
#define MINE (HEAD / CLUSTER)  // outputs of q, k and v each that a block finds
#define WIDTH (HEADS * HEAD)
#define LOWEST -1e30f
#define TOGETHER (4 * WARPS * CLUSTER)  // tokens that a cluster takes at once, 4 a warp
#define TOTAL ((STEPS + WARPS - 1) / WARPS + (COLUMNS + 16 * WARPS - 1) / (16 * WARPS))

struct Params {
  Source from;
  Sink to;
  Turn turn;
  const char* c_attn;  // (3 * WIDTH, D)
  const float* c_attn_sums;  // (2, 3 * WIDTH): s and t, see product.cuh
  const char* c_proj;  // (D, WIDTH)
  const char* c_proj_bias;
  const char* norm_weight;
  char* cache;  // (2, pages, PAGE, HEADS, HEAD)
  u64 values;   // bytes from a key to its value
  const int* table;            // (BATCH, table_stride): pages
  const long long* positions;  // (BATCH,): tokens that are cached
  u32 table_stride;
  u32 first;  // this rank adds x and the bias
  float eps;
};

struct Part { float acc[HEAD], top, total, unused[2]; };  // of a softmax over some tokens

struct Shared {
  Stream stream;
  union {
    float partial[WARPS][BATCH][3 * MINE];  // of q, k, v: each warp has a part of K
    Part of_warp[BATCH][WARPS];
  };
  u32 weighed[2 * BATCH * HALVES(D)];
  float qkv[BATCH][3][HEAD];
  Part of_block[BATCH][CLUSTER];
  u32 out[2 * BATCH * HALVES(HEAD)];  // what c_proj reads
  uint4 cached[BATCH][2][THREADS];  // keys and values that each thread takes first
  u32 norm_weight[D / 2], c_proj_bias[COLUMNS / 2];
  float c_attn_sums[2][3 * MINE];
  int newest[BATCH];        // position of the newest token
  char* newest_key[BATCH];  // where the cache wants it, dimension 0 of this head
  Barrier qkv_ready, parts_ready;
};

constexpr int CHUNKS = chunks_of(TOTAL, ROUNDED(sizeof(Shared)));  // under way at once

struct Path {  // rows of q, k and v, a step a chunk; then c_proj, two tiles a chunk
  const char *qkv, *proj;
  int first, steps;
  DEVICE_MEMBER const void* leaf(int c, int i) const {
    if (c < steps) return i < 3 ? qkv + ((u64)i * WIDTH * D + (first + c) * 32) * 2 : nullptr;
    int pair = warp() + (c - steps) * WARPS, row = 16 * pair + g() + i / 2;  // and g more, by `proj`
    return row - g() < COLUMNS ? proj + ((u64)row * WIDTH + i % 2 * 32) * 2 : nullptr;
  }
};

DEVICE char* key_at(const Params& p, int b, int token, int head, int dim) {
  int page = p.table[b * p.table_stride + token / PAGE];
  return p.cache + (((u64)page * PAGE + token % PAGE) * WIDTH + head * HEAD + dim) * 2;
}

// The token of this lane in a pass of its block, 8 lanes a token, 8 dimensions a lane.
DEVICE int token_of(int pass, int rank) { return pass * TOGETHER + 4 * (warp() * CLUSTER + rank) + lane() / 8; }

DEVICE void unpack8(uint4 from, float to[8]) {
  u32 words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float2 pair = unpack(words[i]);
    to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
  }
}
DEVICE void read8(const float* from, float to[8]) {
  float4 a = *(const float4*)from, b = *(const float4*)(from + 4);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// This warp's tokens of row b: the softmax of its scores so far, in the lanes, and then all together.
DEVICE void attend(const Params& p, Shared& s, int b, int head, int rank, int newest) {
  float q[8], k[8], v[8], acc[8] = {0, 0, 0, 0, 0, 0, 0, 0}, top = LOWEST, total = 0;
  int dim = lane() % 8 * 8;
  uint4 key = s.cached[b][0][threadIdx.x], value = s.cached[b][1][threadIdx.x];
  read8(&s.qkv[b][0][dim], q);
#pragma unroll 1
  for (int pass = 0; pass * TOGETHER <= newest; pass++) {
    int token = token_of(pass, rank);
    unpack8(key, k), unpack8(value, v);
    if (token + TOGETHER < newest) {  // the next pass's
      const char* at = key_at(p, b, token + TOGETHER, head, dim);
      key = *(const uint4*)at, value = *(const uint4*)(at + p.values);
    }
    if (token == newest) read8(&s.qkv[b][1][dim], k), read8(&s.qkv[b][2][dim], v);
    float score = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) score += q[i] * k[i];
#pragma unroll
    for (int m = 4; m; m /= 2) score += shuffle_xor(score, m);
    if (token <= newest) {
      float higher = fmaxf(top, score), old = exp_2(top - higher), weight = exp_2(score - higher);
      top = higher, total = total * old + weight;
#pragma unroll
      for (int i = 0; i < 8; i++) acc[i] = acc[i] * old + weight * v[i];
    }
  }
  float higher = fmaxf(top, shuffle_xor(top, 8));
  higher = fmaxf(higher, shuffle_xor(higher, 16));
  float share = exp_2(top - higher);
  total *= share;
  total += shuffle_xor(total, 8);
  total += shuffle_xor(total, 16);
  bool second = lane() & 8, third = lane() & 16;  // of two lanes with the same dimensions each keeps half of the sums
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float mine = (second ? acc[4 + i] : acc[i]) * share, other = (second ? acc[i] : acc[4 + i]) * share;
    acc[i] = mine + shuffle_xor(other, 8);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) acc[i] = (third ? acc[2 + i] : acc[i]) + shuffle_xor(third ? acc[i] : acc[2 + i], 16);
  Part& mine = s.of_warp[b][warp()];
  *(float2*)&mine.acc[dim + 4 * second + 2 * third] = make_float2(acc[0], acc[1]);
  if (lane() == 0) mine.top = higher, mine.total = total;
}

// Four dimensions of 8 parts as one part: the sum of their weights in `total`, their maximum in `top`.
DEVICE float4 together(const Part* parts, int quad, float* top, float* total) {
  float highest = LOWEST, sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) highest = fmaxf(highest, parts[i].top);
  float4 acc = make_float4(0, 0, 0, 0);
#pragma unroll 2
  for (int i = 0; i < 8; i++) {
    float share = exp_2(parts[i].top - highest);
    float4 x = *(const float4*)&parts[i].acc[4 * quad];
    acc = add(acc, make_float4(x.x * share, x.y * share, x.z * share, x.w * share));
    sum += parts[i].total * share;
  }
  *top = highest, *total = sum;
  return acc;
}

extern "C" __global__ void __launch_bounds__(THREADS + 32, 2) attention(const __grid_constant__ Params p) {
  SHARED(memory);
  Shared& s = *(Shared*)memory;
  MARK(0)
  int rank = cluster_rank(), head = blockIdx.x / CLUSTER;

  // Before the wait: what depends on no kernel of this step.
  if (threadIdx.x == 0) {
    expect_x(s.stream);
    expect(&s.qkv_ready, BATCH * 3 * HEAD * 4);
    expect(&s.parts_ready, BATCH * CLUSTER * (HEAD + 4) * 4);
  }
  cluster_arrive();
  let_next_start();
  if (warp() == WARPS) return find_moments(s.stream, p.eps);
  copy_ahead(s.norm_weight, p.norm_weight, D * 2);
  copy_ahead(s.c_proj_bias, p.c_proj_bias + rank * COLUMNS * 2, COLUMNS * 2);
#pragma unroll
  for (int j = 0; j < 6; j++)
    copy_ahead(&s.c_attn_sums[j / 3][j % 3 * MINE], p.c_attn_sums + j * WIDTH + head * HEAD + rank * MINE, MINE * 4);
  int first = first_step(), steps = steps_of_warp();
  Tape<CHUNKS, TOTAL, Path> tape(Path{p.c_attn + ((u64)(head * HEAD + rank * MINE + g()) * D + 8 * t()) * 2,
                              p.c_proj + ((u64)(rank * COLUMNS + g()) * WIDTH + head * HEAD + 8 * t()) * 2, first, steps},
                         memory + ROUNDED(sizeof(Shared)));
#pragma unroll 2
  for (int b = 0; b < BATCH; b++) {
    int token = token_of(0, rank);
    if (token < p.positions[b]) {
      const char* at = key_at(p, b, token, head, lane() % 8 * 8);
      copy_16(&s.cached[b][0][threadIdx.x], at);
      copy_16(&s.cached[b][1][threadIdx.x], at + p.values);
    } else {
      s.cached[b][0][threadIdx.x] = s.cached[b][1][threadIdx.x] = make_uint4(0, 0, 0, 0);
    }
  }
  commit();
  if (threadIdx.x < BATCH) {
    s.newest[threadIdx.x] = p.positions[threadIdx.x];
    s.newest_key[threadIdx.x] = key_at(p, threadIdx.x, p.positions[threadIdx.x], head, 0);
  }
  u32 flag = flag_of(p.turn);
  MARK(1)
  wait_but<CHUNKS - 1>();  // what was copied ahead has arrived
  cluster_wait();
  wait_for_turn(p.to, p.turn, flag);
  __syncthreads();
  MARK(3)

  // 1  x
  gather(p.from, p.turn, flag - 1, p.positions, s.stream);
  MARK(5)
  weigh(s.stream, s.norm_weight, 32 * first, 32 * (first + steps), s.weighed);
  MARK(6)

  // 2  q, k and v: each warp a part of K, then 4 outputs a thread
  float c[N_TILES][3][4] = {};
#pragma unroll STEPS_UNROLLED
  for (int step = first; step < first + steps; step++) {
    uint4 w[CHUNK];
    tape.take(w);
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
      uint2 x = operand(s.weighed, HALVES(D), n, step);
#pragma unroll
      for (int j = 0; j < 3; j++) product(c[n][j], x, w[j]);
    }
  }
  MARK(7)
#pragma unroll
  for (int n = 0; n < N_TILES; n++) {
    float q_or_k = sum_of_parts(part_of(c[n][0]), part_of(c[n][1])), v = sum_of_parts(part_of(c[n][2]), 0);
    int b = 2 * n + t() / 2;
    if (b < BATCH) {
      s.partial[warp()][b][t() % 2 * MINE + g()] = q_or_k;
      if (t() % 2 == 0) s.partial[warp()][b][2 * MINE + g()] = v;
    }
  }
  wait(&s.stream.moments_ready);
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * 6 * SENDERS; i += THREADS) {
    int to = i % SENDERS, quad = i / SENDERS % 6, b = i / SENDERS / 6, j = quad / 2, dim = rank * MINE + quad % 2 * 4;
    float4 y = *(const float4*)&s.partial[0][b][4 * quad];
#pragma unroll
    for (int w = 1; w < WARPS; w++) y = add(y, *(const float4*)&s.partial[w][b][4 * quad]);
    y = unnormed(y, s.stream.moments[b], &s.c_attn_sums[0][4 * quad], &s.c_attn_sums[1][4 * quad]);
    if (j == 0) {
      float scale = 1.4426950408889634f / 8;  // log2(e) / sqrt(64): weights are powers of two
      y = make_float4(y.x * scale, y.y * scale, y.z * scale, y.w * scale);
    } else {  // as the cache will have it
      uint2 rounded = make_uint2(pack(y.x, y.y), pack(y.z, y.w));
      y = unpack4(rounded);
      if (to == 0) *(uint2*)(s.newest_key[b] + dim * 2 + (j == 2 ? p.values : 0)) = rounded;
    }
#pragma unroll
    for (int k = 0; k < CLUSTER / SENDERS; k++) send(y, &s.qkv[b][j][dim], &s.qkv_ready, to + k * SENDERS);
  }
  MARK(8)
  wait(&s.qkv_ready);
  MARK(9)

  // 3  attention
  wait_but<0>();  // the cached keys and values were asked for last
#pragma unroll 2
  for (int b = 0; b < BATCH; b++) attend(p, s, b, head, rank, s.newest[b]);
  MARK(10)
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * (HEAD / 4) * SENDERS; i += THREADS) {
    int to = i % SENDERS, quad = i / SENDERS % (HEAD / 4), b = i / SENDERS / (HEAD / 4);
    float top, total;
    float4 acc = together(s.of_warp[b], quad, &top, &total);
#pragma unroll
    for (int k = 0; k < CLUSTER / SENDERS; k++) {
      send(acc, &s.of_block[b][rank].acc[4 * quad], &s.parts_ready, to + k * SENDERS);
      if (quad == 0) send(make_float4(top, total, 0, 0), &s.of_block[b][rank].top, &s.parts_ready, to + k * SENDERS);
    }
  }
  MARK(11)
  wait(&s.parts_ready);
  MARK(12)
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * HEAD / 4; i += THREADS) {
    int quad = i % (HEAD / 4), b = i / (HEAD / 4);
    float top, total;
    float4 acc = together(s.of_block[b], quad, &top, &total);
    float share = inverse(total);
    put(s.out, HALVES(HEAD), b, 2 * quad, acc.x * share, acc.y * share);
    put(s.out, HALVES(HEAD), b, 2 * quad + 1, acc.z * share, acc.w * share);
  }
  __syncthreads();
  MARK(13)

  // 4  c_proj: each warp whole outputs, 16 at a time
  uint2 out[N_TILES][2];
#pragma unroll
  for (int i = 0; i < 2 * N_TILES; i++) out[i / 2][i % 2] = operand(s.out, HALVES(HEAD), i / 2, i % 2);
#pragma unroll 1
  for (int pair = warp(); 16 * pair < COLUMNS; pair += WARPS) {
    uint4 w[CHUNK];
    tape.take(w);
    int mine = 16 * pair + 2 * g() + t() % 2, column = rank * COLUMNS + mine;
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
      float y[2][4] = {};
#pragma unroll
      for (int i = 0; i < CHUNK; i++) product(y[i / 2], out[n][i % 2], w[i]);
      float sum = sum_of_parts(part_of(y[0]), part_of(y[1]));
      int b = 2 * n + t() / 2;
      if (b < BATCH && mine < COLUMNS) {
        if (p.first && head == 0) sum += s.stream.x[b * X_STRIDE + column] + single(s.c_proj_bias, mine);
        store(p.to, flag, RANK * HEADS + head, b, column, sum);
      }
    }
  }
  wait_for_previous();  // every kernel does, so that the end of a step is the end of all its kernels
  MARK(14)
}
KERNEL(attention)
SHARED_BYTES
