"""One folder with every case of the hygiene rules, and the same as a zip."""

from __future__ import annotations

from pathlib import Path

import pytest
from hygiene_cases import bad_files, good_files, write_files, write_zip


@pytest.fixture(scope="session")
def hygiene_files() -> dict[str, bytes]:
    """Every case of the hygiene rules, by relative name."""
    ignored = {".DS_Store": b"\0", "cats/Thumbs.db": b"\0", "__MACOSX/cats/gray.png": b"\0"}
    return {**good_files(), **bad_files(), **ignored}


@pytest.fixture(scope="session")
def hygiene_folder(hygiene_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases as a folder. Tests must not change it."""
    return write_files(tmp_path_factory.mktemp("hygiene") / "photos", hygiene_files)


@pytest.fixture(scope="session")
def hygiene_zip(hygiene_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases as a zip."""
    return write_zip(tmp_path_factory.mktemp("hygiene") / "photos.zip", hygiene_files)
