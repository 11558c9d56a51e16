// An engine beside two copiers, on the fake driver: pages are computed late, saved, overwritten, loaded back and read,
// many at a time, and every byte is looked at. All choices come from the seed; the threads' own pace does not.
//
//   stress LIBRARY FIRST_SEED SEEDS [errors] [PLANT]
//
// Prints "seeds N jobs N failed N differing N leaks N wrong N"; the status is 1, and a line says why, at the first seed
// that shows a bug. `errors`: calls fail, contexts break. PLANT: one of the fake driver's, or of this program.
#include <algorithm>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "cuda_copier.h"
#include "stress_engine.h"

namespace {

using namespace stress;
using kvtier::CudaCopier;

constexpr int kSteps = 60;
const std::set<std::string> kOwnPlants = {"slot_freed_on_deadline", "page_freed_at_submit", "page_loaded_before_zeroing"};

struct Slot {
  std::uint64_t content = 0;
  bool valid = false;
  int users = 0;  // jobs
};

struct Item {
  int page, slot;
  std::uint64_t content;
};

struct Job {
  bool saves;
  bool given_up = false;  // only by a plant: a job is otherwise never forgotten
  std::vector<Item> items;
};

class Scene : Engine {
 public:
  Scene(const Control& control, std::shared_ptr<const CudaDriver> driver, long seed, bool errors, std::string plant,
        Found& found)
      : Engine(control, std::move(driver), seed, found), errors_(errors), plant_(std::move(plant)), slots_(kSlots) {}

  void play() {
    const bool slow_start = one_in(16);
    set_delays(slow_start ? 20 : 0);
    if (errors_ && one_in(4)) break_something();
    if (plant_ == "event_handed_out_twice") control_.set(("plant:" + plant_).c_str(), 1);
    for (auto& copier : copiers_) {
      try {
        const bool low = &copier == &copiers_[0];
        copier = std::make_unique<CudaCopier>(driver_, 0, CudaCopier::Options{path_, 512, low});
      } catch (const std::runtime_error&) {
        if (!errors_) throw;
        return;
      } catch (const std::invalid_argument&) {
        if (!errors_) throw;
        return;
      }
    }
    if (errors_) break_something();
    if (!plant_.empty() && !kOwnPlants.contains(plant_)) control_.set(("plant:" + plant_).c_str(), 1);
    set_delays(1 + random_.below(60));
    const std::uint64_t steps = kSteps / 2 + random_.below(kSteps);
    for (std::uint64_t i = 0; i < steps; ++i) {
      step();
      if (one_in(2)) std::this_thread::sleep_for(std::chrono::microseconds(random_.below(150)));
    }
    end_copies();
  }

 private:
  // --- what happens ----------------------------------------------------------------------------------------------

  void step() {
    switch (random_.below(10)) {
      case 0: case 1: case 2: return save();
      case 3: case 4: return load();
      case 5: return fill_slot_from_below();
      case 6: return wait_for_one();
      case 7: return turn_pace();
      default: return poll();
    }
  }

  // Free pages of one stream; sometimes neighbours, so that copies can be made one.
  std::vector<int> free_pages() {
    std::vector<int> chosen;
    const int begin = static_cast<int>(random_.below(kPages)), stride = one_in(2) ? 1 : 5;
    const std::size_t most = 1 + random_.below(4);
    for (int i = 0; i < kPages && chosen.size() < most; ++i) {
      const int page = (begin + i * stride) % kPages;
      if (!pages_[static_cast<std::size_t>(page)].busy && stream_of(page) == stream_of(begin)) chosen.push_back(page);
    }
    return chosen;
  }

  // One that nobody uses. What it held is forgotten.
  int free_slot() {
    const std::uint64_t last = static_cast<std::uint64_t>(std::exchange(last_freed_, -1));
    const std::uint64_t begin = last < kSlots ? last : random_.below(kSlots);
    for (std::uint64_t i = 0; i < kSlots; ++i)
      if (const std::size_t slot = (begin + i) % kSlots; slots_[slot].users == 0) return static_cast<int>(slot);
    return -1;
  }

