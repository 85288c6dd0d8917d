// The names of chip.cuh on a CPU: a kernel runs step for step, slowly, and in an order that chance decides.
//
// Every CUDA thread is a fiber: it runs until it waits for others, then any fiber that can go on does. The blocks of a
// cluster run at once, clusters one after the other. What a GPU leaves open is chance here, from a seed: who goes next,
// when bytes on their way arrive. What a GPU leaves undefined reads as NaN or is an error: shared memory at the start,
// the target of a copy before its wait, a store to a block that may not be ready for it, a wait without an end.
//
//   g++ -std=c++17 -O2 -shared -fPIC -x c++ -DEMULATE kernel.cu      then `run`, at the end of this file
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#define SHARED(name) char* name = emulated::now->block->shared
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
#define blockDim (emulated::now->block->machine->threads)
#define gridDim (emulated::now->block->machine->grid)
#define KERNEL(name) static emulated::Known name##_is_known = {#name, emulated::Call<name>::call, emulated::Call<name>::bytes};

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

// An mbarrier: how many bytes are still missing, and how many cluster barriers its thread had come to when it was set up
struct Barrier { int missing; u32 after; };

namespace emulated {

enum : u32 { NOBODY = ~0u };  // what a barrier reads in memory that nothing was written to
enum { WARP = 32, STACK = 1 << 16, EDGE = 256, LARGEST_SHARED = 232448 };

struct Block;
struct Machine;
struct Index { u32 x, y = 0, z = 0; };

struct Copy { char* to; const char* from; u64 group; bool was_read; char value[16]; };      // an asynchronous copy
struct Flight { Block* block; char* to; Barrier* barrier; int bytes; char value[16]; };  // a store under way

struct Fiber {
  jmp_buf registers;
  Block* block;
  Index thread;
  char* stack;
  const char* waits_in = nullptr;
  const Barrier* barrier = nullptr;
  bool started = false, done = false;
  u32 arrived = 0, passed = 0;  // cluster barriers
  u64 groups = 0;               // of copies, committed
  std::vector<Copy> copies;
};

struct Warp { const char* what; int here = 0; void* lanes[WARP]; };

struct Block {
  Machine* machine;
  Index index;
  u32 rank;
  std::vector<char> memory;
  char* shared;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  u32 waiting = 0, running;  // fibers in __syncthreads, and all that have not ended
  bool waited_for_previous = false;
};

struct Known {  // a kernel of this library
  const char* name;
  void (*call)(const void* params);
  size_t bytes;
  Known* next;
  static Known*& first() { static Known* known = nullptr; return known; }
  Known(const char* name, void (*call)(const void*), size_t bytes) : name(name), call(call), bytes(bytes), next(first()) {
    first() = this;
  }
};
template <auto kernel> struct Call;
template <class P, void (*kernel)(P)> struct Call<kernel> {
  static void call(const void* params) { kernel(*(const P*)params); }
  enum { bytes = sizeof(P) };
};

struct Machine {
  Index grid, threads;
  size_t shared_bytes;
  const Known* kernel;
  const void* params;
  u64 seed, clock = 0;
  std::vector<Block> blocks;  // of the cluster that runs
  std::vector<Fiber*> ready;
  std::vector<Flight> flights;
  u32 running, barriers, at_barrier, reach;  // fibers; cluster barriers behind us; fibers that arrived at the next one
  u64 polls = 0;
  time_t quiet_since;
  jmp_buf home;
  std::string message;
};

static thread_local Fiber* now = nullptr;
static Machine& machine() { return *now->block->machine; }

static u64 chance(u64 n) {  // 0 to n - 1
  u64 z = machine().seed += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9, z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) % n;
}

static std::string text(const char* format, ...) {
  char line[400];
  va_list values;
  va_start(values, format), vsnprintf(line, sizeof line, format, values), va_end(values);
  return line;
}

