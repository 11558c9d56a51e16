// The codecs that there are: what frames need to know of each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "codec_kernels.h"

namespace kvtier {

struct CodecKind {
  const char* name;
  std::uint8_t id;       // in trailers; never used again for another
  std::uint8_t version;  // grows when older ones can't read what it writes
  std::size_t group_bytes;
  bool is_lossy;
  GroupKernels kernels[kIsas];  // by Isa
  const std::string* (*reason)();  // why it can't be used here; nullptr when it can
  bool (*is_ready)() noexcept;     // has this thread what it takes to decode? false: memory is short
};

std::span<const CodecKind> codec_kinds();
const CodecKind* codec_named(const std::string& name);  // nullptr: none
const CodecKind* codec_numbered(std::uint8_t id);
bool is_format(const CodecKind& kind, CodecFormat format);  // whether it is one that the codec takes
const char* element_name(std::uint8_t element);             // nullptr: none
bool does_as_portable(Isa isa);                             // tried once; in codec_probe.cpp

}  // namespace kvtier
