// Teams of threads, what goes wrong in them, and calls that are broken off.  In an anonymous namespace what is a template, as
// simd.hpp has it; the rest is compiled once, for any processor.
#pragma once

#include <atomic>

#include "cpu/subnormals.hpp"

namespace mdtrajnet {

[[noreturn]] void throw_bad_alloc();

// An exception cannot leave the thread of a team that it is thrown in: it would end the process.  So what may throw is done
// by a guard, which keeps the first exception and does nothing from then on; parallel() throws it when all threads are
// through their loops.
class Guard {
  public:
    Guard() = default;
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

    template <class Work>
    void operator()(const Work& work) {
        if (failed_.load(std::memory_order_relaxed)) return;
        try {
            look();
            work();
        } catch (...) {
            keep();
        }
    }

    void done();         // throws what was kept
    static void look();  // throws where the call is to be broken off: between what is guarded, and in what takes long

  private:
    void keep() noexcept;

    std::atomic<bool> failed_{false};
    void* exception_ = nullptr;  // a std::exception_ptr
};

// While it lives, guards on its thread call asked() now and then, which throws where the call is to be broken off.
class Watch {
  public:
    explicit Watch(void (*asked)());
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
};

}  // namespace mdtrajnet

namespace {

// Calls body(guard) on every thread of a team; inside, "omp for" shares a loop, whose iterations are guarded.
template <class Body>
void parallel(int threads, const Body& body) {
    mdtrajnet::Guard guard;
    {
        // A thread begins with the setting of the one that makes it, keeps it, and works for others, too (torch's teams).
        const Subnormals made_with(Subnormals::kThemselves);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            const Subnormals inside(Subnormals::kZero);
            body(guard);
        }
    }
    guard.done();
}

}  // namespace
