// Small kernels that use every name of `chip.cuh`, and that make, where `fault` asks for it, a mistake to be found.
#include "chip.cuh"

struct Params {
  const void *in, *more;
  void *out, *extra;
  u32 count, fault;
};
#define GLOBAL(kernel, threads) extern "C" __global__ void __launch_bounds__(threads) kernel(const __grid_constant__ Params p)

// out (16, 8) += in (16, 16) more^T, more (8, 16): one warp
GLOBAL(products, 32) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const u32 *a = (const u32*)p.in, *b = (const u32*)p.more;
  float2* out = (float2*)p.out;
  wait_for_previous();
  float2 top = out[4 * g + t], low = out[4 * (g + 8) + t];
  float c[4] = {top.x, top.y, low.x, low.y};
  if (p.fault == 1 && threadIdx.x == 5) __syncwarp();
  mma(c, a[8 * g + t], a[8 * (g + 8) + t], a[8 * g + t + 4], a[8 * (g + 8) + t + 4], b[8 * g + t], b[8 * g + t + 4]);
  let_next_start();
  out[4 * g + t] = make_float2(c[0], c[1]), out[4 * (g + 8) + t] = make_float2(c[2], c[3]);
}
KERNEL(products)

// in, more, out (blocks, 64, 4): a block turns its rows of `in` round and sends them to the next one of its cluster,
// and of its rows of `more` the first two columns to the one before: out = what came, and the warp's sum of the pairs
GLOBAL(exchange, 64) {
  struct Shared { float4 mine[64], more[64], came[64]; float2 pairs[64]; Barrier ready; };
  SHARED(memory);
  Shared& s = *(Shared*)memory;
  int i = threadIdx.x, row = blockIdx.x * 64 + i;
  u32 rank = cluster_rank(), next = (rank + 1) % p.count, before = (rank + p.count - 1) % p.count;
  let_next_start();
  copy_16(&s.more[i], (const float4*)p.more + row);  // not of the kernel before
  commit();
  if (i == 0) expect(&s.ready, sizeof(s.came) + sizeof(s.pairs));
  if (p.fault != 4) cluster_arrive();
  float early = p.fault == 6 ? *(const float*)p.in : 0;
  if (p.fault != 7) wait_for_previous();
  copy_16(&s.mine[i], (const float4*)p.in + row);
  commit();
  if (p.fault != 4) cluster_wait();
  wait_but<1>();
  float4 pair = s.more[i];
  send(make_float2(pair.x, pair.y), &s.pairs[i], &s.ready, before);
  if (p.fault != 1) wait_but<0>();
  if (p.fault != 2) __syncthreads();
  float4 turned = s.mine[63 - i];
  if (p.fault == 1) wait_but<0>();
  if (p.fault != 3 || i != 40) send(turned, &s.came[i], &s.ready, next);
  if (p.fault == 12 && i == 40) send(turned, &s.came[i], &s.ready, next);
  if (p.fault == 5) return;
  if (p.fault == 8 && i == 0) *(float*)(memory + sizeof s) = early;
  if (p.fault == 9 && i == 7) *(float*)(u64)p.fault = early;
  if (p.fault == 10 && i == 7) __syncthreads();
  if (p.fault == 11) send(turned, (char*)&s.came[i] + 4, &s.ready, next);
  wait(&s.ready);
  float4 came = s.came[i];
  float2 sum = s.pairs[i];
  for (int mask = 16; mask; mask /= 2) sum.x += shuffle_xor(sum.x, mask), sum.y += shuffle_xor(sum.y, mask);
  ((float4*)p.out)[row] = make_float4(came.x + sum.x + early, came.y + sum.y, came.z, came.w);
}
KERNEL(exchange)

// out = in's pairs of 16 bits as floats; extra = more's pairs of floats in 16 bits
GLOBAL(formats, 128) {
  wait_for_previous();
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += gridDim.x * blockDim.x) {
    ((float2*)p.out)[i] = unpack(__ldg((const u32*)p.in + i));
    float2 x = ((const float2*)p.more)[i];
    ((u32*)p.extra)[i] = pack(x.x, x.y);
  }
}
KERNEL(formats)

// out (8, count) = functions of in (count,)
GLOBAL(functions, 32) {
  wait_for_previous();
  float x = ((const float*)p.in)[threadIdx.x], *out = (float*)p.out + threadIdx.x;
  out[0] = exp_2(x), out[32] = log_2(fabsf(x)), out[64] = inverse_sqrt(fmaxf(x, 0.5f));
  out[96] = fminf(x, 1), out[128] = (float)min((int)threadIdx.x, 7), out[160] = max(x, 0.25f);
  long long big = ((long long)__float_as_uint(x) << 32) | threadIdx.x;
  out[192] = __uint_as_float((u32)(shuffle_xor(big, 3) >> 32)), out[224] = inverse(x);
}
KERNEL(functions)

// Two blocks, or two launches (`count` 1 and 2): the second leaves values with flags in `extra`, and beside them `in`;
// the first waits for them
GLOBAL(flags, 64) {
  uint4* mail = (uint4*)p.extra;
  float4* beside = (float4*)(mail + 64);
  u64* largest = (u64*)(beside + 64);
  u32* counted = (u32*)(largest + 1);
  wait_for_previous();
  u32 i = threadIdx.x, role = p.count ? p.count - 1 : blockIdx.x;
  if (role == 1) {
    u64 start = nanoseconds();
    while (nanoseconds() - start < 300) {}
    beside[i] = ((const float4*)p.in)[i];  // of ordinary memory, which the store behind the fence tells of
    __threadfence();
    store_flagged(mail + i, make_uint4(__float_as_uint((float)i), 7, __float_as_uint(0.5f), 7));
  } else {
    uint4 x = load_flagged(mail + i);
    while (x.y != 7 || x.w != 7) x = load_flagged(mail + i);
    __threadfence();  // a flag vouches for the value beside it; what lies elsewhere takes a fence on either side
    float4 y = load_fresh(beside + i);
    ((float4*)p.out)[i] = make_float4(__uint_as_float(x.x), __uint_as_float(x.z), y.x, y.w);
  }
  atomicMax(largest, (u64)(i * 2 + role) << 40);
  atomicAdd(counted, 2u);
}
KERNEL(flags)
