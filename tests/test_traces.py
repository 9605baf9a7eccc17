"""Stand-ins for data: the same for the same files, wherever they lie and however they are named."""

from pathlib import Path

import pytest

from iqvit.eval.imagenet import choose
from iqvit.eval.traces import below_shared, names_and_contents, names_and_sizes


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a/1, a/2 and b/1 below the current folder."""
    monkeypatch.chdir(tmp_path)
    paths = [Path("a/1"), Path("a/2"), Path("b/1")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))
    return paths


def test_relative_and_absolute_paths_may_be_mixed(files):
    mixed = [files[0], *(path.absolute() for path in files[1:])]
    assert below_shared(mixed) == ["a/1", "a/2", "b/1"]
    assert names_and_sizes(mixed) == names_and_sizes(files)
    assert names_and_contents(mixed) == names_and_contents(files)
    assert [path.absolute() for path in choose(mixed, 3)] == [
        path.absolute() for path in choose(files, 3)
    ]


def test_names_sizes_and_contents_count(files):
    before = names_and_sizes(files), names_and_contents(files)
    assert names_and_sizes(files[::-1]) != before[0]
    files[2].write_text("c/1")
    assert (names_and_sizes(files), before[1] != names_and_contents(files)) == (before[0], True)
    files[2].unlink()
    assert names_and_sizes(files) != before[0]


def test_no_files():
    assert below_shared([]) == []
    assert names_and_sizes([]) == names_and_contents([])
