// Python bindings for encryption: they convert and nothing else.
#include "bind_aead.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <new>
#include <optional>
#include <span>
#include <string>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvtier {
namespace {

// By value, as seals are: threads without the GIL may be the last who need one.
struct CryptoOfPython {
  std::shared_ptr<const Crypto> crypto;
};

using Bytes = Flat<std::uint8_t, 1>;

// As in module.cpp: to let the GIL go and to take it again costs as much as a few pages.
constexpr std::size_t kSealedWithGil = std::size_t{64} << 10;

std::span<const std::uint8_t> bytes_of(const nb::bytes& bytes) {
  return {reinterpret_cast<const std::uint8_t*>(bytes.c_str()), bytes.size()};
}

nb::bytes tag_of(const Seal& seal) { return nb::bytes(seal.tag.data(), seal.tag.size()); }

void set_tag(Seal& seal, const nb::bytes& tag) {
  if (tag.size() != kTagBytes) throw nb::value_error("tag has 16 bytes");
  std::copy_n(bytes_of(tag).begin(), kTagBytes, seal.tag.begin());
}

// Whether it went well; false only for a tag that is another's.
bool whole(Seal& seal, bool encrypts, const Bytes& source, const Filled& target) {
  if (source.size() != target.size()) throw nb::value_error("source and target must have the same size");
  if (source.size() > kSealedBytesMax) throw nb::value_error("more than can be sealed at once");
  std::optional<nb::gil_scoped_release> release;
  if (source.size() > kSealedWithGil) release.emplace();
  Sealer sealer(seal.crypto);
  if (sealer.whole(seal, encrypts, source.data(), target.data(), source.size())) return true;
  if (!seal.is_forged) throw std::bad_alloc();
  return false;
}

nb::bytes seal(const CryptoOfPython& crypto, const nb::bytes& key, const nb::bytes& nonce, const nb::bytes& aad,
               const Bytes& source, const Filled& target) {
  Seal one(crypto.crypto, bytes_of(key), bytes_of(nonce), bytes_of(aad));
  whole(one, true, source, target);
  return tag_of(one);
}

bool unseal(const CryptoOfPython& crypto, const nb::bytes& key, const nb::bytes& nonce, const nb::bytes& aad,
            const nb::bytes& tag, const Bytes& source, const Filled& target) {
  Seal one(crypto.crypto, bytes_of(key), bytes_of(nonce), bytes_of(aad));
  set_tag(one, tag);
  return whole(one, false, source, target);
}

}  // namespace

void bind_aead(nb::module_& m) {
  nb::class_<CryptoOfPython>(m, "Crypto", "AES-256-GCM by OpenSSL's libcrypto, found at run time. Usable from any thread.")
      .def_static(
          "open", [](const std::string& path) { return CryptoOfPython{Crypto::open(path)}; }, "path"_a = "",
          "`path` empty: libcrypto.so.3; if it can't be used `reason` says why.")
      .def_prop_ro(
          "reason", [](const CryptoOfPython& self) { return self.crypto->reason(); },
          "str: one line for people; empty when it can be used.")
      .def_prop_ro(
          "version", [](const CryptoOfPython& self) { return self.crypto->version(); },
          "str: as the library says it; empty when it can't be used.")
      .def("seal", &seal, "key"_a, "nonce"_a, "aad"_a, "source"_a, "target"_a,
           "Encrypt `source` into `target`, flat buffers of bytes of one size that are the same or don't overlap, and\n"
           "return the tag (16 bytes). A key has 32 bytes, a nonce 12: never twice with one key. The GIL is released\n"
           "for large ones. Raises ValueError (sizes, or the library can't be used), MemoryError.")
      .def("unseal", &unseal, "key"_a, "nonce"_a, "aad"_a, "tag"_a, "source"_a, "target"_a,
           "Decrypt. False: key, nonce, aad, tag or bytes are not those of seal(); then `target` is zeros.");
  nb::class_<SealOfPython>(m, "Seal", "What FileIo encrypts or decrypts one range with. The key is wiped with it.")
      .def(
          "__init__",
          [](SealOfPython* self, const CryptoOfPython& crypto, const Bytes& key, const nb::bytes& nonce,
             const nb::bytes& aad, const std::optional<nb::bytes>& tag) {
            const std::span<const std::uint8_t> secret(key.data(), key.size());
            auto made = std::make_shared<Seal>(crypto.crypto, secret, bytes_of(nonce), bytes_of(aad));
            if (tag) set_tag(*made, *tag);
            new (self) SealOfPython{std::move(made)};
          },
          "crypto"_a, "key"_a, "nonce"_a, "aad"_a, "tag"_a = nb::none(),
          "For one write, or with the write's `tag` for reads. `key`: a buffer, which may be wiped then. Raises ValueError (sizes, the library can't be used).")
      .def_prop_ro(
          "tag", [](const SealOfPython& self) { return tag_of(*self.seal); },
          "bytes: of a write, when it has been reported without an error.")
      .def_prop_ro(
          "is_forged", [](const SealOfPython& self) { return self.seal->is_forged; },
          "bool: a read with it was reported as EBADMSG, because what lies there is not what was written.");
}

}  // namespace kvtier
