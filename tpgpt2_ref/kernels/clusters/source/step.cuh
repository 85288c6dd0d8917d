// What the two kernels of a layer, and the head, have in common.
//
//     slots (contributions, B, D) fp32 ──► x (B, D) = their sum, in every block ──► LayerNorm ──► products
//
// A kernel leaves its contributions to the residual stream in slots, one a cluster, and the next kernel adds them in
// order: nothing is summed by atomics, so every run, every rank and every batch has the same bits. On one GPU the next
// kernel waits for the end of this one. On several each slot is written on every GPU, with a flag beside each value, and
// nobody waits for a kernel's end: the sum over the ranks is part of the sum over the slots.
// A thread's place: warp of 8, and lane = 4 g + t as in a product of tensor cores (`chip.cuh`).
//
// Between two kernels a block is alone with its latencies: what can be loaded together is loaded together, and chains of
// instructions are short.
#pragma once
#include "chip.cuh"

// D        hidden size, a multiple of 64            BATCH    rows of x, 1 to 8
// SLOTS    contributions that make up x, at most    RANKS    GPUs; RANK: which of them this one is
// CLUSTER  blocks                                   ROOM     bytes of shared memory that a block may take
// FLAGGED  whether a value in a slot has a flag beside it; if not, a kernel waits for the end of the one before it
#define WARPS 8
#define THREADS (32 * WARPS)  // and a warp more, see `find_moments`
#define COLUMNS (D / CLUSTER)  // of x that a block sums, or of a result that it owns
#define QUADS (COLUMNS / 4)
#define X_STRIDE (D + 8)          // floats
#define ROUNDED(bytes) (((bytes) + 127) / 128 * 128)

DEVICE int warp() { return threadIdx.x / 32; }
DEVICE int lane() { return threadIdx.x % 32; }
DEVICE int g() { return lane() / 4; }
DEVICE int t() { return lane() % 4; }

DEVICE float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DEVICE float4 unpack4(uint2 v) {
  float2 a = unpack(v.x), b = unpack(v.y);
  return make_float4(a.x, a.y, b.x, b.y);
}

DEVICE float single(const u32* pairs, int i) { return i % 2 ? unpack(pairs[i / 2]).y : unpack(pairs[i / 2]).x; }

// When a block's first thread came to each place, in nanoseconds, for who asks: `bench/phases.py`.
#ifdef PROFILE
extern "C" { __device__ long long marks[512][16]; }
#define MARK(i) if (threadIdx.x == 0) marks[blockIdx.x][i] = nanoseconds();
#elif defined LOITER  // one warp in four sleeps at each place, up to 8 us: for tests of what no delay may change
#define MARK(i) loiter(i);
DEVICE void loiter(u32 place) {
  u32 x = ((u32)nanoseconds() >> 5 ^ blockIdx.x << 20 ^ warp() << 26) * 0x7feb352du + place * 0x9e3779b9u;
  x = (x ^ x >> 15) * 0x846ca68bu;
  if (x >> 30 == 0) __nanosleep(x >> 8 & 8191);
  __syncwarp();
}
#else
#define MARK(i)
#endif

// --- from kernel to kernel

// Where x comes from: the sum of `count` slots, or, where `ids` is given, the embeddings of the newest tokens.
struct Source {
  const void* slots;     // (count, BATCH, D) fp32, each beside its flag where FLAGGED
  u32 count;             // up to SLOTS
  const long long* ids;  // (BATCH,)
  const uint2* wte;      // (V, D)
  const uint2* wpe;      // (n_positions, D)
};

// Where a cluster's contribution goes: the same slot on every GPU.
struct Sink { void* slots[RANKS]; };

// What tells one step's contributions from another's.
struct Turn {
  u32* step;      // counted by the last kernel of a step
  u32 kernel;     // within a step
  u32 kernels;    // of a step
  u32* failed;    // 1 + the slot that was waited for in vain: after that nobody waits any more
  u64 patience;   // nanoseconds
};
DEVICE u32 flag_of(const Turn& turn) { return *turn.step * turn.kernels + turn.kernel; }

// Two values, each beside its flag: they have come when the flags are this step's, whoever wrote them, on whichever GPU.
DEVICE bool arrived(uint4 x, u32 flag) { return x.y == flag && x.w == flag; }

