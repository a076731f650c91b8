// Tests of the emulator: what every primitive gives, and that planted defects are caught.
//
//   test_emulator              all tests
//   test_emulator <defect>     runs the kernel of planted/ with this defect, for a sanitizer to report it
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../cuda/platform.h"
#include "../cuda/primitives.h"
#include "expect.h"
#include "planted/row_sums.h"

namespace rsn2::test {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr uint64_t kSeeds = 20;

std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  cuda::launch(kernel, grid, block, shared_bytes, nullptr, args...);
}

// --- where a thread is -------------------------------------------------------------------------------------------

__global__ void write_place(unsigned* visits, unsigned* places) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned place = block * blockDim.x * blockDim.y * blockDim.z + thread;
  ++visits[place];
  // A lane is a position in the block, in this order.
  const unsigned neighbour = __shfl_xor_sync(kAll, thread, 1);
  __syncthreads();
  places[place] = neighbour;
}

void test_every_thread_runs_once() {
  const dim3 grid(2, 3, 2), block(4, 2, 5);  // 40 threads: the last warp has 8
  std::vector<unsigned> visits(12 * 40), places(visits.size());
  launch(write_place, grid, block, 0, visits.data(), places.data());
  bool once = true, in_order = true;
  for (size_t i = 0; i < visits.size(); ++i) {
    once = once && visits[i] == 1;
    in_order = in_order && places[i] == (i % 40 ^ 1);
  }
  expect(once, "every thread of every block runs once");
  expect(in_order, "x is the fastest index of a thread");
}

__global__ void write_order(unsigned* next, unsigned* order) {
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
  __syncthreads();
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
  __syncwarp();
  order[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}

void test_the_seed_decides_the_order() {
  const auto order = [](uint64_t seed) {
    emulator::set_seed(seed);
    std::vector<unsigned> order(3 * 5 * 64);
    unsigned next = 0;
    launch(write_order, 5, 64, 0, &next, order.data());
    return order;
  };
  std::set<std::vector<unsigned>> orders;
  std::set<unsigned> first_blocks, first_threads;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const auto o = order(seed);
    expect(o == order(seed), "one seed, one order");
    orders.insert(o);
    first_blocks.insert(o[0] / 64);
    first_threads.insert(o[0] % 64);
  }
  expect(orders.size() == kSeeds, "another seed, another order");
  expect(first_blocks.size() == 5, "any block may be the first");
  expect(first_threads.size() > 10, "any thread may be the first");
}

__global__ void count(int* counter, int n) {
  for (int i = 0; i < n; ++i) {
    __syncthreads();
    atomicAdd(counter, 1);
  }
}

void test_several_host_threads_may_launch() {
  std::vector<int> counters(4);
  std::vector<std::thread> hosts;
  for (int& counter : counters) {
    hosts.emplace_back([&counter] {
      for (int i = 0; i < 5; ++i) launch(count, 3, 64, 0, &counter, 4);
    });
  }
  for (std::thread& host : hosts) host.join();
  expect(counters == std::vector<int>(4, 5 * 3 * 64 * 4), "launches from several threads do not disturb each other");
}

// --- barriers and shared memory ----------------------------------------------------------------------------------

__global__ void reverse(const int* in, int* out) {
  RSN2_SHARED_MEMORY(memory);
  RSN2_SHARED_ARRAY(int, array, [128]);
  __shared__ int plain[128];
  int* const dynamic = reinterpret_cast<int*>(memory);
  const unsigned n = blockDim.x, i = threadIdx.x, mine = blockIdx.x * n + i;
  dynamic[i] = in[mine];
  __syncthreads();
  array[i] = dynamic[n - 1 - i];
  __syncthreads();
  plain[i] = array[n - 1 - i];
  __syncthreads();
  out[mine] = plain[n - 1 - i];
}

void test_a_barrier_orders_writes_and_reads() {
  for (const unsigned threads : {1u, 31u, 32u, 40u, 128u}) {
    std::vector<int> in(3 * threads), out(in.size());
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i * i);
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      emulator::set_seed(seed);
      launch(reverse, 3, threads, threads * sizeof(int), in.data(), out.data());
      bool reversed = true;
      for (size_t i = 0; i < in.size(); ++i) {
        reversed = reversed && out[i] == in[i / threads * threads + threads - 1 - i % threads];
      }
      expect(reversed, "what is written before a barrier is read after it, by " + std::to_string(threads) + " threads");
    }
  }
}

__global__ void count_at_barrier(const int* predicates, int* out) {
  for (int round = 0; round < 4; ++round) {
    const int mine = predicates[round * 96 + static_cast<int>(threadIdx.x)];
    const int results[3] = {__syncthreads_count(mine), __syncthreads_or(mine), __syncthreads_and(mine)};
    for (int i = 0; i < 3; ++i) out[(round * 3 + i) * 96 + static_cast<int>(threadIdx.x)] = results[i];
  }
}

