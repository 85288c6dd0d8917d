// A machine for `emulate.h`: every CUDA thread is a fiber, which runs until it waits for others; then any one goes on.
//
//     run ──► clusters, one after the other in any order ──► the fibers of all blocks of a cluster, one at a time
//
// What a GPU leaves open is chance, from a seed: who goes next, when bytes on their way arrive. What would be a race or
// a hang there ends the run here, with a message that names the thread.
#ifdef __APPLE__
#define _XOPEN_SOURCE 700  // for ucontext
#define _DARWIN_C_SOURCE
#endif
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace emulated {

enum : u32 { NOBODY = ~0u };  // what memory reads that nothing was written to
enum { WARP = 32, STACK = 1 << 16, GUARD = 1 << 14, EDGE = 256, LARGEST_SHARED = 232448 };

struct Machine;
struct Block;
struct Index { u32 x, y = 0, z = 0; };
struct Barrier { int missing; u32 after; };  // bytes; how many cluster barriers lay before its `expect`
struct Copy { char* to; const char* from; u64 group; bool was_read; char value[16]; };   // under way, from global
struct Flight { Block* block; char* to; Barrier* barrier; int bytes; char value[16]; };  // under way, to a block
struct Late { char* memory; u64 bytes; };  // what kernels before this one write: NaN until wait_for_previous

struct Fiber {
  jmp_buf registers;
  Block* block;
  Index thread;
  char* stack;
  bool started = false, done = false;
  const char* waits_in = nullptr;
  const Barrier* waits_for = nullptr;
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
  char* shared;  // in it
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  u32 running, waiting;  // fibers that have not ended, fibers in __syncthreads
  bool waited_for_previous;
};

struct Known {  // a kernel of this library
  const char* name;
  void (*call)(const void* params);
  size_t bytes;  // of its parameters
  Known* next;
  Known(const char* name, void (*call)(const void*), size_t bytes);
};
static Known* all_known = nullptr;  // no static of a function, which all libraries of a process would share
Known::Known(const char* name, void (*call)(const void*), size_t bytes)
    : name(name), call(call), bytes(bytes), next(all_known) { all_known = this; }
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
  u64 seed;
  u32 rank;  // whose GPU this would be
  std::vector<Late> late;

  std::vector<Block> blocks;  // of the cluster that runs
  std::vector<Fiber*> ready;  // all that can go on
  std::vector<Flight> flights;
  std::vector<std::string> kept;  // what `late` holds, while nobody has waited for it
  u32 running, barriers, arrived;  // fibers; cluster barriers that are passed; fibers that have come to the next one
  u32 reach;                       // how many of the newest in `ready` go next
  u64 clock = 0, polls = 0;
  time_t quiet_since;
  jmp_buf home;
  std::string message;  // what went wrong
};

static thread_local Fiber* now = nullptr;
static Machine& machine() { return *now->block->machine; }

static u64 chance(u64 n) {  // 0 to n - 1
  u64 z = machine().seed += 0x9e3779b97f4a7c15;  // splitmix64
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9, z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (z ^ z >> 31) % n;
}

// --- what went wrong

__attribute__((format(printf, 1, 2))) static std::string text(const char* format, ...) {
  char line[400];
  va_list values;
  va_start(values, format), vsnprintf(line, sizeof line, format, values), va_end(values);
  return line;
}
static std::string who(const Fiber* f) { return text("thread %u of block %u", f->thread.x, f->block->index.x); }
static long offset(const Block& b, const void* p) { return (const char*)p - b.shared; }

[[noreturn]] static void go_home() { _longjmp(machine().home, 1); }
static void blame(const std::string& what) { machine().message = who(now) + ": " + what; }
#define FAIL_UNLESS(condition, ...) \
  do if (!(condition)) { blame(text(__VA_ARGS__)); go_home(); } while (0)

static void tell_who_waits(Machine& m) {
  m.message = "nobody can go on:";
  struct Group { std::string what; Fiber* first; int others; };
  std::vector<Group> groups;
  for (Block& b : m.blocks)
    for (Fiber& f : b.fibers) {
      if (f.done) continue;
      std::string what = f.waits_in;
      if (f.waits_for) what += text("(shared + %ld) for %d bytes", offset(b, f.waits_for), f.waits_for->missing);
      if (groups.size() && groups.back().what == what && groups.back().first->block == &b) groups.back().others++;
      else groups.push_back({what, &f, 0});
    }
  for (size_t i = 0; i < groups.size() && i < 16; i++)
    m.message += (i ? "; " : " ") + who(groups[i].first) +
                 (groups[i].others ? text(" and %d more wait in ", groups[i].others) : " waits in ") + groups[i].what;
  if (groups.size() > 16) m.message += "; and so on";
}

static void trespass(int number, siginfo_t* about, void*) {
  FAIL_UNLESS(!now, "it touches memory that is not there, or not so aligned, at %p", about->si_addr);
  signal(number, SIG_DFL);  // no kernel's doing: it happens again, and ends the process
}

