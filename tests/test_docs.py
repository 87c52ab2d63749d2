"""The pages agree with the tree: their links lead somewhere, and the files that they name exist."""

import re
from pathlib import Path

import pytest

from dev.sabotage.plants import PLANTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "deploy/**/*.md", "dev/**/*.md")
    for path in ROOT.glob(pattern)
)
# Where a page may count a path from, when it is not the page's own folder.
BASES = ("", "src", "src/orders", "tests", "relay", "docs", "deploy/nginx", "migrations/versions")
MADE_BY_RUNNING = (".run/", ".venv/", "/", "~")

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
NAMED_FILE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|md|sql|json|jsonl|pml|conf|yml|toml))(?:::\w+)?`")
NAMED_CONSTANTS = re.compile(r"((?:`[A-Z][A-Z_]+`(?: and )?)+) in `([\w./]+\.py)`")
STATES = re.compile(r"CHECK \((?:status|state) IN \(([^)]*)\)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


def prose(page: Path) -> str:
    """Return the page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """
    Each link to a file of the repository finds it, and its anchor is a heading there.
    """
    broken = []
    for target, anchor in LINK.findall(prose(page)):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(f"{target}#{anchor}" if anchor else target)

    assert broken == []


@every_page
def test_named_files_exist(page: Path) -> None:
    """
    Each file that a page names by its path is in the repository, or made by a run.
    """
    named = {path for path in NAMED_FILE.findall(prose(page)) if not path.startswith(MADE_BY_RUNNING)}
    folders = [page.parent, *(ROOT / base for base in BASES)]

    assert [path for path in sorted(named) if not any((folder / path).exists() for folder in folders)] == []


@every_page
def test_named_constants_exist(page: Path) -> None:
    """
    Where a page says "`NAME` in `file`", or "`NAME` and `OTHER` in `file`", the file assigns these names.
    """
    said = [
        (name, path)
        for names, path in NAMED_CONSTANTS.findall(prose(page))
        for name in re.findall(r"\w+", names.replace(" and ", " "))
    ]
    missing = [f"{name} in {path}" for name, path in said if not assigned(name, ROOT / path)]

    assert missing == []


def assigned(name: str, path: Path) -> bool:
    """Whether a module assigns a constant."""
    return path.is_file() and re.search(rf"^{name}\b.* = ", path.read_text(), re.MULTILINE) is not None


def test_each_state_is_drawn() -> None:
    """
    Each status of an order, state of an outbox row and state of a dead letter is in a diagram of the states.
    """
    migrations = "".join(path.read_text() for path in sorted((ROOT / "migrations" / "versions").glob("*.py")))
    states = {state for names in STATES.findall(migrations) for state in re.findall(r"'(\w+)'", names)}
    page = (ROOT / "docs" / "state_machine.md").read_text()
    drawn = set(re.findall(r"\w+", "".join(re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL))))

    assert {"placed", "parked", "discarded"} <= states
    assert states <= drawn


def test_the_worked_example_fits_the_code() -> None:
    """
    Each line that the example in CONTRIBUTING.md removes or keeps beside a change is in the file that it names.
    """
    [diff] = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    missing = []
    code: list[str] = []
    for line in diff.splitlines():
        if line.startswith(" src/"):
            code = (ROOT / line.strip()).read_text().splitlines()
        elif line.startswith((" ", "-")) and line[1:] not in code:
            missing.append(line)

    assert missing == []


def test_the_page_lists_each_plant() -> None:
    """
    docs/reliability.md has a row for each planted bug, and names the test that catches it.
    """
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| `([\w/.]+)` ([^|]+) \| [\d.]+ \|$", page, re.MULTILINE)
    checks = {}
    for plant in PLANTS.values():
        path, _, test = plant.check.partition("::")
        words = test.partition("[")[0].removeprefix("test_").replace("_", " ")
        checks[plant.id] = (path.removeprefix("tests/"), words)

    assert {id_: (path, words) for id_, path, words in rows} == checks
