// What stands between frames (codec.cpp) and the codecs themselves: one table of kernels. A codec works on one group at a
// time, knows nothing of frames and checksums, and need not say how large a group that it can't make smaller is.
//
// Kernels are compiled once for each instruction set, from the same plain loops. So this header, and whatever else such
// a file includes, has no inline functions, templates or objects of the standard library: the linker would keep one copy
// of them, and that might be the one that this CPU can't run.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kvtier {

// A codec's parameters as a frame's trailer has them. Lossy ones have both, the others zeros.
struct CodecFormat {
  uint8_t element;  // kElementBf16, kElementFp16
  uint8_t row;      // values that share a scale
};
inline constexpr uint8_t kElementNone = 0, kElementBf16 = 1, kElementFp16 = 2;

inline constexpr size_t kGroupBytes = size_t{16} << 10;       // of a block: encoded and decoded it stays in the first cache
inline constexpr size_t kZstdGroupBytes = size_t{256} << 10;  // zstd needs more to learn from
inline constexpr size_t kPlaneChunk = 64;                     // values that planes_split() takes at once
inline constexpr size_t kRaw = 0;                             // what EncodeGroup returns for "leave it as it is"
inline constexpr size_t kRefused = ~size_t{0};                // and for "the block can't be written by this codec"

// Encodes the group at `from` into the memory at `to`, which doesn't overlap it and has room for `size` bytes: no more
// than that is ever written. Returns the bytes of the body, less than `size`; kRaw; kRefused.
// `mode` is that of the group before (0 at first, and where that was raw), and becomes this one's: anything but 0.
using EncodeGroup = size_t (*)(CodecFormat format, const uint8_t* from, size_t size, uint8_t* to, uint32_t* mode);

// The body that is decoded after this one. A kernel that has the instruction may compute checksums of its beginning, in
// three lanes, while it decodes: that is done in the shade of its own work, and brings the bytes from memory too.
inline constexpr size_t kCheckLane = 4096, kCheckedAhead = 3 * kCheckLane;
struct NextBody {
  const uint8_t* bytes;  // never nullptr
  size_t size;           // 0: there is none
  bool is_checked;       // `lanes` are there
  uint32_t lanes[3];     // as crc32c_of_lanes() takes them
};

// Decodes `size` bytes of the block to `to`, which overlaps no body. False: such a body was never written. Body and mode
// may be anything, and bytes of the body change while they are read: nothing outside of them is read, nothing outside of
// `size` written. So what decides an address is read once, or copied first.
using DecodeGroup = bool (*)(CodecFormat format, const uint8_t* body, size_t body_bytes, uint32_t mode, uint8_t* to,
                             size_t size, NextBody* next);

struct GroupKernels {
  EncodeGroup encode;
  DecodeGroup decode;
};

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512 };
inline constexpr size_t kIsas = 3;

// X(namespace): the instruction sets that kernels are compiled for.
#ifdef KVTIER_CODEC_X86  // so says CMakeLists.txt
#define KVTIER_CODEC_ISAS(X) X(portable) X(avx2) X(avx512)
#else
#define KVTIER_CODEC_ISAS(X) X(portable)
#endif

// X(function, what it returns, parameters): what each of them has.
#define KVTIER_CODEC_KERNELS(X)                                                                     \
  X(planes_split, void, bool, const uint8_t*, size_t, uint8_t*, uint8_t*)                           \
  X(planes_join, void, bool, const uint8_t*, const uint8_t*, uint8_t*, size_t)                      \
  X(exp12_encode, size_t, CodecFormat, const uint8_t*, size_t, uint8_t*, uint32_t*)                 \
  X(exp12_decode, bool, CodecFormat, const uint8_t*, size_t, uint32_t, uint8_t*, size_t, NextBody*) \
  X(expz_encode, size_t, CodecFormat, const uint8_t*, size_t, uint8_t*, uint32_t*)                  \
  X(expz_decode, bool, CodecFormat, const uint8_t*, size_t, uint32_t, uint8_t*, size_t, NextBody*)  \
  X(int8_encode, size_t, CodecFormat, const uint8_t*, size_t, uint8_t*, uint32_t*)                  \
  X(int8_decode, bool, CodecFormat, const uint8_t*, size_t, uint32_t, uint8_t*, size_t, NextBody*)  \
  X(fp8_encode, size_t, CodecFormat, const uint8_t*, size_t, uint8_t*, uint32_t*)                   \
  X(fp8_decode, bool, CodecFormat, const uint8_t*, size_t, uint32_t, uint8_t*, size_t, NextBody*)   \
  X(int4_encode, size_t, CodecFormat, const uint8_t*, size_t, uint8_t*, uint32_t*)                  \
  X(int4_decode, bool, CodecFormat, const uint8_t*, size_t, uint32_t, uint8_t*, size_t, NextBody*)

#define KVTIER_DECLARE(name, returned, ...) returned name(__VA_ARGS__);
#define KVTIER_DECLARE_ALL(isa)          \
  namespace isa {                        \
  KVTIER_CODEC_KERNELS(KVTIER_DECLARE)   \
  }
KVTIER_CODEC_ISAS(KVTIER_DECLARE_ALL)
#undef KVTIER_DECLARE_ALL
#undef KVTIER_DECLARE

}  // namespace kvtier
