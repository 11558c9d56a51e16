// Which kernels this CPU can run, and runs rightly.
#include <stdexcept>

#include "codec.h"
#include "codec_kinds.h"

namespace kvtier {
namespace {

std::vector<Isa> found() {
  std::vector<Isa> isas = {Isa::kPortable};
#ifdef KVTIER_CODEC_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx2 && does_as_portable(Isa::kAvx2)) isas.insert(isas.begin(), Isa::kAvx2);
  if (has_avx2 && has_avx512 && does_as_portable(Isa::kAvx512)) isas.insert(isas.begin(), Isa::kAvx512);
#endif
  return isas;
}

}  // namespace

const std::vector<Isa>& codec_isas() {
  static const std::vector<Isa> isas = found();
  return isas;
}

const char* name_of(Isa isa) {
  constexpr const char* kNames[kIsas] = {"portable", "avx2", "avx512"};
  return kNames[static_cast<std::size_t>(isa)];
}

Isa isa_of(const std::string& name) {
  if (name == "auto") return codec_isas().front();
  for (const Isa isa : codec_isas())
    if (name == name_of(isa)) return isa;
  throw std::invalid_argument("this CPU has no " + name);
}

}  // namespace kvtier