static std::string who(const Fiber* f) { return text("thread %u of block %u", f->thread.x, f->block->index.x); }

[[noreturn]] static void give_up() { _longjmp(machine().home, 1); }

#define FAIL_UNLESS(condition, ...)                                                                          \
  do {                                                                                                       \
    if (condition) break;                                                                                    \
    emulated::machine().message = emulated::who(emulated::now) + ": " + emulated::text(__VA_ARGS__); \
    emulated::give_up();                                                                                     \
  } while (0)

// --- fibers: who goes on

static void wake(Fiber* f) {
  f->waits_in = nullptr, f->barrier = nullptr;
  Machine& m = machine();
  m.ready.push_back(f), m.polls = 0;
}

static void land(size_t i) {  // a store under way arrives
  Machine& m = machine();
  Flight f = m.flights[i];
  m.flights[i] = m.flights.back(), m.flights.pop_back();
  memcpy(f.to, f.value, f.bytes);
  FAIL_UNLESS((f.barrier->missing -= f.bytes) >= 0, "more bytes are sent to block %u than its barrier at shared + %ld expects",
              f.block->index.x, (long)((char*)f.barrier - f.block->shared));
  if (f.barrier->missing == 0)
    for (Fiber& other : f.block->fibers)
      if (other.barrier == f.barrier) wake(&other);
}

[[noreturn]] static void deadlock() {
  Machine& m = machine();
  m.message = "nobody can go on:";
  struct Kind { std::string what; Fiber* first; int threads; };
  std::vector<Kind> kinds;
  for (Block& block : m.blocks)
    for (Fiber& f : block.fibers)
      if (!f.done) {
        std::string what = f.waits_in;
        if (f.barrier) what += text("(shared + %ld) for %d bytes", (long)((char*)f.barrier - block.shared), f.barrier->missing);
        if (kinds.empty() || kinds.back().what != what || kinds.back().first->block != &block) kinds.push_back({what, &f, 0});
        kinds.back().threads++;
      }
  for (size_t i = 0; i < kinds.size() && i < 16; i++) {
    m.message += (i ? "; " : " ") + who(kinds[i].first);
    if (kinds[i].threads > 1) m.message += text(" and %d more", kinds[i].threads - 1);
    m.message += (kinds[i].threads > 1 ? " wait in " : " waits in ") + kinds[i].what;
  }
  if (kinds.size() > 16) m.message += "; ...";
  std::vector<Kind>().swap(kinds);
  give_up();
}

static Fiber* choose() {  // the newest that can go on, or one of the newest, or any: seeds differ in how far one runs ahead
  Machine& m = machine();
  while (!m.flights.empty() && (m.ready.empty() || chance(4) == 0)) land(chance(m.flights.size()));
  if (m.ready.empty()) deadlock();
  size_t n = m.ready.size(), i = n - 1 - chance(chance(16) && m.reach < n ? m.reach : n);
  Fiber* f = m.ready[i];
  m.ready[i] = m.ready.back(), m.ready.pop_back();
  return f;
}

static void live();

[[noreturn]] static void enter(Fiber* f) {
  now = f;
  if (f->started) _longjmp(f->registers, 1);
  f->started = true;
  ucontext_t fresh;
  getcontext(&fresh);
  fresh.uc_stack.ss_sp = f->stack, fresh.uc_stack.ss_size = STACK, fresh.uc_link = nullptr;
  makecontext(&fresh, live, 0);
  setcontext(&fresh);
  __builtin_unreachable();
}

__attribute__((noinline)) static void leave() {  // come back when chosen
  Fiber* next = choose();
  if (next != now && !_setjmp(now->registers)) enter(next);
}

static void pause_in(const char* what) { now->waits_in = what, leave(); }  // until somebody wakes it
static void stay() { machine().ready.push_back(now), leave(); }           // can go on, but others may be faster
static void maybe() { if (chance(8) == 0) stay(); }

