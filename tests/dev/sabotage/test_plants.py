"""The list of planted bugs does not rot: each still has its place in the code, and a test that is there."""

import ast
from pathlib import Path

import msgspec
import pytest

from dev.sabotage import check, scratch
from dev.sabotage.__main__ import Result, digest, earlier
from dev.sabotage.plants import PLANTS, Change
from dev.sabotage.scratch import Misplaced
from dev.sandbox.process import ROOT

REQUIRED = {f"S{number}" for number in range(1, 25)} - {"S21"} | {"W1"}


@pytest.mark.parametrize("id_", PLANTS)
def test_a_plant_has_one_place(id_: str, tmp_path: Path) -> None:
    """
    What is to be replaced is found exactly once, it makes a difference, and what comes of it is still Python.
    """
    for change in PLANTS[id_].changes:
        copy = tmp_path / change.file
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text((ROOT / change.file).read_text())
        before = copy.read_text()
        scratch.plant(tmp_path, (change,))
        assert copy.read_text() != before
    for path in tmp_path.rglob("*.py"):
        ast.parse(path.read_text())


@pytest.mark.parametrize("id_", PLANTS)
def test_a_check_is_there(id_: str) -> None:
    """
    Each bug names a test function that exists.
    """
    file, _, function = PLANTS[id_].check.partition("::")
    names = {
        node.name
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert function.partition("[")[0] in names


def test_the_whole_list_is_planted() -> None:
    """
    All of the list but S21, which only a loss of power would show.
    """
    assert set(PLANTS) >= REQUIRED


@pytest.mark.parametrize("text", ["nothing like it", "twice twice"])
def test_a_plant_without_its_place_is_refused(text: str, tmp_path: Path) -> None:
    """
    Text that is gone, or that is there twice, is no place to plant in.
    """
    (tmp_path / "file").write_text(text)

    with pytest.raises(Misplaced):
        scratch.plant(tmp_path, (Change("file", "twice", "once"),))


def test_a_copy_leaves_the_tree_alone(tmp_path: Path) -> None:
    """
    What is planted in a copy is not in the tree, and the copy is gone afterwards.
    """
    (tmp_path / "code.py").write_text("true\n")
    (tmp_path / ".run").mkdir()

    with scratch.copy_of(tmp_path) as copy:
        assert sorted(path.name for path in copy.iterdir()) == ["code.py"]
        scratch.plant(copy, (Change("code.py", "true", "false"),))

    assert (tmp_path / "code.py").read_text() == "true\n"
    assert not copy.exists()


def test_only_what_was_caught_is_kept(tmp_path: Path) -> None:
    """
    A run goes on where it was; what was not caught, or was another bug of the same name, is run again.
    """
    file, plant = tmp_path / "S1.json", PLANTS["S1"]
    caught = Result("S1", plant.title, plant.check, caught=True, seconds=1.0, said="assert", plant=digest(plant))

    assert earlier(file, plant) is None
    file.write_bytes(msgspec.json.encode(caught))
    assert earlier(file, plant) == caught
    assert earlier(file, PLANTS["S2"]) is None
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(caught, caught=False)))
    assert earlier(file, plant) is None


def test_what_failed_is_one_line() -> None:
    """
    The first thing that pytest says was wrong; without any, its last word.
    """
    assert (
        check.what_failed("x.py:3: in test\n    assert 1 == 2\nE   assert 1 == 2\nE    +  where\n") == "assert 1 == 2"
    )
    assert check.what_failed("1 passed in 0.01s") == "1 passed in 0.01s"
    assert check.what_failed("") == ""


def test_a_broken_fixture_catches_nothing() -> None:
    """
    A server that does not start says nothing about the bug that was planted.
    """
    assert check.has_errors(
        "E   ConnectionRefusedError\nERROR tests/x.py::test_x - ConnectionRefusedError\n1 error in 1s"
    )
    assert not check.has_errors("E   assert 1 == 2\nFAILED tests/x.py::test_x - assert 1 == 2\n1 failed in 1s")
