"""Settings as they stand in a config file (dotenv syntax), or in files of secrets: texts and origins."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

DEFAULT_CONFIG_FILES = ("config.txt", ".env")
PLACEHOLDER = re.compile(r"your[_-].*|<.*>|\[.*\]|change[_-]?me|x{3,}|\*+|\.{3}|todo", re.IGNORECASE)


class Setting(NamedTuple):
    """A value as it was given, and where."""

    text: str
    origin: str


class SettingsFile(NamedTuple):
    """What a file says: its settings by name, its problems, and its warnings, one line each."""

    settings: dict[str, Setting]
    problems: list[str]
    warnings: list[str]


def find_config_file(given: str | None) -> Path | None:
    """The config file to read: the one given, else the first default one that exists, else none."""
    if given:
        return Path(given)
    return next((path for path in map(Path, DEFAULT_CONFIG_FILES) if path.is_file()), None)


def read_settings_file(path: Path, known: Collection[str], secrets: Collection[str]) -> SettingsFile:
    """Read a dotenv file in which the ``known`` names may be set, of which ``secrets`` are secret.

    Values are taken as they stand, without substitution of ``${NAME}``: a password may hold a dollar.
    Raises OSError and UnicodeDecodeError.
    """
    from dotenv.parser import parse_stream  # not in dotenv's __all__, yet alone in knowing the lines

    file = SettingsFile({}, [], [])
    with path.open(encoding="utf-8-sig") as stream:
        bindings = list(parse_stream(stream))
    for binding in bindings:
        text = binding.original.string
        line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        origin = f"{path} line {line}"
        if binding.error or (binding.key and binding.value is None):
            file.problems.append(f"{origin}: not a setting; allowed: NAME=value, or a comment after #")
        elif binding.key and binding.key not in known:
            near = difflib.get_close_matches(binding.key.upper(), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            file.warnings.append(f"{origin}: unknown setting {binding.key}{hint}")
        elif binding.key and binding.value is not None:
            if binding.key in file.settings:
                file.warnings.append(f"{origin}: {binding.key} is set again; this line counts")
            file.settings[binding.key] = Setting(binding.value, origin)
    holds_secret = any(is_given(file.settings[name].text) for name in secrets if name in file.settings)
    holds_secret = holds_secret or "@" in file.settings.get("REDIS_ADDR", ("",))[0]
    if holds_secret and os.name == "posix" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        file.warnings.append(f"{path} holds a secret and others may read it; fix with: chmod 600 {path}")
    return file


def is_given(secret: str) -> bool:
    """Whether a secret is one, not empty and no placeholder."""
    return bool(secret.strip()) and not PLACEHOLDER.fullmatch(secret.strip())


def read_credential(name: str, environment: Mapping[str, str]) -> str:
    """A secret that systemd's LoadCredential or a container's secret put into a file of its own, or ""."""
    if folder := environment.get("CREDENTIALS_DIRECTORY"):
        with suppress(OSError, UnicodeDecodeError):
            return (Path(folder) / name.lower()).read_text(encoding="utf-8")
    return ""