  void save() {
    Job job{true, false, {}};
    for (const int page : free_pages()) {
      Page& source = pages_[static_cast<std::size_t>(page)];
      if (!source.known || one_in(2)) compute(page, ++contents_);
      const int slot = free_slot();
      if (slot < 0) break;
      slots_[static_cast<std::size_t>(slot)] = {source.content, false, 1};
      source.busy = true;
      job.items.push_back({page, slot, source.content});
    }
    submit(0, std::move(job));
  }

  void load() {
    Job job{false, false, {}};
    std::size_t slot = random_.below(kSlots);
    for (const int page : free_pages()) {
      for (int i = 0; i < kSlots && !slots_[slot].valid; ++i) slot = (slot + 1) % kSlots;
      if (!slots_[slot].valid) break;
      Page& target = pages_[static_cast<std::size_t>(page)];
      if (target.known && one_in(2)) read_page(page);
      if (one_in(2)) compute(page, 0);
      target.busy = true;
      ++slots_[slot].users;
      job.items.push_back({page, static_cast<int>(slot), slots_[slot].content});
      slot = (slot + 1) % kSlots;
    }
    submit(1, std::move(job));
  }

  void submit(std::size_t copier, Job job) {
    if (job.items.empty()) return;
    std::vector<std::uint64_t> source, target, size;
    for (const Item& item : job.items) {
      for (int layer = 0; layer < layers_; ++layer) {
        const Address page = at_page(item.page, layer), slot = at_slot(item.slot, layer);
        source.push_back(job.saves ? page : slot);
        target.push_back(job.saves ? slot : page);
        size.push_back(part_);
      }
    }
    std::optional<std::uint64_t> after = stream_of(job.items.front().page);
    if (!job.saves && plant_ == "page_loaded_before_zeroing") after.reset();
    try {
      const std::uint64_t ticket = copiers_[copier]->submit({source, target, size}, after);
      ++found_.jobs;
      if (plant_ == "page_freed_at_submit" && job.saves)
        for (const Item& item : job.items) compute(item.page, ++contents_);
      jobs_[copier].emplace(ticket, std::move(job));
    } catch (const kvtier::CudaError&) {
      if (!errors_) note(1, found_.wrong, "submit failed");
      fail(job);
    }
  }

  // Others write the arena, too: what comes from NVMe or from a peer.
  void fill_slot_from_below() {
    const int slot = free_slot();
    if (slot < 0) return;
    slots_[static_cast<std::size_t>(slot)] = {++contents_, true, 0};
    write_slot(slot, contents_);
  }

  // A deadline is not a cancellation: the job keeps what it has. The plant forgets that.
  void wait_for_one() {
    const std::size_t copier = random_.below(2);
    if (jobs_[copier].empty()) return;
    auto chosen = jobs_[copier].begin();
    std::advance(chosen, static_cast<long>(random_.below(jobs_[copier].size())));
    const std::chrono::duration<double> limit(static_cast<double>(random_.below(300)) / 1e6);
    const std::uint64_t ticket = chosen->first;
    if (copiers_[copier]->wait(static_cast<std::int64_t>(ticket), limit)) {
      poll();
      if (jobs_[copier].contains(ticket)) note(1, found_.wrong, "a job waited for is not reported");
    } else if (plant_ == "slot_freed_on_deadline" && chosen->second.saves && !chosen->second.given_up) {
      chosen->second.given_up = true;
      for (const Item& item : chosen->second.items) slots_[static_cast<std::size_t>(last_freed_ = item.slot)].users = 0;
      fill_slot_from_below();
    }
  }

  void turn_pace() { copiers_[random_.below(2)]->pace(one_in(2) ? 0 : (20 + random_.below(500)) * 1'000'000); }

  void poll() {
    for (std::size_t copier = 0; copier < 2; ++copier) {
      for (const kvtier::Completion& done : copiers_[copier]->poll()) {
        const auto found = jobs_[copier].find(done.ticket);
        if (found == jobs_[copier].end()) {
          note(1, found_.wrong, "a ticket is reported that isn't open");
          continue;
        }
        const Job job = std::move(found->second);
        jobs_[copier].erase(found);
        if (done.bytes != job.items.size() * page_bytes_ || done.seconds < 0 || done.seconds > 60)
          note(1, found_.wrong, "bytes or seconds of a completion");
        if (!done.error.empty()) {
          if (!errors_) std::fprintf(stderr, "%s\n", done.error.c_str());
          if (!errors_) note(1, found_.wrong, "a job failed");
          ++found_.failed;
          fail(job);
        } else if (!job.given_up) {
          job.saves ? saved(job) : loaded(job);
        }
      }
    }
  }

