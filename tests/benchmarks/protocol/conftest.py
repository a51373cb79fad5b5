"""Where the datasets are, for tests that need them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.counterfact_model import data_folder


@pytest.fixture(scope="session")
def data() -> Path:
    folder = data_folder()
    if not (folder / "fever").is_dir():
        pytest.skip(f"no datasets in {folder}")
    return folder
