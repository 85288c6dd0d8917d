// The first kernel of a step of several ranks: each adds its part of the embeddings to the slots, on every GPU.
//
// A token's row of the vocabulary is on one rank, and the others' parts are zero; rank 0 adds the row of the position.
#include "step.cuh"

struct Params {
  Sink to;
  Turn turn;
  const long long* ids;        // (BATCH,)
  const long long* positions;  // (BATCH,)
  const u32* wte;              // (ROWS, D), this rank's
  const u32* wpe;              // (n_positions, D)
  u32 first_token;
};

extern "C" __global__ void __launch_bounds__(THREADS + 32) embed(const __grid_constant__ Params p) {
  let_next_start();
  wait_for_previous();
  u32 flag = flag_of(p.turn);
  for (int i = threadIdx.x; i < BATCH * D / 2; i += THREADS + 32) {
    int b = i / (D / 2), pair = i % (D / 2);
    long long row = p.ids[b] - p.first_token;
    float2 x = make_float2(0, 0);
    if (row >= 0 && row < ROWS) x = unpack(p.wte[row * (D / 2) + pair]);
    if (RANK == 0) {
      float2 position = unpack(p.wpe[p.positions[b] * (D / 2) + pair]);
      x.x += position.x, x.y += position.y;
    }
    store(p.to, flag, RANK, b, 2 * pair, x.x), store(p.to, flag, RANK, b, 2 * pair + 1, x.y);
  }
}
KERNEL(embed)
extern "C" __device__ u32 shared_bytes = 0;
