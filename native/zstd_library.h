// zstandard by the system's libzstd, opened at run time: it gets the distribution's fixes, and nothing of it is needed to
// build. Prototypes are our own; every entry point that kvtier calls stands in the one table below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace kvtier {

using ZstdCoder = struct ZstdCoderOpaque*;
using ZstdDecoder = struct ZstdDecoderOpaque*;

// X(symbol, what it returns, parameters)
#define KVTIER_ZSTD_CALLS(X)                                                              \
  X(ZSTD_isError, unsigned, std::size_t)                                                  \
  X(ZSTD_createCCtx, ZstdCoder)                                                           \
  X(ZSTD_freeCCtx, std::size_t, ZstdCoder)                                                \
  X(ZSTD_CCtx_setParameter, std::size_t, ZstdCoder, int, int)                             \
  X(ZSTD_compress2, std::size_t, ZstdCoder, void*, std::size_t, const void*, std::size_t) \
  X(ZSTD_createDCtx, ZstdDecoder)                                                         \
  X(ZSTD_freeDCtx, std::size_t, ZstdDecoder)                                              \
  X(ZSTD_decompressDCtx, std::size_t, ZstdDecoder, void*, std::size_t, const void*, std::size_t)

// The library. Opened when it is first asked for, never unloaded.
class Zstd {
 public:
  static const Zstd& get();
  explicit Zstd(const char* name);  // for tests: get() opens libzstd.so.1

  const std::string& reason() const { return reason_; }  // one line for people; empty when it can be used

#define KVTIER_ZSTD_MEMBER(symbol, returned, ...) returned (*symbol)(__VA_ARGS__) = nullptr;
  KVTIER_ZSTD_CALLS(KVTIER_ZSTD_MEMBER)
#undef KVTIER_ZSTD_MEMBER

 private:
  std::string reason_;
};

// One thread's contexts; made when they are needed, kept for its next use, given back when it ends.
class ZstdOfThread {
 public:
  static ZstdOfThread& get();
  ZstdOfThread() = default;
  ~ZstdOfThread();
  ZstdOfThread(const ZstdOfThread&) = delete;
  ZstdOfThread& operator=(const ZstdOfThread&) = delete;

  // Bytes written; 0: it doesn't fit, or memory is short.
  std::size_t compress(const std::uint8_t* from, std::size_t size, std::uint8_t* to, std::size_t room) noexcept;
  bool can_decompress() noexcept;  // false: memory is short
  // Whether exactly `size` bytes came out.
  bool decompress(const std::uint8_t* from, std::size_t bytes, std::uint8_t* to, std::size_t size) noexcept;

 private:
  ZstdCoder coder_ = nullptr;
  ZstdDecoder decoder_ = nullptr;
};

}  // namespace kvtier
