#include "pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace hash3d::cpu {
namespace {

constexpr int kMaxThreads = 64;

struct Job {
  const std::function<void(int64_t)>* body;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  int helpers = 0;  // workers still wanted; guarded by the pool's mutex
  int busy = 0;     // workers inside; guarded by the pool's mutex

  void drain() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) (*body)(i);
  }
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        while (static_cast<int>(workers_.size()) < helpers) workers_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {  // the system has no more of them to give: as many as there are will do
      }
      job.helpers = std::min(helpers, static_cast<int>(workers_.size()));
      job_ = &job;
    }
    wake_.notify_all();
    job.drain();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [&] { return job.busy == 0; });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || (job_ != nullptr && job_->helpers > 0); });
      if (stopping_) return;
      Job* job = job_;
      --job->helpers;
      ++job->busy;
      lock.unlock();
      job->drain();
      lock.lock();
      if (--job->busy == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  bool stopping_ = false;
};

// One caller at a time uses the workers; another one that comes meanwhile works alone. After a fork the child has no
// workers: the parent's pool is left where it is (its threads do not exist here) and a new one is made.
struct Shared {
  std::mutex in_use;
  std::unique_ptr<Pool> pool = std::make_unique<Pool>();
  pid_t owner = getpid();
};

Shared& shared() {
  static std::mutex guard;
  static Shared* instance = nullptr;
  std::lock_guard<std::mutex> lock(guard);
  if (instance == nullptr || instance->owner != getpid()) instance = new Shared;
  return *instance;
}

}  // namespace

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
  const int wanted = static_cast<int>(std::min<int64_t>({tasks, threads, kMaxThreads}));
  if (wanted > 1) {
    Shared& workers = shared();
    std::unique_lock<std::mutex> turn(workers.in_use, std::try_to_lock);
    if (turn.owns_lock()) {
      Job job;
      job.body = &body;
      job.tasks = tasks;
      workers.pool->run(job, wanted - 1);
      return;
    }
  }
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

}  // namespace hash3d::cpu
