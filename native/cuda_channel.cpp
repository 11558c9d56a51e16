#include "cuda_channel.h"

#include <thread>

namespace kvtier {
namespace {

Events event_pool(const CudaDriver& driver, unsigned flags) {
  const auto make = [&driver, flags] {
    CUevent event = nullptr;
    driver.must(driver.cuEventCreate, &event, flags);
    return event;
  };
  return {make, [&driver](CUevent event) { static_cast<void>(driver.cuEventDestroy(event)); }};
}

}  // namespace

// Without CU_STREAM_NON_BLOCKING every job would wait for the legacy default stream, and that one for the job.
CudaStream::CudaStream(const Device& device, bool low_priority) : driver_(device.driver()) {
  int least = 0;
  int greatest = 0;
  driver_.must(driver_.cuCtxGetStreamPriorityRange, &least, &greatest);
  driver_.must(driver_.cuStreamCreateWithPriority, &stream_, CU_STREAM_NON_BLOCKING, low_priority ? least : greatest);
}

CudaChannel::CudaChannel(const Device& device, const std::string& path, std::uint64_t page_bytes, bool low_priority)
    : driver(device.driver()), stream(device, low_priority),
      choice(choose_path(device, stream.get(), path, page_bytes)), timed(event_pool(driver, CU_EVENT_DEFAULT)),
      untimed(event_pool(driver, CU_EVENT_DISABLE_TIMING)), drained(untimed.take()), in_background(low_priority) {
  for (Events::Lease& event : piece_ends) event = untimed.take();
  piece.reserve(kStretchesPerCall);
}

bool CudaChannel::has_room() const {
  if (begun > 0 || pieces < kPiecesInFlight) return true;  // an event that was never recorded would look over
  const CUresult result = driver.cuEventQuery(piece_ends[pieces % kPiecesInFlight].get());
  if (result == CUDA_ERROR_NOT_READY) return false;
  if (result != CUDA_SUCCESS) throw CudaError(driver.message(driver.cuEventQuery.symbol, result), result);
  return true;
}

void CudaChannel::put(std::uint64_t bytes, std::uint64_t piece_bytes) {
  begun += bytes;
  if (begun < piece_bytes) return;
  driver.must(driver.cuEventRecord, piece_ends[pieces % kPiecesInFlight].get(), stream.get());
  begun = 0;
  ++pieces;
}

// A dead context fails every call: one call that fails doesn't prove it.
CUresult CudaChannel::drain() const noexcept {
  const CUresult result = driver.cuStreamSynchronize(stream.get());
  if (result == CUDA_SUCCESS) return result;
  if (driver.cuEventRecord(drained.get(), stream.get()) != CUDA_SUCCESS) return result;
  for (;;) {
    const CUresult over = driver.cuEventQuery(drained.get());
    if (over != CUDA_ERROR_NOT_READY) return over;
    std::this_thread::sleep_for(kLook);
  }
}

}  // namespace kvtier
