"""A cache folder of its own for every test, and one tiny encoder for all."""

from pathlib import Path

import pytest
from pictures import save_encoder

from fedsim.data.spec import EncoderSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    return save_encoder(tmp_path_factory.mktemp("encoder"))
