// What all entry points share: how a call is counted, refused, or made to fail.
#pragma once

#include <string_view>
#include <utility>

#include "fake_cuda.h"

#define API extern "C" __attribute__((visibility("default"))) fake::Result

namespace fake {

enum Needs {
  kNothing,
  kInit,
  kContext,   // one is current, and it lives
  kTeardown,  // done in a broken context too, which is what it then answers
};

bool is_forked();  // a driver does not survive that
inline Context& current() { return *current_contexts().back(); }
Result refusal(Needs needs);  // why a call is refused before it is looked at
bool breaks_capture(std::string_view name);  // whether the call, from this thread, breaks the capture of another one

inline Result counted(Result result) {
  if (result != kSuccess && result != kNotReady) ++world().errors;
  return result;
}

// An error that was ordered. A call that only puts work into a stream may have put it there.
template <class Body>
Result fail(const Symbol& symbol, bool queues, Body body, Lock& lock) {
  const Result code = symbol.code;
  if (queues && planted(kErrorsIgnored)) return kSuccess;
  if (is_sticky(code) && !current_contexts().empty())
    poison(current(), code);
  else if (queues && Random{static_cast<std::uint64_t>(settings().seed + symbol.calls)}.below(2) == 0)
    body(lock);
  return counted(code);
}

template <class Body>
Result entered(const char* name, Needs needs, Body body, bool queues = false) {
  if (is_forked()) return kNotInitialized;
  Lock lock(world().mutex);
  Symbol& symbol = world().symbols[name];
  ++symbol.calls;
  if (const Result refused = refusal(needs); refused != kSuccess) return counted(refused);
  if (settings().capturing != 0 && breaks_capture(name)) {
    ++world().captures_broken;
    return counted(kCapturing);
  }
  if (symbol.fails_now()) return fail(symbol, queues, body, lock);
  Context* const context = current_contexts().empty() ? nullptr : &current();
  const Result result = body(lock);
  return counted(needs == kTeardown && context->error != kSuccess ? context->error : result);
}

// What the calls with a stream share: an unknown one, or one of another context, is refused.
template <class Body>
Result on_stream(const char* name, Handle handle, Body body, bool queues = false) {
  const auto found = [&](Lock& lock) {
    const std::shared_ptr<Stream> stream = stream_of(current(), handle);
    return stream ? body(*stream, lock) : kInvalidHandle;
  };
  return entered(name, kContext, found, queues);
}

inline Event* event_of(Handle handle) {
  const auto found = world().events.find(handle);
  return found == world().events.end() ? nullptr : found->second.get();
}

}  // namespace fake
