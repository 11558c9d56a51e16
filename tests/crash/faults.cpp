// Loaded ahead of libc into a kvtierd under test: lets its calls on the tier's files fail, fall short or take long.
//
// KVTIER_FAULTS names a control file, KVTIER_FAULTS_FOLDER the folder whose files are meant. The control file is mapped
// shared, so a test changes its mind while the daemon runs, and counts what passed. faults.py has the same layout.

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

enum Call { kRead, kWrite, kSync, kTruncate, kAllocate, kOpen, kRename, kCalls };
constexpr std::int64_t kNap = 100'000;  // microseconds; then a delay may have ended
enum File { kBlocks = 1, kCatalogue = 2, kOther = 4 };

struct Control {
  std::int64_t calls;     // bits of Call
  std::int64_t files;     // bits of File
  std::int64_t error;     // errno; 0: none
  std::int64_t most;      // so many bytes are moved at most; 0: all
  std::int64_t first;     // the n-th passage, from 1
  std::int64_t times;     // so many passages in a row; 0: for ever
  std::int64_t delay_us;  // before each such passage; naps of kNap
  std::int64_t passages;  // that the bits above meant
  std::int64_t hit;       // of these
};

Control* control() {
  static Control* const mapped = [] () -> Control* {
    const char* const path = std::getenv("KVTIER_FAULTS");
    if (path == nullptr) return nullptr;
    static const auto real_open = reinterpret_cast<int (*)(const char*, int, ...)>(dlsym(RTLD_NEXT, "open"));
    const int fd = real_open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return nullptr;
    void* const at = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return at == MAP_FAILED ? nullptr : static_cast<Control*>(at);
  }();
  return mapped;
}

int file_of(const char* path) {
  static const char* const folder = std::getenv("KVTIER_FAULTS_FOLDER");
  if (folder == nullptr || std::strncmp(path, folder, std::strlen(folder)) != 0) return 0;
  const char* const slash = std::strrchr(path, '/');
  const char* const name = slash == nullptr ? path : slash + 1;
  if (std::strcmp(name, "blocks") == 0) return kBlocks;
  return std::strncmp(name, "catalogue.mdb", 13) == 0 ? kCatalogue : kOther;
}

int file_of(int fd) {
  char link[64], path[PATH_MAX];
  char* at = link + sizeof link;
  *--at = 0;
  for (unsigned rest = static_cast<unsigned>(fd); ; rest /= 10) {
    *--at = static_cast<char>('0' + rest % 10);
    if (rest < 10) break;
  }
  constexpr char kFolder[] = "/proc/self/fd/";
  at -= sizeof kFolder - 1;
  std::memcpy(at, kFolder, sizeof kFolder - 1);
  const int error = errno;
  const ssize_t length = fd < 0 ? -1 : readlink(at, path, sizeof path - 1);
  errno = error;
  if (length < 0) return 0;
  path[length] = 0;
  return file_of(path);
}

struct Verdict {
  int error = 0;
  std::size_t most = SIZE_MAX;
};

Verdict judge(Call call, int file) {
  Control* const now = control();
  if (now == nullptr || file == 0 || !(now->calls >> call & 1) || !(now->files & file)) return {};
  const std::int64_t passage = __atomic_add_fetch(&now->passages, 1, __ATOMIC_SEQ_CST);
  if (passage < now->first || (now->times > 0 && passage >= now->first + now->times)) return {};
  __atomic_add_fetch(&now->hit, 1, __ATOMIC_SEQ_CST);
  const std::int64_t error = now->error, most = now->most;
  for (std::int64_t past = 0, left; (left = __atomic_load_n(&now->delay_us, __ATOMIC_SEQ_CST) - past) > 0; past += kNap)
    usleep(static_cast<useconds_t>(left < kNap ? left : kNap));
  return {static_cast<int>(error), most > 0 ? static_cast<std::size_t>(most) : SIZE_MAX};
}

