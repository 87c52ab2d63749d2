"""What came out: a table on the screen, one JSON file, one HTML page that needs nothing else."""

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from dev.chaos.act import KINDS, Record
from dev.chaos.run import SeedResult
from dev.sandbox.process import write_atomically

# Recovery is promised for these: which kinds, from which places, within how many seconds at p99, from when on.
PROMISES: tuple[tuple[str, frozenset[str], str, float], ...] = (
    ("SIGKILL of an api", frozenset({"P1"}), "api", 3.0),
    ("SIGKILL of a relay", frozenset({"P1"}), "relay", 3.0),
    ("SIGKILL of a worker", frozenset({"P1"}), "worker", 3.0),
    ("SIGSTOP of a worker, from its beginning", frozenset({"P3"}), "worker", 20.0),
    ("broker or database, from its return", frozenset({"D1", "D2", "D21", "M1", "M2", "M15"}), "", 10.0),
)


class Recovery(msgspec.Struct, frozen=True):
    """How long until all that had been accepted was through; `alone` are those with no other fault meanwhile."""

    title: str
    bound: float
    count: int
    p50: float | None
    p99: float | None
    alone: int
    alone_p99: float | None
    never: int


class Brief(msgspec.Struct, frozen=True):
    """One seed in a few lines: what is kept of it for ever."""

    seed: int
    minutes: float
    rate: float
    handler: str
    faults: int
    kinds: list[str]
    orders: int
    events: int
    violations: dict[str, int]
    vacuous: list[str]
    settled_seconds: float | None
    slowest_recovery: str  # of a fault, whatever else was broken meanwhile
    never_recovered: int  # within the time that a single fault is watched for
    machine: str
    commit: str
    at: str


def brief(o: SeedResult) -> Brief:
    """Leave out the timeline and the single faults."""
    fired = [record for record in o.records if record.fired_at is not None]
    slowest = max(fired, key=lambda record: record.recovery_seconds or 0.0, default=None)
    return Brief(
        o.asked.seed, o.asked.minutes, o.asked.rate, o.handler, o.fired,
        sorted({record.planned.kind for record in fired}), o.accepted, o.events,
        {result.id: result.violations for result in o.results}, o.vacuous, o.settled_seconds,
        f"{slowest.recovery_seconds or 0.0:.1f} s, {slowest.planned.kind} {slowest.planned.place}" if slowest else "",
        sum(record.recovery_seconds is None for record in fired), o.machine, o.commit, o.at,
    )  # fmt: skip


class Summary(msgspec.Struct, frozen=True):
    """All seeds of one run of the command."""

    ok: bool
    seeds: list[int]
    accepted: int
    fired: int
    kinds: int
    violations: dict[str, int]
    recoveries: list[Recovery]
    seed_results: list[SeedResult]


def summarize(seed_results: Sequence[SeedResult]) -> Summary:
    """Add the seeds up."""
    violations: dict[str, int] = defaultdict(int)
    for seed_result in seed_results:
        for result in seed_result.results:
            violations[result.id] += result.violations
    records = [record for seed_result in seed_results for record in seed_result.records]
    return Summary(
        ok=all(seed_result.ok for seed_result in seed_results),
        seeds=[seed_result.asked.seed for seed_result in seed_results],
        accepted=sum(seed_result.accepted for seed_result in seed_results),
        fired=sum(seed_result.fired for seed_result in seed_results),
        kinds=len({record.planned.kind for record in records if record.fired_at is not None}),
        violations=dict(violations),
        recoveries=[recovery(records, *promise) for promise in PROMISES],
        seed_results=list(seed_results),
    )


def recovery(records: Iterable[Record], title: str, kinds: frozenset[str], role: str, bound: float) -> Recovery:
    """Sum up the recoveries of some kinds of faults."""
    fired = [
        record
        for record in records
        if record.planned.kind in kinds and record.planned.place.startswith(role) and record.fired_at is not None
    ]
    every = [seconds for record in fired if (seconds := seconds_of(record)) is not None]
    alone = [seconds for record in fired if record.alone and (seconds := seconds_of(record)) is not None]
    return Recovery(
        title, bound, len(fired), percentile(every, 0.5), percentile(every, 0.99), len(alone),
        percentile(alone, 0.99), len(fired) - len(every),
    )  # fmt: skip