void test_barriers_that_count() {
  std::vector<int> predicates(4 * 96), out(4 * 3 * 96);
  for (int i = 0; i < 96; ++i) {
    predicates[i] = 0;
    predicates[96 + i] = i == 50;
    predicates[2 * 96 + i] = i != 50 ? 7 : 0;
    predicates[3 * 96 + i] = -1;
  }
  launch(count_at_barrier, 1, 96, 0, predicates.data(), out.data());
  const int expected[4][3] = {{0, 0, 0}, {1, 1, 0}, {95, 1, 0}, {96, 1, 1}};
  bool right = true;
  for (int i = 0; i < 4 * 3 * 96; ++i) right = right && out[i] == expected[i / 96 / 3][i / 96 % 3];
  expect(right, "__syncthreads_count, _or and _and see the whole block");
}

__global__ void read_before_writing(float* out) {
  RSN2_SHARED_MEMORY(memory);
  RSN2_SHARED_ARRAY(float, array, [1]);
  out[2 * blockIdx.x] = *reinterpret_cast<float*>(memory);
  out[2 * blockIdx.x + 1] = array[0];
  *reinterpret_cast<float*>(memory) = array[0] = 1.0f;
}

void test_shared_memory_starts_as_garbage() {
  std::vector<float> out(2 * 8, 0.0f);
  launch(read_before_writing, 8, 1, 4, out.data());
  expect(std::all_of(out.begin(), out.end(), [](float x) { return std::isnan(x); }),
         "each block starts with garbage in shared memory");
}

// --- warp collectives --------------------------------------------------------------------------------------------

template <class T>
__global__ void shuffles(const T* in, T* out, int operand, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  const T mine = in[lane];
  out[lane] = __shfl_sync(kAll, mine, operand, width);
  out[32 + lane] = __shfl_up_sync(kAll, mine, static_cast<unsigned>(operand), width);
  out[64 + lane] = __shfl_down_sync(kAll, mine, static_cast<unsigned>(operand), width);
  out[96 + lane] = __shfl_xor_sync(kAll, mine, operand, width);
}

template <class T>
void test_shuffles(const std::string& type) {
  std::vector<T> in(32), out(128);
  for (int l = 0; l < 32; ++l) in[l] = static_cast<T>(sizeof(T) == 8 ? 1e15 + 3 * l : 1000 + 3 * l);
  for (int width = 1; width <= 32; width *= 2) {
    for (int operand = 0; operand < 32; ++operand) {
      launch(shuffles<T>, 1, 32, 0, in.data(), out.data(), operand, width);
      bool right = true;
      for (int l = 0; l < 32; ++l) {
        const int segment = l / width, place = l % width;
        const auto within = [&](int p) { return p >= 0 && p < width; };
        right = right && out[l] == in[segment * width + operand % width];
        right = right && out[32 + l] == in[within(place - operand) ? l - operand : l];
        right = right && out[64 + l] == in[within(place + operand) ? l + operand : l];
        // An exclusive or may reach segments before this one, not after.
        right = right && out[96 + l] == in[(l ^ operand) / width <= segment ? l ^ operand : l];
      }
      expect(right, "shuffles of " + type + ", operand " + std::to_string(operand) + ", width " +
                        std::to_string(width));
    }
  }
}

__global__ void shuffle_from_each(const int* sources, int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = lane;
  for (int round = 0; round < 50; ++round) value = __shfl_sync(kAll, value, sources[32 * round + lane]);
  out[lane] = value;
}

void test_each_lane_has_its_own_source() {
  std::mt19937 random(7);
  std::vector<int> sources(50 * 32), out(32), expected(32), next(32);
  for (int& s : sources) s = static_cast<int>(random() % 32);
  for (int l = 0; l < 32; ++l) expected[l] = l;
  for (int round = 0; round < 50; ++round) {
    for (int l = 0; l < 32; ++l) next[l] = expected[sources[32 * round + l]];
    expected = next;
  }
  launch(shuffle_from_each, 1, 32, 0, sources.data(), out.data());
  expect(out == expected, "in a shuffle each lane has its own source");
}

struct Votes {
  unsigned ballot, match;
  int any, all, sum, least;
  unsigned greatest, conjunction, disjunction, parity;
};

__device__ Votes vote(unsigned mask, const int* values) {
  const int mine = values[threadIdx.x];
  const unsigned bits = static_cast<unsigned>(mine);
  Votes v;
  v.ballot = __ballot_sync(mask, mine > 0);
  v.match = __match_any_sync(mask, mine);
  v.any = __any_sync(mask, mine > 3);
  v.all = __all_sync(mask, mine > -3);
  v.sum = __reduce_add_sync(mask, mine);
  v.least = __reduce_min_sync(mask, mine);
  v.greatest = __reduce_max_sync(mask, bits);
  v.conjunction = __reduce_and_sync(mask, bits);
  v.disjunction = __reduce_or_sync(mask, bits);
  v.parity = __reduce_xor_sync(mask, bits);
  return v;
}

