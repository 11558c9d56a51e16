// AES-256-GCM by OpenSSL's libcrypto, opened at run time: it gets the distribution's security fixes, and nothing of it is
// needed to build. Prototypes are our own; every entry point that kvtier calls stands in the one table below.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace kvtier {

inline constexpr std::size_t kSealKeyBytes = 32;
inline constexpr std::size_t kNonceBytes = 12;
inline constexpr std::size_t kTagBytes = 16;
inline constexpr std::uint64_t kSealedBytesMax = (std::uint64_t{1} << 36) - 32;  // of one message, by the standard

using EvpCipher = struct EvpCipherOpaque*;
using EvpContext = struct EvpContextOpaque*;

// X(symbol, what it returns, parameters)
#define KVTIER_CRYPTO_CALLS(X)                                                                                        \
  X(OpenSSL_version, const char*, int)                                                                                \
  X(OPENSSL_cleanse, void, void*, std::size_t)                                                                        \
  X(ERR_clear_error, void)                                                                                            \
  X(EVP_CIPHER_fetch, EvpCipher, void*, const char*, const char*)                                                     \
  X(EVP_CIPHER_CTX_new, EvpContext)                                                                                   \
  X(EVP_CIPHER_CTX_free, void, EvpContext)                                                                            \
  X(EVP_CIPHER_CTX_reset, int, EvpContext)                                                                            \
  X(EVP_CIPHER_CTX_ctrl, int, EvpContext, int, int, void*)                                                            \
  X(EVP_CipherInit_ex2, int, EvpContext, EvpCipher, const std::uint8_t*, const std::uint8_t*, int, const void*)       \
  X(EVP_CipherUpdate, int, EvpContext, std::uint8_t*, int*, const std::uint8_t*, int)                                 \
  X(EVP_CipherFinal_ex, int, EvpContext, std::uint8_t*, int*)

// The library. Never unloaded.
class Crypto {
 public:
  // `path` empty: libcrypto.so.3. Never throws because there is none: reason() then says why.
  static std::shared_ptr<const Crypto> open(const std::string& path);

  bool usable() const { return reason_.empty(); }
  const std::string& reason() const { return reason_; }    // one line for people; empty when usable
  const std::string& version() const { return version_; }  // as it says itself; empty when it is not usable
  EvpCipher cipher() const { return cipher_; }
  void cleanse(std::span<std::uint8_t> secret) const;

#define KVTIER_CRYPTO_MEMBER(symbol, returned, ...) returned (*symbol)(__VA_ARGS__) = nullptr;
  KVTIER_CRYPTO_CALLS(KVTIER_CRYPTO_MEMBER)
#undef KVTIER_CRYPTO_MEMBER

 private:
  Crypto() = default;
  void resolve(void* library);

  std::string reason_;
  std::string version_;
  EvpCipher cipher_ = nullptr;
};

// What one message is encrypted with, and the tag that proves it. The key is wiped with it.
struct Seal {
  // std::invalid_argument: the library can't be used.
  Seal(std::shared_ptr<const Crypto> library, std::span<const std::uint8_t> key, std::span<const std::uint8_t> nonce,
       std::span<const std::uint8_t> aad);
  ~Seal();
  Seal(const Seal&) = delete;
  Seal& operator=(const Seal&) = delete;

  const std::shared_ptr<const Crypto> crypto;
  std::array<std::uint8_t, kSealKeyBytes> key;
  std::array<std::uint8_t, kNonceBytes> nonce;
  std::vector<std::uint8_t> aad;
  std::array<std::uint8_t, kTagBytes> tag{};  // written when it is encrypted; what it is compared with when not
  bool is_forged = false;                     // it was decrypted, and the tag is another's
};

// One message after the other, in pieces of any size. For one thread at a time. Nothing of a key stays in it when a
// message is over.
class Sealer {
 public:
  explicit Sealer(std::shared_ptr<const Crypto> crypto);  // std::bad_alloc
  ~Sealer();
  Sealer(const Sealer&) = delete;
  Sealer& operator=(const Sealer&) = delete;

  // False, of each of them: the library failed, which it does when memory is short. The message is lost.
  bool begin(const Seal& seal, bool encrypts) noexcept;
  bool update(const std::uint8_t* from, std::uint8_t* to, std::uint64_t size) noexcept;  // `to` may be `from`
  bool end(Seal& seal) noexcept;  // writes the tag, or compares it: then false says that it is another's, too
  void drop() noexcept;           // a message that isn't ended

  // A whole message. False and seal.is_forged: the tag is another's; then what was decrypted is wiped.
  bool whole(Seal& seal, bool encrypts, const std::uint8_t* from, std::uint8_t* to, std::uint64_t size) noexcept;

 private:
  const std::shared_ptr<const Crypto> crypto_;
  const EvpContext context_;
  bool encrypts_ = false;
};

}  // namespace kvtier