// Whether to look again for what has not come; `tries` counts from 0.
DEVICE bool patient(const Turn& turn, u32 tries, u64* start, int slot) {
  if (tries % 256 != 255) return true;
  u64 now = nanoseconds();
  if (tries == 255) *start = now;
  if (now - *start > turn.patience) *(volatile u32*)turn.failed = 1 + slot;
  return !*(volatile u32*)turn.failed;
}

DEVICE void store(const Sink& to, u32 flag, int slot, int b, int column, float y) {
  int index = (slot * BATCH + b) * D + column;
#pragma unroll
  for (int r = 0; r < RANKS; r++)
    if (FLAGGED) store_flagged((uint2*)to.slots[r] + index, make_uint2(__float_as_uint(y), flag));
    else ((float*)to.slots[r])[index] = y;
}

// Before x is looked for: without flags, the end of the kernel before; with them, the first word of the kernel before
// that, since looking for what can't be there yet costs others the bandwidth of the L2 cache.
DEVICE void wait_for_turn(const Sink& to, const Turn& turn, u32 flag) {
  if (FLAGGED && turn.kernel > 3 && threadIdx.x == 0) {
    const uint4* p = (const uint4*)((const uint2*)to.slots[RANK] + cluster_rank() * COLUMNS);
    u64 start;
    u32 tries = 0;
    while (int(load_flagged(p).y - (flag - 2)) < 0 && patient(turn, tries++, &start, 0)) {}  // or this kernel's, already
  }
  if (!FLAGGED) wait_for_previous();
}

// --- x

// Summed in two stages, so that many threads load at once: GROUPS of them for each four columns, PER slots each.
constexpr int MOST_GROUPS = QUADS < THREADS ? THREADS / QUADS : 1, PER = (SLOTS + MOST_GROUPS - 1) / MOST_GROUPS;
constexpr int GROUPS = (SLOTS + PER - 1) / PER;
constexpr int SENDERS = BATCH < CLUSTER ? CLUSTER / BATCH : 1;  // threads that share the blocks a value goes to
constexpr int ITEMS = BATCH * QUADS * GROUPS, EACH = (ITEMS + THREADS - 1) / THREADS;
constexpr int TOGETHER = EACH * PER <= 8 ? EACH : 8 / PER ? 8 / PER : 1;  // items of a thread that are loaded at once

struct Stream {  // the residual stream in a block
  float x[BATCH * X_STRIDE];
  float4 parts[GROUPS][BATCH][QUADS];
  float2 moments[BATCH];  // mean, 1 / standard deviation
  Barrier x_ready, moments_ready;
};

DEVICE float4 summed(const Stream& s, int b, int quad) {
  float4 sum = s.parts[0][b][quad];
#pragma unroll
  for (int j = 1; j < GROUPS; j++) sum = add(sum, s.parts[j][b][quad]);
  return sum;
}

DEVICE void gather_embeddings(const Source& from, const long long* positions, Stream& s) {
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * QUADS * CLUSTER; i += THREADS) {
    int to = i % CLUSTER, quad = i / CLUSTER % QUADS, b = i / CLUSTER / QUADS, at = cluster_rank() * COLUMNS + 4 * quad;
    float4 x = add(unpack4(from.wte[(from.ids[b] * D + at) / 4]), unpack4(from.wpe[(positions[b] * D + at) / 4]));
    send(x, s.x + b * X_STRIDE + at, &s.x_ready, to);
  }
  wait(&s.x_ready);
}

// The n-th thing to sum of this thread: `slots` slots from `slot` on, of four columns of row b.
struct Item { int slot, slots, b, quad; };
DEVICE Item item(int n) {
  u32 i = n * THREADS + threadIdx.x, group = i / (BATCH * QUADS), b = i / QUADS % BATCH, quad = i % QUADS;
  return Item{int(group * PER), i < ITEMS ? int(group * PER + PER) : 0, int(b), int(quad)};
}

