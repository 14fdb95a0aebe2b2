// Blocks on threads of the operating system, CUDA threads as fibers on them. Compiled without ThreadSanitizer, which is
// told instead what orders what: a barrier orders a block's threads, __syncwarp a warp's, the end of a launch
// everything; shuffles, ballots and atomics order nothing. So it reports a barrier that is missing between two threads
// of a block, whichever of them happens to come first here, and accesses of two blocks that nothing orders.
#include <sys/mman.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

#ifndef __x86_64__
#error "the emulation switches between fibers in x86-64 assembly"
#endif

#ifdef EMULATION_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers on this stack and goes on with those of another one.
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.type emulation_switch,@function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch,.-emulation_switch
)");

namespace emulation {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr int kWorkers = 3;  // threads of the operating system
constexpr size_t kStack = size_t{256} << 10;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

// What ThreadSanitizer is told.
void released(void* token) {
#ifdef EMULATION_TSAN
  __tsan_release(token);
#else
  static_cast<void>(token);
#endif
}
void acquired(void* token) {
#ifdef EMULATION_TSAN
  __tsan_acquire(token);
#else
  static_cast<void>(token);
#endif
}

// Two sets of tokens and values, taken in turn: who is past the barrier may be at the next one already.
struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
  char tokens[2];
  bool all[2] = {true, true};
};

struct Warp {
  Barrier barrier;
  uint64_t values[2][kWarp];
};

struct Fiber {
  void* stack = nullptr;
  void* saved = nullptr;  // its stack pointer while it waits
  uint3 index{};
  int number = 0;
  bool done = true;
  const Barrier* waits_for = nullptr;
  unsigned generation = 0;
  void* tsan = nullptr;
};

// One thread of the operating system and the block it runs.
struct Worker {
  std::vector<Fiber> fibers{kMostThreads};
  std::vector<Warp> warps{kMostThreads / kWarp};
  Barrier block;
  Fiber* current = nullptr;
  void* saved = nullptr;  // the scheduler's stack pointer
  void* tsan = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  const std::function<void()>* kernel = nullptr;
  uint3 index{};
  dim3 threads, blocks;
  char started, ended;  // tokens
};

thread_local Worker* worker = nullptr;

void to_scheduler(Fiber& fiber) {
#ifdef EMULATION_TSAN
  __tsan_switch_to_fiber(worker->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, worker->stack_bottom, worker->stack_size);
#endif
  emulation_switch(&fiber.saved, worker->saved);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, &worker->stack_bottom, &worker->stack_size);
#endif
}

void to_fiber(Fiber& fiber) {
  worker->current = &fiber;
#ifdef EMULATION_TSAN
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);
#endif
  emulation_switch(&worker->saved, fiber.saved);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// A fiber's life: the kernel once for every block that needs it.
void live() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &worker->stack_bottom, &worker->stack_size);
#endif
  for (;;) {
    Fiber& fiber = *worker->current;
    acquired(&worker->started);
    (*worker->kernel)();
    released(&worker->ended);
    fiber.done = true;
    to_scheduler(fiber);
  }
}

void prepare(Fiber& fiber) {
  if (fiber.stack != nullptr) return;
  fiber.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fiber.stack == MAP_FAILED) fail("no memory for a stack");
  void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + kStack);
  *--top = nullptr;                              // as if `live` had been called: the stack is 8 off a multiple of 16
  *--top = reinterpret_cast<void*>(&live);       // where the switch returns to
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers it restores
  fiber.saved = top;
#ifdef EMULATION_TSAN
  fiber.tsan = __tsan_create_fiber(0);
#endif
}

// Takes turns until all are done; every other round the other way around, so that no order can be relied on.
void take_turns(int threads) {
  bool backwards = false;
  for (int left = threads; left > 0; backwards = !backwards) {
    bool moved = false;
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = worker->fibers[backwards ? threads - 1 - i : i];
      if (fiber.done || (fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.generation)) continue;
      fiber.waits_for = nullptr;
      to_fiber(fiber);
      moved = true;
      left -= fiber.done;
    }
    if (!moved) fail("some threads wait at a barrier that others never reach");
  }
}

void reset(Barrier& barrier, int expected) {
  barrier.expected = expected;
  barrier.arrived = 0;
}

