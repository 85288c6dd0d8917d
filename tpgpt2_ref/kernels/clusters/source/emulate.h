// The names of `chip.cuh` on a CPU: a kernel runs step for step, slowly, in an order that chance decides (`machine.h`).
//
// What is undefined on a GPU reads as NaN or is an error: shared memory at the start, the target of a copy or a store
// before its wait, a store to a block that may not be ready for it, a wait that nothing ends.
//
//     g++ -std=c++17 -O2 -shared -fPIC -x c++ -DEMULATE kernel.cu      then `run`, in machine.h
#include "machine.h"

#include <cmath>
#include <type_traits>

#define SHARED(name) char* name = emulated::now->block->shared
#define KERNEL(name) \
  static emulated::Known known_##name(#name, emulated::Call<name>::call, emulated::Call<name>::bytes);
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (emulated::now->thread)
#define blockIdx (emulated::now->block->index)
#define blockDim (emulated::machine().threads)
#define gridDim (emulated::machine().grid)

namespace emulated {
namespace chip {
using emulated::Barrier;

// --- CUDA's own

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
DEVICE uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
DEVICE uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
DEVICE int2 make_int2(int x, int y) { return {x, y}; }
DEVICE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

DEVICE u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }
DEVICE int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
DEVICE float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
DEVICE float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
template <class T> T __ldg(const T* p) { return *p; }
template <class A, class B> auto min(A a, B b) { typedef std::common_type_t<A, B> T; return (T)b < (T)a ? (T)b : (T)a; }
template <class A, class B> auto max(A a, B b) { typedef std::common_type_t<A, B> T; return (T)a < (T)b ? (T)b : (T)a; }

template <class T, class Change> T atomically(T* p, Change change) {  // also among other threads of this process
  maybe();
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do after = change(before);
  while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return before;
}
template <class T> T atomicAdd(T* p, std::common_type_t<T> x) { return atomically(p, [x](T y) { return T(y + x); }); }
template <class T> T atomicMax(T* p, std::common_type_t<T> x) { return atomically(p, [x](T y) { return max(x, y); }); }
DEVICE void __nanosleep(u32) { stay(); }
DEVICE void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST), maybe(); }

DEVICE void __syncthreads() {
  if (++now->block->waiting < now->block->running) return wait_in("__syncthreads");
  release_block(*now->block), stay();
}
DEVICE void __syncwarp(u32 mask = ~0u) {
  FAIL_UNLESS(mask == ~0u, "__syncwarp of some lanes");
  together("__syncwarp", mask, [](u32**) {});
}
template <class T> T __shfl_xor_sync(u32 mask, T x, int other) {
  FAIL_UNLESS(mask == ~0u && other >= 0 && other < WARP, "a shuffle of some lanes, or by %d", other);
  struct Lane { T in, out; } mine = {x, x};
  together("a shuffle", mine, [other](Lane** lanes) {
    for (int i = 0; i < WARP; i++) lanes[i]->out = lanes[i ^ other]->in;
  });
  return mine.out;
}

// --- the order of kernels, and of a cluster's blocks

DEVICE void let_next_start() { maybe(); }
DEVICE void wait_for_previous() {
  now->block->waited_for_previous = true;
  if (machine().kept.size()) wait_in("wait_for_previous");
  else maybe();
}

DEVICE u32 cluster_rank() { return now->block->rank; }
DEVICE void cluster_arrive() {
  FAIL_UNLESS(now->arrived == now->passed, "cluster_arrive twice, without cluster_wait");
  now->arrived++, machine().arrived++;
  release_cluster(machine()), maybe();
}
DEVICE void cluster_wait() {
  FAIL_UNLESS(now->arrived > now->passed, "cluster_wait without cluster_arrive");
  if (machine().barriers < now->arrived) wait_in("cluster_wait");
  else stay();
  now->passed++;
}

DEVICE void expect(Barrier* barrier, u32 bytes) {
  check_shared(barrier, sizeof *barrier, "a barrier");
  FAIL_UNLESS(barrier->after == NOBODY, "expect of a barrier that is in use");
  FAIL_UNLESS(bytes < 1 << 20, "expect of %u bytes: a barrier counts to 2^20 - 1", bytes);
  *barrier = {(int)bytes, now->arrived};
  maybe();
}
DEVICE void wait(Barrier* barrier) {
  check_shared(barrier, sizeof *barrier, "a barrier");
  FAIL_UNLESS(barrier->after != NOBODY, "wait for a barrier that no expect has set up");
  if (barrier->missing) now->waits_for = barrier, wait_in("wait");
  else stay();
}

