"""The contract of every tier below the arena. tests/contract/ holds each of them to it.

A tier moves bytes between arena slots and places of its own. It decides nothing: what is demoted, where to, what is
forgotten is the store's business; when to give up waiting is the store's too, for a deadline is not a cancellation.

The caller guarantees

*   One thread calls. Tickets are never used twice.
*   From start to Finished the bytes of a Demote's slot don't change, and nobody else reads or writes a Promote's slot.
*   A place is written once: its next Demote begins after a Forget of it has finished, or after a restart that did not
    recover it; in a volatile tier at any time, for nobody wants what was there. Places don't overlap. A Forget or an
    Erase begins when no transfer of its places is under way.
*   A Demote with a codec has a place with fewer bytes than its slot: at least SLOT_UNIT of them, a multiple of PLACE_GRAIN;
    one without, as many. In an extent lie places of one size, and block.place_at names them.
*   A Promote begins after its Demote has finished without a fault, or for a place that `recovered` named; with the key,
    both sizes and the checksum from there. After an Erase, whatever came of it, there is none.
*   An Erase names the place and its size, of a Demote that has finished, or of a place that `recovered` named. Again,
    when it finished with a fault. Then the place stays empty until a Forget of it.
*   At most TRANSFERS_MAX transfers are under way.

You guarantee

*   `start` returns at once, `poll` too; neither raises because of what a drive, a network or a file does.
*   Every transfer is finished exactly once: `poll` returns its Finished, in any order. After that you touch its slot no
    more. A drive that hangs is no exception: the transfer stays unfinished until the drive lets go of the memory.
*   A Promote without a fault: the slot holds the very bytes that were demoted under this key, checked by a checksum of
    the content and the key on every read. With a fault the slot holds anything. "corrupt" says that the bytes are lost
    for good, every other fault that they may be there another time.
*   A Demote without a fault: a Promote gives the bytes back, or what a lossy codec made of them. With a fault nothing is
    there. "larger" says that the codec found no frame of this block that fits into the place, or can't be had here: the
    same without it may be ordered at once. Finished.stored of a frame is what it would take at least; it takes the place.
*   A Forget or a Remember without a fault survives a crash of the process. It takes effect in the order of starts: a
    block that is demoted under a namespace is never recovered without it, a place that was forgotten and written again
    never comes back as what it was. An epoch is remembered for ever; a namespace of epoch 0 as long as a block of it is
    recovered, and no longer: names that somebody made up must not stay.
*   An Erase without a fault: the bytes of its place, and no others, are zeros on the drive, and the block is in no
    `recovered` any more; both survive a crash of the machine. The zeros are on the drive before the record goes, so that
    what a crash leaves in between fails its checksum. Its record goes at once, not with the next that are gathered. What
    a drive keeps of former bytes where nobody can read them is its own business.
*   A Shred without a fault: the data keys of this tenant are gone from the drive, and stay so after a crash of the machine;
    a block of it that was demoted before is lost, as "corrupt". What is demoted later gets another key. Where nothing is
    encrypted it does nothing.
*   A Flush without a fault: each Demote that had finished before it was started is in `recovered` after a crash of the
    process or of the machine, unless it was forgotten. Bytes are on the drive before any record of them.
*   After a write or a commit that failed you are for a while `read_only`: Demotes, Forgets, Erases, Remembers and Shreds
    finish with a fault at once, and you find out by yourself when it is over. Reads go on. A Forget, an Erase, a Remember
    or a Shred that finished with a fault may happen all the same, later, in its place in the order; an Erase by halves too.
*   After `close`, `poll` gives what was not polled yet, and whatever is started finishes as "closed".

A tier that finds blocks by their keys (a remote one) ignores places and checksums, and `recovered` is empty: what lies
there is learnt by asking, and others write and delete there too. Of it alone

*   the caller says the key and the number of a namespace that was remembered in this life, also with an Erase; orders a
    Promote for what a Seek found; and has at most one Promote, and one Seek, of a key under way.
*   A Demote's `stored` is how many bytes its frame may have at most; Finished.stored says how many lie there now, also of
    a block as it is.
*   A Seek without a fault: how many bytes lie there of each block that was there a moment ago, and 0 for each that wasn't.
*   A Promote may find nothing any more: "gone". Nobody knows what it should hold but the key: bytes that another node
    wrote under it are as good, and a frame as good as the block, whatever a Seek said of it. Finished.stored says what
    it was. What is "corrupt" it deletes by itself.
*   A Demote with a fault may have written the block all the same, whole.
*   An Erase without a fault: nothing is there under this key. What the other side keeps of the bytes is its business.
*   A Demote without a fault is found after a crash of this process, a Flush adds nothing to it. What a crash of the other
    side leaves is the other side's promise.
*   A Remember is taken always, a Forget finishes and does nothing.

A volatile tier keeps nothing when its process ends: `recovered` is empty, a Flush finishes as "volatile", and what is
said here of a crash or a restart is not said of it. A block that lies there lies elsewhere too.

You never

*   recover a block that you can't vouch for: no record is better than a doubtful one;
*   retry a Demote, a Promote or the zeros of an Erase, or keep one back for more than the ones before it;
*   let reads wait for more than a few writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kvtier.transfer import ORIGIN_BYTES, Finished, Transfer

TRANSFERS_MAX = 4096


@dataclass
class Recovered:
    """What survived the last daemon: columns of one length, one row a block, in the order in which they were demoted."""

    keys: bytes = b""  # packed
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # bytes in a slot
    stored: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # bytes in their places; fewer: frames
    namespaces: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))  # numbers
    epochs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    checksums: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    remembered: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # digest -> (number, epoch)
    origins: np.ndarray = field(default_factory=lambda: np.empty((0, ORIGIN_BYTES), np.uint8))  # zeros: unknown
    seals: np.ndarray | None = None  # the tier's own, where blocks are encrypted


class Tier(Protocol):
    recovered: Recovered  # the store takes it at start and empties it

    @property
    def read_only(self) -> bool: ...
    def start(self, transfer: Transfer) -> None: ...
    def poll(self) -> list[Finished]: ...
    def fileno(self) -> int: ...  # readable when poll has something to say
    def state(self) -> Mapping[str, object]: ...  # for observers: JSON values
    def close(self) -> None: ...  # finishes what is under way; then no file of it is open
