"""Which series show the durations of stats.py. Pure."""

from kvtier.metrics.family import took
from kvtier.stats import DURATIONS

TOOK = (
    took("kvtier_lookup_duration_seconds", DURATIONS["answer"], "", {"": "answer"}),
    took("kvtier_load_duration_seconds", DURATIONS["load"], "", {"": "load"}),
    took(
        "kvtier_transfer_duration_seconds",
        "of a block's way between two tiers, from its order on",
        "src dst",
        {
            "cpu gpu": "mirror",
            "cpu nvme": "nvme_demote",
            "nvme cpu": "nvme_promote",
            "cpu remote": "remote_demote",
            "remote cpu": "remote_promote",
        },
    ),
    took("kvtier_loop_delay_seconds", DURATIONS["tick"], "", {"": "tick"}),
)