// The two sides of a branch vote for themselves, and differ in how often they wait.
__global__ void votes(unsigned mask, const int* values, Votes* out) {
  if (mask >> threadIdx.x & 1u) {
    out[threadIdx.x] = vote(mask, values);
  } else {
    __syncwarp(~mask);
    out[threadIdx.x] = vote(~mask, values);
  }
}

void test_votes_in_divergent_branches() {
  std::mt19937 random(11);
  for (int round = 0; round < 100; ++round) {
    const unsigned mask = round == 0 ? kAll : round == 1 ? 0u : static_cast<unsigned>(random());
    std::vector<int> values(32);
    for (int& v : values) v = static_cast<int>(random() % 9) - 4;
    std::vector<Votes> out(32);
    launch(votes, 1, 32, 0, mask, values.data(), out.data());
    bool right = true;
    for (int l = 0; l < 32; ++l) {
      const unsigned side = mask >> l & 1u ? mask : ~mask;
      Votes e{0, 0, 0, 1, 0, 100, 0u, kAll, 0u, 0u};
      for (int o = 0; o < 32; ++o) {
        if ((side >> o & 1u) == 0) continue;
        const int v = values[o];
        const unsigned bits = static_cast<unsigned>(v);
        if (v > 0) e.ballot |= 1u << o;
        if (v == values[l]) e.match |= 1u << o;
        if (v > 3) e.any = 1;
        if (v <= -3) e.all = 0;
        e.sum += v;
        e.least = std::min(e.least, v);
        e.greatest = std::max(e.greatest, bits);
        e.conjunction &= bits;
        e.disjunction |= bits;
        e.parity ^= bits;
      }
      right = right && std::memcmp(&e, &out[l], sizeof(e)) == 0;
    }
    expect(right, "votes and reductions in both branches of a warp");
  }
}

__global__ void shuffle_from_outside(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, static_cast<int>(threadIdx.x) + 1);
}

void test_a_lane_outside_the_mask_gives_garbage() {
  std::vector<float> out(16);
  launch(shuffle_from_outside, 1, 32, 0, out.data());
  bool right = std::isnan(out[15]);
  for (int l = 0; l < 15; ++l) right = right && out[l] == 1.0f;
  expect(right, "a shuffle from a lane outside the mask gives garbage");
}

// --- copies ------------------------------------------------------------------------------------------------------

constexpr int kStages = 4;

// Thread t copies its stage s: bytes [kBytes (t + 64 s), ...). Thread 0 looks on.
template <int kBytes>
__global__ void copies(const unsigned char* in, int valid_bytes, unsigned char* out, bool* seen) {
  RSN2_SHARED_MEMORY(memory);
  const int t = static_cast<int>(threadIdx.x);
  constexpr int kStage = 64 * kBytes;
  const auto present = [&](int stage) {
    return memory[stage * kStage + t * kBytes] == in[stage * kStage + t * kBytes];
  };
  for (int stage = 0; stage < kStages; ++stage) {
    const int at = stage * kStage + t * kBytes;
    cuda::copy_async<kBytes>(memory + at, in + at, valid_bytes);
    if (stage + 1 < kStages) cuda::commit_copies();  // the last one stays out of all groups
  }
  bool* const mine = seen + t * 8;
  mine[0] = present(0);
  cuda::wait_copies<2>();
  mine[1] = present(0);
  mine[2] = present(1);
  cuda::wait_copies<0>();
  mine[3] = present(1);
  mine[4] = present(2);
  mine[5] = present(3);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  mine[6] = present(3);
  __syncthreads();
  const int other = 63 - t;
  for (int stage = 0; stage < kStages; ++stage) {
    std::memcpy(out + stage * kStage + other * kBytes, memory + stage * kStage + other * kBytes, kBytes);
  }
}

template <int kBytes>
void test_copies() {
  constexpr int kSize = kStages * 64 * kBytes;
  alignas(16) unsigned char in[kSize];
  std::mt19937 random(3);
  for (unsigned char& byte : in) byte = static_cast<unsigned char>(random() % 255);  // not that of garbage
  for (int valid = 0; valid <= kBytes; ++valid) {
    std::vector<unsigned char> out(kSize);
    bool seen[64 * 8];
    launch(copies<kBytes>, 1, 64, kSize, in, valid, out.data(), seen);
    bool right = true, visible = true;
    for (int i = 0; i < kSize; ++i) right = right && out[i] == (i % kBytes < valid ? in[i] : 0);
    const bool expected[7] = {false, true, false, true, true, false, true};
    for (int t = 0; t < 64; ++t) {
      for (int i = 0; i < 7; ++i) visible = visible && seen[8 * t + i] == expected[i];
    }
    const std::string name = "copy_async<" + std::to_string(kBytes) + "> of " + std::to_string(valid) + " valid bytes";
    expect(right, name + " copies these and fills with zeros");
    if (valid > 0) expect(visible, name + " shows its bytes after the wait, not before");
  }
}