// --- fibers: who goes on

static void wake(Fiber* f) {
  f->waits_in = nullptr, f->waits_for = nullptr;
  machine().ready.push_back(f), machine().polls = 0;
}

static void land(size_t i) {  // a store arrives
  Machine& m = machine();
  Flight f = m.flights[i];
  m.flights[i] = m.flights.back(), m.flights.pop_back();
  memcpy(f.to, f.value, f.bytes);
  f.barrier->missing -= f.bytes;
  FAIL_UNLESS(f.barrier->missing >= 0, "block %u is sent more bytes than its barrier at shared + %ld expects",
              f.block->index.x, offset(*f.block, f.barrier));
  if (f.barrier->missing == 0)
    for (Fiber& other : f.block->fibers)
      if (other.waits_for == f.barrier) wake(&other);
}

static void release(Block& b, const char* what) {
  for (Fiber& f : b.fibers)
    if (f.waits_in && !strcmp(f.waits_in, what)) wake(&f);
}

static void hide_late(Machine& m) {
  for (Late& late : m.late) m.kept.emplace_back(late.memory, late.bytes), memset(late.memory, 0xff, late.bytes);
}
static void bring_late(Machine& m) {  // as late as can be: nobody else can go on
  for (size_t i = 0; i < m.kept.size(); i++) memcpy(m.late[i].memory, m.kept[i].data(), m.late[i].bytes);
  m.kept.clear();
  for (Block& b : m.blocks) release(b, "wait_for_previous");
}

