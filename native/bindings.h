// What the bindings of every copier share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "copy_backend.h"

namespace kvtier {

template <typename T, int kDimensions>
using Flat =
    nanobind::ndarray<const T, nanobind::ndim<kDimensions>, nanobind::c_contig, nanobind::device::cpu, nanobind::ro>;
using Column = Flat<std::uint64_t, 1>;
using Filled = nanobind::ndarray<std::uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using Record = std::tuple<std::uint64_t, std::uint64_t, double, std::string>;
using ReleaseGil = nanobind::call_guard<nanobind::gil_scoped_release>;

inline std::span<const std::uint64_t> span(const Column& column) { return {column.data(), column.size()}; }

// Templates, since nanobind must see the class that it knows: the interface is not bound.
template <typename Copier>
std::vector<Record> poll_copies(Copier& copier) {
  std::vector<Record> records;
  for (Completion& done : copier.poll())
    records.emplace_back(done.ticket, done.bytes, done.seconds, std::move(done.error));
  return records;
}

template <typename Copier>
bool wait_for_copy(Copier& copier, std::int64_t ticket, std::optional<double> timeout_s) {
  std::optional<std::chrono::duration<double>> timeout;
  if (timeout_s) timeout.emplace(*timeout_s);
  return copier.wait(ticket, timeout);
}

}  // namespace kvtier
