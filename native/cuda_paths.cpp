#include "cuda_paths.h"

#include <algorithm>
#include <array>
#include <utility>

#include "copy_kernel.ptx.h"
#include "cuda_probe.h"

namespace kvtier {
namespace {

constexpr const char* kKernelName = "kvtier_copy";
constexpr unsigned kKernelThreads = 256;
constexpr unsigned kKernelBlocks = 32;  // of hundreds that run at once: decode keeps its SMs
constexpr std::uint64_t kKernelRow = std::uint64_t{64} << 10;  // its blocks share rows, so that none may be far longer

const std::vector<std::string> kPaths = {"batch", "async", "kernel"};

// cuMemcpyAsync finds out what an address means; a batch and a kernel take it as it is.
void require_host_addresses(const Device& device) {
  if (device.attribute(CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM) == 0)
    throw std::runtime_error("this GPU can't use the addresses of registered host memory");
}

// Two allocations may touch, and no copy may leave its own. Large ones begin at multiples of 2 MiB, where nothing is
// joined: 2 MiB are long enough for the link.
constexpr std::uint64_t kAllocationStep = std::uint64_t{2} << 20;

bool continues(const Stretch& before, const Stretch& next) {
  return before.source + before.size == next.source && before.target + before.size == next.target &&
         next.source % kAllocationStep != 0 && next.target % kAllocationStep != 0;
}

std::uint64_t to_pin_boundary(std::uint64_t address) { return kPinPiece - address % kPinPiece; }

class AsyncPath final : public CopyPath {
 public:
  explicit AsyncPath(const CudaDriver& driver) : driver_(driver) {}
  const char* name() const override { return "async"; }

  void issue(std::span<const Stretch> piece, CUstream stream, std::vector<Tables::Lease>&) override {
    for (const Stretch& stretch : piece)
      driver_.must(driver_.cuMemcpyAsync, stretch.target, stretch.source, stretch.size, stream);
  }

 private:
  const CudaDriver& driver_;
};

class BatchPath final : public CopyPath {
 public:
  explicit BatchPath(const Device& device) : driver_(device.driver()) {
    if (!driver_.cuMemcpyBatchAsync && !driver_.cuMemcpyBatchAsyncFailing)
      throw std::runtime_error(std::string("the driver lacks ") + driver_.cuMemcpyBatchAsync.symbol);
    require_host_addresses(device);
    for (auto* const column : {&targets_, &sources_, &sizes_}) column->reserve(kStretchesPerCall);
  }
  const char* name() const override { return "batch"; }

  void issue(std::span<const Stretch> piece, CUstream stream, std::vector<Tables::Lease>&) override {
    for (auto* const column : {&targets_, &sources_, &sizes_}) column->clear();
    for (const Stretch& stretch : piece) {
      targets_.push_back(stretch.target);
      sources_.push_back(stretch.source);
      sizes_.push_back(stretch.size);
    }
    CUmemcpyAttributes attributes{};
    attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    std::size_t first_with_attributes = 0;
    std::size_t failed = 0;
    if (driver_.cuMemcpyBatchAsync)
      driver_.must(driver_.cuMemcpyBatchAsync, targets_.data(), sources_.data(), sizes_.data(), piece.size(),
                   &attributes, &first_with_attributes, std::size_t{1}, stream);
    else
      driver_.must(driver_.cuMemcpyBatchAsyncFailing, targets_.data(), sources_.data(), sizes_.data(), piece.size(),
                   &attributes, &first_with_attributes, std::size_t{1}, &failed, stream);
  }

 private:
  static_assert(sizeof(std::size_t) == sizeof(std::uint64_t));

  const CudaDriver& driver_;
  std::vector<CUdeviceptr> targets_, sources_;
  std::vector<std::size_t> sizes_;
};

class KernelPath final : public CopyPath {
 public:
  explicit KernelPath(const Device& device)
      : driver_(device.driver()),
        tables_([this] { return new_table(); },
                [this](Stretch* table) { static_cast<void>(driver_.cuMemFreeHost(table)); }) {
    require_host_addresses(device);
    for (const auto& [symbol, there] :
         {std::pair{driver_.cuModuleLoadData.symbol, static_cast<bool>(driver_.cuModuleLoadData)},
          std::pair{driver_.cuModuleUnload.symbol, static_cast<bool>(driver_.cuModuleUnload)},
          std::pair{driver_.cuModuleGetFunction.symbol, static_cast<bool>(driver_.cuModuleGetFunction)},
          std::pair{driver_.cuLaunchKernel.symbol, static_cast<bool>(driver_.cuLaunchKernel)}})
      if (!there) throw std::runtime_error(std::string("the driver lacks ") + symbol);
    driver_.must(driver_.cuModuleLoadData, &module_, static_cast<const void*>(kCopyKernelPtx));
    const CUresult found = driver_.cuModuleGetFunction(&function_, module_, kKernelName);
    if (found == CUDA_SUCCESS) return;
    static_cast<void>(driver_.cuModuleUnload(module_));
    throw CudaError(driver_.message(driver_.cuModuleGetFunction.symbol, found), found);
  }
  ~KernelPath() override { static_cast<void>(driver_.cuModuleUnload(module_)); }
  const char* name() const override { return "kernel"; }

