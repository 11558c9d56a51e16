// expz: the bytes that have the exponents through zstandard, the others as they are.
//
// A body: the other bytes | the odd byte, if the group has one | what zstandard made of the exponents.
// Both planes are filled up to whole chunks.
#pragma once

#include <string>

#include "codec_kernels.h"

namespace kvtier {

const std::string* expz_reason();  // why it can't be used here; nullptr when it can
bool expz_is_ready() noexcept;     // whether this thread has what it takes to decode; else memory is short

#define KVTIER_EXPZ                                                                           \
  size_t expz_encode(CodecFormat, const uint8_t*, size_t, uint8_t*, uint32_t*);               \
  bool expz_decode(CodecFormat, const uint8_t*, size_t, uint32_t, uint8_t*, size_t, NextBody*);
namespace portable {
KVTIER_EXPZ
}
#ifdef KVTIER_CODEC_X86
namespace avx2 {
KVTIER_EXPZ
}
namespace avx512 {
KVTIER_EXPZ
}
#endif
#undef KVTIER_EXPZ

}  // namespace kvtier
