"""Shared by all tests: one thread each, so that what runs side by side does not fight for cores."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