static void poll(const char* what) {  // in a loop until memory changes, perhaps by another process
  Machine& m = machine();
  if (++m.polls % 4096 == 1) {
    time_t t = time(nullptr);
    if (m.polls == 1) m.quiet_since = t;
    FAIL_UNLESS(t - m.quiet_since < 20, "%s for 20 seconds, and nobody else does anything", what);
  }
  stay();
}

static void release_block(Block& b) {  // all that have not ended are in __syncthreads
  if (b.waiting == 0 || b.waiting < b.running) return;
  b.waiting = 0;
  for (Fiber& f : b.fibers)
    if (f.waits_in && !strcmp(f.waits_in, "__syncthreads")) wake(&f);
}

static void release_cluster() {  // all have arrived, or ended
  Machine& m = machine();
  u32 all = m.blocks.size() * m.threads.x;
  if (m.at_barrier < all) return;
  m.barriers++, m.at_barrier = all - m.running;
  for (Block& b : m.blocks)
    for (Fiber& f : b.fibers)
      if (f.waits_in && !strcmp(f.waits_in, "cluster_wait")) wake(&f);
}

static void live() {  // a fiber's whole life
  Machine& m = machine();
  m.kernel->call(m.params);
  Block& b = *now->block;
  FAIL_UNLESS(now->copies.empty(), "it ends while %zu of its copies are under way", now->copies.size());
  now->done = true, m.running--;
  if (now->arrived == m.barriers) m.at_barrier++;
  if (--b.running == 0) {
    for (Flight& f : m.flights) FAIL_UNLESS(f.block != &b, "its block ends while bytes are on their way to it");
    FAIL_UNLESS(b.waited_for_previous, "its block ends without wait_for_previous");
    for (int i = 0; i < EDGE; i++)
      FAIL_UNLESS(b.shared[-1 - i] == 0x5a && b.shared[m.shared_bytes + i] == 0x5a, "its block wrote beside its shared memory");
  }
  if (m.running == 0) give_up();
  release_block(b), release_cluster();
  leave();
}

// --- what needs all lanes of a warp: the last one works for all

template <class Lane, class Work> void together(const char* what, Lane& mine, Work work) {
  Block& b = *now->block;
  Warp& warp = b.warps[now->thread.x / WARP];
  if (warp.here == 0) warp.what = what;
  FAIL_UNLESS(!strcmp(warp.what, what), "it is in %s, other lanes of its warp in %s", what, warp.what);
  warp.lanes[now->thread.x % WARP] = &mine;
  if (++warp.here < WARP) return pause_in(what);
  work((Lane**)warp.lanes);
  warp.here = 0;
  Fiber* first = &b.fibers[now->thread.x / WARP * WARP];
  for (int i = 0; i < WARP; i++)
    if (first + i != now) wake(first + i);
  stay();
}

static void check_shared(const Block& b, const void* p, size_t bytes, const char* what) {
  FAIL_UNLESS(p >= b.shared && (char*)p + bytes <= b.shared + machine().shared_bytes,
              "%s at shared + %ld, outside of %zu bytes", what, (long)((char*)p - b.shared), machine().shared_bytes);
  FAIL_UNLESS((size_t)p % bytes == 0, "%s at shared + %ld, no multiple of %zu", what, (long)((char*)p - b.shared), bytes);
}

static float from_half(u32 x) {  // float16
  u32 sign = (x & 0x8000) << 16, size = x & 0x7fff;
  float y = size >= 0x7c00 ? (size > 0x7c00 ? NAN : INFINITY) : std::ldexp((float)(size < 0x400 ? size : (size & 0x3ff) | 0x400),
                                                                       (size < 0x400 ? 1 : (int)(size >> 10)) - 25);
  return sign ? -y : y;
}
static u32 to_half(float x) {
  u32 sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (x >= 65520) return sign | 0x7c00;
  int exponent = x < 0x1p-14f ? -14 : std::ilogb(x);  // the even neighbour where x lies between two: nearbyint
  u32 mantissa = (u32)std::nearbyint(std::ldexp(x, 10 - exponent));
  return sign | (((u32)(exponent + 14) << 10) + mantissa);
}