  void issue(std::span<const Stretch> piece, CUstream stream, std::vector<Tables::Lease>& held) override {
    std::size_t rows = 0;
    for (const Stretch& stretch : piece) {
      for (std::uint64_t done = 0; done < stretch.size; done += kKernelRow) {
        if (rows == 0) held.push_back(tables_.take());
        held.back().get()[rows++] = {stretch.source + done, stretch.target + done,
                                     std::min(kKernelRow, stretch.size - done)};
        if (rows == kStretchesPerCall) launch(held.back().get(), std::exchange(rows, 0), stream);
      }
    }
    if (rows > 0) launch(held.back().get(), rows, stream);
  }

 private:
  void launch(const Stretch* table, std::size_t rows, CUstream stream) {
    auto count = static_cast<unsigned>(rows);
    std::array<void*, 2> parameters = {&table, &count};
    driver_.must(driver_.cuLaunchKernel, function_, kKernelBlocks, 1u, 1u, kKernelThreads, 1u, 1u, 0u, stream,
                 parameters.data(), static_cast<void**>(nullptr));
  }

  Stretch* new_table() {
    void* table = nullptr;
    driver_.must(driver_.cuMemHostAlloc, &table, kStretchesPerCall * sizeof(Stretch),
                 CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    return static_cast<Stretch*>(table);
  }

  const CudaDriver& driver_;
  Tables tables_;
  CUmodule module_ = nullptr;
  CUfunction function_ = nullptr;
};

// Throws std::runtime_error with the reason why it can't be had.
std::unique_ptr<CopyPath> made(const Device& device, const std::string& name) {
  if (name == "batch") return std::make_unique<BatchPath>(device);
  if (name == "async") return std::make_unique<AsyncPath>(device.driver());
  return std::make_unique<KernelPath>(device);
}

std::vector<std::string> candidates(const std::string& wanted) {
  if (wanted == "auto") return kPaths;
  if (std::find(kPaths.begin(), kPaths.end(), wanted) == kPaths.end())
    throw std::invalid_argument("path must be auto, batch, async or kernel, not " + wanted);
  return {wanted};
}

std::unique_ptr<Probe> new_probe(const Device& device, CUstream stream, std::uint64_t page_bytes,
                                 std::vector<std::string>& notes) {
  try {
    return std::make_unique<Probe>(device, stream, page_bytes);
  } catch (const CudaError& failure) {
    notes.push_back(std::string("copies were not probed: ") + failure.what());
    return nullptr;
  }
}

}  // namespace

std::vector<Stretch> merged(const Fragments& columns) {
  std::vector<Stretch> list;
  list.reserve(columns.size.size());
  for (std::size_t i = 0; i < columns.size.size(); ++i) {
    const Stretch next{columns.source[i], columns.target[i], columns.size[i]};
    if (next.size == 0) continue;
    if (!list.empty() && continues(list.back(), next))
      list.back().size += next.size;
    else
      list.push_back(next);
  }
  return list;
}

std::uint64_t Cutter::cut(std::uint64_t most, std::vector<Stretch>& piece) {
  piece.clear();
  std::uint64_t bytes = 0;
  while (!at_end() && bytes < most && piece.size() < kStretchesPerCall) {
    const std::uint64_t source = list_[next_].source + done_;
    const std::uint64_t target = list_[next_].target + done_;
    const std::uint64_t size = std::min(
        {list_[next_].size - done_, most - bytes, to_pin_boundary(source), to_pin_boundary(target)});
    piece.push_back({source, target, size});
    bytes += size;
    done_ += size;
    if (done_ < list_[next_].size) continue;
    ++next_;
    done_ = 0;
  }
  return bytes;
}

Choice choose_path(const Device& device, CUstream stream, const std::string& wanted, std::uint64_t page_bytes) {
  const std::vector<std::string> names = candidates(wanted);
  Choice choice;
  const std::unique_ptr<Probe> probe = new_probe(device, stream, page_bytes, choice.notes);
  double best = 0;
  for (const std::string& name : names) {
    if (probe == nullptr && wanted == "auto" && name != "async") continue;
    try {
      std::unique_ptr<CopyPath> path = made(device, name);
      if (probe != nullptr) probe->check(*path);
      double speed = 0;
      if (probe != nullptr && names.size() > 1) {
        const Speed measured = probe->measure(*path);
        choice.notes.push_back(name + ": " + measured.in_words());
        speed = name == "kernel" ? measured.mean() / kKernelAdvantage : measured.mean();
      }
      if (choice.path != nullptr && speed <= best) continue;
      best = speed;
      choice.path = std::move(path);
    } catch (const std::runtime_error& why) {  // a CudaError, too
      choice.notes.push_back(name + ": " + why.what());
    }
  }
  if (choice.path == nullptr) throw std::invalid_argument("path " + wanted + " can't be had: " + choice.notes.back());
  return choice;
}

}  // namespace kvtier
