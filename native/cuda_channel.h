// The stream of a CudaCopier, with all that its thread needs to issue jobs on it.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "cuda_paths.h"
#include "pool.h"

namespace kvtier {

using Events = Pool<CUevent>;

inline constexpr std::size_t kPiecesInFlight = 2;  // where pieces are limited
inline constexpr std::uint64_t kPacePiece = std::uint64_t{8} << 20;  // while copies are paced
// Of copies in the background: what is in the stream can't be slowed down any more, nor does the driver take any number.
inline constexpr std::uint64_t kBackgroundPiece = std::uint64_t{32} << 20;
inline constexpr std::chrono::microseconds kLook{100};  // between two looks at an event

// Pieces go on credit: the next one when the last is paid off. What isn't spent is not saved up.
class Pacer {
 public:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  Seconds delay(std::uint64_t bytes_per_s, Clock::time_point now) {
    const auto rate = static_cast<double>(bytes_per_s);
    owed_ = std::max(0.0, owed_ - Seconds(now - paid_).count() * rate);
    paid_ = now;
    return Seconds(owed_ / rate);
  }
  void spend(std::uint64_t bytes) { owed_ += static_cast<double>(bytes); }

 private:
  double owed_ = 0;  // bytes
  Clock::time_point paid_ = Clock::now();
};

class CudaStream {
 public:
  CudaStream(const Device& device, bool low_priority);
  ~CudaStream() { static_cast<void>(driver_.cuStreamDestroy(stream_)); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  CUstream get() const { return stream_; }

 private:
  const CudaDriver& driver_;
  CUstream stream_ = nullptr;
};

// Made, used and destroyed with the device's context current. The pools may be used by any thread, the rest by one.
struct CudaChannel {
  // Throws as choose_path() does.
  CudaChannel(const Device& device, const std::string& path, std::uint64_t page_bytes, bool low_priority);

  // Whether the piece that was begun may go on, or a new one may begin: fewer than kPiecesInFlight are on their way.
  // Throws CudaError.
  bool has_room() const;

  // How much of a piece of this size is still to come.
  std::uint64_t room_in(std::uint64_t piece_bytes) const {
    return piece_bytes > begun ? piece_bytes - begun : piece_bytes;
  }

  // So much was put into the stream. What was put there one after the other, perhaps by several jobs, is one piece, as
  // soon as it has `piece_bytes`.
  void put(std::uint64_t bytes, std::uint64_t piece_bytes);

  // Returns when the stream is empty, or with an error when the context is dead, and nothing is written any more.
  CUresult drain() const noexcept;

  const CudaDriver& driver;
  const CudaStream stream;
  const Choice choice;
  Events timed;
  Events untimed;
  const Events::Lease drained;

  const bool in_background;
  Pacer pacer;
  std::vector<Stretch> piece;
  std::array<Events::Lease, kPiecesInFlight> piece_ends;
  std::uint64_t pieces = 0;  // that have ended
  std::uint64_t begun = 0;   // bytes of the one that hasn't
};

}  // namespace kvtier
