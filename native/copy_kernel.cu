// Copies many small fragments at once, between device memory and host memory that is registered, in either direction.
//
// For what a copy engine is slow at: a descriptor costs it about a microsecond, so that fragments of a few KiB leave
// most of the link idle. A kernel takes SMs from decode instead: launch few blocks.
//
//   table    `count` fragments, in memory that the device reads: device memory, or registered host memory at its host
//            address. Fragments of no bytes are allowed. No target overlaps another fragment.
//   launch   any grid in one dimension, blocks of at most kTile threads, no dynamic shared memory.
//
// Fragments that share an alignment of 16 bytes at both ends move in vectors of 16 bytes; others byte by byte.
// Sixteen bytes of a fragment are a lane. Few fragments are dealt out to all blocks lane by lane; of many, every block
// takes a share of its own, so that the table crosses the link once. Shares are equal in fragments, not in bytes: a
// fragment far larger than the others is better cut first.
//
// Compiled by native/make_kernel.py (`make kernel`) into copy_kernel.ptx.h, and as C++ for the CPU by the tests.

struct Fragment {
  unsigned long long source, target, size;  // address, address, bytes
};

constexpr unsigned kTile = 256;          // fragments that a block looks at together: a row of shared memory a thread
constexpr unsigned kSharedFragments = 8;  // with fewer fragments than this for each block, all blocks share each one
constexpr unsigned kAtOnce = 4;          // loads in flight a thread: the link's latency is long

struct Tile {
  Fragment fragments[kTile];
  unsigned long long end[kTile];  // the lane after each fragment's last one, counted from the tile's first
};

// Brings `count` fragments of the table into shared memory, words of neighbours by neighbouring threads, and sums
// their lanes up. All threads of the block call it; on return all see all of it.
static __device__ void load_tile(Tile& tile, const Fragment* table, unsigned count) {
  auto* const words = reinterpret_cast<unsigned long long*>(tile.fragments);
  const auto* const given = reinterpret_cast<const unsigned long long*>(table);
  for (unsigned i = threadIdx.x; i < 3 * count; i += blockDim.x) words[i] = given[i];
  __syncthreads();
  const unsigned mine = threadIdx.x;
  unsigned long long sum = mine < count ? (tile.fragments[mine].size + 15) / 16 : 0;
  tile.end[mine] = sum;
  __syncthreads();
  for (unsigned step = 1; step < count; step *= 2) {
    const unsigned long long before = mine >= step ? tile.end[mine - step] : 0;
    __syncthreads();
    tile.end[mine] = sum += before;
    __syncthreads();
  }
}

// The fragment that `lane` belongs to: the first that ends after it. Nearly always that of the lane before.
static __device__ unsigned fragment_of(const Tile& tile, unsigned count, unsigned long long lane, unsigned at) {
  if (lane < tile.end[at]) return at;
  unsigned past = count - 1;
  for (++at; at < past;) {
    const unsigned middle = (at + past) / 2;
    if (lane < tile.end[middle])
      past = middle;
    else
      at = middle + 1;
  }
  return at;
}

static __device__ void copy_bytes(unsigned long long source, unsigned long long target, unsigned size) {
  const auto* const from = reinterpret_cast<const unsigned char*>(source);
  auto* const to = reinterpret_cast<unsigned char*>(target);
#pragma unroll 1
  for (unsigned i = 0; i < size; ++i) to[i] = from[i];
}

// The lanes first, first + step, ... of the tile. Loads go out kAtOnce together before the first store waits for one.
static __device__ void copy_lanes(const Tile& tile, unsigned count, unsigned long long first, unsigned step) {
  const unsigned long long lanes = tile.end[count - 1];
  unsigned at = 0;
  for (unsigned long long lane = first; lane < lanes;) {
    uint4 held[kAtOnce];
    unsigned long long target[kAtOnce];
#pragma unroll
    for (unsigned i = 0; i < kAtOnce; ++i, lane += step) {
      target[i] = 0;
      if (lane >= lanes) continue;
      at = fragment_of(tile, count, lane, at);
      const Fragment& fragment = tile.fragments[at];
      const unsigned long long offset = 16 * (lane - (at == 0 ? 0 : tile.end[at - 1]));
      const unsigned long long left = fragment.size - offset;
      if (left >= 16 && (fragment.source | fragment.target) % 16 == 0) {
        held[i] = *reinterpret_cast<const uint4*>(fragment.source + offset);
        target[i] = fragment.target + offset;
      } else {
        copy_bytes(fragment.source + offset, fragment.target + offset, left < 16 ? static_cast<unsigned>(left) : 16);
      }
    }
#pragma unroll
    for (unsigned i = 0; i < kAtOnce; ++i)
      if (target[i] != 0) *reinterpret_cast<uint4*>(target[i]) = held[i];
  }
}

extern "C" __global__ void __launch_bounds__(kTile) kvtier_copy(const Fragment* table, unsigned count) {
  __shared__ Tile tile;
  const bool together = count < kSharedFragments * gridDim.x;
  const auto share = [&](unsigned block) { return static_cast<unsigned>(1ull * count * block / gridDim.x); };
  const unsigned begin = together ? 0 : share(blockIdx.x);
  const unsigned end = together ? count : share(blockIdx.x + 1);
  const unsigned first = together ? blockIdx.x * blockDim.x + threadIdx.x : threadIdx.x;
  const unsigned step = together ? gridDim.x * blockDim.x : blockDim.x;
  for (unsigned at = begin; at < end; at += blockDim.x) {
    const unsigned here = end - at < blockDim.x ? end - at : blockDim.x;
    load_tile(tile, table + at, here);
    copy_lanes(tile, here, first, step);
    __syncthreads();  // the next tile takes the same room
  }
}
