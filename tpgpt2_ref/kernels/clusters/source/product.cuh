// Products of a kernel: y = W x, by tensor cores, and how W gets there before x does.
//
//     x (B, D) fp32 ──► two 16-bit halves, high + low: 16 bits of mantissa ──► mma ◄── shared memory ◄── W, leaf by leaf
//
// LayerNorm slides behind the product, so that nobody waits for the moments before it:
//     W ((x - mean) / std * g + b) + c  =  (W (x g) - mean s) / std + t,     s = W g,  t = W b + c
//
// One row of W is cut too: a lane's 16 bytes, 8 columns, are four registers of the product's first operand, of which it
// takes two for a row g + 8. So rows g meet pairs 0 and 2 of the columns, rows g + 8 pairs 1 and 3, and x has a column
// of the second operand for either: four a row of x (high or low, pairs 0 and 2 or 1 and 3).
#pragma once
#include "step.cuh"

#define STEPS (D / 32)             // a product's K in steps of 32: two of a tensor core's
#define N_TILES ((BATCH + 1) / 2)  // a product takes two rows of x
#define HALVES(columns) ((columns) / 2 + (columns) % 64 / 2 + 16)  // words from one half of a row to the next

DEVICE int place_of(int pair) { return (pair & ~3) + (pair & 1) * 2 + (pair >> 1 & 1); }  // pairs 0, 2, 1, 3

// Two columns of row b, in halves: `to` is (2 BATCH, HALVES(columns)), high and low of each row.
DEVICE void put(u32* to, int stride, int b, int pair, float x, float y) {
  u32 high = pack(x, y);
  float2 rounded = unpack(high);
  to[2 * b * stride + place_of(pair)] = high;
  to[(2 * b + 1) * stride + place_of(pair)] = pack(x - rounded.x, y - rounded.y);
}

// This lane's part of x in a product: columns 32 step and on of rows 2 tile and 2 tile + 1.
DEVICE uint2 operand(const u32* halves, int stride, int tile, int step) {
  int row = 4 * tile + g() / 2;
  if (row >= 2 * BATCH) return make_uint2(0, 0);
  return *(const uint2*)&halves[row * stride + 16 * step + 4 * t() + g() % 2 * 2];
}

// x g, columns from `first` to `last`, by a warp: what it reads itself afterwards
DEVICE void weigh(const Stream& s, const u32* weight, int first, int last, u32* to) {
#pragma unroll
  for (int b = 0; b < BATCH; b++)
#pragma unroll 2
    for (int pair = first / 2 + lane(); pair < last / 2; pair += 32) {
      float2 v = *(const float2*)(s.x + b * X_STRIDE + 2 * pair), w = unpack(weight[pair]);
      put(to, HALVES(D), b, pair, v.x * w.x, v.y * w.y);
    }
  __syncwarp();
}

// A leaf of W times x: 8 rows (lane's: g) by 32 columns.
DEVICE void product(float c[4], uint2 x, uint4 w) { mma(c, w.x, w.y, w.z, w.w, x.x, x.y); }

// Of row g of a leaf, for row 2 tile + t / 2 of x: this lane has its high halves' part or, t odd, the low ones'.
DEVICE float part_of(const float c[4]) { return c[0] + c[3]; }

// Two values, each summed over the two lanes that share a row of x: the first where t is even, the second where odd.
DEVICE float sum_of_parts(float first, float second) {
  bool odd = t() & 1;
  return (odd ? second : first) + shuffle_xor(odd ? first : second, 1);
}

// What LayerNorm leaves to do behind the product.
DEVICE float unnormed(float y, float2 m, float s, float t) { return (y - m.x * s) * m.y + t; }
DEVICE float4 unnormed(float4 y, float2 m, const float* s, const float* t) {
  return make_float4(unnormed(y.x, m, s[0], t[0]), unnormed(y.y, m, s[1], t[1]), unnormed(y.z, m, s[2], t[2]),
                     unnormed(y.w, m, s[3], t[3]));
}

// A warp's part of K.
constexpr int STEPS_UNROLLED = STEPS % WARPS ? 1 : STEPS / WARPS;
DEVICE int first_step() { return STEPS % WARPS ? warp() * STEPS / WARPS : warp() * (STEPS / WARPS); }
DEVICE int steps_of_warp() { return STEPS % WARPS ? (warp() + 1) * STEPS / WARPS - warp() * STEPS / WARPS : STEPS / WARPS; }

// --- weights, on their way to shared memory before the kernel waits for the one before it

#define LEAF 512  // bytes: 8 rows of a weight by 32 columns, 16 bytes a lane
#define CHUNK 4   // leaves that a warp asks for, and reads, together

// This warp's chunks in order, CHUNKS of TOTAL at a time. Each lane copies what it reads itself, so no thread waits for
// another. `path.leaf(c, i)`: where this lane's 16 bytes of leaf i of chunk c are, or null.
template <int CHUNKS, int TOTAL, class Path> struct Tape {
  Path path;
  char* mine;  // this lane's part of the first chunk
  int taken;

  DEVICE_MEMBER Tape(Path path, char* shared) : path(path), mine(shared + warp() * CHUNKS * CHUNK * LEAF + lane() * 16), taken(0) {
#pragma unroll 1
    for (int c = 0; c < CHUNKS; c++) ask(c);
  }
  DEVICE_MEMBER void ask(int c) {
    char* to = mine + c % CHUNKS * (CHUNK * LEAF);
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      if (const void* from = path.leaf(c, i)) copy_16(to + i * LEAF, from);
    commit();
  }
  DEVICE_MEMBER void take(uint4 leaves[CHUNK]) {
    wait_but<CHUNKS - 1>();
#pragma unroll
    for (int i = 0; i < CHUNK; i++) leaves[i] = *(const uint4*)(mine + taken % CHUNKS * (CHUNK * LEAF) + i * LEAF);
    if (CHUNKS < TOTAL) ask(taken + CHUNKS);
    else commit();  // empty, so that as many are under way as before
    taken++;
  }
};
constexpr int chunks_of(int total, int shared, int chunk_bytes = WARPS * CHUNK * LEAF) {
  return ROOM - shared < 2 * chunk_bytes ? 2 : (ROOM - shared) / chunk_bytes < total ? (ROOM - shared) / chunk_bytes : total;
}
#define SHARED_BYTES extern "C" __device__ u32 shared_bytes = ROUNDED(sizeof(Shared)) + CHUNKS * WARPS * CHUNK * LEAF;

// What is small: `bytes`, a multiple of 16, up to 16 a thread. Arrived behind `wait_but` and a barrier.
DEVICE void copy_ahead(void* shared, const void* global, int bytes) {
  int i = threadIdx.x * 16;
  if (i < bytes) copy_16((char*)shared + i, (const char*)global + i);
}
