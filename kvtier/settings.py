"""The daemon's settings as it is given them: a TOML file, and --set NAME=VALUE."""

from pathlib import Path

from kvtier.config import DAEMON, Config, parse_toml
from kvtier.deciding import MODES
from kvtier.errors import ConfigError
from kvtier.logs import FORMATS, LEVELS
from kvtier.rankings import POLICIES


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
    words = {"log.level": LEVELS, "log.format": FORMATS, "cost.mode": MODES, "policy.name": POLICIES}
    for name, known in words.items():
        if settings.text(name) not in known:
            raise ConfigError(f"{where}{name} = {settings[name]!r} is none of {', '.join(known)}")
    return settings
