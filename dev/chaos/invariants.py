"""What has to be true of the evidence, whatever was broken. Each checker is a function of values."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import msgspec

from dev.chaos.act import Record
from dev.chaos.evidence import Evidence

ALLOWED = frozenset({0, 201, 422, 429, 502, 503, 504})  # 0: no answer. Never a 500, never a 4xx for a good order.
TERMINAL = frozenset({"done", "failed", "cancelled"})
ENDS = frozenset({"order.done", "order.failed", "order.cancelled"})

NAMED = 5  # of the orders that break an invariant


class InvariantResult(msgspec.Struct, frozen=True):
    """The result of checking one invariant: how often it was broken, by which orders, and how many were checked."""

    id: str
    title: str
    violations: int
    checked: int
    examples: list[str] = []
    note: str = ""


Found = tuple[Iterable[str], int, str]  # who breaks it, how many were looked at, what else there is to say
CHECKS: dict[str, tuple[str, Callable[[Evidence], Found]]] = {}


def invariant(id_: str, title: str) -> Callable[[Callable[[Evidence], Found]], Callable[[Evidence], Found]]:
    """Put a checker on the list."""

    def register(check: Callable[[Evidence], Found]) -> Callable[[Evidence], Found]:
        CHECKS[id_] = (title, check)
        return check

    return register


def check_all(evidence: Evidence) -> list[InvariantResult]:
    """Hold all invariants against the evidence."""
    results = []
    for id_, (title, check) in CHECKS.items():
        broken, checked, note = check(evidence)
        broken = list(broken)
        results.append(InvariantResult(id_, title, len(broken), checked, broken[:NAMED], note))
    return results


@invariant("I1", "every acknowledged order exists, once, as it was asked for")
def acknowledged_orders_exist(e: Evidence) -> Found:
    totals = {order.order_id: order.total_minor for order in e.orders}
    promised = {answer.order_id: answer.number for answer in e.answers if answer.order_id}
    lost = [f"{order_id}: lost" for order_id in promised if order_id not in totals]
    changed = [
        f"{order_id}: asked for {number}, stored {totals[order_id]}"
        for order_id, number in promised.items()
        if order_id in totals and totals[order_id] != number
    ]
    return lost + changed, len(promised), ""


@invariant("I2", "one key is one order, and no order is nobody's")
def one_key_is_one_order(e: Evidence) -> Found:
    by_key: dict[str, set[str]] = defaultdict(set)
    forgotten = {each.order_id: each.key for each in e.forgotten}
    for answer in e.answers:
        if answer.order_id and answer.order_id not in forgotten:
            by_key[answer.key].add(answer.order_id)
    doubled = [f"key {key}: {sorted(orders)}" for key, orders in by_key.items() if len(orders) > 1]
    asked = {intent.key for intent in e.intents}
    owners = forgotten | {order_id: key for key, order_id in e.keys.items()}
    unexpected = [f"{order.order_id}: nobody's" for order in e.orders if owners.get(order.order_id) not in asked]
    recovered = sum(order_id not in by_key.get(key, set()) for key, order_id in e.keys.items())
    return doubled + unexpected, len(asked), f"{recovered} placed and never acknowledged"


@invariant("I3", "an order has its event, and an event has its order")
def no_orphans(e: Evidence) -> Found:
    orders = {order.order_id for order in e.orders}
    placed = {row.order_id for row in e.rows if row.type == "order.placed"}
    return (
        [f"{each}: order without event" for each in orders - placed]
        + [f"{each}: event without order" for each in placed - orders],
        len(orders),
        "",
    )


@invariant("I4", "every committed event is delivered")
def every_event_is_heard(e: Evidence) -> Found:
    heard = Counter(each.event_id for each in e.heard)
    events = [row for row in e.rows if row.exchange]
    lost = [f"row {row.id} {row.type} of {row.order_id}, {row.state}" for row in events if row.event_id not in heard]
    return lost, len(events), f"{sum(heard.values()) - len(heard)} repeats"


@invariant("I5", "every order ends once, and what was done for it was done")
def effects_come_once(e: Evidence) -> Found:
    ends = Counter(row.order_id for row in e.rows if row.type in ENDS)
    redrives = Counter(row.order_id for row in e.rows if row.type == "order.redriven")
    doubled = [f"{order_id}: ended {many} times" for order_id, many in ends.items() if many > 1 + redrives[order_id]]
    effects = Counter(effect.order_id for effect in e.effects)
    done = {order.order_id for order in e.orders if order.status == "done"}
    missing = [f"{order_id}: done without its effect" for order_id in done if order_id not in effects]
    repeats = sum(effects.values()) - len(effects)
    if e.exactly_once:
        doubled += [f"{order_id}: {many} effects were committed" for order_id, many in effects.items() if many > 1]
    return doubled + missing, len(done), f"{repeats} handlers ran again under the same key, after a crash"


@invariant("I6", "the events of an order are first heard in the order of their transactions")
def first_deliveries_in_order(e: Evidence) -> Found:
    written: dict[str, list[str]] = defaultdict(list)
    for row in e.rows:
        if row.exchange:
            written[row.order_id].append(row.event_id)
    known = {event_id for ids in written.values() for event_id in ids}
    heard: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for each in e.heard:
        if each.event_id in known and each.event_id not in seen:
            seen.add(each.event_id)
            heard[each.order_id].append(each.event_id)
    wrong = [
        f"{order_id}: written {ids}, heard {heard[order_id]}"
        for order_id, ids in written.items()
        if [each for each in ids if each in seen] != heard[order_id]
    ]
    return wrong, len(written), ""


@invariant("I7", "a status never goes back, and terminal is terminal")
def terminal_is_terminal(e: Evidence) -> Found:
    rows: dict[str, list[str]] = defaultdict(list)
    for row in e.rows:
        if row.exchange:
            rows[row.order_id].append(row.type)
    wrong = []
    for order in e.orders:
        told = rows[order.order_id]
        if order.status not in TERMINAL:
            wrong.append(f"{order.order_id}: {order.status}, for ever")
        elif told[-1:] != [f"order.{order.status}"]:
            wrong.append(f"{order.order_id}: {order.status}, told {told}")
    return wrong, len(e.orders), ""


@invariant("I8", "nothing is in the dead letters that was not poison, and no order failed that did not ask for it")
def no_false_dead_letters(e: Evidence) -> Found:
    failed = [f"{order.order_id}: failed" for order in e.orders if order.status == "failed"]
    return e.dead_orders + failed, len(e.orders), ""


@invariant("I9", "one claim, one handler: nobody works under an attempt that is another's")
def one_claim_one_handler(e: Evidence) -> Found:
    workers: dict[tuple[str, int], set[str]] = defaultdict(set)
    for effect in e.effects:
        workers[effect.order_id, effect.attempt].add(effect.process)
    shared = [f"{order_id}, attempt {n}: {sorted(who)}" for (order_id, n), who in workers.items() if len(who) > 1]
    return shared, len(workers), ""


@invariant("I10", "money is conserved")
def money_is_conserved(e: Evidence) -> Found:
    done = {order.order_id: order.total_minor for order in e.orders if order.status == "done"}
    taken = {effect.order_id: effect.total_minor for effect in e.effects}
    drift = sum(done.values()) - sum(taken.get(order_id, 0) for order_id in done)
    return ([f"{drift} minor units are missing"] if drift else []), len(done), f"{sum(done.values())} minor units"


@invariant("I11", "no answer outside of the contract")
def answers_keep_the_contract(e: Evidence) -> Found:
    wrong = [
        f"key {answer.key}: {answer.status} {answer.detail}" for answer in e.answers if answer.status not in ALLOWED
    ]
    odd = [f"{each.what}: expected {each.expected}, got {each.status}" for each in e.odd if not each.fine]
    counts = Counter(answer.status for answer in e.answers)
    return (
        wrong + odd,
        len(e.answers) + len(e.odd),
        ", ".join(f"{n} x {status}" for status, n in sorted(counts.items())),
    )


@invariant("I12", "after the last fault everything settles by itself")
def it_settles(e: Evidence) -> Found:
    if e.settled_seconds is None:
        return [f"not within its time; the oldest event waits for {e.oldest_pending:.0f} s"], 1, ""
    return [], 1, f"{e.settled_seconds:.1f} s"


MEMORY_GROWTH_MB = 120.0  # a process that has been through a backlog keeps some of it
DESCRIPTORS_GROWTH = 160  # nginx keeps up to 64 connections for each of its two processes, a minute long
TASKS_GROWTH = 20  # beyond what they were under load
CONNECTIONS_GROWTH = 15
HANDLERS_CONNECTIONS = 30  # three workers keep up to ten each for their handlers, once these were all in use


@invariant("I13", "memory, descriptors, tasks, connections and dead rows are back to where they were")
def nothing_leaks(e: Evidence) -> Found:
    before = {sample.name: sample for sample in e.before}
    leaks = []
    for after in e.after:
        was = before.get(after.name)
        if was is None:
            continue
        if after.memory_mb > was.memory_mb + MEMORY_GROWTH_MB:
            leaks.append(f"{after.name}: {was.memory_mb:.0f} MB, then {after.memory_mb:.0f} MB")
        if after.descriptors > was.descriptors + DESCRIPTORS_GROWTH:
            leaks.append(f"{after.name}: {was.descriptors} descriptors, then {after.descriptors}")
        if after.tasks > was.tasks + TASKS_GROWTH:
            leaks.append(f"{after.name}: {was.tasks} tasks, then {after.tasks}")
    if e.dead_rows:
        leaks.append(f"{e.dead_rows} dead rows that VACUUM cannot remove: somebody holds the horizon")
    growth = CONNECTIONS_GROWTH + (HANDLERS_CONNECTIONS if e.exactly_once else 0)
    if e.connections_after > e.connections_before + growth:
        leaks.append(f"{e.connections_before} connections to the database, then {e.connections_after}")
    return leaks, len(e.after), ""


@invariant("I15", "`orders reconcile` finds nothing")
def reconcile_agrees(e: Evidence) -> Found:
    return e.reconciled, e.reconciled_orders, ""


def vacuous(evidence: Evidence, records: list[Record], least_orders: int) -> list[str]:
    """Say why a run proves nothing, if it does not."""
    reasons = [f"{r.planned.kind} at {r.planned.place} did not fire: {r.error}" for r in records if r.fired_at is None]
    reasons += [
        f"{r.planned.kind} at {r.planned.place}: {r.error}" for r in records if r.fired_at is not None and r.error
    ]
    accepted = len({answer.order_id for answer in evidence.answers if answer.order_id})
    if accepted < least_orders:
        reasons.append(f"only {accepted} orders were acknowledged, of at least {least_orders}")
    if not evidence.orders or not evidence.rows:
        reasons.append("the final read found nothing")
    fired = [r for r in records if r.fired_at is not None]
    if fired and sum(r.in_flight > 0 for r in fired) < len(fired) / 2:
        reasons.append("nothing was in flight at most of the faults")
    crashes = {"P1", "P3", "P4", "P10", "M1", "M20"} & {r.planned.kind for r in fired}
    if (
        crashes
        and not any(each.redelivered for each in evidence.heard)
        and len(evidence.heard) == len({each.event_id for each in evidence.heard})
    ):
        attempts = sum(order.attempts > 1 for order in evidence.orders)
        if not attempts:
            reasons.append(f"{', '.join(sorted(crashes))} fired, and nothing was ever delivered twice")
    return reasons
