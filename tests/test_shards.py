"""Evaluations in units: alone, by several processes, interrupted, and with one that fails."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from iqvit.errors import FileFormatError, IqvitError
from iqvit.eval.kept import Kept, differing
from iqvit.eval.shards import require_same, score_all, score_shared, units
from iqvit.processes import World

KEY = {"model": "m", "data": [1, 2]}


class Job:
    """Eleven images in units of two; a record tells its unit, and a float that no decimal is."""

    images, unit, facts = 11, 2, KEY

    def __init__(self):
        self.scored = []

    def score(self, unit):
        self.scored.append(unit)
        return {"unit": unit, "third": unit / 3, "none": None}


class Interrupted(Job):
    def score(self, unit):
        if unit == 3:
            raise KeyboardInterrupt
        return super().score(unit)


def kept_in(folder, key=KEY, rank=0):
    return Kept(folder, key, rank)


def test_units_are_scored_in_order_and_progress_counts_images():
    job, seen = Job(), []
    found = score_all(job, lambda *done: seen.append(done))
    assert units(job) == 6
    assert [record["unit"] for record in found.records] == [0, 1, 2, 3, 4, 5]
    assert seen == [(2, 11), (4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
    assert found.seconds >= 0


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    whole = score_all(Job()).records
    with kept_in(tmp_path) as kept, pytest.raises(KeyboardInterrupt):
        score_shared(Interrupted(), World(), kept)
    job = Job()
    with kept_in(tmp_path) as kept:
        found = score_shared(job, World(), kept)
    assert job.scored == [3, 4, 5]
    assert found.records == whole
    with kept_in(tmp_path) as kept:
        job = Job()
        assert score_shared(job, World(), kept).records == whole
    assert job.scored == []


def test_a_line_that_was_cut_off_is_dropped_for_good(tmp_path):
    with kept_in(tmp_path) as kept:
        kept.add(0, {"a": 1})
        kept.add(4, {"a": 2})
    path = tmp_path / "part-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with kept_in(tmp_path) as kept:
        assert kept.records == {0: {"a": 1}}
        kept.add(5, {"a": 3})
    with kept_in(tmp_path) as kept:
        assert kept.records == {0: {"a": 1}, 5: {"a": 3}}
    path.write_bytes(b'{"evalu')
    with kept_in(tmp_path) as kept:
        assert kept.records == {}
        kept.add(1, None)
    with kept_in(tmp_path) as kept:
        assert kept.records == {1: None}


def test_files_of_other_processes_are_read_too(tmp_path):
    with kept_in(tmp_path, rank=3) as kept:
        kept.add(2, "two")
    with kept_in(tmp_path) as kept:
        assert kept.records == {2: "two"}


def test_results_of_another_evaluation_are_refused(tmp_path):
    with kept_in(tmp_path):
        pass
    with pytest.raises(IqvitError, match="another evaluation: it differs in data, split"):
        kept_in(tmp_path, {"model": "m", "data": [1], "split": None})
    assert differing({"a": 1, "b": None}, {"a": 1}) == ["b"]
    assert differing({"a": 1}, {"b": None, "a": 2}) == ["a", "b"]


@pytest.mark.parametrize("line", [b"{]", b"7", b'{"unit": "x", "record": 1}', b'{"unit": 1}'])
def test_a_damaged_file_is_told_with_its_line(tmp_path, line):
    with kept_in(tmp_path) as kept:
        kept.add(0, 1)
    path = tmp_path / "part-00000.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(FileFormatError, match="line 3 is damaged"):
        kept_in(tmp_path)
    path.write_bytes(b"{}\n")
    with pytest.raises(FileFormatError, match="line 1 is damaged"):
        kept_in(tmp_path)


def test_two_runs_do_not_write_to_one_file(tmp_path):
    with kept_in(tmp_path), pytest.raises(IqvitError, match="another evaluation is writing"):
        kept_in(tmp_path)


def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path):
    path, limits = tmp_path / "part-00000.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with kept_in(tmp_path) as kept:
        kept.add(0, "before")
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
        try:
            with pytest.raises(IqvitError, match="goes on from there"):
                kept.add(1, "does not fit")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.read_bytes().endswith(b"\n")
    with kept_in(tmp_path) as kept:
        assert kept.records == {0: "before"}


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IqvitError, match="cannot write"):
        kept_in(tmp_path / "file" / "below")


def test_one_process_has_the_same_key_as_itself():
    require_same(KEY, World())


SCRIPT = """
import importlib.util, json, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
from iqvit.errors import DataError, IqvitError
from iqvit.eval.kept import Kept
from iqvit.eval.shards import ToldElsewhere, require_same, score_shared
from iqvit.processes import processes

