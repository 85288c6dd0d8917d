// The end of a step: logits = wte LayerNorm(x), the argmax over the vocabulary, and what the next step starts from.
//
//     clusters of 4 sum x as the layers do; then each warp takes 8 rows of the vocabulary at a time, and keeps the
//     largest key that it has seen: an int64 whose order is that of (logit, first token first)
//     the last block to end takes the largest of all blocks' keys, and of all ranks': the next token
//
// At a temperature the keys are those of logits + temperature * Gumbel noise, a hash of (seed, position, token).
#include "product.cuh"

// ROWS     of this rank's vocabulary, a multiple of 8
#define TILES (ROWS / 8)
#ifndef HEAD_CHUNKS
#define HEAD_CHUNKS 6
#endif
#define ENDLESS (1 << 20)  // chunks: never all under way at once

struct Params {
  Source from;
  Turn turn;
  const char* wte;  // (ROWS, D)
  const char* norm_weight;
  const char* norm_bias;
  long long* positions;      // (BATCH,)
  const long long* seeds;    // (BATCH,)
  const float* temperature;  // 0: greedy
  long long* keys;           // (blocks, BATCH)
  u32* ended;                // blocks that have
  void* found[RANKS];        // (RANKS, BATCH) uint4: a rank's key, two words each beside its flag
  long long* ids;            // (BATCH,)
  const long long* live;     // (BATCH,): by how much the position moves on, 1 or 0
  int* tokens;               // (BATCH, length), in the host's memory, by position
  u32 length, first_token, vocabulary;
  float eps;
};

struct Shared {
  Stream stream;
  u32 normed[2 * BATCH * HALVES(D)];
  u32 norm_weight[D / 2], norm_bias[D / 2];
  long long keys[WARPS][BATCH];
  bool last;
};

constexpr int CHUNKS = chunks_of(HEAD_CHUNKS, ROUNDED(sizeof(Shared)));  // under way at once

struct Path {  // this warp's tiles, one after the other, four steps a chunk
  const char* wte;
  int first, stride, tiles;
  DEVICE_MEMBER const void* leaf(int c, int i) const {
    int leaf = c * CHUNK + i, tile = leaf / STEPS;
    return tile < tiles ? wte + ((u64)(first + tile * stride) * 8 * D + leaf % STEPS * 32) * 2 : nullptr;
  }
};

