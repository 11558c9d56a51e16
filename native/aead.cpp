#include "aead.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

namespace kvtier {
namespace {

constexpr const char* kLibrary = "libcrypto.so.3";
constexpr int kGetTag = 0x10;
constexpr int kSetTag = 0x11;
constexpr std::uint64_t kPiece = std::uint64_t{1} << 30;  // the library counts in int

template <std::size_t kSize>
void copy(std::span<const std::uint8_t> from, std::array<std::uint8_t, kSize>& to, const char* name) {
  if (from.size() != kSize) throw std::invalid_argument(std::string(name) + " has " + std::to_string(kSize) + " bytes");
  std::copy(from.begin(), from.end(), to.begin());
}

}  // namespace

std::shared_ptr<const Crypto> Crypto::open(const std::string& path) {
  const std::shared_ptr<Crypto> crypto(new Crypto);
  void* const library = dlopen(path.empty() ? kLibrary : path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    crypto->reason_ = std::string("no OpenSSL 3: ") + (why == nullptr ? kLibrary : why);
    return crypto;
  }
  crypto->resolve(library);
  if (!crypto->usable()) return crypto;
  crypto->cipher_ = crypto->EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  if (crypto->cipher_ == nullptr) {
    crypto->ERR_clear_error();
    crypto->reason_ = "OpenSSL has no AES-256-GCM here";
    return crypto;
  }
  crypto->version_ = crypto->OpenSSL_version(0);
  return crypto;
}

void Crypto::resolve(void* library) {
  const auto find = [&]<typename Call>(Call*& call, const char* symbol) {
    call = reinterpret_cast<Call*>(dlsym(library, symbol));
    if (call == nullptr && reason_.empty()) reason_ = std::string("no OpenSSL 3: the library lacks ") + symbol;
  };
#define KVTIER_CRYPTO_FIND(symbol, returned, ...) find(symbol, #symbol);
  KVTIER_CRYPTO_CALLS(KVTIER_CRYPTO_FIND)
#undef KVTIER_CRYPTO_FIND
}

void Crypto::cleanse(std::span<std::uint8_t> secret) const { OPENSSL_cleanse(secret.data(), secret.size()); }

Seal::Seal(std::shared_ptr<const Crypto> library, std::span<const std::uint8_t> secret,
           std::span<const std::uint8_t> number_once, std::span<const std::uint8_t> associated)
    : crypto(std::move(library)), aad(associated.begin(), associated.end()) {
  if (!crypto->usable()) throw std::invalid_argument(crypto->reason());
  copy(number_once, nonce, "nonce");
  copy(secret, key, "key");
}

Seal::~Seal() { crypto->cleanse(key); }

Sealer::Sealer(std::shared_ptr<const Crypto> crypto) : crypto_(std::move(crypto)), context_(crypto_->EVP_CIPHER_CTX_new()) {
  if (context_ == nullptr) throw std::bad_alloc();
}

Sealer::~Sealer() { crypto_->EVP_CIPHER_CTX_free(context_); }

bool Sealer::begin(const Seal& seal, bool encrypts) noexcept {
  encrypts_ = encrypts;
  const int way = encrypts ? 1 : 0;
  int size = 0;
  bool good = crypto_->EVP_CipherInit_ex2(context_, crypto_->cipher(), seal.key.data(), seal.nonce.data(), way, nullptr) == 1;
  if (good && !seal.aad.empty()) {
    const auto aad_size = static_cast<int>(seal.aad.size());
    good = crypto_->EVP_CipherUpdate(context_, nullptr, &size, seal.aad.data(), aad_size) == 1;
  }
  if (!good) drop();
  return good;
}

bool Sealer::update(const std::uint8_t* from, std::uint8_t* to, std::uint64_t size) noexcept {
  while (size > 0) {
    const std::uint64_t piece = std::min(size, kPiece);
    int moved = 0;
    if (crypto_->EVP_CipherUpdate(context_, to, &moved, from, static_cast<int>(piece)) != 1) {
      drop();
      return false;
    }
    from += piece;
    to += piece;
    size -= piece;
  }
  return true;
}

bool Sealer::end(Seal& seal) noexcept {
  std::uint8_t rest[16];  // of a stream there is none
  int size = 0;
  bool good = true;
  if (!encrypts_) good = crypto_->EVP_CIPHER_CTX_ctrl(context_, kSetTag, kTagBytes, seal.tag.data()) == 1;
  if (good && crypto_->EVP_CipherFinal_ex(context_, rest, &size) != 1) {
    seal.is_forged = !encrypts_;
    good = false;
  }
  if (good && encrypts_) good = crypto_->EVP_CIPHER_CTX_ctrl(context_, kGetTag, kTagBytes, seal.tag.data()) == 1;
  drop();
  return good;
}

void Sealer::drop() noexcept {
  crypto_->EVP_CIPHER_CTX_reset(context_);
  crypto_->ERR_clear_error();
}

bool Sealer::whole(Seal& seal, bool encrypts, const std::uint8_t* from, std::uint8_t* to, std::uint64_t size) noexcept {
  const bool good = begin(seal, encrypts) && update(from, to, size) && end(seal);
  if (!good && !encrypts) std::memset(to, 0, size);
  return good;
}

}  // namespace kvtier