// --- matrices ----------------------------------------------------------------------------------------------------

// in: [32][8] elements; the rows of matrix m are 8 m ... 8 m + 7. out: [lane][4 + 4 + 2 + 2].
__global__ void matrix_loads(const uint16_t* in, uint32_t* out) {
  RSN2_SHARED_MEMORY(memory);
  const int lane = static_cast<int>(threadIdx.x);
  // The rows lie in memory in another order, each aligned to 16 bytes.
  unsigned char* const row = memory + (lane * 5 + 3) % 32 * 16;
  std::memcpy(row, in + lane * 8, 16);
  __syncwarp();
  uint32_t r[4], transposed[4], pair[2], transposed_pair[2];
  cuda::load_matrices(r, row);
  cuda::load_matrices_transposed(transposed, row);
  cuda::load_matrices(pair, lane < 16 ? row : nullptr);
  cuda::load_matrices_transposed(transposed_pair, lane < 16 ? row : nullptr);
  uint32_t* const mine = out + lane * 12;
  for (int i = 0; i < 4; ++i) mine[i] = r[i];
  for (int i = 0; i < 4; ++i) mine[4 + i] = transposed[i];
  for (int i = 0; i < 2; ++i) mine[8 + i] = pair[i];
  for (int i = 0; i < 2; ++i) mine[10 + i] = transposed_pair[i];
}

void test_matrix_loads() {
  std::vector<uint16_t> in(32 * 8);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i * 257);
  std::vector<uint32_t> out(32 * 12);
  launch(matrix_loads, 1, 32, 512, in.data(), out.data());
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 12; ++i) {
      const bool transposed = (i >= 4 && i < 8) || i >= 10;
      const int m = i < 8 ? i % 4 : i % 2;
      const auto element = [&](int r, int c) -> uint32_t {
        return transposed ? in[(8 * m + c) * 8 + r] : in[(8 * m + r) * 8 + c];
      };
      right = right && out[lane * 12 + i] == (element(row, column) | element(row, column + 1) << 16);
    }
  }
  expect(right, "load_matrices gives each lane two neighbours of each matrix");
}

uint16_t bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
uint16_t bits_of(__half x) { return __half_as_ushort(x); }
void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }
void narrow(float x, __half& out) { out = __float2half_rn(x); }

// d [16][8] += a [16][16] b [16][8], fragments by the definition in primitives.h.
template <class Element>
__global__ void product_of_fragments(const Element* a, const Element* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), outer = lane / 4, inner = lane % 4 * 2;
  const auto pair = [](Element low, Element high) { return bits_of(low) | static_cast<uint32_t>(bits_of(high)) << 16; };
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) {
    const Element* const from = a + (outer + i % 2 * 8) * 16 + inner + i / 2 * 8;
    fa[i] = pair(from[0], from[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const Element* const from = b + (inner + i * 8) * 8 + outer;
    fb[i] = pair(from[0], from[8]);
  }
  float fd[4];
  for (int i = 0; i < 4; ++i) fd[i] = d[(outer + i / 2 * 8) * 8 + inner + i % 2];
  cuda::multiply_accumulate(fd, fa, fb, Element{});
  for (int i = 0; i < 4; ++i) d[(outer + i / 2 * 8) * 8 + inner + i % 2] = fd[i];
}

// The same as kernels do it: matrices in shared memory, fragments by load_matrices. b is stored [k][column] or,
// if kColumns, [column][k].
template <class Element, bool kColumns>
__global__ void product_of_loads(const Element* a, const Element* b, float* d) {
  RSN2_SHARED_MEMORY(memory);
  Element* const sa = reinterpret_cast<Element*>(memory);
  Element* const sb = sa + 256;
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) sa[i] = a[i];
  for (int i = lane; i < 128; i += 32) sb[kColumns ? i % 8 * 16 + i / 8 : i] = b[i];
  __syncwarp();
  uint32_t fa[4], fb[2];
  cuda::load_matrices(fa, sa + lane % 16 * 16 + lane / 16 * 8);
  if constexpr (kColumns) {
    cuda::load_matrices(fb, sb + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    cuda::load_matrices_transposed(fb, sb + lane % 16 * 8);
  }
  float fd[4];
  const int row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) fd[i] = d[(row + i / 2 * 8) * 8 + column + i % 2];
  cuda::multiply_accumulate(fd, fa, fb, Element{});
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = fd[i];
}

