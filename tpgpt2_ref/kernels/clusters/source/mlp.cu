// The second half of a layer in one kernel: x + c_proj(GELU(c_fc(LayerNorm(x)))), by slices of the hidden units.
//
//     block r of 8 of a cluster                                       who waits for whom
//     1  sums its eighth of x, sends it to all 8                       all for all
//     2  c_fc: 32 hidden units, all D inputs; GELU
//     3  c_proj: all D outputs, its 32 inputs; warp w's eighth of      the owner of an eighth for all
//        them goes to block w, which owns it
//     4  sums its eighth over the 8 blocks                        ──►  slot of the cluster
//
// The weights of both products are asked for before the kernel waits for the one before it.
#include "product.cuh"

// INNER    hidden units of this rank, a multiple of 32
#define UNITS 32
#define CLUSTERS ((INNER + UNITS * CLUSTER - 1) / (UNITS * CLUSTER))
#define TOTAL ((STEPS + WARPS - 1) / WARPS + (COLUMNS + 31) / 32)
constexpr int CHUNKS_UNROLLED = COLUMNS % 32 ? 1 : COLUMNS / 32;

struct Params {
  Source from;
  Sink to;
  Turn turn;
  const char* c_fc;  // (INNER, D)
  const float* c_fc_sums;  // (2, INNER): s and t, see product.cuh
  const char* c_proj;  // (D, INNER)
  const char* c_proj_bias;
  const char* norm_weight;
  const long long* positions;
  u32 first;  // this rank adds x and the bias
  float eps;
};

struct Shared {
  Stream stream;
  float partial[WARPS][BATCH][UNITS];  // of the hidden units: each warp has a part of K
  u32 weighed[2 * BATCH * HALVES(D)];
  float sums[CLUSTER][BATCH][COLUMNS];  // by sender
  u32 inner[2 * BATCH * HALVES(UNITS)];  // what c_proj reads
  u32 norm_weight[D / 2], c_proj_bias[COLUMNS / 2];
  float c_fc_sums[2][UNITS];
  Barrier sums_ready;
};

constexpr int CHUNKS = chunks_of(TOTAL, ROUNDED(sizeof(Shared)));  // under way at once

struct Path {  // c_fc, a step a chunk; then c_proj, four tiles a chunk
  const char *fc, *proj;
  int first, steps, idle;
  DEVICE_MEMBER const void* leaf(int c, int i) const {
    if (idle) return nullptr;
    int row = i / 2 * 16 + i % 2 + g();  // and g more, by `fc` and `proj`: a lane's two rows lie side by side
    if (c < steps) return fc + ((u64)row * D + (first + c) * 32) * 2;
    row += (c - steps) * 32;
    return row - g() < COLUMNS ? proj + (u64)row * INNER * 2 : nullptr;
  }
};

// Of a chunk's four leaves: this lane's two outputs, 16 (t % 2) + 2 g and the next.
DEVICE float2 rows_of(const float c[CHUNK][4]) {
  return make_float2(sum_of_parts(part_of(c[0]), part_of(c[2])), sum_of_parts(part_of(c[1]), part_of(c[3])));
}

DEVICE float gelu(float x) {  // tanh's form: x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  return x * inverse(1 + exp_2(-2.302208198f * (x + 0.044715f * x * x * x)));  // 2 sqrt(2 / pi) log2(e)
}