// x in every block of the cluster: each sums its columns and sends them to all.
DEVICE void gather(const Source& from, const Turn& turn, u32 flag, const long long* positions, Stream& s) {
  int rank = cluster_rank();
  if (from.ids) return gather_embeddings(from, positions, s);
#pragma unroll 1
  for (int begin = 0; begin < EACH; begin += TOGETHER) {
    uint4 low[TOGETHER][PER], high[TOGETHER][PER];
    u64 start;
    bool all;
    u32 tries = 0;
    do {
      all = true;
#pragma unroll
      for (int k = 0; k < TOGETHER; k++)
#pragma unroll
        for (int j = 0; j < PER; j++) {
          Item i = item(begin + k);
          low[k][j] = high[k][j] = make_uint4(0, flag, 0, flag);
          if (i.slot + j >= i.slots || i.slot + j >= from.count) continue;
          int quad = ((i.slot + j) * BATCH + i.b) * (D / 4) + rank * QUADS + i.quad;
          if (FLAGGED) {
            const uint4* p = (const uint4*)from.slots + 2 * quad;
            low[k][j] = load_flagged(p), high[k][j] = load_flagged(p + 1);
          } else {
            float4 x = load_fresh((const float4*)from.slots + quad);
            low[k][j].x = __float_as_uint(x.x), low[k][j].z = __float_as_uint(x.y);
            high[k][j].x = __float_as_uint(x.z), high[k][j].z = __float_as_uint(x.w);
          }
        }
#pragma unroll
      for (int k = 0; k < TOGETHER; k++)
#pragma unroll
        for (int j = 0; j < PER; j++) all &= arrived(low[k][j], flag) && arrived(high[k][j], flag);
    } while (FLAGGED && !all && patient(turn, tries++, &start, item(begin).slot));
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      Item i = item(begin + k);
      if (!i.slots) continue;
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int j = 0; j < PER; j++)
        sum = add(sum, make_float4(__uint_as_float(low[k][j].x), __uint_as_float(low[k][j].z),
                                   __uint_as_float(high[k][j].x), __uint_as_float(high[k][j].z)));
      s.parts[i.slot / PER][i.b][i.quad] = sum;
    }
  }
  __syncthreads();
  MARK(4)
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * QUADS * SENDERS; i += THREADS) {
    int to = i % SENDERS, quad = i / SENDERS % QUADS, b = i / SENDERS / QUADS;
    float4 sum = summed(s, b, quad);
#pragma unroll
    for (int k = 0; k < CLUSTER / SENDERS; k++)
      send(sum, s.x + b * X_STRIDE + rank * COLUMNS + 4 * quad, &s.x_ready, to + k * SENDERS);
  }
  wait(&s.x_ready);
}

// A block has one warp more, which only finds the moments of x's rows, while the others multiply.
DEVICE void expect_x(Stream& s) {
  expect(&s.x_ready, BATCH * D * 4);
  expect(&s.moments_ready, BATCH * 8);
}
DEVICE void find_moments(Stream& s, float eps) {
  cluster_wait();
  if (!FLAGGED) wait_for_previous();
  __syncthreads();  // as the others, before they gather,
  __syncthreads();  // and while they do
  wait(&s.x_ready);
  constexpr int OWN = (D + 127) / 128;
#pragma unroll 1
  for (int b = 0; b < BATCH; b++) {
    float4 mine[OWN];
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      int k = 4 * (lane() + 32 * i);
      mine[i] = k < D ? *(const float4*)(s.x + b * X_STRIDE + k) : make_float4(0, 0, 0, 0);
      sum += (mine[i].x + mine[i].y) + (mine[i].z + mine[i].w);
    }
#pragma unroll
    for (int m = 16; m; m /= 2) sum += shuffle_xor(sum, m);
    float mean = sum * (1.0f / D);
#pragma unroll
    for (int i = 0; i < OWN; i++)
      if (4 * (lane() + 32 * i) < D) {
        float4 d = make_float4(mine[i].x - mean, mine[i].y - mean, mine[i].z - mean, mine[i].w - mean);
        squares += (d.x * d.x + d.y * d.y) + (d.z * d.z + d.w * d.w);
      }
#pragma unroll
    for (int m = 16; m; m /= 2) squares += shuffle_xor(squares, m);
    if (lane() == 0)
      send(make_float2(mean, inverse_sqrt(squares * (1.0f / D) + eps)), &s.moments[b], &s.moments_ready, cluster_rank());
  }
  if (FLAGGED) wait_for_previous();
}