  void saved(const Job& job) {
    for (const Item& item : job.items) {
      compare_slot(item.slot, item.content, "bytes of a save");
      slots_[static_cast<std::size_t>(item.slot)] = {item.content, true, 0};
      pages_[static_cast<std::size_t>(item.page)].busy = false;
      if (one_in(2)) compute(item.page, ++contents_);
    }
  }

  void loaded(const Job& job) {
    for (const Item& item : job.items) {
      compare_page(item.page, item.content, "bytes of a load");
      Page& page = pages_[static_cast<std::size_t>(item.page)];
      page = {item.content, false, true};
      --slots_[static_cast<std::size_t>(item.slot)].users;
      if (one_in(3)) compute(item.page, ++contents_);
    }
  }

  // What a failed job was to write may be anything, but from its report on it is left alone.
  void fail(const Job& job) {
    for (const Item& item : job.items) {
      Slot& slot = slots_[static_cast<std::size_t>(item.slot)];
      Page& page = pages_[static_cast<std::size_t>(item.page)];
      if (job.saves) {
        slot = {++contents_, true, 0};
        write_slot(item.slot, contents_);
      } else {
        --slot.users;
        page.known = false;
      }
      page.busy = false;
    }
  }

  void end_copies() {
    if (one_in(2)) poll();
    for (auto& copier : copiers_) copier->close();
    poll();
    for (auto& copier : copiers_) note(static_cast<long>(copier->pending()), found_.wrong, "jobs pending after close");
    for (const auto& open : jobs_) note(static_cast<long>(open.size()), found_.wrong, "jobs never reported");
    repair();
    bool broken = false;
    for (const std::uint64_t stream : streams_)
      broken |= driver_->cuMemsetD8Async(0, 0, 0, reinterpret_cast<kvtier::CUstream>(stream)) != 0;
    set_delays(0);
    await_engine();
    for (int slot = 0; slot < kSlots; ++slot)
      if (slots_[static_cast<std::size_t>(slot)].valid)
        compare_slot(slot, slots_[static_cast<std::size_t>(slot)].content, "bytes of a slot at the end");
    if (broken) return;  // the engine's own kernels did not run any more
    for (const Reading& reading : readings_) compare(reading.bytes, reading.content, "bytes that the engine read");
    for (int page = 0; page < kPages; ++page)
      if (pages_[static_cast<std::size_t>(page)].known)
        compare_page(page, pages_[static_cast<std::size_t>(page)].content, "bytes of a page at the end");
  }

  const bool errors_;
  const std::string plant_;
  std::vector<Slot> slots_;
  int last_freed_ = -1;
  std::unique_ptr<CudaCopier> copiers_[2];  // saves, loads
  std::map<std::uint64_t, Job> jobs_[2];
};

}  // namespace

int main(int count, char** words) {
  if (count < 4) return 2;
  const Control control(words[1]);
  const std::shared_ptr<const CudaDriver> driver = CudaDriver::open(words[1]);
  if (!driver->usable()) return std::fprintf(stderr, "%s\n", driver->reason().c_str()), 2;
  const long first = std::atol(words[2]), end = first + std::atol(words[3]);
  const bool errors = count > 4 && std::string(words[4]) == "errors";
  const std::string plant = count > 4 + errors ? words[4 + errors] : "";
  Found found;
  long seed = first;
  for (; seed < end && !found.any(); ++seed) {
    Scene scene(control, driver, seed, errors, plant, found);
    scene.play();
  }
  if (found.any()) std::fprintf(stderr, "seed %ld\n", seed - 1);
  std::printf("seeds %ld jobs %ld failed %ld differing %ld leaks %ld wrong %ld\n", seed - first, found.jobs, found.failed,
              found.differing, found.leaks, found.wrong);
  return found.any();
}
