"""The seals of the blocks on the drives: for each place what opens the block there. 36 bytes a block, and no object.

They are in RAM although the catalogue has them: its file is never read at run time, since a damaged or slow page of it
would stop the daemon, and whoever waits for a block would wait for two reads.
"""

from collections import Counter

import numpy as np

from kvtier.tiers.master_key import NONCE_BYTES, TAG_BYTES

SERIAL_BYTES = 4
SEAL_BYTES = SERIAL_BYTES + NONCE_BYTES + TAG_BYTES
ROW = np.dtype([("place", "<u4"), ("serial", "<u4"), ("rest", f"V{NONCE_BYTES + TAG_BYTES}")])


def pack(serial: int, nonce: bytes, tag: bytes) -> bytes:
    """`serial`: the number of its data key."""
    return serial.to_bytes(SERIAL_BYTES, "little") + nonce + tag


def unpack(seal: bytes) -> tuple[int, bytes, bytes]:
    nonce_at, tag_at = SERIAL_BYTES, SERIAL_BYTES + NONCE_BYTES
    return int.from_bytes(seal[:nonce_at], "little"), seal[nonce_at:tag_at], seal[tag_at:]


class Seals:
    def __init__(self, extent_units: int) -> None:
        self._units = extent_units
        self._rows: dict[int, bytearray] = {}  # by extent, as they came: few enough to look through them
        self.blocks: Counter[int] = Counter()  # that a data key has, by its serial

    def __len__(self) -> int:
        return self.blocks.total()

    def load(self, places: np.ndarray, seals: np.ndarray) -> None:
        """`seals`: uint8[n, SEAL_BYTES]"""
        order = np.argsort(places, kind="stable")
        rows = np.empty(len(order), ROW)
        rows["place"] = places[order]
        rows.view(np.uint8).reshape(-1, ROW.itemsize)[:, 4:] = seals[order]
        extents, first = np.unique(rows["place"] // self._units, return_index=True)
        for extent, part in zip(extents.tolist(), np.split(rows, first[1:])):
            self._rows[extent] = bytearray(part.tobytes())
        self._count(rows, 1)

    def add(self, place: int, seal: bytes) -> None:
        self._rows.setdefault(place // self._units, bytearray()).extend(place.to_bytes(4, "little") + seal)
        self.blocks[int.from_bytes(seal[:SERIAL_BYTES], "little")] += 1

    def get(self, place: int) -> bytes | None:
        """The last that was added for this place."""
        rows = self._of(place // self._units)
        found = np.flatnonzero(rows["place"] == place)
        return rows[found[-1]].tobytes()[4:] if len(found) else None

    def forget(self, first: int, end: int) -> list[int]:
        """Of these places. The data keys that had blocks there."""
        serials: set[int] = set()
        for extent in range(first // self._units, -(-end // self._units)):
            rows = self._of(extent)
            gone = (rows["place"] >= first) & (rows["place"] < end)
            if gone.any():
                serials.update(self._count(rows[gone], -1))
                self._rows[extent] = bytearray(rows[~gone].tobytes())
            if not self._rows.get(extent, True):
                del self._rows[extent]
        return list(serials)

    def _of(self, extent: int) -> np.ndarray:
        return np.frombuffer(self._rows.get(extent, b""), ROW)

    def _count(self, rows: np.ndarray, sign: int) -> list[int]:
        """Their data keys."""
        serials, blocks = (column.tolist() for column in np.unique(rows["serial"], return_counts=True))
        for serial, of_it in zip(serials, blocks):
            self.blocks[serial] += sign * of_it
            if not self.blocks[serial]:
                del self.blocks[serial]
        return serials
