// The CUDA kernel on the CPU: blocks one after the other, a block's threads as threads of this process.
//
//   kernel_on_cpu SEED FRAGMENTS BLOCKS THREADS LARGEST
//
// Copies FRAGMENTS of 0 to LARGEST bytes at every alignment, and compares all of the target, what lies between the
// fragments included, with what memcpy makes of it. Exits with 1 and the first byte that differs.
#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

namespace {

struct Index {
  unsigned x;
};
thread_local Index threadIdx;
Index blockIdx, blockDim, gridDim;
std::barrier<>* block_barrier;

void __syncthreads() { block_barrier->arrive_and_wait(); }

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

#include "../../native/copy_kernel.cu"

constexpr std::size_t kApart = 64;  // bytes, at most, that lie between two fragments and must stay as they are

void launch(unsigned blocks, unsigned threads, const std::vector<Fragment>& table) {
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::barrier<> barrier(threads);
    block_barrier = &barrier;
    std::vector<std::jthread> running;
    for (unsigned i = 0; i < threads; ++i)
      running.emplace_back([i, &table] {
        threadIdx.x = i;
        kvtier_copy(table.data(), static_cast<unsigned>(table.size()));
      });
  }
}

unsigned long long number(const unsigned char* at) { return reinterpret_cast<unsigned long long>(at); }

int run(unsigned seed, std::size_t count, unsigned blocks, unsigned threads, std::size_t largest) {
  std::mt19937_64 random(seed);
  const std::size_t room = count * (largest + kApart) + kApart;
  std::vector<unsigned char> source(room), target(room, 0xA5);
  for (unsigned char& byte : source) byte = static_cast<unsigned char>(random());
  std::vector<unsigned char> expected(target);

  std::vector<Fragment> table;
  std::size_t from = 0, to = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const bool aligned = random() % 2 == 0;  // both ends, to 16 bytes
    const auto after = [&](std::size_t at) { return aligned ? (at + 31) / 16 * 16 : at + random() % (kApart - 16); };
    const bool tiny = random() % 4 == 0;
    const std::size_t size = random() % (tiny ? std::min<std::size_t>(40, largest + 1) : largest + 1);
    from = after(from);
    to = after(to);
    table.push_back({number(source.data() + from), number(target.data() + to), size});
    std::memcpy(expected.data() + to, source.data() + from, size);
    from += size;
    to += size;
  }
  std::shuffle(table.begin(), table.end(), random);

  launch(blocks, threads, table);
  const auto differs = std::mismatch(target.begin(), target.end(), expected.begin());
  if (differs.first == target.end()) return 0;
  std::printf("byte %td of %zu is %d, not %d\n", differs.first - target.begin(), room, *differs.first, *differs.second);
  return 1;
}

}  // namespace

int main(int, char** arguments) {
  const auto given = [&](int i) { return static_cast<unsigned>(std::strtoul(arguments[i], nullptr, 10)); };
  return run(given(1), given(2), given(3), given(4), given(5));
}
