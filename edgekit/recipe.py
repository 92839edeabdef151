"""A recipe: an ordered list of steps as YAML.

# recipe.yaml
- step: prune-channels
  macs: 0.5
  epochs: 8
- step: quantize
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgekit.compress.step import Step, make_step
from edgekit.errors import UsageError


def load_recipe(path: Path) -> list[Step]:
    """Reads a recipe file.

    Raises:
        UsageError: If the file is missing, no YAML, or no list of steps.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the recipe {path} can't be read: {error.strerror}", "Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} is no YAML: {error}") from error
    if isinstance(content, dict) and "steps" in content:
        content = content["steps"]
    if not isinstance(content, list) or not content:
        raise UsageError(f"the recipe {path} holds no list of steps", "Write one entry `- step: NAME` for each step.")
    steps = []
    for position, entry in enumerate(content, 1):
        if isinstance(entry, str):
            entry = {"step": entry}
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), str):
            raise UsageError(
                f"entry {position} of {path} names no step", "Write it as `- step: NAME` with its settings below."
            )
        steps.append(make_step(entry["step"], {str(k): v for k, v in entry.items() if k != "step"}))
    return steps


def save_recipe(steps: Sequence[Step], path: Path) -> None:
    """Writes steps as a recipe that :func:`load_recipe` reads back to equal steps."""
    Path(path).write_text(recipe_text(steps), encoding="utf-8")


def recipe_text(steps: Sequence[Step], *, comment: Sequence[str] = (), brief: bool = False) -> str:
    """Steps as YAML.

    Args:
        steps: In order.
        comment: Lines to begin with.
        brief: Leave out settings that are as by default.
    """
    import yaml

    entries = []
    for step in steps:
        plain = {f.name: f.default for f in dataclasses.fields(step)} if brief else {}
        entries.append({k: v for k, v in step.to_dict().items() if k not in plain or getattr(step, k) != plain[k]})
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in comment) + text
