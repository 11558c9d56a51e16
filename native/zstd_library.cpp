#include "zstd_library.h"

#include <dlfcn.h>

namespace kvtier {
namespace {

constexpr const char* kLibrary = "libzstd.so.1";

// Parameters of a context, by the library's numbers. How literals are compressed is an experimental one.
constexpr int kLevel = 100, kShortestMatch = 105, kLiterals = 1002;
constexpr int kLiteralsByHuffman = 1;

// Exponents hardly repeat in order, and short repetitions by chance cost more than they save. A level this low looks for
// next to none and takes long ones only; Huffman's code has all the rest. Measured on KV of SmolLM2: 1.460 at 1.3 GB/s of
// bf16 and 2.9 back; level 1 has 1.442, .35 and 1.3 on the same core. Where a library refuses that, level 1 does it.
constexpr int kHastyLevel = -100, kHastyShortest = 7, kPlainLevel = 1;

}  // namespace

const Zstd& Zstd::get() {
  static const Zstd library(kLibrary);
  return library;
}

Zstd::Zstd(const char* name) {
  void* const library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    reason_ = std::string("no zstandard: ") + (why == nullptr ? name : why);
    return;
  }
  const auto find = [&]<typename Call>(Call*& call, const char* symbol) {
    call = reinterpret_cast<Call*>(dlsym(library, symbol));
    if (call == nullptr && reason_.empty()) reason_ = std::string("no zstandard: the library lacks ") + symbol;
  };
#define KVTIER_ZSTD_FIND(symbol, returned, ...) find(symbol, #symbol);
  KVTIER_ZSTD_CALLS(KVTIER_ZSTD_FIND)
#undef KVTIER_ZSTD_FIND
}

ZstdOfThread& ZstdOfThread::get() {
  thread_local ZstdOfThread contexts;
  return contexts;
}

ZstdOfThread::~ZstdOfThread() {
  if (coder_ != nullptr) Zstd::get().ZSTD_freeCCtx(coder_);
  if (decoder_ != nullptr) Zstd::get().ZSTD_freeDCtx(decoder_);
}

std::size_t ZstdOfThread::compress(const std::uint8_t* from, std::size_t size, std::uint8_t* to,
                                   std::size_t room) noexcept {
  const Zstd& zstd = Zstd::get();
  if (coder_ == nullptr) {
    coder_ = zstd.ZSTD_createCCtx();
    if (coder_ == nullptr) return 0;
    const bool is_hasty = !zstd.ZSTD_isError(zstd.ZSTD_CCtx_setParameter(coder_, kLiterals, kLiteralsByHuffman)) &&
                          !zstd.ZSTD_isError(zstd.ZSTD_CCtx_setParameter(coder_, kShortestMatch, kHastyShortest));
    zstd.ZSTD_CCtx_setParameter(coder_, kLevel, is_hasty ? kHastyLevel : kPlainLevel);
  }
  const std::size_t bytes = zstd.ZSTD_compress2(coder_, to, room, from, size);
  return zstd.ZSTD_isError(bytes) ? 0 : bytes;
}

bool ZstdOfThread::can_decompress() noexcept {
  if (decoder_ == nullptr) decoder_ = Zstd::get().ZSTD_createDCtx();
  return decoder_ != nullptr;
}

bool ZstdOfThread::decompress(const std::uint8_t* from, std::size_t bytes, std::uint8_t* to, std::size_t size) noexcept {
  return can_decompress() && Zstd::get().ZSTD_decompressDCtx(decoder_, to, size, from, bytes) == size;
}

}  // namespace kvtier
