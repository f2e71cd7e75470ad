// The fibers behind cuda_on_host.h: which thread of a block runs when. Compiled without any sanitizer, but it announces
// every switch of stacks and every wait to them.
#include "cuda_on_host.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#ifdef WITH_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef WITH_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

constexpr size_t MOST_SHARED = 227 << 10;  // of a block, on the largest GPU
alignas(128) unsigned char shared_memory[MOST_SHARED + 128];

namespace host {
namespace {

constexpr size_t STACK = 256 << 10;
constexpr unsigned WARP = 32;

enum State { READY, AT_BLOCK_WAIT, AT_WARP_WAIT, DONE };

struct Fiber {
  State state = DONE;
  char* stack = nullptr;
  void* waits_at = nullptr;  // which __syncthreads: its return address
#ifdef __x86_64__
  void* top = nullptr;  // of the stack, while it does not run
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;  // of the address sanitizer
  void* known_as = nullptr;  // to the thread sanitizer
};

std::vector<Fiber> fibers;  // one for each thread of a block
Fiber scheduler;
unsigned current;
const std::function<void()>* body;
std::vector<uint64_t> slots;
std::vector<unsigned> arrived;  // for each warp, a mask of the lanes that wait in it

uint3 index_of(unsigned thread) {
  return {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

// ---- announcements to the sanitizers --------------------------------------------------------------------------------

// Each wait of a block, and each of a warp, is an object that all release when they come and acquire when they go. Two
// that follow each other must not be the same one, for then a thread that comes early to the second would release to
// the first.
[[maybe_unused]] char block_waits[2], warp_waits[32][4], start_of_block, end_of_block;
unsigned block_wait, warp_wait[32];

void release([[maybe_unused]] void* at) {
#ifdef WITH_THREAD_SANITIZER
  __tsan_release(at);
#endif
}
void acquire([[maybe_unused]] void* at) {
#ifdef WITH_THREAD_SANITIZER
  __tsan_acquire(at);
#endif
}

[[maybe_unused]] const void* scheduler_stack;
[[maybe_unused]] size_t scheduler_stack_size;

void before_switch([[maybe_unused]] Fiber& from, [[maybe_unused]] Fiber& to, [[maybe_unused]] bool for_ever) {
#ifdef WITH_ADDRESS_SANITIZER
  const bool back = &to == &scheduler;
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &from.fake_stack, back ? scheduler_stack : to.stack,
                                 back ? scheduler_stack_size : STACK);
#endif
#ifdef WITH_THREAD_SANITIZER
  __tsan_switch_to_fiber(to.known_as, __tsan_switch_to_fiber_no_sync);
#endif
}

void after_switch([[maybe_unused]] Fiber* here) {
#ifdef WITH_ADDRESS_SANITIZER
  const bool in_fiber = here != &scheduler;  // then the stack left is the scheduler's
  __sanitizer_finish_switch_fiber(here ? here->fake_stack : nullptr, in_fiber ? &scheduler_stack : nullptr,
                                  in_fiber ? &scheduler_stack_size : nullptr);
#endif
}

// ---- going from one stack to another --------------------------------------------------------------------------------

void entry();

#ifdef __x86_64__
extern "C" void host_switch(void** save, void* to);
asm(R"(.text
.type host_switch,@function
host_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

void prepare(Fiber& fiber) {  // so that the first switch to it pops six zeros and returns into `entry`
  void** top = reinterpret_cast<void**>(fiber.stack + STACK - 64);
  top[0] = reinterpret_cast<void*>(entry);
  top[1] = nullptr;
  std::fill(top - 6, top, nullptr);
  fiber.top = top - 6;
}
void change_stack(Fiber& from, Fiber& to) { host_switch(&from.top, to.top); }
#else
void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = STACK;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
void change_stack(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

void go(Fiber& from, Fiber& to, bool for_ever) {
  before_switch(from, to, for_ever);
  change_stack(from, to);
  after_switch(&from);
}

void pause(State state) {
  fibers[current].state = state;
  go(fibers[current], scheduler, false);
}

void entry() {
  after_switch(nullptr);
  acquire(&start_of_block);
  (*body)();
  fibers[current].state = DONE;
  release(&end_of_block);
  go(fibers[current], scheduler, true);
  std::abort();
}

// ---- a block --------------------------------------------------------------------------------------------------------

void start(Fiber& fiber) {
  fiber.state = READY;
#ifdef WITH_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(fiber.stack, STACK);
#endif
#ifdef WITH_THREAD_SANITIZER
  if (!fiber.known_as) fiber.known_as = __tsan_create_fiber(0);
#endif
  prepare(fiber);
}

// All fibers wait at the same __syncthreads, or have ended: let them go on. False if all have ended.
bool end_block_wait() {
  void* where = nullptr;
  for (const Fiber& fiber : fibers) {
    if (fiber.state == AT_WARP_WAIT) fail("lanes wait in their warp for others that never come");
    if (fiber.state != AT_BLOCK_WAIT) continue;
    if (where && where != fiber.waits_at) fail("threads of one block wait at different __syncthreads()");
    where = fiber.waits_at;
  }
  if (!where) return false;
  for (const Fiber& fiber : fibers)
    if (fiber.state == DONE) fail("a thread has ended that others wait for at __syncthreads()");
  ++block_wait;
  for (Fiber& fiber : fibers) fiber.state = READY;
  return true;
}

void run_block(const std::vector<unsigned>& order) {
  release(&start_of_block);  // whatever the block before did is over: blocks do not race here
  for (Fiber& fiber : fibers) start(fiber);
  std::fill(arrived.begin(), arrived.end(), 0);
  do {
    for (bool somebody_ran = true; somebody_ran;) {
      somebody_ran = false;
      for (const unsigned thread : order) {
        if (fibers[thread].state != READY) continue;
        current = thread;
        threadIdx = index_of(thread);
        go(scheduler, fibers[thread], false);
        somebody_ran = true;
      }
    }
  } while (end_block_wait());
  acquire(&end_of_block);
}

}  // namespace

// ---- what kernels call ----------------------------------------------------------------------------------------------

unsigned lane() { return current % WARP; }
uint64_t* warp_slots() {
  const unsigned warp = current / WARP;
  return &slots[(2 * warp + warp_wait[warp] % 2) * WARP * 8];
}

void fail(const char* what) {
  std::fprintf(stderr, "host check: %s (block %u, thread %u)\n", what, blockIdx.x, current);
  std::abort();
}

void sync_block() {
  void* wait = &block_waits[block_wait % 2];
  release(wait);
  fibers[current].waits_at = __builtin_return_address(0);
  pause(AT_BLOCK_WAIT);
  acquire(wait);
}

void sync_warp(unsigned mask) {
  const unsigned warp = current / WARP;
  const auto fiber_of = [&](unsigned l) -> Fiber& { return fibers[warp * WARP + l]; };
  unsigned alive = 0;
  for (unsigned l = 0; l < WARP && warp * WARP + l < fibers.size(); ++l) alive |= (fiber_of(l).state != DONE) << l;
  if (mask != ~0u && (mask & ~alive)) fail("the mask names a lane that has ended");
  if (!(mask >> lane() & 1)) fail("a lane calls a warp instruction whose mask does not name it");
  mask &= alive;
  void* wait = &warp_waits[warp][warp_wait[warp] % 4];
  release(wait);
  arrived[warp] |= 1u << lane();
  if ((arrived[warp] & mask) == mask) {  // the last to come
    arrived[warp] &= ~mask;
    ++warp_wait[warp];
    for (unsigned l = 0; l < WARP; ++l)
      if (mask >> l & 1) fiber_of(l).state = READY;
  } else {
    pause(AT_WARP_WAIT);
  }
  acquire(wait);
}

void launch(dim3 grid, dim3 block, unsigned shared, const std::function<void()>& kernel, unsigned seed) {
  gridDim = grid;
  blockDim = block;
  body = &kernel;
  const unsigned threads = block.x * block.y * block.z;
  if (threads > 1024) fail("a block has 1024 threads at most");
  if (shared > MOST_SHARED) fail("a block has 227 KiB of shared memory at most");
  for (; fibers.size() > threads; fibers.pop_back()) munmap(fibers.back().stack, STACK);
  while (fibers.size() < threads) {
    void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for a stack");
    fibers.emplace_back().stack = static_cast<char*>(stack);
  }
  const unsigned warps = (threads + WARP - 1) / WARP;
  slots.assign(2 * warps * WARP * 8, 0);
  arrived.assign(warps, 0);
#ifdef WITH_THREAD_SANITIZER
  scheduler.known_as = __tsan_get_current_fiber();
#endif
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; ++i) order[i] = seed == 1 ? threads - 1 - i : i;
  std::mt19937 random(seed);
  if (seed > 1) std::shuffle(order.begin(), order.end(), random);

#ifdef WITH_ADDRESS_SANITIZER
  __asan_poison_memory_region(shared_memory + shared, sizeof shared_memory - shared);
#endif
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        std::memset(shared_memory, 0xff, shared);  // NaN, as any type of number
        run_block(order);
      }
#ifdef WITH_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(shared_memory, sizeof shared_memory);
#endif
}

}  // namespace host
