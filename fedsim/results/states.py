"""What a training left: its tensors, in a file that its result line knows by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim.errors import UserError
from fedsim.files import replaced, unread
from fedsim.methods.messages import Tensors


def keep_state(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write the tensors, at once or not at all.

    Returns:
        SHA-256 of the file.

    Raises:
        OSError: it cannot be written.
    """
    content = save({name: value.contiguous() for name, value in state.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part:
        part.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_state(path: Path, sha256: str, hint: str = "remove it; the same command trains again") -> Tensors:
    """The tensors, if they are those that were written; ``hint`` says what to do where not.

    Raises:
        UserError: they cannot be read, or are not.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its SHA-256 is not the one that was noted when it was written")
        state: Tensors = load(content)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(str(path), f"is not what was saved ({unread(error)})", hint) from error
    return state
