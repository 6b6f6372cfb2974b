"""A learned state on disk: nested dicts and lists of tensors and numbers as safetensors and JSON, never pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def save_tree(folder: Path, tree: dict[str, Any]) -> None:
    """Write `agent.safetensors` (all tensors of the tree) and `agent.json` (the rest, and where tensors belong)."""
    tensors: dict[str, torch.Tensor] = {}
    shape = _flatten(tree, "", tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "agent.safetensors")
    (folder / "agent.json").write_text(json.dumps(shape))


def load_tree(folder: Path) -> Any:
    """Read what `save_tree` wrote; tuples come back as lists."""
    return _unflatten(json.loads((folder / "agent.json").read_text()), load_file(folder / "agent.safetensors"))


def _flatten(tree: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree as JSON, in which tensors are replaced by their names in `tensors`."""
    if isinstance(tree, torch.Tensor):
        tensors[path] = tree.detach().clone().contiguous()
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"items": [[key, _flatten(value, f"{path}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [_flatten(value, f"{path}/{i}", tensors) for i, value in enumerate(tree)]}
    return {"value": tree}


def _unflatten(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _unflatten(value, tensors) for key, value in content}
    if kind == "list":
        return [_unflatten(value, tensors) for value in content]
    return content
