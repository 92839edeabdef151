"""Weights from a file into a network, without ever running code from the file."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import SourceError


def load_weights_into(module: torch.nn.Module, path: Path) -> None:
    """Loads a state dict into a network; every tensor must find its place.

    Args:
        module: The network; changed in place.
        path: A safetensors file, or a file of ``torch.save`` that loads with ``weights_only=True``. A state dict inside
            a dict (``state_dict``, ``model``) and the prefix ``module.`` of DataParallel are understood.

    Raises:
        SourceError: If the file is missing, damaged, needs a full pickle, or holds other weights.
    """
    state = _strip_prefix(_state_dict(read_weights(path), path))
    own = module.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(state) - counters)
    unexpected = sorted(set(state) - set(own))
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        parts = []
        if missing:
            parts.append(f"{len(missing)} are missing ({', '.join(missing[:3])}{' …' if len(missing) > 3 else ''})")
        if unexpected:
            parts.append(
                f"{len(unexpected)} have no place ({', '.join(unexpected[:3])}{' …' if len(unexpected) > 3 else ''})"
            )
        if shapes:
            parts.append(f"{len(shapes)} have another shape ({shapes[0]}{' …' if len(shapes) > 1 else ''})")
        raise SourceError(
            f"the weights in {path} do not belong to this network: of its {len(own) - len(counters)} tensors, "
            + "; ".join(parts),
            "Check that the file and the network's name and options go together.",
        )
    module.load_state_dict({**{name: own[name] for name in counters}, **state})


def read_weights(path: Path) -> Any:
    """Whatever the file holds, read without unpickling objects.

    Raises:
        SourceError: If it is missing, damaged, or needs a full pickle.
    """
    if not path.is_file():
        raise SourceError(f"the weights file {path} does not exist", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(path)
            except SafetensorError as error:
                raise _damaged(path, error) from error
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None and "Weights only load failed" not in str(error):
            raise _damaged(path, error) from error
        what = f" ({found.group(1)})" if found else ""
        raise SourceError(
            f"{path} is refused: it is a pickle that needs more than tensors{what}, and unpickling it could run code",
            "Where you trust it, load it yourself and save its tensors: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), then give that file.",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SourceError(
        f"{path} ({path.stat().st_size} bytes) is damaged or no weights file: {first}",
        "It may be a truncated download: fetch it again and compare its SHA-256.",
    )


def _state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    )
    if not tensors:
        raise SourceError(f"{path} holds no state dict", "Save model.state_dict() and give that file.")
    return tensors


def _strip_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state