static Fiber* choose() {  // the newest, one of the newest, or any: seeds differ in how far one may run ahead
  Machine& m = machine();
  while (!m.flights.empty() && (m.ready.empty() || chance(4) == 0)) land(chance(m.flights.size()));
  if (m.ready.empty() && !m.kept.empty()) bring_late(m);
  if (m.ready.empty()) tell_who_waits(m), go_home();
  size_t n = m.ready.size(), i = n - 1 - chance(m.reach < n && chance(16) ? m.reach : n);
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

__attribute__((noinline)) static void leave() {  // and come back when chosen
  Fiber* next = choose();
  if (next != now && !_setjmp(now->registers)) enter(next);
}

static void wait_in(const char* what) { now->waits_in = what, leave(); }  // until somebody wakes it
static void stay() { machine().ready.push_back(now), leave(); }           // it can go on, but others may be faster
static void maybe() { if (chance(8) == 0) stay(); }

static void poll(const char* what) {  // it looks whether memory has changed: by another fiber, or another process
  Machine& m = machine();
  if (m.polls++ % 4096 == 0) {
    time_t t = time(nullptr);
    if (m.polls == 1) m.quiet_since = t;
    FAIL_UNLESS(t - m.quiet_since < 20, "it looks again and again, in %s, for 20 seconds, all others wait", what);
  }
  stay();
}

// --- what many fibers do together

static void release_block(Block& b) {  // if all that have not ended are in __syncthreads
  if (b.waiting < b.running) return;
  b.waiting = 0, release(b, "__syncthreads");
}
static void release_cluster(Machine& m) {  // if all have arrived or ended
  u32 all = m.blocks.size() * m.threads.x;
  if (m.arrived < all) return;
  m.barriers++, m.arrived = all - m.running;
  for (Block& b : m.blocks) release(b, "cluster_wait");
}

// All lanes of a warp come, each with a `Lane`; the last one does the work for all.
template <class Lane, class Work> void together(const char* what, Lane& mine, Work work) {
  u32 lane = now->thread.x % WARP, first = now->thread.x - lane;
  Warp& warp = now->block->warps[first / WARP];
  if (warp.here == 0) warp.what = what;
  FAIL_UNLESS(!strcmp(warp.what, what), "it is in %s, other lanes of its warp in %s", what, warp.what);
  warp.lanes[lane] = &mine;
  if (++warp.here < WARP) return wait_in(what);
  warp.here = 0, work((Lane**)warp.lanes);
  for (u32 i = 0; i < WARP; i++)
    if (i != lane) wake(&now->block->fibers[first + i]);
  stay();
}

static void check_shared(const void* p, size_t bytes, const char* what) {  // of this block
  const Block& b = *now->block;
  FAIL_UNLESS(p >= b.shared && (char*)p + bytes <= b.shared + machine().shared_bytes,
              "%s at shared + %ld, outside of %zu bytes", what, offset(b, p), machine().shared_bytes);
  FAIL_UNLESS((size_t)p % bytes == 0, "%s at shared + %ld, no multiple of %zu", what, offset(b, p), bytes);
}

static void live() {  // a fiber's whole life
  Machine& m = machine();
  m.kernel->call(m.params);
  Block& b = *now->block;
  FAIL_UNLESS(now->copies.empty(), "it ends while %zu of its copies are under way", now->copies.size());
  now->done = true, m.running--;
  if (now->arrived == m.barriers) m.arrived++;
  if (--b.running == 0) {
    for (Flight& f : m.flights) FAIL_UNLESS(f.block != &b, "its block ends while bytes are on their way to it");
    FAIL_UNLESS(b.waited_for_previous, "its block ends without wait_for_previous");
    for (int i = 0; i < EDGE; i++)
      FAIL_UNLESS(b.shared[-1 - i] == 'E' && b.shared[m.shared_bytes + i] == 'E', "its block wrote beside its memory");
  }
  if (m.running == 0) go_home();
  if (b.waiting) release_block(b);
  release_cluster(m), leave();
}

static void run_cluster(Machine& m, u32 cluster, char* stacks) {
  u32 size = m.blocks.size();
  m.ready.clear(), m.flights.clear();
  m.running = size * m.threads.x, m.barriers = m.arrived = 0;
  for (u32 rank = 0; rank < size; rank++) {
    Block& b = m.blocks[rank];
    b.machine = &m, b.index = {cluster * size + rank}, b.rank = rank;
    b.running = m.threads.x, b.waiting = 0, b.waited_for_previous = false;
    b.memory.assign(m.shared_bytes + 2 * EDGE + 128, 'E');
    b.shared = (char*)(((size_t)b.memory.data() + EDGE + 127) / 128 * 128);
    memset(b.shared, 0xff, m.shared_bytes);
    b.warps.assign(m.threads.x / WARP, Warp{});
    b.fibers.clear(), b.fibers.resize(m.threads.x);
    for (u32 t = 0; t < m.threads.x; t++) {
      Fiber& f = b.fibers[t];
      f.block = &b, f.thread = {t}, f.stack = stacks + (size_t)(rank * m.threads.x + t) * STACK;
      m.ready.push_back(&f);
    }
  }
  hide_late(m);
  now = m.ready[0];
  const u32 reaches[] = {1, WARP, ~0u};
  m.reach = reaches[chance(3)];
  if (!_setjmp(m.home)) enter(choose());
  bring_late(m);
}

static void run_all(Machine& m) {  // with stacks for the fibers, and one for signals
  size_t fibers = m.blocks.size() * m.threads.x, bytes = (fibers + 1) * STACK;
  char* stacks = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return void(m.message = "no memory for the threads' stacks");
  for (size_t i = 0; i < fibers; i++) mprotect(stacks + i * STACK, GUARD, PROT_NONE);
  stack_t signals = {}, signals_before;
  signals.ss_sp = stacks + fibers * STACK, signals.ss_size = STACK;
  struct sigaction action = {}, segv_before, bus_before;
  action.sa_sigaction = trespass, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaltstack(&signals, &signals_before);
  sigaction(SIGSEGV, &action, &segv_before), sigaction(SIGBUS, &action, &bus_before);

  std::vector<u32> order(m.grid.x / m.blocks.size());
  for (u32 i = 0; i < order.size(); i++) order[i] = i;
  while (!order.empty() && m.message.empty()) {
    size_t i = (m.seed = m.seed * 6364136223846793005 + 1442695040888963407) / 65536 % order.size();
    u32 cluster = order[i];
    order[i] = order.back(), order.pop_back();
    run_cluster(m, cluster, stacks);
  }

  now = nullptr;
  sigaction(SIGSEGV, &segv_before, nullptr), sigaction(SIGBUS, &bus_before, nullptr);
  sigaltstack(&signals_before, nullptr);
  munmap(stacks, bytes);
}

}  // namespace emulated

// Runs a kernel of this library. Returns what went wrong, or null.
extern "C" const char* run(const char* name, u32 grid, u32 cluster, u32 threads, u32 shared_bytes, const void* params,
                           u64 params_bytes, u64 seed, const emulated::Late* late, u32 late_count,
                           u32 rank) {
  using namespace emulated;
  static thread_local std::string message;
  const Known* kernel = all_known;
  while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
  if (!kernel)
    message = text("no KERNEL(%s) in this source", name);
  else if (kernel->bytes != params_bytes)
    message = text("it takes %zu bytes of parameters, not %llu", kernel->bytes, params_bytes);
  else if (!cluster || cluster > 16 || !grid || grid % cluster || !threads || threads > 1024 || threads % WARP ||
           shared_bytes > LARGEST_SHARED)
    message = text("no such launch on the chip: %u blocks in clusters of %u, %u threads, %u bytes of shared memory",
                   grid, cluster, threads, shared_bytes);
  else {
    Machine m;
    m.grid = {grid}, m.threads = {threads}, m.shared_bytes = shared_bytes, m.kernel = kernel, m.params = params;
    m.seed = seed, m.rank = rank, m.late.assign(late, late + late_count), m.blocks.resize(cluster);
    run_all(m);
    message = m.message;
  }
  return message.empty() ? nullptr : message.c_str();
}
