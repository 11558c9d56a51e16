#include "codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "codec_kinds.h"
#include "crc32c.h"

namespace kvtier {
namespace {

static_assert(std::endian::native == std::endian::little, "frames, and the values in them, are read as they lie there");

struct Row {
  std::uint32_t body_bytes;
  std::uint32_t mode;  // 0: the group as it was
  std::uint32_t crc;   // of the body
};
static_assert(sizeof(Row) == 12);

constexpr std::array<char, 4> kMagic = {'k', 'v', 't', 'F'};

struct Trailer {
  std::array<char, 4> magic;
  std::uint8_t codec, version;
  CodecFormat format;
  std::uint32_t group_bytes;
  std::uint32_t groups;
  std::uint64_t block_bytes;
  std::uint64_t frame_bytes;
  std::array<std::uint8_t, 28> zeros;
  std::uint32_t crc;
};
static_assert(sizeof(Trailer) == 64);
constexpr std::size_t kTrailerInCrc = offsetof(Trailer, crc);

constexpr std::uint64_t tail_bytes(std::uint64_t groups) { return groups * sizeof(Row) + sizeof(Trailer); }

std::uint32_t tail_crc(const std::uint8_t* table, std::uint64_t groups, const Trailer& trailer, std::uint32_t seed) {
  return crc32c(reinterpret_cast<const std::uint8_t*>(&trailer), kTrailerInCrc, crc32c(table, groups * sizeof(Row), seed));
}

// What a body lies in that can't be decoded, or encoded, where it belongs. Kept for the thread's next one.
std::uint8_t* scratch(std::size_t bytes) noexcept {
  thread_local std::unique_ptr<std::uint8_t[]> memory;
  thread_local std::size_t size = 0;
  if (size < bytes) {
    memory.reset(new (std::nothrow) std::uint8_t[bytes]);
    size = memory ? bytes : 0;
  }
  return memory.get();
}

// A frame whose trailer and table have been proven, and whose bodies lie one after the other within it. They are copies,
// made before the proof: a slot is memory of engines too, and whoever writes there meanwhile may spoil a block, but must
// not say where bodies lie. And the table lies where the end of the block comes.
struct Proven {
  const CodecKind* kind;
  CodecFormat format;
  std::uint64_t groups;
  std::uint64_t bodies;
  std::unique_ptr<std::uint8_t[]> table;
};

Row row_of(const Proven& frame, std::uint64_t group) {
  Row row;
  std::memcpy(&row, frame.table.get() + group * sizeof row, sizeof row);
  return row;
}

std::uint64_t group_size(std::uint64_t group, std::size_t group_bytes, std::uint64_t size) {
  return std::min<std::uint64_t>(group_bytes, size - group * group_bytes);
}

bool are_rows_plausible(const Proven& frame, std::uint64_t size) {
  std::uint64_t sum = 0;
  for (std::uint64_t group = 0; group < frame.groups; ++group) {
    const Row row = row_of(frame, group);
    const std::uint64_t bytes = group_size(group, frame.kind->group_bytes, size);
    if (row.mode == 0 ? row.body_bytes != bytes : row.body_bytes == 0 || row.body_bytes >= bytes) return false;
    sum += row.body_bytes;
  }
  return sum == frame.bodies;
}

// Whether it ends with what may be one, which lies within it.
bool is_trailer(const std::uint8_t* frame, std::size_t stored, Trailer& trailer) {
  if (stored < sizeof trailer) return false;
  std::memcpy(&trailer, frame + stored - sizeof trailer, sizeof trailer);
  return trailer.magic == kMagic && trailer.frame_bytes <= stored && trailer.frame_bytes >= tail_bytes(trailer.groups);
}

bool is_known(const Trailer& trailer, const CodecKind* kind) {
  return kind != nullptr && trailer.version == kind->version && is_format(*kind, trailer.format) &&
         trailer.group_bytes == kind->group_bytes && trailer.zeros == decltype(trailer.zeros){};
}

Decoded prove(const std::uint8_t* frame, std::size_t stored, std::size_t size, std::uint32_t seed, std::uint32_t& checksum,
              Proven& proven) {
  Trailer trailer;
  if (!is_trailer(frame, stored, trailer)) return Decoded::kDamaged;
  const std::uint8_t* const table = frame + stored - tail_bytes(trailer.groups);
  proven.kind = codec_numbered(trailer.codec);
  const bool knows = is_known(trailer, proven.kind);
  if (!knows || trailer.block_bytes != size || trailer.groups != (size + trailer.group_bytes - 1) / trailer.group_bytes) {
    if (tail_crc(table, trailer.groups, trailer, seed) != trailer.crc) return Decoded::kDamaged;
    checksum = trailer.crc;
    return knows ? Decoded::kDamaged : Decoded::kUnknown;
  }
  proven.format = trailer.format;
  proven.groups = trailer.groups;
  proven.bodies = trailer.frame_bytes - tail_bytes(trailer.groups);
  proven.table.reset(new (std::nothrow) std::uint8_t[proven.groups * sizeof(Row)]);
  if (proven.table == nullptr) return Decoded::kShort;
  std::memcpy(proven.table.get(), table, proven.groups * sizeof(Row));
  if (tail_crc(proven.table.get(), proven.groups, trailer, seed) != trailer.crc) return Decoded::kDamaged;
  checksum = trailer.crc;
  if (!are_rows_plausible(proven, size)) return Decoded::kDamaged;
  if (proven.kind->reason() != nullptr) return Decoded::kUnknown;
  return proven.kind->is_ready() ? Decoded::kGood : Decoded::kShort;
}

// `ahead`: what was found of it while the body before it was decoded.
std::uint32_t body_crc(const std::uint8_t* body, std::size_t bytes, const NextBody& ahead) {
  if (!ahead.is_checked) return crc32c(body, bytes);
  return crc32c(body + kCheckedAhead, bytes - kCheckedAhead, crc32c_of_lanes(ahead.lanes));
}

// One group. `body` may overlap `to` from below; the next one doesn't.
Decoded decode_group(const Proven& frame, DecodeGroup kernel, const Row& row, const std::uint8_t* body, std::uint8_t* to,
                     std::size_t size, NextBody& next) {
  if (row.mode == 0) {
    if (body != to) std::memmove(to, body, size);
    return Decoded::kGood;
  }
  if (body < to + size && to < body + row.body_bytes) {
    std::uint8_t* const beside = scratch(frame.kind->group_bytes);
    if (beside == nullptr) return Decoded::kShort;
    std::memcpy(beside, body, row.body_bytes);
    body = beside;
  }
  return kernel(frame.format, body, row.body_bytes, row.mode, to, size, &next) ? Decoded::kGood : Decoded::kDamaged;
}

// All groups; from the last to the first where they lie in their own block: there bodies lie below their groups, or overlap
// the first ones.
Decoded decode_groups(const Proven& frame, DecodeGroup kernel, const std::uint8_t* bodies, std::uint8_t* to,
                      std::size_t size) {
  const bool backwards = to == bodies;
  const std::size_t group_bytes = frame.kind->group_bytes;
  const std::uint8_t* body = bodies + (backwards ? frame.bodies : 0);
  NextBody next = {};
  for (std::uint64_t done = 0; done < frame.groups; ++done) {
    const std::uint64_t group = backwards ? frame.groups - 1 - done : done;
    const Row row = row_of(frame, group);
    if (backwards) body -= row.body_bytes;
    if (body_crc(body, row.body_bytes, next) != row.crc) return Decoded::kDamaged;
    next = {body, 0, false, {}};
    if (done + 1 < frame.groups) {
      next.size = row_of(frame, backwards ? group - 1 : group + 1).body_bytes;
      next.bytes = backwards ? body - next.size : body + row.body_bytes;
    }
    const std::uint64_t bytes = group_size(group, group_bytes, size);
    const Decoded one = decode_group(frame, kernel, row, body, to + group * group_bytes, bytes, next);
    if (one != Decoded::kGood) return one;
    if (!backwards) body += row.body_bytes;
  }
  return Decoded::kGood;
}

}  // namespace

Codec::Codec(const std::string& name, const std::string& element, int row, const std::string& isa)
    : kind_(codec_named(name)), format_{kElementNone, static_cast<std::uint8_t>(row)} {
  if (kind_ == nullptr) throw std::invalid_argument("no codec is named " + name);
  while (element_name(format_.element) != nullptr && element != element_name(format_.element)) ++format_.element;
  if (row < 0 || row > UINT8_MAX || !is_format(*kind_, format_))
    throw std::invalid_argument(name + " takes no " + element + " in rows of " + std::to_string(row));
  kernels_ = kind_->kernels[static_cast<std::size_t>(isa_of(isa))];
  if (const std::string* const reason = kind_->reason()) throw std::runtime_error(*reason);
}

std::optional<Encoded> Codec::encode(const std::uint8_t* from, std::size_t size, std::uint8_t* to, std::size_t room,
                                     std::uint32_t seed, bool fill) const noexcept {
  if (size == 0 || size > kCodedBytesMax || (fill && room >= size)) return std::nullopt;
  const std::size_t group_bytes = kind_->group_bytes, groups = (size + group_bytes - 1) / group_bytes;
  const std::size_t tail = tail_bytes(groups), end = std::min(room, size - 1);
  if (end <= tail) return std::nullopt;
  const std::size_t limit = end - tail;  // rows gather there, since bodies are as many bytes as they come out to be
  std::size_t at = 0;
  std::uint32_t mode = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    const std::uint8_t* const source = from + group * group_bytes;
    const std::size_t bytes = group_size(group, group_bytes, size);
    const bool is_narrow = limit - at < bytes;
    std::uint8_t* const body = is_narrow ? scratch(group_bytes) : to + at;
    if (body == nullptr) return std::nullopt;
    std::size_t body_bytes = kernels_.encode(format_, source, bytes, body, &mode);
    if (body_bytes == kRefused) return std::nullopt;
    if (body_bytes == kRaw) {
      mode = 0;
      body_bytes = bytes;
    }
    if (body_bytes > limit - at) return std::nullopt;
    const std::uint8_t* const written = mode == 0 ? source : body;
    const Row row = {static_cast<std::uint32_t>(body_bytes), mode, crc32c(written, body_bytes)};
    if (written != to + at) std::memcpy(to + at, written, body_bytes);
    std::memcpy(to + limit + group * sizeof row, &row, sizeof row);
    at += body_bytes;
  }
  std::uint8_t* const table = fill ? to + limit : to + at;
  if (fill) {
    std::memset(to + at, 0, limit - at);
  } else {
    std::memmove(table, to + limit, groups * sizeof(Row));
  }
  Trailer trailer = {kMagic, kind_->id, kind_->version, format_, static_cast<std::uint32_t>(group_bytes),
                     static_cast<std::uint32_t>(groups), size, at + tail, {}, 0};
  std::uint8_t* const end_of_table = table + groups * sizeof(Row);
  std::memcpy(end_of_table, &trailer, kTrailerInCrc);
  trailer.crc = tail_crc(table, groups, trailer, seed);
  std::memcpy(end_of_table + kTrailerInCrc, &trailer.crc, sizeof trailer.crc);
  return Encoded{at + tail, trailer.crc};
}

