// The part of the bindings that has to do with GPUs.
#pragma once

#include <nanobind/nanobind.h>

namespace kvtier {

void bind_cuda(nanobind::module_& m);

}  // namespace kvtier
