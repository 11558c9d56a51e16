"""Reading request traces."""

import json
from pathlib import Path

import pytest
from conversations import trace_of

from kvtier.errors import ConfigError
from kvtier.replay.trace import read


def write(folder: Path, *said: object) -> Path:
    path = folder / "t.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in said))
    return path


def request(at: float, tokens: int, *ids: object) -> dict[str, object]:
    return {"timestamp": at, "input_length": tokens, "output_length": 1, "hash_ids": list(ids)}


def test_requests_come_in_the_order_of_their_arrival_from_zero_on(tmp_path):
    trace = read(write(tmp_path, request(5000, 3, 1), "", request(2000, 4, 2)))
    assert [(r.at, r.prompt_tokens) for r in trace.requests] == [(0.0, 4), (3.0, 3)]
    assert trace.prompt_tokens == 7 and trace.unique_blocks == 2 and trace.seconds == 3.0


def test_a_block_is_itself_only_after_the_same_blocks(tmp_path):
    trace = read(write(tmp_path, request(0, 1024, 7, 9), request(1, 1024, 8, 9)))
    first, second = (r.blocks for r in trace.requests)
    assert first[1] != second[1] and trace.unique_blocks == 4


def test_the_last_block_may_be_partial(tmp_path):
    trace = read(write(tmp_path, request(0, 700, 1, 2)))
    assert trace.hit_tokens(trace.requests[0], 1) == 512 and trace.hit_tokens(trace.requests[0], 2) == 700


def test_a_delay_counts_from_the_sessions_former_line(tmp_path):
    first = {"timestamp": 1000, "input_length": 5, "session_id": "a", "hash_ids": [1]}
    then = {"delay": 500, "input_length": 5, "session_id": "a", "hash_ids": [1]}
    assert [r.at for r in read(write(tmp_path, first, then, then)).requests] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("said", "session"), [({"session": 18}, "18"), ({"session_id": "a"}, "a"), ({}, "")])
def test_a_line_may_name_its_session(tmp_path, said, session):
    trace = read(write(tmp_path, request(0, 5, 1) | said))
    assert trace.requests[0].session == trace.faster(2.0).requests[0].session == session


def test_an_engine_saves_whole_blocks(tmp_path):
    trace = read(write(tmp_path, request(0, 1100, 7, 8, 9), request(1, 1024, 7, 8), request(2, 100, 5)))
    assert [len(trace.whole(r)) for r in trace.requests] == [2, 2, 0]


def test_the_cure_for_another_block_size_is_named(tmp_path):
    path = write(tmp_path, request(0, 1359, *range(22)), request(1, 9479, *range(149)))
    with pytest.raises(ConfigError, match="try --block-tokens 64"):
        read(path)
    assert read(path, 64).block_tokens == 64


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("{}", r"t.jsonl:2: it lacks 'timestamp'; a line is a JSON object with timestamp"),
        ("[]", "a line is a JSON object"),
        ("not json", "a line is a JSON object"),
        ('{"timestamp": 1, "input_length": 5}', "it lacks 'hash_ids'"),
        ('{"timestamp": NaN, "input_length": 5, "hash_ids": [1]}', "timestamp"),
        ('{"timestamp": 1, "input_length": 0, "hash_ids": []}', "mend or drop"),
        ('{"timestamp": 1, "input_length": 5, "hash_ids": [[1]]}', "a line is a JSON object"),
    ],
)
def test_a_bad_line_is_named_with_its_cure(tmp_path, line, cure):
    with pytest.raises(ConfigError, match=cure):
        read(write(tmp_path, request(0, 5, 1), line))


def test_no_file_and_no_request_are_told(tmp_path):
    with pytest.raises(ConfigError, match="name a JSONL file"):
        read(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no request in it"):
        read(write(tmp_path, ""))
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="name a JSONL file"):
        read(tmp_path / "t.jsonl")


def test_ticks_are_spread_in_order_and_the_same_for_a_seed(tmp_path):
    ticks = [request(3000 * (n // 5), 10 + n, n) for n in range(50)]
    trace = read(write(tmp_path, *ticks))
    smeared = trace.smeared(1)
    assert [r.prompt_tokens for r in smeared.requests] == [r.prompt_tokens for r in trace.requests]
    assert all(0 <= after.at - before.at < 3.0 for before, after in zip(trace.requests, smeared.requests))
    assert len({r.at for r in smeared.requests}) == 50
    assert smeared == trace.smeared(1) != trace.smeared(2)


def test_exact_times_stay(tmp_path):
    trace = trace_of(tmp_path, seed=1, sessions=30)
    assert trace.smeared(1) is trace
    assert trace.faster(2.0).seconds == pytest.approx(trace.seconds / 2)
    assert trace.first(3).requests == trace.requests[:3]