DEVICE u32 hash(u32 x) {  // Wellons' lowbias32
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
DEVICE u32 row_hash(u64 seed, u64 position) { return hash(hash((u32)seed ^ hash((u32)position)) ^ hash((u32)(seed >> 32))); }
DEVICE float gumbel(u32 row, u32 token) {
  float ln2 = 0.6931471805599453f, u = ((float)(hash(row ^ token) >> 9) + 0.5f) / 8388608.0f, v = 1 - u;
  // lg2.approx is right to 2^-22: too little near 1, where the largest noise comes from. v is exact.
  return -ln2 * log_2(v < 0.01f ? v * (1 + v * (0.5f + v * (1 / 3.0f + v * 0.25f))) : -ln2 * log_2(u));
}
DEVICE long long order_key(float value, u32 token) {
  int bits = __float_as_uint(value), ordered = bits ^ ((bits >> 31) & 0x7fffffff);
  return (long long)((u64)(u32)ordered << 32 | (0x7fffffff - token));
}
DEVICE long long larger(long long a, long long b) { return a > b ? a : b; }
#define LEAST_KEY ((long long)(1ull << 63))

// By the last block of a rank: the next token of every row.
DEVICE void end(const Params& p, Shared& s, u32 flag) {
  __threadfence();
  for (int b = warp(); b < BATCH; b += WARPS) {
    long long best = LEAST_KEY;
    for (int i = lane(); i < gridDim.x; i += 32) best = larger(best, *(volatile long long*)&p.keys[i * BATCH + b]);
#pragma unroll
    for (int mask = 16; mask; mask /= 2) best = larger(best, shuffle_xor(best, mask));
    if (RANKS > 1 && lane() < RANKS) {  // to every rank, and from it
      store_flagged((uint4*)p.found[lane()] + RANK * BATCH + b, make_uint4((u32)best, flag, (u32)(best >> 32), flag));
      const uint4* mine = (const uint4*)p.found[RANK] + lane() * BATCH + b;
      uint4 theirs;
      u64 start;
      u32 tries = 0;
      do theirs = load_flagged(mine);
      while (!arrived(theirs, flag) && patient(p.turn, tries++, &start, lane()));
      best = (long long)((u64)theirs.z << 32 | theirs.x);
    }
#pragma unroll
    for (int mask = 1; mask < RANKS; mask *= 2) best = larger(best, shuffle_xor(best, mask));
    if (lane() == 0) {
      long long position = p.positions[b], token = 0x7fffffff - (u32)best;
      p.ids[b] = token;
      if (p.live[b]) p.tokens[b * p.length + position + 1] = token;
      p.positions[b] = position + p.live[b];
    }
  }
  if (threadIdx.x == 0) *p.ended = 0, *p.turn.step += 1;
}

extern "C" __global__ void __launch_bounds__(THREADS + 32, 2) head(const __grid_constant__ Params p) {
  SHARED(memory);
  Shared& s = *(Shared*)memory;
  MARK(0)
  if (threadIdx.x == 0) expect_x(s.stream);
  cluster_arrive();
  let_next_start();
  if (warp() == WARPS) return find_moments(s.stream, p.eps);
  copy_ahead(s.norm_weight, p.norm_weight, D * 2);
  copy_ahead(s.norm_bias, p.norm_bias, D * 2);
  int first = blockIdx.x * WARPS + warp(), stride = gridDim.x * WARPS;
  int tiles = first < TILES ? (TILES - first + stride - 1) / stride : 0;
  Tape<CHUNKS, ENDLESS, Path> tape(Path{p.wte + ((u64)g() * D + 8 * t()) * 2, first, stride, tiles},
                           memory + ROUNDED(sizeof(Shared)));
  float temperature = *p.temperature;
  u32 flag = flag_of(p.turn);
  MARK(1)
  wait_but<CHUNKS - 1>();  // what was copied ahead has arrived
  cluster_wait();
  if (!FLAGGED) wait_for_previous();
  __syncthreads();
  MARK(3)

  gather(p.from, p.turn, flag - 1, p.positions, s.stream);
  MARK(5)
  wait(&s.stream.moments_ready);
#pragma unroll 1
  for (int b = 0; b < BATCH; b++) {
    float2 m = s.stream.moments[b];
#pragma unroll 2
    for (int pair = threadIdx.x; pair < D / 2; pair += THREADS) {
      float2 v = *(const float2*)(s.stream.x + b * X_STRIDE + 2 * pair), w = unpack(s.norm_weight[pair]),
             c = unpack(s.norm_bias[pair]);
      put(s.normed, HALVES(D), b, pair, (v.x - m.x) * m.y * w.x + c.x, (v.y - m.x) * m.y * w.y + c.y);
    }
  }
  __syncthreads();
  MARK(6)

  long long best[N_TILES];
  float c[N_TILES][2][4] = {};
#pragma unroll
  for (int n = 0; n < N_TILES; n++) best[n] = LEAST_KEY;
  int step = 0, tile = first;
#pragma unroll 1
  for (int chunk = 0; chunk * CHUNK < tiles * STEPS; chunk++) {
    uint4 w[CHUNK];
    tape.take(w);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
#pragma unroll
      for (int n = 0; n < N_TILES; n++) product(c[n][i % 2], operand(s.normed, HALVES(D), n, step), w[i]);
      step++;
      if ((STEPS % CHUNK == 0 ? i == CHUNK - 1 : i % 2) && step == STEPS) {
        int token = p.first_token + tile * 8 + g();
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
          float mine = part_of(c[n][0]) + part_of(c[n][1]), logit = mine + shuffle_xor(mine, 1);
          int b = 2 * n + t() / 2;
          if (temperature > 0 && b < BATCH) logit += temperature * gumbel(row_hash(p.seeds[b], p.positions[b] + 1), token);
          if (tile < TILES && token < p.vocabulary) best[n] = larger(best[n], order_key(logit, token));
#pragma unroll
          for (int j = 0; j < 8; j++) c[n][j / 4][j % 4] = 0;
        }
        step = 0, tile += stride;
      }
    }
  }
  MARK(12)
#pragma unroll
  for (int n = 0; n < N_TILES; n++) {
#pragma unroll
    for (int mask = 4; mask <= 16; mask *= 2) best[n] = larger(best[n], shuffle_xor(best[n], mask));
    if (g() == 0 && 2 * n + t() / 2 < BATCH) s.keys[warp()][2 * n + t() / 2] = best[n];
  }
  __syncthreads();
  if (threadIdx.x < BATCH) {
    long long largest = s.keys[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < WARPS; w++) largest = larger(largest, s.keys[w][threadIdx.x]);
    p.keys[blockIdx.x * BATCH + threadIdx.x] = largest;
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) s.last = atomicAdd(p.ended, 1) == gridDim.x - 1;
  __syncthreads();
  wait_for_previous();  // every kernel does, so that the end of a step is the end of all its kernels
  if (s.last) end(p, s, flag);
  MARK(14)
}
KERNEL(head)
SHARED_BYTES