template <class T> void flip(T& value, int mask) {
  struct Lane { T in, *out; } mine = {value, &value};
  together("shuffle", mine, [mask](Lane** lanes) {
    for (int i = 0; i < WARP; i++) *lanes[i]->out = lanes[i ^ mask]->in;
  });
}

}  // namespace emulated

// --- CUDA's own

DEVICE u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }
DEVICE float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
DEVICE int __float_as_int(float x) { return (int)__float_as_uint(x); }
DEVICE float __int_as_float(int x) { return __uint_as_float((u32)x); }
template <class T> T __ldg(const T* p) { return *p; }
template <class A, class B> auto min(A a, B b) { typedef std::common_type_t<A, B> T; return (T)b < (T)a ? (T)b : (T)a; }
template <class A, class B> auto max(A a, B b) { typedef std::common_type_t<A, B> T; return (T)a < (T)b ? (T)b : (T)a; }
template <class T, class F> T atomically(T* p, F change) {  // also among other threads of the process
  emulated::maybe();
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do after = change(before);
  while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return before;
}
template <class T> T atomicAdd(T* p, std::common_type_t<T> x) { return atomically(p, [x](T y) { return (T)(y + x); }); }
template <class T> T atomicMax(T* p, std::common_type_t<T> x) { return atomically(p, [x](T y) { return y < x ? x : y; }); }
DEVICE void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST), emulated::maybe(); }

DEVICE void __syncthreads() {
  emulated::Block& b = *emulated::now->block;
  if (++b.waiting < b.running) return emulated::pause_in("__syncthreads");
  emulated::release_block(b), emulated::stay();
}
DEVICE void __syncwarp(u32 mask = ~0u) {
  FAIL_UNLESS(mask == ~0u, "__syncwarp of some lanes");
  emulated::together("__syncwarp", mask, [](u32**) {});
}
template <class T> T __shfl_xor_sync(u32 mask, T x, int lanes) {
  FAIL_UNLESS(mask == ~0u && lanes >= 0 && lanes < 32, "a shuffle of some lanes, or by %d", lanes);
  emulated::flip(x, lanes);
  return x;
}

// --- chip.cuh's

DEVICE void let_next_start() { emulated::maybe(); }
DEVICE void wait_for_previous() { emulated::now->block->waited_for_previous = true, emulated::maybe(); }

DEVICE u32 cluster_rank() { return emulated::now->block->rank; }
DEVICE void cluster_arrive() {
  FAIL_UNLESS(emulated::now->arrived == emulated::now->passed, "cluster_arrive twice, without cluster_wait");
  emulated::now->arrived++, emulated::machine().at_barrier++;
  emulated::release_cluster(), emulated::maybe();
}
DEVICE void cluster_wait() {
  FAIL_UNLESS(emulated::now->arrived > emulated::now->passed, "cluster_wait without cluster_arrive");
  if (emulated::machine().barriers < emulated::now->arrived) emulated::pause_in("cluster_wait");
  else emulated::stay();
  emulated::now->passed++;
}

DEVICE void expect(Barrier* barrier, u32 bytes) {
  emulated::check_shared(*emulated::now->block, barrier, sizeof *barrier, "a barrier");
  FAIL_UNLESS(barrier->after == emulated::NOBODY, "expect of a barrier that is in use");
  *barrier = {(int)bytes, emulated::now->arrived};
  emulated::maybe();
}
DEVICE void wait(Barrier* barrier) {
  emulated::check_shared(*emulated::now->block, barrier, sizeof *barrier, "a barrier");
  FAIL_UNLESS(barrier->after != emulated::NOBODY, "wait for a barrier that nobody has set up yet with expect");
  if (barrier->missing) emulated::now->barrier = barrier, emulated::pause_in("wait");
  else emulated::stay();
}