def seconds_of(record: Record) -> float | None:
    """The recovery of one fault: of a stopped worker from the beginning, for others take its orders over meanwhile."""
    if record.recovery_seconds is None or record.fired_at is None or record.healed_at is None:
        return None
    if record.planned.kind == "P3":
        return record.recovery_seconds + record.healed_at - record.fired_at
    return record.recovery_seconds


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of them does not exceed."""
    ranked = sorted(values)
    return round(ranked[math.ceil(share * len(ranked)) - 1], 3) if ranked else None


def show(summary: Summary, console: Console) -> None:
    """Print the tables."""
    seeds = Table(title="seeds", title_justify="left")
    for name in ("seed", "minutes", "orders", "faults", "kinds", "settled s", "result"):
        seeds.add_column(name, justify="right" if name != "result" else "left")
    for o in summary.seed_results:
        broken = [f"{result.id} x {result.violations}" for result in o.results if result.violations]
        word = "[green]holds" if o.ok else f"[red]{', '.join(broken) or 'vacuous'}"
        settled = "never" if o.settled_seconds is None else f"{o.settled_seconds:.1f}"
        seeds.add_row(
            str(o.asked.seed), f"{o.asked.minutes:g}", str(o.accepted), str(o.fired), str(o.kinds), settled, word
        )
    console.print(seeds)

    table = Table(title="invariants", title_justify="left")
    for name in ("", "what has to hold", "held against", "violations"):
        table.add_column(name, justify="right" if name in {"held against", "violations"} else "left")
    for result in summary.seed_results[0].results if summary.seed_results else ():
        checked = sum(v.checked for o in summary.seed_results for v in o.results if v.id == result.id)
        count = summary.violations[result.id]
        table.add_row(result.id, result.title, str(checked), f"[red]{count}" if count else "0")
    console.print(table)

    times = Table(title="recovery", title_justify="left")
    for name in ("after", "faults", "p50 s", "p99 s", "alone", "p99 s alone", "bound s", "never"):
        times.add_column(name, justify="right" if name != "after" else "left")
    for r in summary.recoveries:
        cells = (number(r.p50), number(r.p99), str(r.alone), number(r.alone_p99), f"{r.bound:g}", str(r.never))
        times.add_row(r.title, str(r.count), *cells)
    console.print(times)

    for o in summary.seed_results:
        for result in o.results:
            for example in result.examples:
                console.print(f"seed {o.asked.seed} {result.id}: {example}", highlight=False, markup=False, style="red")
        for reason in o.vacuous:
            console.print(f"seed {o.asked.seed} proves nothing: {reason}", highlight=False, markup=False, style="red")


def number(value: float | None) -> str:
    """A number of seconds, or nothing."""
    return "-" if value is None else f"{value:.2f}"


def write(summary: Summary, folder: Path) -> None:
    """Write summary.json, brief.jsonl (a line for each seed) and report.html."""
    briefs = [msgspec.json.encode(brief(seed_result)).decode() for seed_result in summary.seed_results]
    write_atomically(folder / "brief.jsonl", "".join(f"{each}\n" for each in briefs))
    write_atomically(folder / "summary.json", msgspec.json.format(msgspec.json.encode(summary)).decode())
    write_atomically(folder / "report.html", page(summary))


STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd;
text-align: left } .bad { color: #b00020; font-weight: 600 } .good { color: #1b7f3b } svg { width: 100%; height: auto;
background: #fafafa; border: 1px solid #ddd } svg text { font: 10px system-ui, sans-serif; fill: #444 }
"""

WIDTH, CHART, TRACK = 1000, 140, 12
COLOURS = {"P": "#d1495b", "C": "#8f2d56", "D": "#2e6f95", "M": "#e08e1b", "N": "#6b7fd7", "H": "#3f9c62", "O": "#777",
           "T": "#555"}  # fmt: skip


def page(summary: Summary) -> str:
    """The report as one page, with a timeline for each seed."""
    rows = "".join(
        f"<tr><td>{v.id}<td>{html.escape(v.title)}<td>"
        f"{sum(x.checked for o in summary.seed_results for x in o.results if x.id == v.id)}"
        f"<td class={'bad' if summary.violations[v.id] else 'good'}>{summary.violations[v.id]}"
        for v in (summary.seed_results[0].results if summary.seed_results else ())
    )
    times = "".join(
        f"<tr><td>{html.escape(r.title)}<td>{r.count}<td>{number(r.p50)}<td>{number(r.p99)}<td>{r.alone}"
        f"<td>{number(r.alone_p99)}<td>{r.bound:g}<td>{r.never}"
        for r in summary.recoveries
    )
    kinds = "".join(kind_row(kind_id, records) for kind_id, records in by_kind(summary))
    seeds = "".join(section(seed_result) for seed_result in summary.seed_results)
    word = "<span class=good>every invariant holds</span>" if summary.ok else "<span class=bad>broken</span>"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Orders under chaos</title><style>{STYLE}</style>"
        f"<h1>Orders under chaos: {word}</h1><p>{summary.accepted} orders acknowledged, {summary.fired} faults of "
        f"{summary.kinds} kinds, seeds {', '.join(map(str, summary.seeds))}.</p>"
        f"<table><tr><th><th>what has to hold<th>held against<th>violations{rows}</table>"
        f"<table><tr><th>recovery after<th>faults<th>p50 s<th>p99 s<th>alone<th>p99 s alone<th>bound s<th>never{times}"
        f"</table><details><summary>every kind</summary><table><tr><th><th>fault<th>fired<th>recovery p50 s"
        f"<th>longest s{kinds}</table></details>{seeds}</html>"
    )