template <class Element>
void test_products(const std::string& type) {
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    std::vector<Element> a(256), b(128);
    std::vector<float> wide_a, wide_b, d(128), expected(128);
    // Small integers: every sum is exact. No element of the product equals its mirror image.
    for (Element& x : a) narrow(wide_a.emplace_back(static_cast<float>(static_cast<int>(random() % 41) - 20)), x);
    for (Element& x : b) narrow(wide_b.emplace_back(static_cast<float>(static_cast<int>(random() % 41) - 20)), x);
    for (float& x : d) x = static_cast<float>(random() % 1000);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float& sum = expected[row * 8 + column] = d[row * 8 + column];
        for (int k = 0; k < 16; ++k) sum += wide_a[row * 16 + k] * wide_b[k * 8 + column];
      }
    }
    const auto check = [&](void (*kernel)(const Element*, const Element*, float*), const std::string& name) {
      std::vector<float> result = d;
      launch(kernel, 1, 32, 768, a.data(), b.data(), result.data());
      expect(result == expected, "multiply_accumulate of " + type + ", " + name);
    };
    check(product_of_fragments<Element>, "fragments by definition");
    check(product_of_loads<Element, false>, "b stored [k][column]");
    check(product_of_loads<Element, true>, "b stored [column][k]");
  }
}

// --- one thread's functions --------------------------------------------------------------------------------------

template <class T>
__global__ void atomics(T* cells) {
  const T mine = static_cast<T>(blockIdx.x * blockDim.x + threadIdx.x + 1);
  atomicAdd(cells, mine);
  if constexpr (!std::is_floating_point_v<T>) {
    atomicOr(cells + 1, mine);
    atomicMin(cells + 2, mine);
    atomicMax(cells + 3, mine);
    T old = atomicAdd(cells + 4, T{0}), seen;
    while ((seen = atomicCAS(cells + 4, old, static_cast<T>(old + 2))) != old) old = seen;
    if (atomicExch(cells + 5, mine) == 0) atomicAdd(cells + 6, T{1});
  }
}

template <class T>
void test_atomics(const std::string& type) {
  std::vector<T> cells{0, 0, 1000, 0, 0, 0, 0};
  launch(atomics<T>, 3, 64, 0, cells.data());
  expect(cells[0] == 192 * 193 / 2, "atomicAdd of " + type);
  if (std::is_floating_point_v<T>) return;
  expect(cells[1] == 255 && cells[2] == 1 && cells[3] == 192 && cells[4] == 384 && cells[6] == 1,
         "atomics of " + type);
}

__global__ void wrapping_counters(unsigned* cells) {
  atomicInc(cells, 9u);
  atomicDec(cells + 1, 9u);
}

void test_wrapping_counters() {
  unsigned cells[2] = {};
  launch(wrapping_counters, 1, 64, 0, cells);
  expect(cells[0] == 4 && cells[1] == 6, "atomicInc and atomicDec wrap after ten steps");
}

void test_bit_functions() {
  expect(__ffs(0) == 0 && __ffs(1) == 1 && __ffs(INT32_MIN) == 32 && __ffsll(1LL << 40) == 41 && __ffsll(0) == 0,
         "__ffs counts from 1, and is 0 of 0");
  expect(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(1) == 63, "__clz");
  expect(__popc(0xf0f00001u) == 9 && __popcll(0x8000000000000001ull) == 2, "__popc");
  expect(__brev(1u) == 0x80000000u && __brev(0x0000b001u) == 0x800d0000u, "__brev");
  expect(__byte_perm(0x33221100u, 0x77665544u, 0x7041u) == 0x77004411u, "__byte_perm");
  expect(__funnelshift_r(0x11223344u, 0xaabbccddu, 8) == 0xdd112233u && __funnelshift_r(5u, 9u, 32) == 5u,
         "__funnelshift_r");
  expect(__funnelshift_l(0x11223344u, 0xaabbccddu, 8) == 0xbbccdd11u && __funnelshift_l(5u, 9u, 0) == 9u,
         "__funnelshift_l");
  expect(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0xc0000000u) == -2.0f, "__float_as_uint");
  expect(min(-1, 2) == -1 && max(3u, 4u) == 4u && min(2.0f, NAN) == 2.0f && max(-1, 1u) == kAll, "min and max");
}