template <class T> void send(T x, const void* shared, Barrier* barrier, u32 rank) {
  using namespace emulated;
  Block& mine = *now->block;
  FAIL_UNLESS(rank < machine().blocks.size(), "send to rank %u of a cluster of %zu", rank, machine().blocks.size());
  check_shared(mine, shared, sizeof x, "send"), check_shared(mine, barrier, sizeof *barrier, "a barrier");
  Block& block = machine().blocks[rank];
  char* to = block.shared + ((char*)shared - mine.shared);
  Barrier* there = (Barrier*)(block.shared + ((char*)barrier - mine.shared));
  FAIL_UNLESS(there->after != NOBODY && there->after < now->passed,
              "send to block %u, whose barrier is not sure to be set up: no cluster barrier since", block.index.x);
  FAIL_UNLESS(block.running, "send to block %u, which has ended", block.index.x);
  machine().flights.push_back({&block, to, there, sizeof x, {}});
  memcpy(machine().flights.back().value, &x, sizeof x);
  memset(to, 0xff, sizeof x);
  maybe();
}

DEVICE void copy_16(void* shared, const void* global) {
  emulated::check_shared(*emulated::now->block, shared, 16, "copy_16");
  FAIL_UNLESS((size_t)global % 16 == 0, "copy_16 from an address that is no multiple of 16");
  emulated::Copy c = {(char*)shared, (const char*)global, emulated::now->groups, emulated::chance(2) == 0, {}};
  if (c.was_read) memcpy(c.value, global, 16);
  memset(shared, 0xff, 16);
  emulated::now->copies.push_back(c);
}
DEVICE void commit() { emulated::now->groups++, emulated::maybe(); }
template <int PENDING> DEVICE void wait_but() {
  std::vector<emulated::Copy>& copies = emulated::now->copies;
  size_t kept = 0;
  for (emulated::Copy& c : copies) {
    bool due = c.group + PENDING < emulated::now->groups;
    if (!due && emulated::chance(4)) copies[kept++] = c;
    else memcpy(c.to, c.was_read ? c.value : c.from, 16);
  }
  copies.resize(kept), emulated::maybe();
}

DEVICE float4 load_fresh(const float4* p) { emulated::maybe(); return *p; }
DEVICE uint4 load_flagged(const uint4* p) {
  emulated::poll("load_flagged");
  u64 words[2] = {__atomic_load_n((u64*)p, __ATOMIC_ACQUIRE), __atomic_load_n((u64*)p + 1, __ATOMIC_ACQUIRE)};
  uint4 x;
  memcpy(&x, words, 16);
  return x;
}
DEVICE void store_flagged(uint4* p, uint4 x) {
  u64 words[2];
  memcpy(words, &x, 16);
  for (int i = 0; i < 2; i++) __atomic_store_n((u64*)p + i, words[i], __ATOMIC_RELEASE), emulated::maybe();
}
DEVICE u64 nanoseconds() { emulated::poll("nanoseconds"); return emulated::machine().clock += 1 + emulated::chance(100); }

#ifdef HALF
DEVICE float from_16(u32 x) { return emulated::from_half(x & 0xffff); }
DEVICE u32 to_16(float x) { return emulated::to_half(x); }
#else
DEVICE float from_16(u32 x) { return __uint_as_float(x << 16); }
DEVICE u32 to_16(float x) {
  u32 bits = __float_as_uint(x);
  return std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif
DEVICE u32 pack(float low, float high) { return to_16(low) | to_16(high) << 16; }
DEVICE float2 unpack(u32 x) { return {from_16(x), from_16(x >> 16)}; }

DEVICE void mma(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  struct Lane { float* c; u32 a[4], b[2]; } mine = {c, {a0, a1, a2, a3}, {b0, b1}};
  emulated::together("mma", mine, [](Lane** lanes) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
      int g = l / 4, t = l % 4;
      for (int i = 0; i < 8; i++) a[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = from_16(lanes[l]->a[i / 2] >> i % 2 * 16);
      for (int i = 0; i < 4; i++) b[2 * t + i / 2 * 8 + i % 2][g] = from_16(lanes[l]->b[i / 2] >> i % 2 * 16);
    }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) lanes[l]->c[i] += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
  });
}

