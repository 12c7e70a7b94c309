from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Done


@pytest.fixture
def fedsim(folder: Path, command: Callable[..., Done]) -> Callable[..., Done]:
    """Runs the command's entry point in a folder of its own."""
    return command
