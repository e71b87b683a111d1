"""A valid spec, and the same with other values."""

VALID = """\
name: sft-demo
stage: sft
model:
  base: builtin:tiny
data:
  train: rows.json
train:
  max_steps: 60
"""


def edit(**values: str) -> str:
    """:data:`VALID` with the YAML texts ``values`` under their dotted keys, as block mappings."""
    tree: dict = {"name": "sft-demo", "stage": "sft"}
    tree |= {"model": {"base": "builtin:tiny"}, "data": {"train": "rows.json"}, "train": {"max_steps": "60"}}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return "\n".join(_lines(tree, "")) + "\n"


def _lines(tree: dict, indent: str) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