void run_block(unsigned number) {
  const dim3 &threads = worker->threads, &blocks = worker->blocks;
  const int count = static_cast<int>(threads.x * threads.y * threads.z);
  worker->index = {number % blocks.x, number / blocks.x % blocks.y, number / (blocks.x * blocks.y)};
  reset(worker->block, count);
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = worker->fibers[i];
    prepare(fiber);
    const unsigned place = static_cast<unsigned>(i);
    fiber.index = {place % threads.x, place / threads.x % threads.y, place / (threads.x * threads.y)};
    fiber.number = i;
    fiber.done = false;
    fiber.waits_for = nullptr;
    if (i % kWarp == 0) reset(worker->warps[i / kWarp].barrier, std::min(kWarp, count - i));
  }
  released(&worker->started);
  take_turns(count);
  acquired(&worker->ended);
}

// Waits until all that are expected are here. Returns which of the two sets was used.
int wait(Barrier& barrier, bool orders) {
  Fiber& fiber = *worker->current;
  const unsigned generation = barrier.generation;
  const int set = static_cast<int>(generation % 2);
  if (orders) released(&barrier.tokens[set]);
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    barrier.all[1 - set] = true;
  } else {
    fiber.waits_for = &barrier;
    fiber.generation = generation;
    to_scheduler(fiber);
  }
  if (orders) acquired(&barrier.tokens[set]);
  return set;
}

Warp& my_warp() { return worker->warps[worker->current->number / kWarp]; }

// One launch at a time; its workers live as long as the process.
class Device {
 public:
  void run(dim3 blocks, dim3 threads, const std::function<void()>& kernel) {
    std::lock_guard<std::mutex> turn(turn_);
    std::unique_lock<std::mutex> lock(mutex_);
    if (threads_.empty()) {
      for (unsigned i = 0; i < kWorkers; ++i) threads_.emplace_back([this, i] { work(i); }).detach();
    }
    blocks_ = blocks;
    size_ = threads;
    kernel_ = &kernel;
    busy_ = kWorkers;
    ++launches_;
    wake_.notify_all();
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void work(unsigned place) {
    Worker mine;
    worker = &mine;
#ifdef EMULATION_TSAN
    mine.tsan = __tsan_get_current_fiber();
#endif
    std::unique_lock<std::mutex> lock(mutex_);
    for (unsigned seen = 0;;) {
      wake_.wait(lock, [&] { return launches_ != seen; });
      seen = launches_;
      mine.kernel = kernel_;
      mine.blocks = blocks_;
      mine.threads = size_;
      lock.unlock();
      const unsigned count = mine.blocks.x * mine.blocks.y * mine.blocks.z;
      for (unsigned block = place; block < count; block += kWorkers) run_block(block);
      lock.lock();
      if (--busy_ == 0) done_.notify_all();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  dim3 blocks_, size_;
  const std::function<void()>* kernel_ = nullptr;
  unsigned launches_ = 0;
  int busy_ = 0;
};

}  // namespace

uint3 thread_index() { return worker->current->index; }
uint3 block_index() { return worker->index; }
uint3 block_size() { return {worker->threads.x, worker->threads.y, worker->threads.z}; }
uint3 grid_size() { return {worker->blocks.x, worker->blocks.y, worker->blocks.z}; }
int lane() { return worker->current->number % kWarp; }

void sync_block() { wait(worker->block, true); }

bool sync_block_and(bool value) {
  Barrier& barrier = worker->block;
  if (!value) barrier.all[barrier.generation % 2] = false;
  return barrier.all[wait(barrier, true)];
}

void sync_warp() { wait(my_warp().barrier, true); }

uint64_t from_lane(uint64_t value, int lane) {
  Warp& warp = my_warp();
  warp.values[warp.barrier.generation % 2][worker->current->number % kWarp] = value;
  const int set = wait(warp.barrier, false);
  return lane < kWarp ? warp.values[set][lane] : value;
}

unsigned ballot(bool value) {
  Warp& warp = my_warp();
  warp.values[warp.barrier.generation % 2][worker->current->number % kWarp] = value;
  const int set = wait(warp.barrier, false);
  unsigned bits = 0;
  for (int lane = 0; lane < warp.barrier.expected; ++lane) bits |= warp.values[set][lane] != 0 ? 1u << lane : 0u;
  return bits;
}

void run(dim3 blocks, dim3 threads, const std::function<void()>& kernel) {
  static Device* device = new Device;  // never destroyed: its threads never end
  if (threads.x * threads.y * threads.z > kMostThreads) fail("more than 1024 threads in a block");
  device->run(blocks, threads, kernel);
}

}  // namespace emulation
