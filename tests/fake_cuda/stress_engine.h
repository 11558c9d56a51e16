// The engine of stress.cpp: its hold on the GPU, its streams, its cache, and what should be in it.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "fake_cuda.h"

namespace stress {

using fake::Address;
using fake::Random;
using kvtier::CudaDriver;

inline constexpr int kPages = 24, kSlots = 40;

struct Control {
  explicit Control(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const auto find = [&](auto*& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr) std::abort();
    };
    find(set, "fake_cuda_set");
    find(get, "fake_cuda_get");
    find(reset, "fake_cuda_reset");
    find(fill, "fake_cuda_fill");
    find(read, "fake_cuda_read");
    find(pattern, "fake_cuda_pattern");
  }
  void (*set)(const char*, long);
  long (*get)(const char*);
  void (*reset)();
  int (*fill)(std::uint64_t stream, Address, std::uint64_t size, std::uint64_t seed);
  int (*read)(std::uint64_t stream, void* target, Address, std::uint64_t size);
  void (*pattern)(unsigned char*, std::size_t, std::uint64_t seed);
};

struct Found {  // what was counted, of all seeds
  long jobs = 0, failed = 0, differing = 0, leaks = 0, wrong = 0;
  bool any() const { return differing + leaks + wrong > 0; }
};

struct Page {
  std::uint64_t content = 0;  // what the engine's stream will have written when it comes to it
  bool busy = false;          // a job has it
  bool known = true;          // false: a job failed there
};

struct Reading {  // of a page by the engine, before a load writes it
  std::uint64_t content;
  std::vector<unsigned char> bytes;
};

// A cache in which a page is spread over one to three layers, and an arena of the host with slots for whole pages.
class Engine {
 public:
  Engine(const Control& control, std::shared_ptr<const CudaDriver> driver, long seed, Found& found)
      : control_(control), driver_(std::move(driver)), random_{static_cast<std::uint64_t>(seed)}, found_(found) {
    control_.set("seed", seed);
    begin_engine();
    arena_.resize(kSlots * page_bytes_ + 64);
    host_ = (reinterpret_cast<Address>(arena_.data()) + 63) / 64 * 64;
    pinned_ = path_ == "kernel" || !one_in(10);
    if (pinned_) driver_->must(driver_->cuMemHostRegister, reinterpret_cast<void*>(host_), kSlots * page_bytes_, 3u);
  }

