// A few threads that share the work of one step after another.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rebus {

// Threads that run the same function and meet at barriers. They spin while at work and sleep between calls.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int index = 1; index < size; ++index) threads_.emplace_back([this, index] { serve(index); });
  }

  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  void run(const std::function<void(int)>& task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      ++round_;
    }
    wake_.notify_all();
    task(0);
    barrier();
  }

  void barrier() {
    if (size_ == 1) return;
    const int phase = phase_.load();
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_.store(0);
      phase_.store(phase + 1);
      return;
    }
    for (int spins = 0; phase_.load() == phase; ++spins) {
      if (spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
      else _mm_pause();
#endif
    }
  }

 private:
  void serve(int index) {
    for (uint64_t seen = 0;;) {
      const std::function<void(int)>* task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        task = task_;
      }
      if (task == nullptr) return;
      (*task)(index);
      barrier();
    }
  }

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* task_ = nullptr;
  uint64_t round_ = 0;
  std::atomic<int> arrived_{0}, phase_{0};
};

}  // namespace rebus
