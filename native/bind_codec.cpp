// Python bindings for codecs: they convert and nothing else.
#include "bind_codec.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvtier {
namespace {

using Bytes = Flat<std::uint8_t, 1>;
using Verdict = std::pair<const char*, std::uint32_t>;

// As in module.cpp: to let the GIL go and to take it again costs as much as a few pages.
constexpr std::size_t kCodedWithGil = std::size_t{64} << 10;

struct MaybeWithoutGil {
  explicit MaybeWithoutGil(std::size_t size) {
    if (size > kCodedWithGil) release.emplace();
  }
  std::optional<nb::gil_scoped_release> release;
};

std::optional<std::pair<std::size_t, std::uint32_t>> encode(const CodecOfPython& self, const Bytes& source,
                                                            const Filled& target, std::uint32_t seed, bool fill) {
  const MaybeWithoutGil without(source.size());
  const auto done = self.codec->encode(source.data(), source.size(), target.data(), target.size(), seed, fill);
  if (!done) return std::nullopt;
  return std::pair{done->stored, done->checksum};
}

Verdict decoded(const std::uint8_t* frame, std::size_t stored, const Filled& target, std::uint32_t seed, Isa isa) {
  const MaybeWithoutGil without(target.size());
  std::uint32_t checksum = 0;
  switch (decode(frame, stored, target.data(), target.size(), seed, checksum, isa)) {
    case Decoded::kGood: return {"good", checksum};
    case Decoded::kUnknown: return {"unknown", checksum};
    case Decoded::kShort: throw std::bad_alloc();
    default: return {"damaged", checksum};
  }
}

Verdict decode_frame(const Bytes& frame, const Filled& target, std::uint32_t seed, const std::string& isa) {
  return decoded(frame.data(), frame.size(), target, seed, isa_of(isa));
}

Verdict decode_in_place(const Filled& slot, std::size_t stored, std::uint32_t seed, const std::string& isa) {
  if (stored > slot.size()) throw nb::value_error("a frame is shorter than its slot");
  return decoded(slot.data(), stored, slot, seed, isa_of(isa));
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa isa : codec_isas()) names.emplace_back(name_of(isa));
  return names;
}

std::optional<nb::dict> facts(const Bytes& frame) {
  const std::optional<FrameFacts> found = frame_facts(frame.data(), frame.size());
  if (!found) return std::nullopt;
  nb::dict named;
  named["codec"] = found->codec;
  named["version"] = found->version;
  named["element"] = found->element;
  named["row"] = found->row;
  named["groups"] = found->groups;
  named["stored"] = found->stored;
  named["block_bytes"] = found->block_bytes;
  named["body_bytes"] = found->body_bytes;
  return named;
}

}  // namespace

void bind_codec(nb::module_& m) {
  nb::class_<CodecOfPython>(m, "Codec", "One way to make blocks smaller. What it writes doesn't depend on `isa`.")
      .def(
          "__init__",
          [](CodecOfPython* self, const std::string& name, const std::string& element, int row, const std::string& isa) {
            new (self) CodecOfPython{std::make_shared<const Codec>(name, element, row, isa)};
          },
          "name"_a, "element"_a = "", "row"_a = 0, "isa"_a = "auto",
          "Raises ValueError (no such codec, element, row or instruction set), RuntimeError with the reason why it\n"
          "can't be used here.")
      .def("encode", &encode, "source"_a, "target"_a, "seed"_a = 0, "fill"_a = false,
           "Write the frame of `source` into `target`, flat buffers of bytes. The bytes of the frame and its checksum,\n"
           "which goes on from `seed`; `fill`: it ends with the target, zeros lie within it. None: it isn't shorter\n"
           "than the source, doesn't fit, or can't be written by this codec. The GIL is released for large ones.");
  m.def("decode_frame", &decode_frame, "frame"_a, "target"_a, "seed"_a = 0, "isa"_a = "auto",
        "Decode a frame, a buffer that ends with it, into the block `target`. A pair: \"good\", \"damaged\" or\n"
        "\"unknown\" (by a codec that this kvtier doesn't know or can't use), and the frame's checksum.\n\n"
        "Raises MemoryError: what it takes to decode it isn't there now.");
  m.def("decode_in_place", &decode_in_place, "slot"_a, "stored"_a, "seed"_a = 0, "isa"_a = "auto",
        "The same with a frame that is the first `stored` bytes of the block's own buffer.");
  m.def("codec_isas", &isas, "The instruction sets that codecs can use on this CPU, best first: of \"avx512\", \"avx2\",\n"
        "\"portable\".");
  m.def("frame_facts", &facts, "frame"_a,
        "What a frame's trailer says: codec, version, element, row, groups, stored, block_bytes, body_bytes. Nothing is\n"
        "verified. None: it is no frame.");
}

}  // namespace kvtier
