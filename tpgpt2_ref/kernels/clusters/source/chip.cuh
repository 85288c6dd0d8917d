// What the kernels ask of the chip: one line of PTX each (PTX ISA 8.7; Hopper, sm_90).
//
// `emulate.h` has the same names for a CPU, so that the kernels' sources run anywhere, slowly.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef EMULATE
#include "emulate.h"
#else
#define SHARED(name) extern __shared__ __align__(128) char name[]
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

struct Barrier { u64 state; };  // an mbarrier: here one that is passed once, when all bytes that it expects are there

DEVICE u32 at(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// --- the order of kernels: programmatic dependent launch

DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// --- a cluster: blocks that run at once and reach each other's shared memory

DEVICE u32 cluster_rank() { u32 r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
// The arrival orders nothing but what `expect` has fenced: all that others need before they send.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

DEVICE u32 in_block(const void* shared, u32 rank) {  // the same place in another block of the cluster
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at(shared)), "r"(rank));
  return there;
}

DEVICE void expect(Barrier* barrier, u32 bytes) {  // one thread, before anybody sends: 1 arrival, then `bytes`
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at(barrier)), "r"(bytes) : "memory");
}

DEVICE void wait(Barrier* barrier) {
  asm volatile(
      "{ .reg .pred p; again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0, 0x989680;\n"
      "@!p bra again; }" ::"r"(at(barrier)) : "memory");
}

// Store into the same place of another block's shared memory; its barrier counts the bytes.
DEVICE void send(float4 x, const void* shared, Barrier* barrier, u32 rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   in_block(shared, rank)), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(in_block(barrier, rank)));
}
DEVICE void send(float2 x, const void* shared, Barrier* barrier, u32 rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                   in_block(shared, rank)), "f"(x.x), "f"(x.y), "r"(in_block(barrier, rank)));
}

DEVICE void send(float x, const void* shared, Barrier* barrier, u32 rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   in_block(shared, rank)), "f"(x), "r"(in_block(barrier, rank)));
}

// --- weights: each lane copies what it will read itself, so no other thread need wait for it

DEVICE void copy_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(at(shared)), "l"(global) : "memory");
}
DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void wait_but() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// --- memory that other kernels, or other GPUs, write while this one runs: never from L1

DEVICE float4 load_fresh(const float4* p) {
  float4 x;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(p));
  return x;
}
#if defined RANKS && RANKS == 1
#define SCOPE ".gpu"
#else
#define SCOPE ".sys"
#endif
DEVICE uint4 load_flagged(const uint4* p) {  // two words of (value, flag), each whole
  uint4 x;
  asm volatile("ld.relaxed" SCOPE ".global.v2.b64 {%0, %1}, [%2];" : "=l"(*(u64*)&x.x), "=l"(*(u64*)&x.z) : "l"(p));
  return x;
}
DEVICE void store_flagged(uint4* p, uint4 x) {
  asm volatile("st.relaxed" SCOPE ".global.v2.b64 [%0], {%1, %2};" ::"l"(p), "l"(*(u64*)&x.x), "l"(*(u64*)&x.z) : "memory");
}
DEVICE void store_flagged(uint2* p, uint2 x) {
  asm volatile("st.relaxed" SCOPE ".global.b64 [%0], %1;" ::"l"(p), "l"(*(u64*)&x.x) : "memory");
}
DEVICE u64 nanoseconds() { u64 t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); return t; }
DEVICE long long cycles() { long long t; asm volatile("mov.u64 %0, %%clock64;" : "=l"(t) :: "memory"); return t; }

// --- arithmetic in 16 bits, HALF: float16, else bfloat16

DEVICE u32 pack(float low, float high) {  // two floats, rounded to 16 bits
  u32 d;
#ifdef HALF
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
#endif
  return d;
}
DEVICE float2 unpack(u32 x) {
#ifdef HALF
  float2 y;
  asm("{ .reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(y.x), "=f"(y.y) : "r"(x));
  return y;
#else
  return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
#endif
}

// c (16, 8) += a (16, 16) b (16, 8). Lane l = 4 g + t holds a: rows g, g + 8, g, g + 8 of columns 2t, 2t, 2t + 8,
// 2t + 8 (two columns each); b: rows 2t and 2t + 8 (two each) of column g; c: rows g, g, g + 8, g + 8 of columns 2t,
// 2t + 1, 2t, 2t + 1.
DEVICE void mma(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#ifdef HALF
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
  asm(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DEVICE float exp_2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float log_2(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float inverse(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float inverse_sqrt(float x) { float y; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE long long shuffle_xor(long long x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

#define KERNEL(name)  // the emulator registers it
#endif