  // Nobody else may be using the driver any more.
  ~Engine() {
    repair();
    if (pinned_) static_cast<void>(driver_->cuMemHostUnregister(reinterpret_cast<void*>(host_)));
    look_for_leaks();
    end_engine();
    control_.reset();
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

 protected:
  bool one_in(std::uint64_t n) { return random_.below(n) == 0; }
  void set_delays(std::uint64_t most_us) { control_.set("max_delay_us", static_cast<long>(most_us)); }

  // It holds the context, too, and has one or two streams.
  void begin_engine() {
    driver_->must(driver_->cuDevicePrimaryCtxRetain, &context_, 0);
    driver_->must(driver_->cuCtxPushCurrent, context_);
    const std::uint64_t kind = random_.below(4);  // one non-blocking stream, two, the legacy one, it and a blocking one
    for (std::uint64_t i = kind == 2 ? 1 : 0; i < (kind == 0 ? 1 : kind == 1 ? 2 : 1); ++i) begin_stream(kind == 3 ? 0 : 1);
    if (kind >= 2) streams_.push_back(0);
    layers_ = 1 + static_cast<int>(random_.below(3));
    part_ = std::array{96, 256, 1000, 4096}[random_.below(4)];
    page_bytes_ = part_ * static_cast<std::uint64_t>(layers_);
    driver_->must(driver_->cuMemAlloc, &cache_, kPages * page_bytes_);
    path_ = std::array{"batch", "async", "kernel"}[random_.below(3)];
    pages_.resize(kPages);
    for (int page = 0; page < kPages; ++page) compute(page, ++contents_);
  }

  void begin_stream(unsigned flags) {
    kvtier::CUstream stream = nullptr;
    driver_->must(driver_->cuStreamCreateWithPriority, &stream, flags, 0);
    streams_.push_back(reinterpret_cast<std::uint64_t>(stream));
    control_.set("engine_stream", static_cast<long>(streams_.back()));
  }

  void end_engine() {
    repair();
    set_delays(0);
    await_engine();
    for (const std::uint64_t stream : streams_)
      if (stream != 0) driver_->cuStreamDestroy(reinterpret_cast<kvtier::CUstream>(stream));
    driver_->cuMemFree(cache_);
    driver_->cuCtxPopCurrent(&context_);
    driver_->cuDevicePrimaryCtxRelease(0);
    note(control_.get("leaked_at_reset"), found_.leaks, "leaked_at_reset");
  }

  std::uint64_t stream_of(int page) const { return streams_[static_cast<std::size_t>(page) % streams_.size()]; }
  Address at_page(int page, int layer) const {
    return cache_ + (static_cast<std::uint64_t>(layer) * kPages + static_cast<std::uint64_t>(page)) * part_;
  }
  Address at_slot(int slot, int layer) const {
    return host_ + static_cast<std::uint64_t>(slot) * page_bytes_ + static_cast<std::uint64_t>(layer) * part_;
  }
  static std::uint64_t seed_of(std::uint64_t content, int layer) {
    return content == 0 ? 0 : content * 16 + static_cast<std::uint64_t>(layer) + 1;
  }

  void compute(int page, std::uint64_t content) {
    Page& meant = pages_[static_cast<std::size_t>(page)];
    meant.content = content;
    meant.known = true;
    for (int layer = 0; layer < layers_; ++layer)
      control_.fill(stream_of(page), at_page(page, layer), part_, seed_of(content, layer));
  }

  std::vector<unsigned char> expected(std::uint64_t content) const {
    std::vector<unsigned char> bytes(page_bytes_);
    for (int layer = 0; layer < layers_; ++layer)
      control_.pattern(bytes.data() + static_cast<std::uint64_t>(layer) * part_, part_, seed_of(content, layer));
    return bytes;
  }

  void compare(const std::vector<unsigned char>& bytes, std::uint64_t content, const char* what) {
    const std::vector<unsigned char> right = expected(content);
    long differing = 0;
    for (std::size_t i = 0; i < right.size(); ++i) differing += bytes[i] != right[i];
    note(differing, found_.differing, what);
  }

  void compare_slot(int slot, std::uint64_t content, const char* what) {
    const auto* const begin = reinterpret_cast<const unsigned char*>(at_slot(slot, 0));
    compare({begin, begin + page_bytes_}, content, what);
  }

  void compare_page(int page, std::uint64_t content, const char* what) {
    std::vector<unsigned char> bytes(page_bytes_);
    for (int layer = 0; layer < layers_; ++layer)
      std::memcpy(bytes.data() + static_cast<std::uint64_t>(layer) * part_,
                  reinterpret_cast<const void*>(at_page(page, layer)), part_);
    compare(bytes, content, what);
  }

  void note(long count, long& counter, const char* what) {
    if (count > 0 && !found_.any()) std::fprintf(stderr, "%s: %ld (path %s)\n", what, count, path_.c_str());
    counter += count;
  }

  void read_page(int page) {
    readings_.push_back({pages_[static_cast<std::size_t>(page)].content, std::vector<unsigned char>(page_bytes_)});
    for (int layer = 0; layer < layers_; ++layer)
      control_.read(stream_of(page), readings_.back().bytes.data() + static_cast<std::uint64_t>(layer) * part_,
                    at_page(page, layer), part_);
  }

  void write_slot(int slot, std::uint64_t content) {
    const std::vector<unsigned char> bytes = expected(content);
    std::memcpy(reinterpret_cast<void*>(at_slot(slot, 0)), bytes.data(), bytes.size());
  }

  void await_engine() {
    for (const std::uint64_t stream : streams_)
      static_cast<void>(driver_->cuStreamSynchronize(reinterpret_cast<kvtier::CUstream>(stream)));
  }

  // --- what goes wrong on purpose ----------------------------------------------------------------------------------

  void break_something() {
    static const char* const symbols[] = {
        "cuMemcpyAsync", "cuMemcpyBatchAsync_v2", "cuLaunchKernel", "cuEventRecord", "cuStreamWaitEvent", "cuEventQuery",
        "cuEventElapsedTime", "cuEventCreate",
        "cuStreamSynchronize", "cuCtxPushCurrent_v2", "cuMemHostAlloc", "cuMemAlloc_v2"};
    static const int codes[] = {2, 999, 801, 700, 719};
    if (one_in(5)) return control_.set("fail_in_stream", 1 + static_cast<long>(random_.below(60)));
    const std::string symbol = symbols[random_.below(std::size(symbols))];
    broken_.push_back(symbol);
    control_.set(("fail_code:" + symbol).c_str(), codes[random_.below(std::size(codes))]);
    control_.set(("fail_at:" + symbol).c_str(), 1 + static_cast<long>(random_.below(20)));
  }

  void repair() {
    for (const std::string& symbol : broken_) control_.set(("fail_at:" + symbol).c_str(), 0);
    control_.set("fail_in_stream", 0);
  }

  void look_for_leaks() {
    const std::pair<const char*, long> left[] = {
        {"live_streams", std::count_if(streams_.begin(), streams_.end(), [](auto s) { return s != 0; })},
        {"live_events", 0}, {"live_allocations", 1}, {"live_host_allocations", 0}, {"live_registrations", 0},
        {"live_modules", 0}, {"live_contexts", 1}, {"current", 1}};
    for (const auto& [name, right] : left) note(std::abs(control_.get(name) - right), found_.leaks, name);
    if (pinned_) note(control_.get("pageable_copies"), found_.wrong, "pageable_copies");
  }

  const Control& control_;
  const std::shared_ptr<const CudaDriver> driver_;
  Random random_;
  Found& found_;
  std::vector<std::string> broken_;  // symbols

  kvtier::CUcontext context_ = nullptr;
  std::vector<std::uint64_t> streams_;
  int layers_ = 1;
  std::uint64_t part_ = 0, page_bytes_ = 0;
  Address cache_ = 0, host_ = 0;
  std::string path_;
  bool pinned_ = true;
  std::vector<unsigned char> arena_;
  std::uint64_t contents_ = 0;
  std::vector<Page> pages_;
  std::vector<Reading> readings_;
};

}  // namespace stress