// `narrowed` must be a nearest neighbour of x among the type's numbers, the even one of two.
template <class Element, class Widen>
bool is_nearest(float x, uint16_t narrowed, Element infinity, float overflow, Widen widen) {
  const uint16_t magnitude = narrowed & 0x7fffu;
  if (std::isnan(x)) return magnitude == 0x7fffu;
  if (std::signbit(x) != (narrowed >> 15 != 0)) return false;
  const double exact = std::fabs(static_cast<double>(x));
  if (exact >= overflow) return magnitude == infinity;
  const auto distance = [&](int bits) {
    return std::fabs(static_cast<double>(widen(static_cast<uint16_t>(bits))) - exact);
  };
  const double mine = distance(magnitude);
  // One step further than the largest number the rounding still looks at as a number.
  const double above = magnitude + 1 < infinity ? distance(magnitude + 1) : std::numeric_limits<double>::infinity();
  const double below = magnitude > 0 ? distance(magnitude - 1) : std::numeric_limits<double>::infinity();
  const bool even = magnitude % 2 == 0;
  return magnitude < infinity && mine <= above && mine <= below && (even || (mine < above && mine < below));
}

void test_conversions() {
  const auto widen_half = [](uint16_t bits) { return __half2float(__ushort_as_half(bits)); };
  const auto widen_bfloat16 = [](uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); };
  expect(widen_half(0x3c00) == 1.0f && widen_half(0xc000) == -2.0f && widen_half(1) == 0x1p-24f &&
             widen_half(0x7bff) == 65504.0f && widen_half(0x03ff) == 1023 * 0x1p-24f &&
             std::isinf(widen_half(0xfc00)) && std::isnan(widen_half(0x7c01)),
         "__half2float of known numbers");
  expect(widen_bfloat16(0x3f80) == 1.0f && widen_bfloat16(1) == 0x1p-133f && std::isinf(widen_bfloat16(0x7f80)),
         "__bfloat162float of known numbers");

  bool round_trip = true, nearest = true;
  const auto check = [&](float x) {
    nearest = nearest && is_nearest(x, __half_as_ushort(__float2half_rn(x)), uint16_t{0x7c00}, 65520.0f, widen_half);
    // Half a step above the largest bfloat16 the rounding gives infinity, which is even.
    nearest = nearest && is_nearest(x, __bfloat16_as_ushort(__float2bfloat16_rn(x)), uint16_t{0x7f80},
                                    __uint_as_float(0x7f7f8000u), widen_bfloat16);
  };
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto b = static_cast<uint16_t>(bits);
    const float half = widen_half(b), bfloat16 = widen_bfloat16(b);
    round_trip = round_trip && (std::isnan(half) || __half_as_ushort(__float2half_rn(half)) == b);
    round_trip = round_trip && (std::isnan(bfloat16) || __bfloat16_as_ushort(__float2bfloat16_rn(bfloat16)) == b);
    // Half-way between neighbours, and just beside.
    for (const float narrow : {half, bfloat16}) {
      const uint32_t step = narrow == half ? 0x1000u : 0x8000u;
      for (const uint32_t beside : {step - 1, step, step + 1}) check(__uint_as_float(__float_as_uint(narrow) + beside));
    }
  }
  std::mt19937 random(13);
  for (int i = 0; i < 200000; ++i) {
    check(__uint_as_float(static_cast<uint32_t>(random())));
    check(static_cast<float>(random()) * 0x1p-32f * 0x1p-13f);  // around the subnormals of half
  }
  // Ties among the subnormals of half: odd multiples of 2^-25.
  for (int i = 1; i < 4096; i += 2) check(static_cast<float>(i) * 0x1p-25f);
  expect(round_trip, "16 bits survive the way to float and back");
  expect(nearest, "a float is rounded to the nearest, the even one of two");
}

// --- launches that must stop -------------------------------------------------------------------------------------

enum class Mistake {
  barrier_in_branch, barrier_and_return, other_barrier, lanes_missing, lanes_returned, other_collective, not_in_mask,
  product_in_branch, misaligned_copy, misaligned_source, too_many_valid, copy_to_global, misaligned_load, load_global,
  misaligned_streaming, bad_width, trap,
};

