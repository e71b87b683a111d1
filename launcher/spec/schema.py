"""Describes the keys of a spec or profile: which there are, what each takes, and which one was probably meant."""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from .scalars import Scalar, read_scalar

# What other launchers and trainers call it -> our key.
SYNONYMS = {
    "accumulation": "train.global_batch",
    "base_model": "model.base",
    "batch_size": "train.micro_batch",
    "cutoff_len": "data.max_length",
    "dataset": "data.train",
    "finetuning_type": "model.adapter",
    "flash_attention": "model.attn_implementation",
    "flash_attn": "model.attn_implementation",
    "gpus": "resources.gpus_per_node",
    "gradient_accumulation_steps": "train.global_batch",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "lora": "model.adapter",
    "lora_alpha": "model.adapter.alpha",
    "lora_dropout": "model.adapter.dropout",
    "lora_r": "model.adapter.r",
    "lora_rank": "model.adapter.r",
    "lora_target": "model.adapter.target_modules",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.scheduler",
    "lr_scheduler_type": "train.scheduler",
    "max_seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "model_name_or_path": "model.base",
    "num_epochs": "train.epochs",
    "num_nodes": "resources.nodes",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.micro_batch",
    "rank": "model.adapter.r",
    "save_steps": "train.save_every_steps",
    "save_total_limit": "train.keep_last",
    "sequence_len": "data.max_length",
    "steps": "train.max_steps",
    "template": "data.chat_template",
    "time_limit": "resources.time",
    "walltime": "resources.time",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One key: its type, its sentence of help, whether it must be given, and the pattern that its text matches."""

    name: str
    type: Any
    help: str
    required: bool
    pattern: str | None = None


@functools.cache
def list_keys(cls: type) -> Mapping[str, Key]:
    """Dotted key -> :class:`Key` of every key of the dataclass ``cls``, sections included, in their order."""
    return {key.name: key for key in _walk(cls, "")}


def find_key(cls: type, path: Iterable[str | int]) -> Key | None:
    """The key at ``path``; below a free-form mapping or list, one of its values' type.

    Below ``stages.NAME`` stands what may stand at the top.
    """
    path = tuple(path)
    if path[:1] == ("stages",) and len(path) > 2 and "stages" in list_keys(cls):
        path = path[2:]
    name, key = "", Key(name="", type=cls, help="", required=True)
    for part in path:
        name = f"{name}.{part}" if name else str(part)
        found = list_keys(cls).get(name)
        inner = next((item for member in members(key.type) if (item := _item_type(member, part)) is not None), None)
        if found is None and inner is None:
            return None
        key = found or Key(name=name, type=inner, help=key.help, required=False)
    return key


def members(hint: Any) -> tuple[Any, ...]:
    """The types that a value of type ``hint`` may have."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def section_of(hint: Any) -> type | None:
    """The dataclass that ``hint`` allows, where it is a section."""
    return next((member for member in members(hint) if dataclasses.is_dataclass(member)), None)  # type: ignore[return-value]


def accepts(hint: Any, value: Scalar) -> bool:
    """Whether a scalar of this type (its bounds apart) may stand where ``hint`` is declared."""
    for member in members(hint):
        if member is Any or (member is types.NoneType and value is None):
            return True
        if typing.get_origin(member) is typing.Literal:
            if type(value) is str and value in typing.get_args(member):
                return True
        elif member is type(value) or (member is float and type(value) is int):
            return True
    return False


def fit_text(text: str, hint: Any) -> Scalar:
    """``text`` as the unquoted YAML scalar it would be, where ``hint`` takes that; else as text."""
    try:
        value = read_scalar(text)
    except ValueError:
        return text
    return value if accepts(hint, value) else text


def choices(hint: Any) -> list[str]:
    """The words that ``hint`` allows, where it is a choice."""
    return [str(word) for m in members(hint) if typing.get_origin(m) is typing.Literal for word in typing.get_args(m)]


def describe(hint: Any) -> str:
    """What ``hint`` takes, in words: "a whole number or null"."""
    return " or ".join(_describe_member(member) for member in members(hint))


def suggest(cls: type, path: tuple[str | int, ...]) -> list[str]:
    """The keys that the unknown key at ``path`` was probably meant to be, likeliest first; none where nobody knows."""
    keys = list_keys(cls)
    parent = "".join(f"{part}." for part in path[:-1])
    leaf = str(path[-1]).strip().lower().replace("-", "_").replace(" ", "_")
    siblings = {name.removeprefix(parent): name for name in keys if name.startswith(parent)}
    siblings = {short: name for short, name in siblings.items() if "." not in short}
    if leaf in siblings or leaf in keys:  # a dotted key in a file, too
        return [siblings.get(leaf, leaf)]
    if SYNONYMS.get(leaf) in keys:
        return [SYNONYMS[leaf]]
    leaves: dict[str, list[str]] = {}
    for name in keys:
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    if leaf in leaves:
        return leaves[leaf]
    if close := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6):
        return [siblings[close[0]]]
    if close := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75):
        return leaves[close[0]]
    return []


def list_section(cls: type, path: tuple[str | int, ...]) -> list[str]:
    """The names of the keys in the section at ``path``."""
    key = find_key(cls, path)
    section = section_of(key.type) if key else None
    return [field.name for field in dataclasses.fields(section)] if section else []


def _walk(cls: type, prefix: str) -> Iterable[Key]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        section = section_of(hint)
        help = field.metadata.get("description") or (section.__doc__ if section else "") or ""
        pattern = field.metadata.get("pattern")
        yield Key(name=prefix + field.name, type=hint, help=help, required=required, pattern=pattern)
        if section:
            yield from _walk(section, f"{prefix}{field.name}.")


def _item_type(hint: Any, part: str | int) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return Any
    if origin is dict and isinstance(part, str):
        return args[1]
    return args[0] if origin is list and isinstance(part, int) else None


def _describe_member(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list:
        return f"a list of {'texts' if args[0] is str else 'values'}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    return "a section" if origin is dict or dataclasses.is_dataclass(hint) else words.get(hint, "a value")
