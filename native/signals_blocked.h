// While one of these lives, threads that are begun get no signals: a thread is born with its creator's mask.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace kvtier {

// Python's main thread must get SIGINT and friends. Faults stay deliverable, or faulthandler would see nothing.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace kvtier
