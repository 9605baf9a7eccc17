"""What all tests run with."""

import pytest


@pytest.fixture(autouse=True)
def without_cache(monkeypatch):
    """Libraries are compiled, and nothing is left in the user's cache."""
    monkeypatch.setenv("IQVIT_CACHE", "off")
