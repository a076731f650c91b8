#include "row_sums.h"

#include "../../cuda/platform.h"
#include "../../cuda/primitives.h"

namespace rsn2::planted {
namespace {

constexpr int kTile = 16;
constexpr int kThreads = kTile * kTile;  // a warp has two rows of the tile
constexpr unsigned kAllLanes = 0xffffffffu;

// One block per tile of the product. Shared memory: a's tile [kTile, kTile], then b's.
template <Defect kDefect>
__global__ void __launch_bounds__(kThreads)
    row_sums_kernel(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ product,
                    float* __restrict__ row_sums, int m, int n, int k) {
  RSN2_SHARED_MEMORY(memory);
  float(*a_tile)[kTile] = reinterpret_cast<float(*)[kTile]>(memory);
  float(*b_tile)[kTile] = a_tile + kTile;
  RSN2_SHARED_ARRAY(float, halves, [kTile][2]);

  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int row = static_cast<int>(blockIdx.y) * kTile + y;
  const int column = static_cast<int>(blockIdx.x) * kTile + x;
  if (kDefect == Defect::return_before_barrier && row >= m) return;

  float sum = 0.0f;
  for (int k0 = 0; k0 < k; k0 += kTile) {
    const bool a_inside = row < m && (k0 + x < k || kDefect == Defect::read_past_global);
    a_tile[y][x] = a_inside ? a[row * k + k0 + x] : 0.0f;
    if (kDefect == Defect::misaligned_read) {
      // Four columns by one thread, which needs a k that is a multiple of 4.
      if (x % 4 == 0 && a_inside) {
        *reinterpret_cast<float4*>(&a_tile[y][x]) = *reinterpret_cast<const float4*>(a + row * k + k0 + x);
      }
    }
    const bool b_inside = k0 + y < k && column < n;
    cuda::copy_async<4>(&b_tile[y][x], b_inside ? b + (k0 + y) * n + column : b, b_inside ? 4 : 0);
    cuda::commit_copies();
    if (kDefect != Defect::no_wait_for_copies) cuda::wait_copies<0>();
    if (kDefect == Defect::barriers_in_both_branches) {
      if (row < m) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    } else if (kDefect != Defect::no_barrier_after_load) {
      __syncthreads();
    }
    const int depth = kDefect == Defect::read_past_shared ? kTile + 1 : kTile;
    for (int i = 0; i < depth; ++i) sum = fmaf(a_tile[y][i % kTile], b_tile[i][x], sum);
    if (kDefect != Defect::no_barrier_before_load) __syncthreads();
  }
  if (row < m && column < n) product[row * n + column] = sum;

  // Only the first tile of a row adds up: eight lanes by shuffles, then the halves through shared memory.
  if (blockIdx.x != 0) return;
  float total = column < n ? sum : 0.0f;
  const int width = kDefect == Defect::wrong_shuffle_width ? 32 : kTile / 2;
  if (kDefect != Defect::shuffle_in_branch || row < m) {
    for (int lanes = width / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(kAllLanes, total, lanes, width);
  }
  // Through a pointer, so that no sanitizer knows the extents of the array from its type.
  float* const half = &halves[0][0] + (kDefect == Defect::write_past_shared_array ? 2 : 0);
  if (x % 8 == 0) half[2 * y + x / 8] = total;
  if (kDefect != Defect::no_warp_barrier) __syncwarp();
  if (x == 0 && row < m) row_sums[row] = halves[y][0] + halves[y][1];
}

template <Defect kDefect>
void launch_one(const float* a, const float* b, float* product, float* row_sums, int m, int n, int k) {
  const dim3 grid(static_cast<unsigned>((n + kTile - 1) / kTile), static_cast<unsigned>((m + kTile - 1) / kTile));
  const size_t bytes = 2 * kTile * kTile * sizeof(float);
  cuda::launch(row_sums_kernel<kDefect>, grid, dim3(kTile, kTile), bytes, cudaStream_t{}, a, b, product, row_sums, m, n,
               k);
}

// Tries the defects from kDefect on.
template <int kDefect>
void launch_any(Defect defect, const float* a, const float* b, float* product, float* row_sums, int m, int n, int k) {
  if (static_cast<int>(defect) == kDefect) {
    launch_one<static_cast<Defect>(kDefect)>(a, b, product, row_sums, m, n, k);
  } else if constexpr (kDefect < static_cast<int>(Defect::misaligned_read)) {
    launch_any<kDefect + 1>(defect, a, b, product, row_sums, m, n, k);
  }
}

}  // namespace

void run(Defect defect, const float* a, const float* b, float* product, float* row_sums, int m, int n, int k) {
  launch_any<0>(defect, a, b, product, row_sums, m, n, k);
}

}  // namespace rsn2::planted
