// Whether the kernels of one instruction set do on this CPU what the portable ones do. Asked once, before they are used:
// a compiler's or an emulator's mistake must cost speed, not blocks.
#include <array>
#include <cstring>

#include "codec_kinds.h"

namespace kvtier {
namespace {

using Probe = std::array<std::uint8_t, kGroupBytes>;

// Values as a cache has them: small exponents are rarer by half each, and a few are far away.
void fill(Probe& probe, std::uint8_t element) {
  const bool is_bf16 = element == kElementBf16;
  std::uint32_t state = 2463534242;  // xorshift's
  for (std::size_t at = 0; at + 1 < probe.size(); at += 2) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    const unsigned rarity = __builtin_ctz(state | 1 << 13), mantissa = state >> 16;
    const unsigned exponent = (is_bf16 ? 127 : 15) - rarity - (at % 1022 == 0 && is_bf16 ? 40 : 0);
    const unsigned magnitude = is_bf16 ? exponent << 7 | (mantissa & 0x7F) : exponent << 10 | (mantissa & 0x3FF);
    const unsigned value = (state & 0x8000) | magnitude;
    probe[at] = static_cast<std::uint8_t>(value);
    probe[at + 1] = static_cast<std::uint8_t>(value >> 8);
  }
}

bool do_agree(const GroupKernels& one, const GroupKernels& other, CodecFormat format, const Probe& probe,
              std::size_t size) {
  Probe bodies[2] = {}, back[2] = {};
  std::uint32_t modes[2] = {};
  NextBody nothing = {probe.data(), 0, false, {}};
  const std::size_t bytes = one.encode(format, probe.data(), size, bodies[0].data(), &modes[0]);
  if (other.encode(format, probe.data(), size, bodies[1].data(), &modes[1]) != bytes) return false;
  if (bytes == kRaw || bytes == kRefused) return true;
  return modes[0] == modes[1] && std::memcmp(bodies[0].data(), bodies[1].data(), bytes) == 0 &&
         one.decode(format, bodies[0].data(), bytes, modes[0], back[0].data(), size, &nothing) &&
         other.decode(format, bodies[1].data(), bytes, modes[1], back[1].data(), size, &nothing) && back[0] == back[1];
}

}  // namespace

bool does_as_portable(Isa isa) {
  constexpr std::uint8_t kRow = 64;
  for (const std::uint8_t element : {kElementBf16, kElementFp16}) {
    Probe probe;
    fill(probe, element);
    for (const CodecKind& kind : codec_kinds()) {
      if (kind.reason() != nullptr) continue;
      const CodecFormat format = kind.is_lossy ? CodecFormat{element, kRow} : CodecFormat{};
      const GroupKernels& portable = kind.kernels[static_cast<std::size_t>(Isa::kPortable)];
      for (const std::size_t size : {probe.size(), probe.size() - 4097})
        if (!do_agree(portable, kind.kernels[static_cast<std::size_t>(isa)], format, probe, size)) return false;
    }
  }
  return true;
}

}  // namespace kvtier