def kind_row(kind_id: str, records: Sequence[Record]) -> str:
    """How often a kind fired, and how long it took to recover from, whatever else was broken meanwhile."""
    took = [record.recovery_seconds for record in records if record.recovery_seconds is not None]
    return (
        f"<tr><td>{kind_id}<td>{html.escape(KINDS[kind_id].title)}<td>{len(records)}<td>{number(percentile(took, 0.5))}"
        f"<td>{number(percentile(took, 1))}"
    )


def by_kind(summary: Summary) -> list[tuple[str, list[Record]]]:
    """The faults that fired, by their kind, in the order of the list of kinds."""
    fired = [record for o in summary.seed_results for record in o.records if record.fired_at is not None]
    return [
        (kind_id, records)
        for kind_id in KINDS
        if (records := [record for record in fired if record.planned.kind == kind_id])
    ]


def section(o: SeedResult) -> str:
    """One seed: its timeline and its faults."""
    faults = "".join(
        f"<tr><td>{number(r.fired_at)}<td>{r.planned.kind}<td>{html.escape(KINDS[r.planned.kind].title)}"
        f"<td>{r.planned.place}<td>{html.escape(r.detail)}<td>{number(r.recovery_seconds)}"
        f"<td class=bad>{html.escape(r.error)}"
        for r in o.records
    )
    reasons = "".join(f"<li class=bad>{html.escape(each)}" for each in o.vacuous)
    examples = "".join(f"<li class=bad>{v.id}: {html.escape(e)}" for v in o.results for e in v.examples)
    return (
        f"<h2>seed {o.asked.seed}</h2><p>{o.accepted} orders, {o.fired} faults of {o.kinds} kinds in "
        f"{o.asked.minutes:g} minutes at {o.asked.rate:g} orders/s; {html.escape(o.machine)}; {o.commit}; {o.at}</p>"
        f"<ul>{reasons}{examples}</ul>{timeline(o)}<details><summary>every fault</summary>"
        f"<table><tr><th>at s<th><th><th>where<th><th>recovery s<th>{faults}</table></details>"
    )


def timeline(o: SeedResult) -> str:
    """Orders accepted and ended a second, what is under way, and below them the faults as bars."""
    last = max([tick.at for tick in o.ticks] + [r.healed_at or 0.0 for r in o.records] + [1.0])
    tracks: list[float] = []
    bars = []
    for r in sorted(o.records, key=lambda each: each.fired_at or 0.0):
        if r.fired_at is None:
            continue
        until = max(r.healed_at or r.fired_at, r.fired_at + last / 300)
        label_until = until + last * 0.03
        track = next((n for n, busy in enumerate(tracks) if busy <= r.fired_at), len(tracks))
        tracks[track:] = [label_until, *tracks[track + 1 :]]
        x, width = r.fired_at / last * WIDTH, max(2.0, (until - r.fired_at) / last * WIDTH)
        y = CHART + 14 + track * TRACK
        title = f"{r.planned.kind} {KINDS[r.planned.kind].title}, {r.planned.place}: {r.detail}"
        bars.append(
            f"<g><title>{html.escape(title)}</title><rect x={x:.1f} y={y} width={width:.1f} height={TRACK - 3} "
            f"fill='{COLOURS[r.planned.kind[0]]}'/><text x={x + width + 1:.1f} y={y + TRACK - 4}>{r.planned.kind}"
            "</text></g>"
        )
    height = CHART + 20 + len(tracks) * TRACK
    pairs = list(zip(o.ticks, o.ticks[1:], strict=False))
    accepted = [(b.at, (b.accepted - a.accepted) / max(0.1, b.at - a.at)) for a, b in pairs]
    ended = [(b.at, (b.ended - a.ended) / max(0.1, b.at - a.at)) for a, b in pairs]
    under_way = [(tick.at, float(max(0, tick.accepted - tick.ended))) for tick in o.ticks]
    most = max([value for _, value in (*accepted, *ended)] + [1.0])
    deepest = max([value for _, value in under_way] + [1.0])
    return (
        f"<svg viewBox='0 0 {WIDTH} {height}' role=img aria-label='timeline'>"
        f"{curve(under_way, last, deepest, '#bbb')}{curve(accepted, last, most, '#2e6f95')}"
        f"{curve(ended, last, most, '#3f9c62')}"
        f"<text x=4 y=12>accepted (blue) and ended (green), up to {most:.0f}/s; under way (grey), up to {deepest:.0f}; "
        f"{last:.0f} s</text>{''.join(bars)}</svg>"
    )


def curve(points: Sequence[tuple[float, float]], last: float, most: float, colour: str) -> str:
    """One line of the chart."""
    path = " ".join(f"{at / last * WIDTH:.1f},{CHART - value / most * (CHART - 16):.1f}" for at, value in points)
    return f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=1.5 />"
