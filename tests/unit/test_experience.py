"""What a kvtierd has learnt is believed by the next one."""

import asyncio
from pathlib import Path

import pytest

from kvtier.calibration import FILE, PRIORS, REMOTE
from kvtier.config import DAEMON, Config
from kvtier.experience import REMOTE_SAMPLES_MIN, Experience
from kvtier.store import BlockStore

URL = "redis://reader:hunter2@store:6379/0?timeout=1"
MIB = 1024**2


@pytest.fixture
def settings(tmp_path) -> Config:
    return Config(DAEMON, {"cost.state": str(tmp_path / "state"), "cost.calibrate_s": 0, "cost.log_bytes": 0})


def one_life(settings: Config, samples: int = 0) -> tuple[float, float]:
    """What its remote's link was believed to take at the start: seconds, and bytes a second. Then so many transfers of
    1 MiB take 20 ms each."""

    async def lived() -> tuple[float, float]:
        experience, store = Experience(settings, []), BlockStore(16 * MIB, lend_share=0.125, lease_share=0.5)
        link = store.decisions.remote = experience.remote_link(URL)
        believed = link.latency_s, link.bytes_per_s
        experience.begin(store, 0.0)
        for _ in range(samples):
            link.observe(MIB, 0.02)
        await experience.end()
        return believed

    return asyncio.run(lived())


def test_a_remote_is_believed_as_slow_as_it_was(settings):
    prior = PRIORS[REMOTE]
    assert one_life(settings, samples=100) == (prior.latency_s, pytest.approx(prior.bytes_per_s))
    latency_s, bytes_per_s = one_life(settings)
    assert latency_s + MIB / bytes_per_s == pytest.approx(0.02, rel=0.1)


def test_a_remote_that_was_hardly_used_is_not_remembered(settings):
    one_life(settings, samples=REMOTE_SAMPLES_MIN - 1)
    assert one_life(settings)[0] == PRIORS[REMOTE].latency_s


def test_no_secret_of_its_url_is_kept(settings):
    one_life(settings, samples=100)
    kept = (Path(settings.text("cost.state")) / FILE).read_text()
    assert "redis://store:6379/0" in kept and "hunter2" not in kept
