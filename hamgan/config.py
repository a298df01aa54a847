"""Frozen dataclasses from TOML presets, mappings and command-line overrides; and back.

Everything that is configured passes through `from_mapping`, whether it comes from a preset, the command line, a checkpoint
or a stranger's snapshot: one set of checks, one kind of message.
"""

import ast
import dataclasses
import difflib
import inspect
import json
import math
import reprlib
import textwrap
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

MESSAGE = 600
"""Letters of a complaint that are shown."""
LARGEST_PRESET, MOST_DOTS = 1 << 20, 200
"""Bytes of a preset, and dots a line: Python's parser takes memory that grows with the square of a dotted key's length."""

Sources = Mapping[str, str]
"""Where each dotted key was set, for messages: a file's path or an option's name."""


def from_mapping(cls: type[T], mapping: Mapping[str, Any], source: str, sources: Sources | None = None) -> T:
    """Build a dataclass of nested dataclasses from a nested mapping.

    Args:
        cls: The dataclass.
        mapping: Values by field name; what is missing keeps its default.
        source: What the mapping was read from, for messages.
        sources: Where single keys came from, if not from `source`.

    Raises:
        ValueError: For an unknown key (the nearest name is offered), a value of the wrong type, or one that a dataclass
            refuses; names source, key, value and what is allowed.
    """
    return _build(cls, mapping, "", source, sources or {})


