// The part of the bindings that has to do with encryption.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "aead.h"

namespace kvtier {

// Python's share of one: I/O under way has another.
struct SealOfPython {
  std::shared_ptr<Seal> seal;
};

void bind_aead(nanobind::module_& m);

}  // namespace kvtier
