/* Preloaded: makes one allocation of the package's native code fail, the one of a given number.
 *
 * An allocation counts if it is asked for from the module's addresses, by itself or through libstdc++
 * (operator new, std::string).  What other libraries ask for is theirs: several crash without memory.
 * So does pybind11 where it keeps an object's address: its 24 bytes are always given. */
#define _GNU_SOURCE
#include <errno.h>
#include <execinfo.h>
#include <stdatomic.h>
#include <stddef.h>

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

typedef struct {
    char *begin, *end;
} Range;

static Range own, standard, module;
static atomic_long countdown = -1;
static _Thread_local __attribute__((tls_model("initial-exec"))) int within;

static int in(Range range, const void* address) {
    return range.begin <= (const char*)address && (const char*)address < range.end;
}

static int asked_by_module(void) {
    void* frames[8];
    int count = backtrace(frames, 8);
    for (int i = 0; i < count; ++i)
        if (!in(own, frames[i]) && !in(standard, frames[i])) return in(module, frames[i]);
    return 0;
}

static __attribute__((noinline)) int fails(size_t size) {
    if (size <= 24 || within || atomic_load(&countdown) < 0) return 0;
    within = 1;
    int fail = asked_by_module() && atomic_fetch_sub(&countdown, 1) == 0;
    within = 0;
    if (fail) errno = ENOMEM;
    return fail;
}

/* Addresses of this library, of libstdc++ and of the module. */
void watch(const Range* ranges) {
    own = ranges[0], standard = ranges[1], module = ranges[2];
    void* frames[1];
    backtrace(frames, 1); /* loads what it needs */
}

/* The one after so many fails. */
void fail_after(long allocations) { atomic_store(&countdown, allocations); }

/* Whether none has failed since. */
int none_failed(void) { return atomic_exchange(&countdown, -1) >= 0; }

void* malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return fails(count * size) ? NULL : __libc_calloc(count, size); }
void* realloc(void* old, size_t size) { return fails(size) ? NULL : __libc_realloc(old, size); }
void* memalign(size_t align, size_t size) { return fails(size) ? NULL : __libc_memalign(align, size); }
void* aligned_alloc(size_t align, size_t size) { return fails(size) ? NULL : __libc_memalign(align, size); }
int posix_memalign(void** block, size_t align, size_t size) {
    if (fails(size)) return ENOMEM;
    *block = __libc_memalign(align, size);
    return *block ? 0 : ENOMEM;
}
