"""Pictures are drawn of what was measured, and of nothing else."""

from pathlib import Path
from xml.etree import ElementTree

import msgspec

from dev.bench import draw
from dev.bench.record import Record, Run


def kept(folder: Path, name: str, *runs: Run) -> None:
    """Write down a measurement's runs."""
    record = Record(name, "short", "abc", "make bench", {}, runs=list(runs))
    (folder / f"{name}.json").write_bytes(msgspec.json.encode(record))


def texts(file: Path) -> list[str | None]:
    return [each.text for each in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    """
    Without results there are no pictures; with those of one comparison there is one.
    """
    assert draw.main(tmp_path, tmp_path / "plots") == []

    kept(tmp_path, "relay", Run("drain", "relay", 1, {"messages_per_second": 17_800.0}, 0.5, "now"))

    assert draw.main(tmp_path, tmp_path / "plots") == ["relay-drain"]


def test_each_side_is_in_the_picture(tmp_path: Path) -> None:
    """
    Bars and lines name their sides, a line that of its first round.
    """
    line = [(100.0, 99.0), (200.0, 180.0)]
    kept(
        tmp_path,
        "placing",
        Run("placing", "ours", 1, {"per_second": 3_000.0, "cpu_us": 300.0}, 0.5, "now"),
        Run("placing", "baseline", 1, {"per_second": 250.0, "cpu_us": 4_000.0}, 0.5, "now"),
        Run("ramp", "ours", 1, {"answered_by_asked": line}, 0.5, "now"),
        Run("ramp", "baseline", 1, {"answered_by_asked": line}, 0.5, "now"),
    )

    drawn = draw.main(tmp_path, tmp_path / "plots")

    assert drawn == ["placing-placing", "placing-cpu", "placing-ramp"]
    for name in drawn:
        assert {"ours", "baseline"} <= set(texts(tmp_path / "plots" / f"{name}.svg"))
