// Tickets and reports: the part of the contract in copy_backend.h that every backend keeps in the same way.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "copy_backend.h"

namespace kvtier {

// The bytes of the job. Throws std::invalid_argument as CopyBackend::submit() does.
inline std::uint64_t checked_bytes(const Fragments& columns) {
  const std::size_t count = columns.size.size();
  if (columns.source.size() != count || columns.target.size() != count)
    throw std::invalid_argument("source, target and size must have the same length");
  constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t size = columns.size[i];
    if (size > most - bytes) throw std::invalid_argument("fragment sizes add up to more than any memory");
    if (size > 0 && (columns.source[i] == 0 || columns.target[i] == 0))
      throw std::invalid_argument("fragment " + std::to_string(i) + " has the address 0");
    bytes += size;
  }
  return bytes;
}

// Not thread safe: the backend's mutex guards it.
class Ledger {
 public:
  // A new job's ticket. Throws QueueFull, std::bad_alloc; nothing has changed then. finish() needs no memory after it.
  std::uint64_t open() {
    const std::size_t known = unfinished_.size() + finished_.size();
    if (known >= kMaxJobs) throw QueueFull();
    if (finished_.capacity() <= known) finished_.reserve(2 * known + 1);
    unfinished_.insert(last_ticket_ + 1);
    return ++last_ticket_;
  }

  // The ticket that open() gave last is not used after all.
  void withdraw() noexcept { unfinished_.erase(last_ticket_--); }

  void finish(Completion done) noexcept {
    unfinished_.erase(done.ticket);
    finished_.push_back(std::move(done));
  }

  // Each finished job once.
  std::vector<Completion> take() {
    std::vector<Completion> report(finished_);  // a copy: finished_ keeps the room that open() reserved
    finished_.clear();
    return report;
  }

  // Throws std::invalid_argument for a ticket never issued.
  void check(std::int64_t ticket) const {
    if (ticket < 1 || static_cast<std::uint64_t>(ticket) > last_ticket_)
      throw std::invalid_argument("no job has ticket " + std::to_string(ticket));
  }

  bool is_finished(std::int64_t ticket) const { return !unfinished_.contains(static_cast<std::uint64_t>(ticket)); }
  std::size_t pending() const { return unfinished_.size(); }

 private:
  std::unordered_set<std::uint64_t> unfinished_;
  std::vector<Completion> finished_;  // until the next take(); always has room for all unfinished jobs
  std::uint64_t last_ticket_ = 0;
};

}  // namespace kvtier