def _build(cls: type[T], mapping: Mapping[str, Any], prefix: str, source: str, sources: Sources) -> T:
    hints = get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        key = prefix + name
        where = sources.get(key, source)
        if name not in known:
            raise ValueError(f"{where}: unknown key '{key[:120]}'{_suggestion(key, [prefix + k for k in known])}")
        if dataclasses.is_dataclass(known[name]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: '{key}' is {_shown(value)}; it must be a section with keys of its own")
            values[name] = _build(known[name], value, key + ".", source, sources)
        else:
            values[name] = _convert(value, known[name], key, where)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in values:
            raise ValueError(f"{source}: '{prefix}{field.name}' is missing; it has no default")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{_blame(str(error), prefix, source, sources)}: {_shortened(str(error))}") from None


def _blame(message: str, prefix: str, source: str, sources: Sources) -> str:
    """Name the override that a dataclass's own complaint is about, else the file."""
    keys = [key for key in sources if key.startswith(prefix)]
    leaf = [key for key in keys if key.rsplit(".", 1)[-1] in message.split(";")[0]]
    return sources[leaf[0]] if leaf else source


def _suggestion(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"


def _convert(value: Any, kind: Any, key: str, where: str) -> Any:
    """Check a TOML or JSON value against a field's type; tuples come as lists, floats may come as integers."""
    origin = get_origin(kind)
    if origin is Literal:
        if value in get_args(kind) and type(value) in {type(choice) for choice in get_args(kind)}:
            return value
        allowed = ", ".join(map(_choice_text, get_args(kind)))
        near = difflib.get_close_matches(_shown(value).strip("'"), [*map(_choice_text, get_args(kind))], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{where}: '{key}' is {_shown(value)}; allowed are {allowed}{hint}")
    if origin in (typing.Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else _convert(value, options[0], key, where)
    if origin is tuple:
        items = get_args(kind)
        if not isinstance(value, list | tuple):
            value = [value]
        if items[-1] is not Ellipsis and len(value) != len(items):
            raise ValueError(f"{where}: '{key}' is {_shown(value)}; it must be a list of {len(items)} values")
        return tuple(_convert(item, items[0], key, where) for item in value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where}: '{key}' is {value}; it must be finite")
        return float(value)
    if kind is int and type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"{where}: '{key}' is {_shown(value)}; it must fit into 64 bits")
    if type(value) is not kind:
        names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
        raise ValueError(f"{where}: '{key}' is {_shown(value)}; it must be {names[kind]}")
    return value


def _choice_text(choice: Any) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _shown(value: Any) -> str:
    """Return a value for a message; a stranger's may be long, or hold itself many times over."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlist = 3, 120, 120, 16
    return short.repr(value)


def _shortened(message: str) -> str:
    return message if len(message) <= MESSAGE else f"{message[:MESSAGE]} ..."


def read_preset(path: str | Path) -> dict[str, Any]:
    """Read a TOML preset, laid over its `base` if it names one (relative to the preset; a base has no base).

    Raises:
        ValueError: If the file is not TOML, or its base names a base.
        FileNotFoundError: If a file does not exist.
    """
    mapping = _read_toml(Path(path))
    base = mapping.pop("base", None)
    if base is None:
        return mapping
    base_path = Path(path).parent / str(base)
    below = _read_toml(base_path)
    if "base" in below:
        raise ValueError(f"{path}: its base {base_path} has a base itself; at most one level is allowed")
    return merge(below, mapping)


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1)
        raise FileNotFoundError(
            f"{path}: no such preset" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    if path.stat().st_size > LARGEST_PRESET:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes; a preset has at most {LARGEST_PRESET:,}")
    try:
        text = path.read_text("utf-8")
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line has more than {MOST_DOTS} dots")
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # tomllib's, of the encoding, or of a number with too many digits
        raise ValueError(f"{path}: not valid TOML: {_shortened(str(error))}") from None


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(options: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read `--section.key value`, `--section.key=value` and switches, `--section.key`, into a nested mapping.

    A value is read as TOML (`0.5`, `true`, `[32, 64]`); what is not TOML is a text, and `32,64` a list.

    Returns:
        The mapping, and the option that set each dotted key.

    Raises:
        ValueError: If an argument is no option.
    """
    mapping: dict[str, Any] = {}
    sources: dict[str, str] = {}
    queue = list(options)
    while queue:
        option = queue.pop(0)
        if not option.startswith("--") or len(option) == 2:
            raise ValueError(f"unexpected argument '{option}'; overrides are written --section.key value")
        name, equals, text = option[2:].partition("=")
        if not equals:
            # A bare option is a switch: --compile is --compile true.
            text = "true" if not queue or queue[0].startswith("--") else queue.pop(0)
        key = name.replace("-", "_")
        *sections, leaf = key.split(".")
        place = mapping
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ValueError(f"--{name}: '{section}' is a value, not a section")
        place[leaf] = _read_value(text)
        sources[key] = f"--{name}"
    return mapping, sources


def _read_value(text: str) -> Any:
    for candidate in (text, f"[{text}]" if "," in text else text):
        try:
            return tomllib.loads(f"value = {candidate}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    return [part.strip() for part in text.split(",")] if "," in text else text


def to_mapping(config: Any) -> dict[str, Any]:
    """Turn a dataclass of dataclasses into nested dicts of TOML and JSON values; tuples become lists."""
    mapping: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            mapping[field.name] = to_mapping(value)
        else:
            mapping[field.name] = list(value) if isinstance(value, tuple) else value
    return mapping


def dump_toml(config: Any) -> str:
    """Write a dataclass of dataclasses as TOML that `read_preset` reads back to the same values."""
    lines: list[str] = []
    _dump_table(to_mapping(config), "", lines)
    return "\n".join(lines).strip() + "\n"


def _dump_table(mapping: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    for key, value in mapping.items():
        if not isinstance(value, Mapping):
            # A JSON text, number, boolean or list of them is a TOML one too.
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            lines.extend(["", f"[{prefix}{key}]"])
            _dump_table(value, f"{prefix}{key}.", lines)


def difference(old: Any, new: Any, prefix: str = "") -> list[str]:
    """List the dotted keys in which two configurations of one class differ, as `key: old -> new`."""
    rows = []
    for field in dataclasses.fields(old):
        a, b = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(a):
            rows += difference(a, b, f"{prefix}{field.name}.")
        elif a != b:
            rows.append(f"{prefix}{field.name}: {a!r} -> {b!r}")
    return rows


def help_page(cls: type, prefix: str = "", defaults: Any = None) -> str:
    """Return every key of a configuration with its type, default and meaning, a paragraph each.

    The meaning is the text that follows a field in its dataclass.
    """
    config = cls() if defaults is None else defaults
    hints, texts = get_type_hints(cls), _field_texts(cls)
    paragraphs = []
    for field in dataclasses.fields(cls):
        key, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            paragraphs.append(help_page(type(value), f"{key}.", value))
            continue
        kind = hints[field.name]
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        allowed = (
            "{" + ",".join(map(_choice_text, choices)) + "}"
            if choices
            else getattr(kind, "__name__", str(kind)).upper()
        )
        shown = json.dumps(list(value) if isinstance(value, tuple) else value)
        text = textwrap.fill(
            f"{texts.get(field.name, '')} (default: {shown})", 100, initial_indent="    ", subsequent_indent="    "
        )
        paragraphs.append(f"--{key} {allowed}\n{text}")
    return "\n".join(paragraphs)


def _field_texts(cls: type) -> dict[str, str]:
    """Return the string that follows each field in a class's source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, follower in zip(definition.body, definition.body[1:], strict=False):
        match statement, follower:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def split_options(arguments: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command's arguments into those that it knows by name and the overrides `--key value` among them.

    Args:
        arguments: As typed.
        own: The command's own options, with their dashes.
    """
    kept: list[str] = []
    overrides: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        name, equals, _ = argument.partition("=")
        if not argument.startswith("--") or name in own:
            kept.append(argument)
            continue
        overrides.append(argument)
        if not equals and queue and not queue[0].startswith("--"):
            overrides.append(queue.pop(0))
    return kept, overrides