Decoded decode(const std::uint8_t* frame, std::size_t stored, std::uint8_t* to, std::size_t size, std::uint32_t seed,
               std::uint32_t& checksum, Isa isa) noexcept {
  Proven proven;
  const Decoded verdict = prove(frame, stored, size, seed, checksum, proven);
  if (verdict != Decoded::kGood) return verdict;
  const DecodeGroup kernel = proven.kind->kernels[static_cast<std::size_t>(isa)].decode;
  return decode_groups(proven, kernel, frame, to, size);
}

std::uint64_t counted_bytes(const std::uint8_t* frame, std::size_t stored) noexcept {
  Trailer trailer;
  return is_trailer(frame, stored, trailer) ? trailer.frame_bytes : 0;
}

std::optional<FrameFacts> frame_facts(const std::uint8_t* frame, std::size_t stored) {
  Trailer trailer;
  if (!is_trailer(frame, stored, trailer)) return std::nullopt;
  const CodecKind* const kind = codec_numbered(trailer.codec);
  const char* const element = element_name(trailer.format.element);
  return FrameFacts{kind ? kind->name : "codec " + std::to_string(trailer.codec),
                    trailer.version,
                    element ? element : "element " + std::to_string(trailer.format.element),
                    trailer.format.row,
                    trailer.groups,
                    trailer.frame_bytes,
                    trailer.block_bytes,
                    trailer.frame_bytes - tail_bytes(trailer.groups)};
}

}  // namespace kvtier
