"""The daemon's settings as it is given them: a TOML file, and --set NAME=VALUE."""

import difflib
from pathlib import Path

from kvtier.codec import LOSSLESS, LOSSY
from kvtier.config import DAEMON, Config, parse_toml
from kvtier.deciding import MODES
from kvtier.errors import ConfigError
from kvtier.logs import FORMATS, LEVELS
from kvtier.rankings import POLICIES

CODECS = ("auto", "none", *LOSSLESS)
WORDS: dict[str, tuple[str, ...]] = {
    "log.level": tuple(LEVELS),
    "log.format": FORMATS,
    "cost.mode": MODES,
    "policy.name": POLICIES,
    "nvme.codec": CODECS,
    "remote.codec": CODECS,
}


def load(file: Path | None, overrides: list[str]) -> Config:
    """The daemon's settings: defaults, then the file, then --set. ConfigError says what is wrong and where."""
    given: dict[str, object] = {}
    where = ""
    if file is not None:
        where = f"{file}: "
        try:
            given.update(parse_toml(file.read_text(), str(file)))
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: write NAME=VALUE")
        given[name.strip()] = value.strip()
    settings = Config(DAEMON, given, where)
    for name, known in WORDS.items():
        if settings.text(name) not in known:
            raise ConfigError(f"{where}{name} = {settings[name]!r} {_refusal(settings.text(name), known)}")
    return settings


def drive_folders(settings: Config) -> list[Path]:
    """Those of nvme.paths, in their order; none: no such tier."""
    return [Path(path.strip()) for path in settings.text("nvme.paths").split(",") if path.strip()]


def _refusal(word: str, known: tuple[str, ...]) -> str:
    if known is CODECS and word in LOSSY:
        return (
            f'would lose precision, which no setting of kvtierd may: an engine asks for it, with "codec": "{word}" in '
            "kvtier of its kv_connector_extra_config, and no other ever sees such a block"
        )
    near = difflib.get_close_matches(word, known, n=1)
    return f"is none of {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")
