// expz: the bytes that have the exponents through zstandard, the others as they are.
//
// A body: the other bytes | the odd byte, if the group has one | what zstandard made of the exponents.
// Both planes are filled up to whole chunks.
#pragma once

#include <string>

namespace kvtier {

const std::string* expz_reason();  // why it can't be used here; nullptr when it can
bool expz_is_ready() noexcept;     // whether this thread has what it takes to decode; else memory is short

}  // namespace kvtier