extern "C" __global__ void __launch_bounds__(THREADS + 32, 2) mlp(const __grid_constant__ Params p) {
  SHARED(memory);
  Shared& s = *(Shared*)memory;
  MARK(0)
  int rank = cluster_rank(), cluster = blockIdx.x / CLUSTER, unit = blockIdx.x * UNITS;
  bool idle = INNER % (UNITS * CLUSTER) && unit >= INNER;  // the last cluster's blocks may have none; they still take part in its sums

  if (threadIdx.x == 0) {
    expect_x(s.stream);
    expect(&s.sums_ready, CLUSTER * BATCH * COLUMNS * 4);
  }
  cluster_arrive();
  let_next_start();
  if (warp() == WARPS) return find_moments(s.stream, p.eps);
  copy_ahead(s.norm_weight, p.norm_weight, D * 2);
  copy_ahead(s.c_proj_bias, p.c_proj_bias + rank * COLUMNS * 2, COLUMNS * 2);
  if (!idle)
    for (int j = 0; j < 2; j++) copy_ahead(s.c_fc_sums[j], p.c_fc_sums + j * INNER + unit, UNITS * 4);
  int first = first_step(), steps = steps_of_warp();
  Tape<CHUNKS, TOTAL, Path> tape(Path{p.c_fc + ((u64)(unit + g()) * D + 8 * t()) * 2,
                              p.c_proj + ((u64)(warp() * COLUMNS + g()) * INNER + unit + 8 * t()) * 2, first, steps, idle},
                         memory + ROUNDED(sizeof(Shared)));
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

  // 2  the hidden units: each warp a part of K, then two units a thread
  float c[N_TILES][CHUNK][4] = {};
#pragma unroll STEPS_UNROLLED
  for (int step = first; step < first + steps; step++) {
    uint4 w[CHUNK];
    tape.take(w);
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
      uint2 x = operand(s.weighed, HALVES(D), n, step);
#pragma unroll
      for (int j = 0; j < CHUNK; j++) product(c[n][j], x, w[j]);
    }
  }
  MARK(7)
#pragma unroll
  for (int n = 0; n < N_TILES; n++) {
    int b = 2 * n + t() / 2;
    float2 y = rows_of(c[n]);
    if (b < BATCH) *(float2*)&s.partial[warp()][b][16 * (t() % 2) + 2 * g()] = y;
  }
  wait(&s.stream.moments_ready);
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * UNITS / 2; i += THREADS) {
    int pair = i % (UNITS / 2), b = i / (UNITS / 2);
    float2 y = make_float2(0, 0), m = s.stream.moments[b];
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      float2 part = *(const float2*)&s.partial[w][b][2 * pair];
      y.x += part.x, y.y += part.y;
    }
    float2 sums = *(const float2*)&s.c_fc_sums[0][2 * pair], biases = *(const float2*)&s.c_fc_sums[1][2 * pair];
    y = make_float2(gelu(unnormed(y.x, m, sums.x, biases.x)), gelu(unnormed(y.y, m, sums.y, biases.y)));
    put(s.inner, HALVES(UNITS), b, pair, idle ? 0 : y.x, idle ? 0 : y.y);
  }
  __syncthreads();
  MARK(9)

  // 3  c_proj: each warp the outputs of one block
  uint2 inner[N_TILES];
#pragma unroll
  for (int n = 0; n < N_TILES; n++) inner[n] = operand(s.inner, HALVES(UNITS), n, 0);
#pragma unroll CHUNKS_UNROLLED
  for (int row = 0; row < COLUMNS; row += 32) {
    uint4 w[CHUNK];
    tape.take(w);
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
      float y[CHUNK][4] = {};
#pragma unroll
      for (int i = 0; i < CHUNK; i++)
        if (!idle) product(y[i], inner[n], w[i]);
      int b = 2 * n + t() / 2, mine = row + 16 * (t() % 2) + 2 * g();
      float2 sum = rows_of(y);
      if (b < BATCH && mine < COLUMNS) send(sum, &s.sums[rank][b][mine], &s.sums_ready, warp());
    }
  }
  MARK(11)
  wait(&s.sums_ready);
  MARK(12)

  // 4  the cluster's contribution
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * COLUMNS; i += THREADS) {
    int mine = i % COLUMNS, b = i / COLUMNS, column = rank * COLUMNS + mine;
    float sum = p.first && cluster == 0 ? s.stream.x[b * X_STRIDE + column] + single(s.c_proj_bias, mine) : 0;
#pragma unroll
    for (int r = 0; r < CLUSTER; r++) sum += s.sums[r][b][mine];
    store(p.to, flag, RANK * CLUSTERS + cluster, b, column, sum);
  }
  wait_for_previous();  // every kernel does, so that the end of a step is the end of all its kernels
  MARK(14)
}
KERNEL(mlp)
SHARED_BYTES