__global__ void mistaken(Mistake mistake, unsigned char* global) {
  RSN2_SHARED_MEMORY(memory);
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t a[4] = {}, b[2] = {};
  float d[4] = {};
  switch (mistake) {
    case Mistake::barrier_in_branch:
      if (lane < 16) __syncthreads();
      __syncwarp();
      break;
    case Mistake::barrier_and_return:
      if (lane < 16) return;
      __syncthreads();
      break;
    case Mistake::other_barrier:
      if (lane < 16) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Mistake::lanes_missing:
      if (lane < 16) __ballot_sync(kAll, 1);
      __syncthreads();
      break;
    case Mistake::lanes_returned:
      if (lane < 16) __ballot_sync(kAll, 1);
      break;
    case Mistake::other_collective:
      if (lane < 16) __shfl_sync(kAll, lane, 0);
      else __shfl_xor_sync(kAll, 1.0f, 1);
      break;
    case Mistake::not_in_mask: __ballot_sync(0xffffu, 1); break;
    case Mistake::product_in_branch:
      if (lane < 16) {
        cuda::multiply_accumulate(d, a, b, __half{});
      } else {
        cuda::multiply_accumulate(d, a, b, __half{});
      }
      break;
    case Mistake::misaligned_copy: cuda::copy_async<8>(memory + 4, global); break;
    case Mistake::misaligned_source: cuda::copy_async<8>(memory, global + 4, 4); break;
    case Mistake::too_many_valid: cuda::copy_async<8>(memory, global, 9); break;
    case Mistake::copy_to_global: cuda::copy_async<8>(global + 8, global); break;
    case Mistake::misaligned_load: cuda::load_matrices(a, memory + lane * 8); break;
    case Mistake::load_global: cuda::load_matrices(a, global); break;
    case Mistake::misaligned_streaming: cuda::load_streaming(reinterpret_cast<const uint2*>(global + 4)); break;
    case Mistake::bad_width: __shfl_sync(kAll, lane, 0, 12); break;
    case Mistake::trap:
      if (lane == 5) __trap();
      break;
  }
}

void test_mistakes_stop_a_launch() {
  const auto global = std::make_unique<uint4[]>(4);
  const auto message = [&](Mistake mistake, unsigned threads) {
    auto* const bytes = reinterpret_cast<unsigned char*>(global.get());
    return error_of([&] { launch(mistaken, 2, threads, 512, mistake, bytes); });
  };
  const struct {
    Mistake mistake;
    std::vector<std::string> says;
  } cases[] = {
      {Mistake::barrier_in_branch, {"deadlock", "16 of 32 threads", "waits in __syncthreads at test_emulator.cpp:"}},
      {Mistake::barrier_and_return, {"deadlock", "\n  16 of 32 threads, such as (16, 0, 0): waits in __syncthreads"}},
      {Mistake::other_barrier, {"divergent barrier: __syncthreads here", "wait in __syncthreads at test_emulator.cpp"}},
      {Mistake::lanes_missing, {"deadlock", "__ballot_sync of lanes 0xffffffff, where only 0x0000ffff came"}},
      {Mistake::lanes_returned, {"0x0000ffff came", "\n  16 of 32 threads, such as (16, 0, 0): has finished"}},
      {Mistake::other_collective, {"different collectives: __shfl_", "with mask 0xffffffff"}},
      {Mistake::not_in_mask, {"which its mask 0x0000ffff does not name"}},
      {Mistake::product_in_branch, {"different collectives: multiply_accumulate here, multiply_accumulate at"}},
      {Mistake::misaligned_copy, {"copy_async to shared memory needs an address aligned to 8 bytes"}},
      {Mistake::misaligned_source, {"copy_async from global memory needs an address aligned to 8 bytes"}},
      {Mistake::too_many_valid, {"9 valid bytes of 8"}},
      {Mistake::copy_to_global, {"copy_async to an address that is not in shared memory"}},
      {Mistake::misaligned_load, {"load_matrices needs an address aligned to 16 bytes"}},
      {Mistake::load_global, {"load_matrices from an address that is not in shared memory"}},
      {Mistake::misaligned_streaming, {"load_streaming needs an address aligned to 8 bytes"}},
      {Mistake::bad_width, {"the width of a shuffle"}},
      {Mistake::trap, {"thread (5, 0, 0)", "__trap", "block ("}},
  };
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::set_seed(seed);
    for (const auto& c : cases) {
      const std::string got = message(c.mistake, 32);
      for (const std::string& part : c.says) {
        expect(got.find(part) != std::string::npos, "a mistake is reported as '" + part + "', not as '" + got + "'");
      }
    }
  }
  expect(message(Mistake::product_in_branch, 16).find("in a warp of fewer than 32 threads") != std::string::npos,
         "matrix instructions need a whole warp");
  // After all that, a kernel runs as if nothing had been.
  test_a_barrier_orders_writes_and_reads();

  const auto refused = [](dim3 grid, dim3 block, size_t bytes) {
    const std::string error = error_of([&] { launch(count, grid, block, bytes, static_cast<int*>(nullptr), 0); });
    return error.find("launch failed") != std::string::npos;
  };
  expect(!refused(1, 1024, 227 * 1024) && !refused(1, 1, 0), "what CUDA accepts is launched");
  expect(refused(0, 32, 0) && refused(1, 0, 0) && refused(1, 1025, 0) && refused(dim3(1, 65536), 1, 0) &&
             refused(1, dim3(1, 1, 65), 0) && refused(1, 32, 227 * 1024 + 1),
         "what CUDA refuses is refused");
}

// --- planted defects ---------------------------------------------------------------------------------------------

constexpr int kRows = 37, kColumns = 20, kDepth = 42;

