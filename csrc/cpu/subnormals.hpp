// Subnormal numbers count as 0, in operands and in results.  The tails of Gaussians yield many of them; an Intel core
// takes some hundred cycles for each, and what they would add is below 1e-38 (single precision).
//
// Every thread has a setting of its own: an entry from Python begins with it (bindings.hpp), and so does a team (team.hpp).
// In an anonymous namespace, as simd.hpp has it.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

// While it lives, this thread's subnormal numbers are 0, or they are themselves; then the setting is what it was.
class Subnormals {
  public:
    enum Are { kZero, kThemselves };

    explicit Subnormals(Are are) : before_(read()) { write(are == kZero ? before_ | kFlush : before_ & ~kFlush); }
    ~Subnormals() { write(before_); }
    Subnormals(const Subnormals&) = delete;
    Subnormals& operator=(const Subnormals&) = delete;

  private:
#if defined(__x86_64__)
    using Control = unsigned;
    static constexpr Control kFlush = 0x8040;  // MXCSR: FTZ for results, DAZ for operands
    static Control read() { return _mm_getcsr(); }
    static void write(Control control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
    using Control = uint64_t;
    static constexpr Control kFlush = 1 << 24;  // FPCR: FZ, for both
    static Control read() {
        Control control;
        asm volatile("mrs %0, fpcr" : "=r"(control)::"memory");
        return control;
    }
    static void write(Control control) { asm volatile("msr fpcr, %0" ::"r"(control) : "memory"); }
#else  // they stay as they are: slower where a processor is slow with them
    using Control = int;
    static constexpr Control kFlush = 0;
    static Control read() { return 0; }
    static void write(Control) {}
#endif

    const Control before_;
};

}  // namespace
