// Exclusive sums of counts: of each tile, of the tiles, of all.
#include "cuda/neighbors_parts.hpp"

namespace mdtrajnet::cuda {
namespace {

constexpr int kScanThreads = 256, kScanItems = kTile / kScanThreads;

// The sum of the values of the threads before this one; `total` is the sum of all.
__device__ int64_t scan_block(int64_t value, int64_t& total) {
    __shared__ int64_t of_warp[kScanThreads / 32];
    const int lane = lane_index(), warp = threadIdx.x / 32;
    int64_t sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const int64_t before = __shfl_up_sync(kAll, sum, step);
        if (lane >= step) sum += before;
    }
    __syncthreads();  // whoever used of_warp before is done
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    int64_t earlier = 0;
    total = 0;
    for (int k = 0; k < kScanThreads / 32; ++k) {
        if (k < warp) earlier += of_warp[k];
        total += of_warp[k];
    }
    return earlier + sum - value;
}

__global__ void __launch_bounds__(kScanThreads)
    sum_tiles(const int32_t* count, int64_t items, int64_t* sums, const int32_t* gate) {
    if (closed(gate)) return;
    const int64_t from = int64_t(blockIdx.x) * kTile + threadIdx.x * kScanItems;
    int64_t sum = 0, total;
    for (int64_t k = from; k < min(from + kScanItems, items); ++k) sum += count[k];
    scan_block(sum, total);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block.  The total goes behind the last sum and, where there is a status, into it.
__global__ void __launch_bounds__(kScanThreads)
    scan_tiles(int64_t tiles, int64_t* sums, int64_t capacity, Status* status, const int32_t* gate) {
    if (closed(gate)) return;
    int64_t carry = 0;
    for (int64_t from = 0; from < tiles; from += kScanThreads) {
        const int64_t k = from + threadIdx.x;
        int64_t total;
        const int64_t before = scan_block(k < tiles ? sums[k] : 0, total);
        if (k < tiles) sums[k] = carry + before;
        carry += total;
    }
    if (threadIdx.x) return;
    sums[tiles] = carry;
    if (!status) return;
    status->edges = status->refused ? 0 : carry;
    if (status->edges > capacity) status->overflow = 1;
}

// All zeros where the status is not good.
template <class T>
__global__ void __launch_bounds__(kScanThreads) scan_items(const int32_t* count, int64_t items, const int64_t* sums,
                                                           T* out, const Status* status, const int32_t* gate) {
    if (closed(gate)) return;
    const bool empty = status && !usable(*status);
    const int64_t from = int64_t(blockIdx.x) * kTile + threadIdx.x * kScanItems;
    int32_t mine[kScanItems];
    int64_t sum = 0, total;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
        mine[k] = from + k < items ? count[from + k] : 0;
        sum += mine[k];
    }
    int64_t at = sums[blockIdx.x] + scan_block(sum, total);
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
        if (from + k <= items) out[from + k] = empty ? 0 : T(at);
        at += mine[k];
    }
}

}  // namespace

template <class T>
void scan(const Workspace& w, int64_t items, T* out, int64_t capacity, Status* status, const int32_t* gate,
          Stream stream) {
    const int64_t tiles = tiles_of(items);
    const dim3 block(kScanThreads);
    if (tiles) launch(sum_tiles, dim3(unsigned(tiles)), block, 0, stream, w.count, items, w.sums, gate);
    launch(scan_tiles, dim3(1), block, 0, stream, tiles, w.sums, capacity, status, gate);
    // The item past the last, which takes the total, may open a tile of its own.
    launch(scan_items<T>, dim3(unsigned(tiles_of(items + 1))), block, 0, stream, w.count, items, w.sums, out, status,
           gate);
}

template void scan(const Workspace&, int64_t, int32_t*, int64_t, Status*, const int32_t*, Stream);
template void scan(const Workspace&, int64_t, int64_t*, int64_t, Status*, const int32_t*, Stream);

}  // namespace mdtrajnet::cuda
