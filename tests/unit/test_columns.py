"""Columns: rows are there before they are needed, and what stands in them stays when there must be more."""

import numpy as np

from kvtier.columns import DEAD, KEY, Columns


def test_rows_are_handed_out_without_a_block_in_them():
    columns = Columns(100)
    columns.namespace[:] = 7
    assert columns.take(10, extent=3) == (0, 10)
    assert columns.take(20, extent=4) == (10, 20)
    assert columns.namespace[:31].tolist() == [DEAD] * 30 + [7]
    assert columns.extent[:30].tolist() == [3] * 10 + [4] * 20


def test_columns_as_long_as_there_may_be_blocks_are_never_copied():
    columns = Columns(4096)
    keys = columns.keys
    for extent in range(64):
        columns.take(64, extent)
    assert columns.keys is keys


def test_where_there_are_more_after_all_nothing_is_lost():
    columns = Columns(4)
    columns.take(4, extent=0)
    columns.keys[:4] = np.frombuffer(bytes(range(64)), KEY)
    columns.checksum[:4] = 1, 2, 3, 4
    columns.set_origin(2, b"session.tenant..")
    columns.take(2000, extent=1)
    assert columns.keys[:4].tobytes() == bytes(range(64))
    assert columns.checksum[:4].tolist() == [1, 2, 3, 4]
    assert columns.origin is not None and columns.origin[:, 2].tobytes() == b"session.tenant.."
    assert columns.origin.shape == (2, len(columns.keys)) and len(columns.keys) >= 2004


def test_nobodys_rows_need_no_column_of_origins():
    columns = Columns(4)
    columns.set_origin(0, b"")
    columns.set_origin(1, bytes(16))
    assert columns.origin is None