DEVICE float exp_2(float x) { return std::exp2(x); }
DEVICE float log_2(float x) { return std::log2(x); }
DEVICE float inverse_sqrt(float x) { return 1 / std::sqrt(x); }
template <class T> T shuffle_xor(T x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

// --- a launch

namespace emulated {

static void run_cluster(Machine& m, u32 cluster, char* stacks) {
  u32 size = m.blocks.size();
  m.ready.clear(), m.flights.clear();
  m.running = size * m.threads.x, m.barriers = m.at_barrier = 0;
  for (u32 rank = 0; rank < size; rank++) {
    Block& b = m.blocks[rank];
    b.machine = &m, b.index = {cluster * size + rank}, b.rank = rank, b.running = m.threads.x, b.waiting = 0;
    b.waited_for_previous = false;
    b.memory.assign(m.shared_bytes + 2 * EDGE + 128, 0x5a);
    b.shared = (char*)(((size_t)b.memory.data() + EDGE + 127) & ~(size_t)127);
    memset(b.shared, 0xff, m.shared_bytes);
    b.warps.assign(m.threads.x / WARP, Warp{});
    b.fibers.clear(), b.fibers.resize(m.threads.x);
    for (u32 t = 0; t < m.threads.x; t++) {
      Fiber& f = b.fibers[t];
      f.block = &b, f.thread = {t}, f.stack = stacks + (size_t)(rank * m.threads.x + t) * STACK;
      m.ready.push_back(&f);
    }
  }
  now = m.ready[0];
  const u32 reaches[] = {1, 32, ~0u};
  m.reach = reaches[chance(3)];
  if (!_setjmp(m.home)) enter(choose());
}

}  // namespace emulated

// Runs a kernel of this library. Returns what went wrong, or null.
extern "C" const char* run(const char* name, u32 grid, u32 cluster, u32 threads, u32 shared_bytes, const void* params,
                           u64 params_bytes, u64 seed) {
  using namespace emulated;
  static thread_local std::string message;
  const Known* kernel = Known::first();
  while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
  if (!kernel) return (message = text("no KERNEL(%s) in this source", name)).c_str();
  if (kernel->bytes != params_bytes)
    return (message = text("%s takes %zu bytes of parameters, not %llu", name, kernel->bytes, params_bytes)).c_str();
  if (!cluster || cluster > 16 || grid % cluster || !threads || threads > 1024 || threads % WARP || shared_bytes > LARGEST_SHARED)
    return (message = "no such launch on the chip: " + text("%u blocks in clusters of %u, %u threads, %u bytes of shared memory",
                                                            grid, cluster, threads, shared_bytes)).c_str();
  Machine m;
  m.grid = {grid}, m.threads = {threads}, m.shared_bytes = shared_bytes, m.kernel = kernel, m.params = params, m.seed = seed;
  m.blocks.resize(cluster);
  size_t bytes = (size_t)cluster * threads * STACK;
  char* stacks = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return "no memory for the threads' stacks";
  std::vector<u32> order;
  for (u32 i = 0; i < grid / cluster; i++) order.push_back(i);
  while (!order.empty() && m.message.empty()) {
    size_t i = (m.seed += 0x9e3779b97f4a7c15) / 7 % order.size();
    u32 next = order[i];
    order[i] = order.back(), order.pop_back();
    run_cluster(m, next, stacks);
  }
  munmap(stacks, bytes);
  now = nullptr;
  return m.message.empty() ? nullptr : (message = m.message).c_str();
}