template <class T> void send(T x, const void* shared, Barrier* barrier, u32 rank) {
  Machine& m = machine();
  FAIL_UNLESS(rank < m.blocks.size(), "send to rank %u of a cluster of %zu", rank, m.blocks.size());
  check_shared(shared, sizeof x, "send"), check_shared(barrier, sizeof *barrier, "a barrier");
  Block& block = m.blocks[rank];
  char* to = block.shared + offset(*now->block, shared);
  Barrier* there = (Barrier*)(block.shared + offset(*now->block, barrier));
  FAIL_UNLESS(block.running, "send to block %u, which has ended", block.index.x);
  FAIL_UNLESS(there->after != NOBODY && there->after < now->passed,
              "send to block %u, whose barrier may not be set up: no cluster barrier lies between", block.index.x);
  m.flights.push_back({&block, to, there, sizeof x, {}});
  memcpy(m.flights.back().value, &x, sizeof x), memset(to, 0xff, sizeof x);
  maybe();
}

// --- copies under way

DEVICE void copy_16(void* shared, const void* global) {
  check_shared(shared, 16, "copy_16");
  FAIL_UNLESS((size_t)global % 16 == 0, "copy_16 from %p, no multiple of 16", global);
  Copy copy = {(char*)shared, (const char*)global, now->groups, chance(2) == 0, {}};
  if (copy.was_read) memcpy(copy.value, global, 16);
  memset(shared, 0xff, 16);
  now->copies.push_back(copy);
}
DEVICE void commit() { now->groups++, maybe(); }
template <int PENDING> DEVICE void wait_but() {
  size_t kept = 0;
  for (Copy& copy : now->copies)
    if (copy.group + PENDING >= now->groups && chance(4)) now->copies[kept++] = copy;
    else memcpy(copy.to, copy.was_read ? copy.value : copy.from, 16);
  now->copies.resize(kept), maybe();
}

// --- memory that others write

DEVICE float4 load_fresh(const float4* p) { maybe(); return *p; }
DEVICE uint4 load_flagged(const uint4* p) {
  poll("load_flagged");
  u64 words[2] = {__atomic_load_n((u64*)p, __ATOMIC_ACQUIRE), __atomic_load_n((u64*)p + 1, __ATOMIC_ACQUIRE)};
  uint4 x;
  memcpy(&x, words, 16);
  return x;
}
DEVICE void store_flagged(uint4* p, uint4 x) {
  u64 words[2];
  memcpy(words, &x, 16);
  for (int i = 0; i < 2; i++) __atomic_store_n((u64*)p + i, words[i], __ATOMIC_RELEASE), maybe();
}
DEVICE void store_flagged(uint2* p, uint2 x) {
  u64 word;
  memcpy(&word, &x, 8);
  __atomic_store_n((u64*)p, word, __ATOMIC_RELEASE), maybe();
}
DEVICE u64 nanoseconds() { poll("nanoseconds"); return machine().clock += 1 + chance(100); }  // of a clock of its own
DEVICE long long cycles() { return (long long)nanoseconds(); }

// --- arithmetic in 16 bits

#ifdef HALF
DEVICE float from_16(u32 x) {  // a float's exponent counts from 127, a half's from 15
  u32 size = (x & 0x7fff) << 13;
  float y = (x & 0x7c00) == 0x7c00 ? __uint_as_float(size | 0x7f800000) : __uint_as_float(size) * 0x1p112f;
  return x & 0x8000 ? -y : y;
}
DEVICE u32 to_16(float x) {
  if (std::isnan(x)) return 0x7fff;
  u32 sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (x >= 65520) return sign | 0x7c00;
  int exponent = max(std::ilogb(x), -14);
  return sign | (((exponent + 14) << 10) + (u32)std::nearbyint(std::ldexp(x, 10 - exponent)));
}
#else
DEVICE float from_16(u32 x) { return __uint_as_float(x << 16); }
DEVICE u32 to_16(float x) {
  u32 bits = __float_as_uint(x);
  return std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif
DEVICE u32 pack(float low, float high) { return to_16(low) | to_16(high) << 16; }
DEVICE float2 unpack(u32 x) { return {from_16(x & 0xffff), from_16(x >> 16)}; }

DEVICE void mma(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  struct Lane { float* c; u32 a[4], b[2]; } mine = {c, {a0, a1, a2, a3}, {b0, b1}};
  together("mma", mine, [](Lane** lanes) {
    float a[16][16], b[16][8];
    auto half = [](u32 x, int i) { return from_16(i % 2 ? x >> 16 : x & 0xffff); };
    for (int l = 0; l < WARP; l++) {
      int g = l / 4, t = l % 4;
      for (int i = 0; i < 8; i++) a[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = half(lanes[l]->a[i / 2], i);
      for (int i = 0; i < 4; i++) b[2 * t + i / 2 * 8 + i % 2][g] = half(lanes[l]->b[i / 2], i);
    }
    for (int l = 0; l < WARP; l++)
      for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) lanes[l]->c[i] += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
  });
}

DEVICE float exp_2(float x) { return std::exp2(x); }
DEVICE float log_2(float x) { return std::log2(x); }
DEVICE float inverse(float x) { return 1 / x; }
DEVICE float inverse_sqrt(float x) { return 1 / std::sqrt(x); }
template <class T> T shuffle_xor(T x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

}  // namespace chip
}  // namespace emulated
using namespace emulated::chip;