folder, rank = Path(sys.argv[2]), int(os.environ["RANK"])

class Job(toy.Job):
    def score(self, unit):
        if rank == 1 and unit == 3 and act == "fails":
            raise DataError("no image 3")
        if rank == 1 and unit == 3 and act == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(unit)

for number, act in enumerate(sys.argv[3:]):
    os.environ["MASTER_PORT"] = os.environ["PORTS"].split()[number]
    job, told = Job(), {}
    try:
        with processes(gpus=False) as world:
            require_same({**toy.KEY, "rank": rank if act == "differs" else 0}, world)
            if act in ("dies", "goes on"):
                with Kept(folder / "kept", toy.KEY, rank) as kept:
                    found = score_shared(job, world, kept)
            else:
                found = score_shared(job, world)
        told = {"records": None if found is None else found.records}
    except ToldElsewhere:
        told = {"silent": True}
    except IqvitError as error:
        told = {"error": str(error)}
    (folder / f"{act}-{rank}.json").write_text(json.dumps({**told, "scored": job.scored}))
"""


@pytest.fixture
def two(tmp_path, free_port):
    """two(*acts) -> exit codes of two processes; what they found is in ACT-RANK.json."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(*acts):
        common = {
            **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
            "PORTS": " ".join(str(free_port()) for _ in acts),
        }  # fmt: skip
        command = [sys.executable, str(script), __file__, str(tmp_path), *acts]
        started = [
            subprocess.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(2)
        ]
        return [process.wait(timeout=200) for process in started]

    return run


def told(folder, act, rank):
    return json.loads((folder / f"{act}-{rank}.json").read_text())


def test_two_processes_find_what_one_does_and_stop_together(tmp_path, two):
    assert two("all is well", "fails", "differs") == [0, 0]
    first, second = (told(tmp_path, "all is well", rank) for rank in range(2))
    assert first["records"] == score_all(Job()).records
    assert (first["scored"], second["scored"]) == ([0, 2, 4], [1, 3, 5])
    assert second["records"] is None
    assert told(tmp_path, "fails", 0)["error"] == "process 1: no image 3"
    assert told(tmp_path, "fails", 1)["silent"]
    assert "process 1 was given something else" in told(tmp_path, "differs", 0)["error"]
    assert "rank" in told(tmp_path, "differs", 0)["error"]
    assert told(tmp_path, "differs", 1)["silent"]


def test_a_process_that_dies_is_noticed_and_the_run_goes_on_later(tmp_path, two):
    assert two("dies") == [0, -signal.SIGKILL]
    found = told(tmp_path, "dies", 0)
    assert "another process of this run has ended" in found["error"]
    assert "records" not in found
    assert two("goes on") == [0, 0]
    first, second = (told(tmp_path, "goes on", rank) for rank in range(2))
    assert first["records"] == score_all(Job()).records
    # The first process had done its share, and the other one unit of its own.
    assert sorted(first["scored"] + second["scored"]) == [3, 5]
    with kept_in(tmp_path / "kept") as kept:
        job = Job()
        assert score_shared(job, World(), kept).records == first["records"]
    assert job.scored == []
