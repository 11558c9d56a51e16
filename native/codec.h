// Frames: blocks as a codec made them, for wherever they lie below RAM. The same bytes on drives and in remotes.
//
//   bodies of the groups, in order | zeros, where it is stretched to fill a place | table: a row for each group | trailer
//
// All numbers are little endian. A group is so many bytes of the block, the last may be shorter. Its body is never longer
// than it, so a frame that lies at the beginning of its block's slot can be decoded in place, from the last group to the
// first. A row has the body's bytes (u32), what the codec says of it (u32; 0: it is the group as it was) and its CRC-32C.
// The trailer (64 bytes): "kvtF", codec u8, its version u8, element u8, row u8, group bytes u32, groups u32, block bytes
// u64, frame bytes without zeros u64, 28 zeros, and the CRC-32C of table and trailer up to here, which goes on from a seed
// of the caller: that is the checksum of the frame, since the bodies' own are in the table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "codec_kernels.h"

namespace kvtier {

struct CodecKind;  // a row of the table in codec_kinds.cpp

inline constexpr std::uint64_t kCodedBytesMax = std::uint64_t{1} << 36;  // of one block

struct Encoded {
  std::size_t stored;      // bytes that count: without zeros
  std::uint32_t checksum;  // of the frame
};

// kUnknown: by a codec, or with parameters, that this kvtier doesn't know or that can't be used here. Perhaps another can.
// kShort: of memory, to decode it now. Both say nothing against the frame.
enum class Decoded { kGood, kDamaged, kUnknown, kShort };

// The instruction sets that kernels can use on this CPU, best first. Never empty.
const std::vector<Isa>& codec_isas();
const char* name_of(Isa isa);
Isa isa_of(const std::string& name);  // "auto": the best. std::invalid_argument: not one of this CPU

// One way to make blocks smaller. Immutable, for any number of threads. What it writes doesn't depend on the instruction
// set.
class Codec {
 public:
  // A lossless codec has neither element nor row. std::invalid_argument; std::runtime_error: it can't be used, and why.
  Codec(const std::string& name, const std::string& element, int row, const std::string& isa);

  // Writes the frame of the `size` bytes at `from` to `to`, which has `room` bytes and doesn't overlap it. `fill`: table
  // and trailer stand at the end of the room, zeros before them. Nothing: the frame isn't shorter than the block or doesn't
  // fit into the room, the block can't be written by this codec, or memory is short; then the room has anything in it.
  std::optional<Encoded> encode(const std::uint8_t* from, std::size_t size, std::uint8_t* to, std::size_t room,
                                std::uint32_t seed, bool fill) const noexcept;

 private:
  const CodecKind* kind_;
  CodecFormat format_;
  GroupKernels kernels_;
};

// Decodes the frame that ends with the `stored` bytes at `frame` to the `size` bytes at `to`: the same address, where the
// frame lies at the beginning of the slot, or memory that doesn't overlap it. Whatever the bytes are, and if somebody else
// writes there meanwhile: nothing outside of frame and block is touched. Left alone, kGood are exactly the bytes that were encoded with this seed, or for a lossy codec
// what it made of them. Otherwise `to` has anything in it. `checksum` is the frame's, where there is one.
Decoded decode(const std::uint8_t* frame, std::size_t stored, std::uint8_t* to, std::size_t size, std::uint32_t seed,
               std::uint32_t& checksum, Isa isa = codec_isas().front()) noexcept;

// The bytes of it that count: without the zeros of one that fills its place. 0: it doesn't end as a frame does. Nothing is
// verified.
std::uint64_t counted_bytes(const std::uint8_t* frame, std::size_t stored) noexcept;

// What a trailer says, for people. Nothing is verified.
struct FrameFacts {
  std::string codec;  // "codec 9" if it is unknown
  unsigned version;
  std::string element;
  unsigned row;
  std::uint64_t groups, stored, block_bytes, body_bytes;
};
std::optional<FrameFacts> frame_facts(const std::uint8_t* frame, std::size_t stored);

}  // namespace kvtier
