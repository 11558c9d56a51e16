// Streams and events: each stream is a thread, and nothing is done before its turn.
#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "fake_cuda.h"

namespace fake {
namespace {

void nap(std::uint64_t microseconds) {
  static thread_local const int precise = prctl(PR_SET_TIMERSLACK, 1);  // ns; the default adds 50 us to every nap
  static_cast<void>(precise);
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

bool fails_in_stream() {
  std::atomic<long>& left = settings().fail_in_stream;
  return left > 0 && --left == 0;
}

void work(const std::shared_ptr<Stream>& self) {
  World& all = world();
  Stream& stream = *self;
  Context& context = *stream.context;
  Lock lock(all.mutex);
  for (;;) {
    stream.work.wait(lock, [&] { return context.dying || (!stream.held && (stream.closing || !stream.queue.empty())); });
    if (context.dying) stream.queue.clear();
    if (stream.queue.empty()) {
      stream.completed = stream.queued;
      all.finished.notify_all();
      if (stream.closing) break;
      stream.work.wait(lock, [&] { return stream.closing || !stream.queue.empty(); });
      continue;
    }
    Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    stream.running_copies = operation.copies;
    lock.unlock();
    pause(stream.random);
    lock.lock();
    if (operation.ready) all.finished.wait(lock, [&] { return context.dying || operation.ready(); });
    if (operation.run && !context.dying) {
      lock.unlock();
      operation.run(stream.random);
      lock.lock();
      if (operation.copies && fails_in_stream())
        poison(context, static_cast<Result>(settings().fail_in_stream_code.load()));
    }
    if (operation.finish && !context.dying) operation.finish();
    stream.running_copies = false;
    ++stream.completed;
    const bool awaited = !stream.milestones.empty() && *stream.milestones.begin() <= stream.completed;
    stream.milestones.erase(stream.milestones.begin(), stream.milestones.upper_bound(stream.completed));
    if (awaited || operation.finish) all.finished.notify_all();
  }
  stream.over = true;
  all.finished.notify_all();
}

// The legacy stream and every blocking stream of its context wait for each other; non-blocking ones for nobody.
void enqueue_legacy_waits(Stream& stream) {
  if (stream.flags & kNonBlocking) return;
  for (const auto& other : world().all_streams) {
    const bool one_is_legacy = (other->handle == 0) != (stream.handle == 0);
    if (!one_is_legacy || other->context != stream.context || (other->flags & kNonBlocking)) continue;
    if (other->completed == other->queued) continue;
    ++stream.queued;
    other->milestones.insert(other->queued);
    stream.queue.push_back({[other, end = other->queued] { return other->completed >= end; }, {}, {}, false});
  }
}

void reap() {
  std::erase_if(world().all_streams, [](const std::shared_ptr<Stream>& stream) {
    if (!stream->over) return false;
    stream->thread.join();  // it has nothing left to do but to return
    return true;
  });
}

}  // namespace

void pause(Random& random) {
  const auto most = static_cast<std::uint64_t>(settings().max_delay_us.load());
  if (most == 0) return;
  switch (random.below(24)) {
    case 0: case 1: return nap(random.below(most + 1));
    case 2: return nap(random.below(8) == 0 ? 8 * most : random.below(most + 1));
    case 3: return std::this_thread::yield();
    default: return;
  }
}

std::shared_ptr<Stream> begin_stream(Context& context, Handle handle, unsigned flags, int priority) {
  World& all = world();
  const auto stream = std::make_shared<Stream>();
  stream->context = &context;
  stream->handle = handle;
  stream->flags = flags;
  stream->priority = priority;
  stream->random.state = static_cast<std::uint64_t>(settings().seed) * 0x10001 + ++all.streams_begun;
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);  // signals are for the program, not for a driver's thread
  stream->thread = std::thread(work, stream);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  all.all_streams.push_back(stream);
  return stream;
}

std::shared_ptr<Stream> stream_of(Context& context, Handle handle) {
  World& all = world();
  if (handle <= 1) {
    std::shared_ptr<Stream>& legacy = all.legacy_streams[context.device];
    if (!legacy) {
      legacy = begin_stream(context, 0, 0, 0);
      legacy->engine = true;
    }
    return legacy;
  }
  const auto found = all.streams.find(handle);
  return found == all.streams.end() || found->second->context != &context ? nullptr : found->second;
}

void enqueue(Stream& stream, Operation operation) {
  enqueue_legacy_waits(stream);
  ++stream.queued;
  stream.queue.push_back(std::move(operation));
  stream.work.notify_all();
}

Stream& copying(Stream& stream) {
  if (stream.engine || !planted(kCopiesOnSecondStream)) return stream;
  if (!stream.twin) stream.twin = begin_stream(*stream.context, stream.handle, kNonBlocking, stream.priority);
  return *stream.twin;
}

void drain(Stream& stream, Lock& lock) {
  // As of now: what is queued later is not waited for.
  const std::uint64_t end = stream.queued;
  if (end > stream.completed) stream.milestones.insert(end);
  world().finished.wait(lock, [&] { return stream.completed >= end || stream.context->error != kSuccess; });
}

void end_stream(Stream& stream) {
  if (stream.twin) end_stream(*stream.twin);
  stream.closing = true;
  stream.held = false;
  stream.work.notify_all();
  reap();
}

void poison(Context& context, Result code) {
  context.dying = true;
  while (context.writers > 0) std::this_thread::yield();  // the error is seen only when nothing is written any more
  { const std::lock_guard seen(context.written); }
  if (context.error == kSuccess) context.error = code;
  for (const auto& stream : world().all_streams) stream->work.notify_all();
  world().finished.notify_all();
}

void halt_streams(const Context* context, Lock& lock) {
  World& all = world();
  const auto is_meant = [&](const Stream& stream) { return context == nullptr || stream.context == context; };
  for (Context& each : all.contexts)
    if (context == nullptr || context == &each) each.dying = true;
  std::erase_if(all.streams, [&](const auto& entry) { return is_meant(*entry.second); });
  std::erase_if(all.legacy_streams, [&](const auto& entry) { return is_meant(*entry.second); });
  for (const auto& stream : all.all_streams) {
    if (!is_meant(*stream)) continue;
    stream->closing = true;
    stream->work.notify_all();
  }
  all.finished.notify_all();
  all.finished.wait(lock, [&] {
    return std::all_of(all.all_streams.begin(), all.all_streams.end(),
                       [&](const auto& stream) { return !is_meant(*stream) || stream->over; });
  });
  reap();
  for (Context& each : all.contexts)
    if (context == nullptr || context == &each) each.dying = each.error != kSuccess;
}

void record_event(Event& event, Stream& asked) {
  Stream* stream = &asked;
  if (asked.engine && planted(kAfterRecordedOnOwnStream))
    for (const auto& other : world().all_streams)
      if (!other->engine && !other->closing && other->context == asked.context) stream = other.get();
  const auto record = std::make_shared<Record>();
  event.former = std::exchange(event.record, record);
  const auto finish = [record] {
    record->done = true;
    record->at = Clock::now();
  };
  if (!stream->engine && planted(kDoneRecordedEarly)) {
    if (stream->queue.empty() && stream->running_copies) return finish();
    if (!stream->queue.empty() && stream->queue.back().copies) {
      ++stream->queued;
      stream->queue.insert(stream->queue.end() - 1, Operation{{}, {}, finish, false});
      return;
    }
  }
  enqueue(*stream, {{}, {}, finish, false});
}

void wait_for_event(Stream& stream, const Event& event) {
  const std::shared_ptr<Record> record = planted(kWaitTakesFormerRecord) ? event.former : event.record;
  const bool is_first = !std::exchange(stream.has_waited, true);
  if (!record || planted(kWaitEventIgnored) || (planted(kOnlyFirstWaitCounts) && !is_first)) return;
  enqueue(stream, {[record, other = event.context] { return record->done || other->error != kSuccess; }, {}, {}, false});
}

void write_in_pieces(Context& context, std::uint64_t size, Random& random,
                     const std::function<void(std::uint64_t begin, std::uint64_t size)>& write) {
  const std::uint64_t pieces = 1 + random.below(std::min<std::uint64_t>(size, 4));
  const std::uint64_t first = random.below(pieces);  // it need not begin at the beginning
  for (std::uint64_t i = 0; i < pieces; ++i) {
    const std::uint64_t piece = (first + i) % pieces;
    const std::uint64_t begin = size / pieces * piece;
    const std::uint64_t end = piece + 1 == pieces ? size : begin + size / pieces;
    pause(random);
    ++context.writers;
    if (!context.dying) write(begin, end - begin);
    { const std::lock_guard seen(context.written); }
    --context.writers;
  }
}

void copy_in_pieces(Context& context, Address target, Address source, std::uint64_t size, Random& random) {
  if (size == 0) return;
  write_in_pieces(context, size, random, [&](std::uint64_t begin, std::uint64_t bytes) {
    std::memmove(reinterpret_cast<void*>(target + begin), reinterpret_cast<const void*>(source + begin), bytes);
  });
}

}  // namespace fake
