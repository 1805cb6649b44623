"""Settings as texts and their origins: in flags, the environment, a config file, or files of secrets."""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tet_core.errors import ConfigError

from .hints import meant_setting
from .options import Option

MAX_BYTES = 1_000_000
DEFAULT_CONFIG_FILES = ("config.txt", ".env")
PLACEHOLDER = re.compile(r"your[_-].*|<.*>|\[.*\]|change[_-]?me|x{3,}|\*+|\.{3}|todo", re.IGNORECASE)


_QUOTED = re.compile(r"""(["'])(?P<text>(?:(?!\1).)*)\1(?:\s+\#.*)?""", re.S)
_TYPOGRAPHIC = re.compile("[\u2018-\u201f](?P<text>.*)[\u2018-\u201f]", re.S)  # as web pages have them
_ESCAPE = re.compile(r"\\[abfnrtv]")  # which dotenv reads in double quotes


class Setting(NamedTuple):
    """A value as it was given, where, and whether it still stood in quotes there."""

    text: str
    origin: str
    was_quoted: bool = False


class SettingsFile(NamedTuple):
    """What a file says: its settings by name, its problems, and its warnings, one line each."""

    settings: dict[str, Setting]
    problems: list[str]
    warnings: list[str]


class UnreadableFileError(Exception):
    """A config file cannot be read. The message names it and the reason."""

    def __init__(self, path: Path, reason: str | None) -> None:
        super().__init__(f"--config {path}: cannot be read: {reason}")


def find_config_file(given: str | None) -> Path | None:
    """The config file to read: the one given, else the first default one that exists, else none.

    Where nobody can see whether one exists it counts as if it did: what it would say is not missing.
    """
    if given:
        return Path(os.path.expanduser(given))  # noqa: PTH111 (which raises no error where there is no home)
    for path in map(Path, DEFAULT_CONFIG_FILES):
        try:
            if stat.S_ISREG(path.stat().st_mode):
                return path
        except PermissionError:
            return path
        except OSError:
            continue
    return None


def read_settings_file(path: Path, options: Collection[Option]) -> SettingsFile:
    """Read a dotenv file in which the options may be set.

    Values are taken as they stand, without substitution of ``${NAME}``: a password may hold a dollar.
    Raises UnreadableFileError.
    """
    from dotenv.parser import parse_stream  # not in dotenv's __all__, yet alone in knowing the lines

    file, known = SettingsFile({}, [], []), [option.name for option in options]
    for binding in parse_stream(io.StringIO(_text_of(path))):
        text = binding.original.string
        line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        origin = f"{path} line {line}"
        if binding.error or (binding.key and binding.value is None):
            file.problems.append(f"{origin}: not a setting; allowed: NAME=value, or a comment after #")
        elif binding.key and binding.key not in known:
            near = meant_setting(binding.key, known)
            hint = f"; did you mean {near}?" if near else ""
            file.warnings.append(f"{origin}: unknown setting {binding.key}{hint}")
        elif binding.key and binding.value is not None:
            file.warnings.extend(_oddities(binding.key, binding.value, text, origin, file.settings))
            file.settings[binding.key] = Setting(binding.value, origin)
    secrets = [option.name for option in options if option.secret]
    holds_secret = any(is_given(file.settings[name].text) for name in secrets if name in file.settings)
    holds_secret = holds_secret or "@" in file.settings.get("REDIS_ADDR", ("",))[0]
    if holds_secret and os.name == "posix" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        file.warnings.append(f"{path} holds a secret and others may read it; fix with: chmod 600 {path}")
    return file


def check_again(path: Path | None) -> None:
    """See that a file may be read once more: a pipe is empty by now, or nobody will ever write to it.

    Raises ConfigError.
    """
    with suppress(OSError):
        if path and not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            reason = "it is a pipe or a device, which is read at the start alone"
            raise ConfigError([str(UnreadableFileError(path, reason))])


def _text_of(path: Path) -> str:
    """The text of a file, of any line ends, with or without a byte order mark. Raises UnreadableFileError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UnreadableFileError(path, f"it has more than {MAX_BYTES // 1_000_000} MB")
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
            raise UnreadableFileError(path, "it is UTF-16, or no text; save it as UTF-8")
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(path, "it is not UTF-8 text") from error
    except PermissionError as error:
        remedy = "; let this user read it and its folder, or name another file with --config"
        raise UnreadableFileError(path, f"{error.strerror}{remedy}") from error
    except (OSError, ValueError) as error:
        raise UnreadableFileError(path, getattr(error, "strerror", None) or str(error)) from error


def _oddities(name: str, value: str, line: str, origin: str, before: Mapping[str, Setting]) -> Iterator[str]:
    """What is odd about a setting in a file."""
    if name in before:
        yield f"{origin}: {name} is set again; this line counts"
    if re.search(r"[\x00-\x1f]", value) and _ESCAPE.search(line):
        yield (
            f"{origin}: backslashes in {name} have become control characters, as double quotes do; "
            "write it in single quotes"
        )


def pick(
    option: Option,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    from_file: Mapping[str, Setting],
) -> Setting | None:
    """The text that counts for an option, by precedence; None where there is none.

    An empty text counts as not given, and so does a placeholder where a secret belongs.
    """
    credential = read_credential(option.name, environment) if option.secret else ""
    candidates = (
        _as_meant(flags.get(option.name) or "", f"flag {option.flag}"),
        _as_meant(environment.get(option.name) or "", "environment"),
        _as_meant(credential, "CREDENTIALS_DIRECTORY"),
        _without_quotes(from_file.get(option.name) or Setting("", ""), _TYPOGRAPHIC),
        Setting(option.default or "", "default"),
    )
    for setting in candidates:
        text = setting.text.strip()
        if is_given(text) if option.secret else text:
            return setting._replace(text=text)
    return None


def _as_meant(text: str, origin: str) -> Setting:
    """A text from where nobody takes quotes off (``docker --env-file``, ``cmd``), or comments behind them.

    Where Python took it for ASCII, by its locale, it is UTF-8.
    """
    with suppress(UnicodeError):
        text = text.encode("utf-8", "surrogateescape").decode()
    return _without_quotes(_without_quotes(Setting(text, origin), _QUOTED), _TYPOGRAPHIC)


def _without_quotes(setting: Setting, quoted: re.Pattern[str]) -> Setting:
    """The setting without a pair of quotes around all of it."""
    found = quoted.fullmatch(setting.text.strip())
    return Setting(found["text"], setting.origin, was_quoted=True) if found else setting


def quotes_taken_off(settings: Mapping[str, Setting]) -> Iterator[str]:
    """A warning for each origin of which settings stood in quotes."""
    for origin in dict.fromkeys(setting.origin for setting in settings.values() if setting.was_quoted):
        names = ", ".join(n for n, each in settings.items() if each.was_quoted and each.origin == origin)
        yield f"{origin}: {names} stood in quotes, which were taken off; write it without"


def is_given(secret: str) -> bool:
    """Whether a secret is one, not empty and no placeholder."""
    return bool(secret.strip()) and not PLACEHOLDER.fullmatch(secret.strip())


def read_credential(name: str, environment: Mapping[str, str]) -> str:
    """A secret that systemd's LoadCredential or a container's secret put into a file of its own, or ""."""
    if folder := environment.get("CREDENTIALS_DIRECTORY"):
        with suppress(OSError, UnicodeDecodeError):
            return (Path(folder) / name.lower()).read_text(encoding="utf-8")
    return ""