// [kRows][kColumns], then [kRows]. Buffers are exactly as large as promised, for sanitizers.
std::vector<float> planted_result(planted::Defect defect) {
  std::vector<float> a(kRows * kDepth), b(kDepth * kColumns), product(kRows * kColumns), sums(kRows);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 11) - 5;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 13) - 6;
  planted::run(defect, a.data(), b.data(), product.data(), sums.data(), kRows, kColumns, kDepth);
  product.insert(product.end(), sums.begin(), sums.end());
  return product;
}

std::vector<float> planted_expected() {
  std::vector<float> out(kRows * kColumns + kRows);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      float sum = 0.0f;
      for (int k = 0; k < kDepth; ++k) {
        sum += (static_cast<float>((row * kDepth + k) * 7 % 11) - 5) *
               (static_cast<float>((k * kColumns + column) * 5 % 13) - 6);
      }
      out[row * kColumns + column] = sum;
      if (column < 16) out[kRows * kColumns + row] += sum;
    }
  }
  return out;
}

// Results over all seeds, as bits, because NaN is among them.
std::set<std::vector<uint32_t>> results_over_seeds(planted::Defect defect) {
  std::set<std::vector<uint32_t>> results;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::set_seed(seed);
    const std::vector<float> result = planted_result(defect);
    std::vector<uint32_t> bits;
    for (const float x : result) bits.push_back(__float_as_uint(x));
    results.insert(bits);
  }
  return results;
}

void test_planted_defects() {
  using planted::Defect;
  expect(planted_result(Defect::none) == planted_expected(), "without a defect the planted kernel is right");
  expect(results_over_seeds(Defect::none).size() == 1, "a kernel without races has one result for all seeds");
  for (const auto& [name, defect] : planted::kDefects) {
    switch (defect) {
      case Defect::no_barrier_after_load:
      case Defect::no_barrier_before_load:
      case Defect::no_warp_barrier:
        if (emulator::kThreadSanitizer) break;  // it would report the race; test_emulator.py wants that
        expect(results_over_seeds(defect).size() > 1, std::string("the seed changes the result of ") + name);
        [[fallthrough]];
      case Defect::no_wait_for_copies:
      case Defect::wrong_shuffle_width:
        for (uint64_t seed = 0; seed < kSeeds; ++seed) {
          emulator::set_seed(seed);
          expect(planted_result(defect) != planted_expected(),
                 std::string("the result is wrong with ") + name + ", seed " + std::to_string(seed));
        }
        break;
      case Defect::return_before_barrier:
        expect(error_of([&] { planted_result(defect); }).find("waits in __syncthreads at row_sums.cu:") !=
                   std::string::npos,
               "threads that never come to a barrier are reported");
        break;
      case Defect::barriers_in_both_branches:
        expect(error_of([&] { planted_result(defect); }).find("divergent barrier") != std::string::npos,
               "a divergent barrier is reported");
        break;
      case Defect::shuffle_in_branch:
        expect(error_of([&] { planted_result(defect); }).find("call different collectives: ") != std::string::npos,
               "a shuffle without some of its lanes is reported");
        break;
      default: break;  // with the address sanitizer, from test_emulator.py
    }
  }
}

int run_all() {
  test_every_thread_runs_once();
  test_the_seed_decides_the_order();
  test_several_host_threads_may_launch();
  test_a_barrier_orders_writes_and_reads();
  test_barriers_that_count();
  test_shared_memory_starts_as_garbage();
  test_shuffles<int>("int");
  test_shuffles<unsigned>("unsigned");
  test_shuffles<float>("float");
  test_shuffles<double>("double");
  test_shuffles<unsigned long long>("unsigned long long");
  test_each_lane_has_its_own_source();
  test_votes_in_divergent_branches();
  test_a_lane_outside_the_mask_gives_garbage();
  test_copies<4>();
  test_copies<8>();
  test_copies<16>();
  test_matrix_loads();
  test_products<__nv_bfloat16>("bfloat16");
  test_products<__half>("half");
  test_atomics<int>("int");
  test_atomics<unsigned>("unsigned");
  test_atomics<unsigned long long>("unsigned long long");
  test_atomics<float>("float");
  test_wrapping_counters();
  test_bit_functions();
  test_conversions();
  test_mistakes_stop_a_launch();
  test_planted_defects();
  std::printf(failures == 0 ? "all emulator tests passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace rsn2::test

int main(int count, char** arguments) {
  if (count < 2) return rsn2::test::run_all();
  for (const auto& [name, defect] : rsn2::planted::kDefects) {
    if (std::strcmp(name, arguments[1]) != 0) continue;
    rsn2::test::planted_result(defect);
    std::printf("nothing stopped %s\n", name);
    return 0;
  }
  std::printf("no defect is called %s\n", arguments[1]);
  return 2;
}
