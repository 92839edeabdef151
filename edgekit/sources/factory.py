"""A user's own network by reference: ``package.module:factory`` or ``path/to/file.py:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from edgekit.errors import SourceError, UsageError


def resolve(reference: str) -> Any:
    """The object that a reference names.

    Args:
        reference: ``package.module:name`` or ``path/to/file.py:name``; the current folder is on the path.

    Raises:
        UsageError: If the module, the file or the name does not exist.
        SourceError: If the module fails when it is imported.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise UsageError(f"{reference!r} is no package.module:factory", "For example my_package.models:resnet20.")
    try:
        if place.endswith(".py"):
            module = _from_file(Path(place))
        else:
            if str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and place.startswith(error.name):
            raise UsageError(
                f"there is no module {place!r}", "Check the name, or give the file: path/to/file.py:factory."
            ) from error
        raise SourceError(f"{place} could not be imported: {error}", "Install what it needs.") from error
    except UsageError:
        raise
    except Exception as error:
        raise SourceError(f"{place} could not be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        offered = ", ".join(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
        raise UsageError(f"{place} has no {name!r}", f"It offers: {offered or 'nothing that can be called'}.")
    return getattr(module, name)


def build_from_factory(reference: str) -> Any:
    """The network that a factory makes: it is called without arguments and must return an ``nn.Module``.

    Raises:
        UsageError: If the reference leads nowhere.
        SourceError: If the factory fails or gives something else.
    """
    import torch

    factory = resolve(reference)
    try:
        module = factory() if not isinstance(factory, torch.nn.Module) else factory
    except Exception as error:
        raise SourceError(
            f"{reference}() failed: {type(error).__name__}: {error}", "The factory must work without arguments."
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"{reference}() gave a {type(module).__name__}, not a torch.nn.Module")
    return module


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"the file {path} does not exist", "Check the path before the colon.")
    spec = importlib.util.spec_from_file_location(f"edgekit_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
