// The part of the bindings that has to do with codecs.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "codec.h"

namespace kvtier {

// Python's share of one: I/O under way has another.
struct CodecOfPython {
  std::shared_ptr<const Codec> codec;
};

void bind_codec(nanobind::module_& m);

}  // namespace kvtier
