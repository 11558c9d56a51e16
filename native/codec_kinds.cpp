#include "codec_kinds.h"

#include <iterator>

#include "codec_expz.h"

namespace kvtier {
namespace {

const std::string* always() { return nullptr; }
bool needs_nothing() noexcept { return true; }

#ifdef KVTIER_CODEC_X86
#define KVTIER_KERNELS(name)                        \
  {{portable::name##_encode, portable::name##_decode}, \
   {avx2::name##_encode, avx2::name##_decode},         \
   {avx512::name##_encode, avx512::name##_decode}}
#else
#define KVTIER_KERNELS(name) {{portable::name##_encode, portable::name##_decode}, {}, {}}
#endif

constexpr CodecKind kCodecs[] = {
    {"exp12", 1, 1, kGroupBytes, false, KVTIER_KERNELS(exp12), always, needs_nothing},
    {"expz", 2, 1, kZstdGroupBytes, false, KVTIER_KERNELS(expz), expz_reason, expz_is_ready},
    {"int8", 3, 1, kGroupBytes, true, KVTIER_KERNELS(int8), always, needs_nothing},
    {"fp8", 4, 1, kGroupBytes, true, KVTIER_KERNELS(fp8), always, needs_nothing},
    {"int4", 5, 1, kGroupBytes, true, KVTIER_KERNELS(int4), always, needs_nothing},
};

constexpr std::uint8_t kRows[] = {16, 32, 64, 128};

}  // namespace

std::span<const CodecKind> codec_kinds() { return kCodecs; }

const CodecKind* codec_named(const std::string& name) {
  for (const CodecKind& kind : kCodecs)
    if (name == kind.name) return &kind;
  return nullptr;
}

const CodecKind* codec_numbered(std::uint8_t id) {
  for (const CodecKind& kind : kCodecs)
    if (id == kind.id) return &kind;
  return nullptr;
}

const char* element_name(std::uint8_t element) {
  constexpr const char* kNames[] = {"", "bf16", "fp16"};
  return element < std::size(kNames) ? kNames[element] : nullptr;
}

bool is_format(const CodecKind& kind, CodecFormat format) {
  if (!kind.is_lossy) return format.element == kElementNone && format.row == 0;
  if (format.element != kElementBf16 && format.element != kElementFp16) return false;
  for (const std::uint8_t row : kRows)
    if (format.row == row) return true;
  return false;
}

}  // namespace kvtier
