#include "stream_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvtier {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kStride = 256;  // bytes a turn of the loop moves: four lines

// Moves size / kStride strides; `target` lies on a line. The loops below are one idea in two widths. They ask for
// nothing in advance: with software prefetches 0.5-4 KiB ahead it was the same or slower, the hardware sees the stream.
using StrideCopy = void (*)(char* target, const char* source, std::size_t size);

#if defined(__x86_64__)

__attribute__((target("avx2"))) void strides_avx2(char* target, const char* source, std::size_t size) {
  for (const char* end = source + size; source < end; source += kStride, target += kStride) {
    for (std::size_t line = 0; line < kStride; line += kLine) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + line));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + line + 32));
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + line), low);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + line + 32), high);
    }
  }
}

__attribute__((target("avx512f"))) void strides_avx512(char* target, const char* source, std::size_t size) {
  for (const char* end = source + size; source < end; source += kStride, target += kStride) {
    for (std::size_t line = 0; line < kStride; line += kLine) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target + line), _mm512_loadu_si512(source + line));
    }
  }
}

struct Path {
  const char* name;
  StrideCopy copy;
};

Path choose() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return {"avx512", strides_avx512};
  if (__builtin_cpu_supports("avx2")) return {"avx2", strides_avx2};
  return {"memcpy", nullptr};
}

const Path& path() {
  static const Path chosen = choose();
  return chosen;
}

#endif

}  // namespace

#if defined(__x86_64__)

const char* copy_path() { return path().name; }

void stream_copy(void* target, const void* source, std::size_t size) {
  auto* to = static_cast<char*>(target);
  auto* from = static_cast<const char*>(source);
  const StrideCopy copy = path().copy;
  if (copy == nullptr || size < kStride + kLine) {
    std::memcpy(to, from, size);
    return;
  }
  // A non-temporal store needs an aligned target and pays only for whole lines, so the ends go the plain way.
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  const std::size_t middle = (size - head) / kStride * kStride;
  std::memcpy(to, from, head);
  copy(to + head, from + head, middle);
  std::memcpy(to + head + middle, from + head + middle, size - head - middle);
}

void stream_fence() { _mm_sfence(); }

#else

const char* copy_path() { return "memcpy"; }
void stream_copy(void* target, const void* source, std::size_t size) { std::memcpy(target, source, size); }
void stream_fence() {}

#endif

}  // namespace kvtier
