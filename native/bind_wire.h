// The part of the bindings that has to do with sockets.
#pragma once

#include <nanobind/nanobind.h>

namespace kvtier {

void bind_wire(nanobind::module_& m);

}  // namespace kvtier