template <typename Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

#define REAL(name, ...) static const auto real_##name = real<__VA_ARGS__>(#name)

#define MOVES(name, call, memory, ...)                                                     \
  extern "C" ssize_t name(int fd, memory at, std::size_t size __VA_OPT__(, off64_t where)) { \
    REAL(name, ssize_t (*)(int, memory, std::size_t __VA_OPT__(, off64_t)));               \
    const Verdict verdict = judge(call, file_of(fd));                                      \
    if (verdict.error) return errno = verdict.error, -1;                                   \
    return real_##name(fd, at, size < verdict.most ? size : verdict.most __VA_OPT__(, where)); \
  }

MOVES(read, kRead, void*)
MOVES(write, kWrite, const void*)
MOVES(pread, kRead, void*, where)
MOVES(pread64, kRead, void*, where)
MOVES(pwrite, kWrite, const void*, where)
MOVES(pwrite64, kWrite, const void*, where)

// A short one moves the first of the buffers only.
#define MOVES_MANY(name, call, ...)                                                            \
  extern "C" ssize_t name(int fd, const iovec* parts, int count __VA_OPT__(, off64_t where)) { \
    REAL(name, ssize_t (*)(int, const iovec*, int __VA_OPT__(, off64_t)));                     \
    const Verdict verdict = judge(call, file_of(fd));                                          \
    if (verdict.error) return errno = verdict.error, -1;                                       \
    return real_##name(fd, parts, verdict.most == SIZE_MAX ? count : 1 __VA_OPT__(, where));   \
  }

MOVES_MANY(readv, kRead)
MOVES_MANY(writev, kWrite)
MOVES_MANY(preadv, kRead, where)
MOVES_MANY(preadv64, kRead, where)
MOVES_MANY(pwritev, kWrite, where)
MOVES_MANY(pwritev64, kWrite, where)

#define SYNCS(name)                                    \
  extern "C" int name(int fd) {                        \
    REAL(name, int (*)(int));                          \
    const Verdict verdict = judge(kSync, file_of(fd)); \
    if (verdict.error) return errno = verdict.error, -1; \
    return real_##name(fd);                            \
  }

SYNCS(fsync)
SYNCS(fdatasync)

#define TRUNCATES(name)                                    \
  extern "C" int name(int fd, off64_t size) noexcept {     \
    REAL(name, int (*)(int, off64_t));                     \
    const Verdict verdict = judge(kTruncate, file_of(fd)); \
    if (verdict.error) return errno = verdict.error, -1;   \
    return real_##name(fd, size);                          \
  }

TRUNCATES(ftruncate)
TRUNCATES(ftruncate64)

#define ALLOCATES(name)                                     \
  extern "C" int name(int fd, off64_t from, off64_t size) { \
    REAL(name, int (*)(int, off64_t, off64_t));             \
    const Verdict verdict = judge(kAllocate, file_of(fd));  \
    return verdict.error ? verdict.error : real_##name(fd, from, size); \
  }

ALLOCATES(posix_fallocate)
ALLOCATES(posix_fallocate64)

#define OPENS(name)                                        \
  extern "C" int name(const char* path, int flags, ...) {  \
    REAL(name, int (*)(const char*, int, ...));            \
    va_list more;                                          \
    va_start(more, flags);                                 \
    const mode_t mode = va_arg(more, mode_t);              \
    va_end(more);                                          \
    const Verdict verdict = judge(kOpen, file_of(path));   \
    if (verdict.error) return errno = verdict.error, -1;   \
    return real_##name(path, flags, mode);                 \
  }

OPENS(open)
OPENS(open64)

extern "C" int rename(const char* from, const char* to) noexcept {
  REAL(rename, int (*)(const char*, const char*));
  const Verdict verdict = judge(kRename, file_of(from));
  if (verdict.error) return errno = verdict.error, -1;
  return real_rename(from, to);
}
