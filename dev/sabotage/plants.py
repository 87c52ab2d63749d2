"""The bugs, as data: each replaces exact pieces of text, so that a refactoring that moves the code fails loudly.

S1 to S24 are a list of what goes wrong in outboxes and queues elsewhere; where this design has another way to get the
same thing wrong, that is planted. W1 is the rule of waves, the others are close to what was nearly written here.
"""

from collections.abc import Mapping

import msgspec


class Change(msgspec.Struct, frozen=True):
    """This text, which is found once in this file, becomes that."""

    file: str
    old: str
    new: str


class Plant(msgspec.Struct, frozen=True):
    """A bug, and the test that has to catch it."""

    id: str
    title: str
    check: str  # a pytest node id, of a test that takes less than a minute
    changes: tuple[Change, ...]


def _plant(id_: str, title: str, check: str, *changes: tuple[str, str, str]) -> Plant:
    return Plant(id_, title, check, tuple(Change(*change) for change in changes))


_ALL = (
    _plant(
        "S1",
        "a message counts as confirmed once it is written to the socket",
        "tests/relay/test_channel_contract.py::test_a_nack_is_told",
        (
            "relay/channel.py",
            "            self._answered = self.create_future()\n",
            (
                "            self._answered = self.create_future()\n"
                "            self._replies = [CONFIRMED] * len(wave)\n"
                "            self._left = 0\n"
                "            self._answered.set_result(None)\n"
            ),
        ),
    ),
    _plant(
        "S2",
        "messages are not mandatory",
        "tests/relay/test_frames.py::test_all_frames",
        ("relay/frames.py", "mandatory=True", "mandatory=False"),
    ),
    _plant(
        "S3",
        "messages are transient",
        "tests/relay/test_frames.py::test_all_frames",
        ("relay/frames.py", 'PERSISTENT = b"\\x02"', 'PERSISTENT = b"\\x01"'),
    ),
    _plant(
        "S4",
        "a classic queue is good enough for the relay",
        "tests/relay/test_topology.py::test_shapes",
        ("relay/topology.py", '    if "x-queue-type" in shape:\n', '    if "x-queue-type" in shape and not shape:\n'),
    ),
    _plant(
        "S5",
        "rows are marked sent, and that is committed, before they are published",
        "tests/relay/test_forward.py::test_a_full_queue_is_a_route_failure",
        (
            "relay/forward.py",
            "                outcome, left, answered_at = await self._waves.publish(publish)\n",
            (
                "                if publish:\n"
                "                    ids = outbox_table.ids_of(publish)\n"
                "                    await outbox_table.settle(conn, ids, [], and_commit=False)\n"
                '                    await conn.execute("COMMIT")\n'
                '                    await conn.execute("BEGIN")\n'
                "                outcome, left, answered_at = await self._waves.publish(publish)\n"
            ),
        ),
        (
            "relay/forward.py",
            "    sent, unrouted = outbox_table.ids_of(outcome.sent), outbox_table.ids_of(outcome.unrouted)\n",
            "    sent, unrouted = list[int](), outbox_table.ids_of(outcome.unrouted)\n",
        ),
    ),
    _plant(
        "S6",
        "a delivery is acked when it is taken, not when its order's end is committed",
        "tests/journey/test_worker_dies.py::test_worker_is_killed_mid_work",
        (
            "src/orders/work/delivery.py",
            "        rejection = await self._work_order(message, delivery)\n",
            "        delivery.ack()\n        rejection = await self._work_order(message, delivery)\n",
        ),
        (
            "src/orders/work/delivery.py",
            "        if rejection is None:\n            delivery.ack()\n",
            "        if rejection is None:\n            pass\n",
        ),
    ),
    _plant(
        "S7",
        "no inbox: a repeat of an order's message is claimed though the order has ended",
        "tests/orders/database/test_claim_orders.py::test_repeat_of_a_finished_order_is_settled",
        (
            "src/orders/database/claim_orders.py",
            "(o.status = 'placed' OR o.status = 'processing' AND o.worker = %b)\n    RETURNING",
            "(o.status <> 'processing' OR o.worker = %b)\n    RETURNING",
        ),
        (
            "src/orders/database/claim_orders.py",
            "(o.status = 'placed' OR o.status = 'processing' AND o.worker = %b)\n        FOR NO KEY",
            "(o.status <> 'processing' OR o.worker = %b)\n        FOR NO KEY",
        ),
    ),
    _plant(
        "S7b",
        "no inbox: a subscriber handles each repeat",
        "tests/orders/test_subscriber.py::test_each_event_is_one_mail",
        ("src/orders/database/inbox.py", "return await cursor.fetchone() is not None", "return True"),
    ),
    _plant(
        "S8",
        "the inbox is written in a transaction of its own, before the effect's",
        "tests/orders/test_subscriber.py::test_failure_is_tried_again_and_refusal_is_not",
        (
            "src/orders/subscriber.py",
            "                is_first = await inbox.is_first(conn, self.subscription.name, event.id)\n",
            (
                "                is_first = await inbox.is_first(conn, self.subscription.name, event.id)\n"
                "            async with conn.transaction():\n"
            ),
        ),
    ),
    _plant(
        "S9",
        "an order ends whatever its status is",
        "tests/orders/database/test_finish_orders.py::test_repeat_of_a_finish",
        (
            "src/orders/database/finish_orders.py",
            "o.status = 'processing' AND o.attempts = asked.attempts",
            "o.attempts = asked.attempts",
        ),
    ),
    _plant(
        "S10",
        "no fencing: the end of an order is not held against the attempt",
        "tests/orders/database/test_finish_orders.py::test_late_worker_is_fenced",
        (
            "src/orders/database/finish_orders.py",
            "o.status = 'processing' AND o.attempts = asked.attempts",
            "o.status = 'processing'",
        ),
    ),
    _plant(
        "S11",
        "the low-water mark follows the last id, and waits for no writer",
        "tests/relay/test_mark.py::test_a_writer_holds_it_until_it_ends",
        ("relay/mark.py", "        if seen:\n", "        if seen and last_value < 0:\n"),
    ),
    _plant(
        "S12",
        "rows are claimed with SKIP LOCKED alone, whoever holds their shard",
        "tests/relay/test_forward.py::test_order_within_keys",
        (
            "relay/outbox_table.py",
            "    WHERE pg_try_advisory_xact_lock('outbox'::regclass::oid::integer, shard)\n",
            "    WHERE pg_try_advisory_xact_lock('outbox'::regclass::oid::integer, shard) IS NOT NULL\n",
        ),
    ),
    _plant(
        "S13",
        "an idempotency key is looked up, and then inserted",
        "tests/orders/database/test_place_orders.py::test_key_waits_for_whoever_holds_it",
        (
            "src/orders/database/idempotency_keys_table.py",
            "FROM first_use ORDER BY client, operation, key\n        ON CONFLICT DO NOTHING\n",
            (
                "FROM first_use WHERE NOT EXISTS (\n"
                "            SELECT FROM idempotency_keys k\n"
                "            WHERE k.key = first_use.key AND k.client = first_use.client\n"
                "              AND k.operation = first_use.operation\n"
                "        ) ORDER BY client, operation, key\n"
                "        ON CONFLICT (client, operation, key) DO UPDATE SET order_id = excluded.order_id\n"
            ),
        ),
    ),
    _plant(
        "S14",
        "a database that goes away spends the order's retries",
        "tests/orders/work/test_runner.py::test_whose_fault",
        (
            "src/orders/work/runner.py",
            "if broken or is_server_failure(error):",
            "if broken:",
        ),
    ),
    _plant(
        "S14b",
        "a queue that is full blocks the keys of what it refused",
        "tests/relay/test_replies.py::test_route_failures",
        (
            "relay/replies.py",
            "        case Answer.CLOSED_ALONE | Answer.UNENCODABLE:\n",
            "        case Answer.CLOSED_ALONE | Answer.UNENCODABLE | Answer.NACKED:\n",
        ),
        (
            "relay/replies.py",
            "case Answer.RETURNED | Answer.NACKED | Answer.CLOSED_ROUTE",
            "case Answer.RETURNED | Answer.CLOSED_ROUTE",
        ),
    ),
    _plant(
        "S15",
        "an order whose COMMIT was not answered is refused",
        "tests/orders/database/test_errors.py::test_what_never_reached_the_server",
        (
            "src/orders/database/errors.py",
            ("    if not isinstance(error, psycopg.Error) or error.sqlstate is None:\n        return lost\n"),
            (
                "    if not isinstance(error, psycopg.Error) or error.sqlstate is None:\n"
                "        return ErrorClass.ONE_IS_GUILTY\n"
            ),
        ),
    ),
    _plant(
        "S16",
        "message ids are the time of day",
        "tests/orders/database/test_place_orders.py::test_ids_ascend",
        (
            "src/orders/model/ids.py",
            "_last = max(time.time_ns() // 1_000_000 << 12, _last + 1)",
            "_last = time.time_ns() // 1_000_000 << 12",
        ),
        ("src/orders/model/ids.py", "random = int.from_bytes(random_bytes(8)) >> 2", "random = len(random_bytes(8))"),
    ),
    _plant(
        "S17",
        "a message is believed, whatever event its order waits for",
        "tests/orders/database/test_claim_orders.py::test_forged_and_unknown_events_change_nothing",
        (
            "src/orders/database/claim_orders.py",
            "AND coalesce(o.event_id, asked.event_id) = asked.event_id\n",
            "AND asked.event_id IS NOT NULL\n",
        ),
    ),
    _plant(
        "S18",
        "one bad row takes its whole batch with it",
        "tests/orders/database/test_guilty_rows.py::test_one_guilty_row",
        (
            "src/orders/database/batcher.py",
            "                    return await self._run_one_by_one(conn, batch)\n",
            (
                "                    for waiting in batch:\n"
                "                        _settle(waiting, Refused(first_line(error)))\n"
                "                    return None\n"
            ),
        ),
    ),
    _plant(
        "S19",
        "a lost heartbeat, which surfaces as a cancellation, ends the relay's loop",
        "tests/relay/test_publisher.py::test_a_lost_heartbeat_is_a_lost_broker",
        (
            "relay/publisher.py",
            "        if task is not None and task.cancelling():\n            raise\n",
            "        if task is not None:\n            raise\n",
        ),
    ),
    _plant(
        "S20",
        "two messages with one id are outstanding at once",
        "tests/relay/test_waves.py::test_no_event_id_twice",
        ("relay/waves.py", "            if head.event_id not in event_ids:\n", "            if head is not None:\n"),
    ),
    _plant(
        "S22",
        "what is older than the inbox remembers counts as new",
        "tests/orders/database/test_inbox.py::test_event_outside_retention_is_refused",
        (
            "src/orders/database/inbox.py",
            (
                '        raise OutsideRetention(f"the inbox has no room for {event_id}: '
                'too old, or from the future") from None\n'
            ),
            "        return True\n",
        ),
    ),
    _plant(
        "S23",
        "nginx repeats a POST without a key",
        "tests/nginx/test_retries.py::test_hung_up_once",
        (
            "deploy/nginx/locations.conf",
            "    proxy_next_upstream error timeout;\n    # Every api may refuse once",
            "    proxy_next_upstream error timeout non_idempotent;\n    # Every api may refuse once",
        ),
    ),
    _plant(
        "S24",
        "a key's messages are put in the order of their clocks",
        "tests/relay/test_waves.py::test_the_order_is_that_of_ids",
        ("relay/waves.py", "key=lambda message: message.id, reverse=True", "key=lambda m: m.created, reverse=True"),
    ),
    _plant(
        "W1",
        "a key's messages are published without waiting for the confirm of the one before",
        "tests/relay/test_waves.py::test_any_schedule_keeps_the_order",
        (
            "relay/waves.py",
            "        for queue in self._queues.values():\n            head = queue[-1]\n",
            "        for head in [each for queue in self._queues.values() for each in reversed(queue)]:\n",
        ),
    ),
    _plant(
        "O1",
        "the range of a confirm ends one too early",
        "tests/relay/test_channel_contract.py::test_confirms_in_any_form",
        (
            "relay/channel.py",
            "range(self._floor if multiple else place, place + 1)",
            "range(self._floor if multiple else place, place if multiple else place + 1)",
        ),
    ),
    _plant(
        "O2",
        "a batch that is run again inserts its orders again",
        "tests/orders/database/test_place_orders.py::test_batch_that_is_run_again_writes_nothing",
        (
            "src/orders/database/place_orders.py",
            "        ON CONFLICT DO NOTHING\n        RETURNING order_id\n    ), event AS (\n",
            "        RETURNING order_id\n    ), event AS (\n",
        ),
    ),
    _plant(
        "O3",
        "an order is taken over from a worker that is alive",
        "tests/orders/database/test_claim_orders.py::test_why_an_order_could_not_be_claimed",
        ("src/orders/database/claim_orders.py", "if seen.worker is None or seen.is_worked:", "if seen.worker is None:"),
    ),
    _plant(
        "O4",
        "a required message that came back counts as unrouted",
        "tests/relay/test_replies.py::test_returns",
        ("relay/replies.py", "case Answer.RETURNED if not message.required:", "case Answer.RETURNED:"),
    ),
    _plant(
        "O5",
        "a cancel wins after the claim",
        "tests/orders/database/test_cancel_orders.py::test_a_claim_comes_just_before_the_cancel",
        (
            "src/orders/database/cancel_orders.py",
            "        WHERE o.status IN ('placed', 'cancelled') AND o.version = asked.version\n",
            "",
        ),
        (
            "src/orders/database/cancel_orders.py",
            "        WHERE o.order_id = asked.order_id AND o.status = 'placed'\n",
            "        WHERE o.order_id = asked.order_id\n",
        ),
    ),
    _plant(
        "O6",
        "what a queue confirmed is sent, though the required queue was not there",
        "tests/relay/test_guard.py::test_a_work_queue_deleted_under_load",
        ("relay/wave_publisher.py", "        outcome.withdraw(unproven)\n", ""),
    ),
    _plant(
        "O7",
        "one range is acked up to the highest delivery that is done, also over those in hand",
        "tests/orders/broker/test_consumer.py::test_answers_are_ranges",
        (
            "src/orders/broker/consumer.py",
            (
                "        while self._low + 1 in self._ahead:\n"
                "            self._low += 1\n"
                "            self._ahead.remove(self._low)\n"
            ),
            "        self._low = max([self._low, *self._ahead])\n        self._ahead.clear()\n",
        ),
    ),
    _plant(
        "O8",
        "a binding is looked at only after the confirms",
        "tests/relay/test_guard.py::test_a_binding_is_looked_at_before_it_is_used",
        (
            "relay/guard.py",
            "        return await self._ask_for_bindings(doubtful) if doubtful else {}\n",
            "        return {}\n",
        ),
    ),
    _plant(
        "O9",
        "what followed a message that missed its queue stays sent",
        "tests/relay/test_outcome.py::test_what_went_behind_it_is_taken_back_too",
        (
            "relay/outcome.py",
            "head is not None and head.id <= message.id",
            "head is not None and message.required and head.id <= message.id",
        ),
    ),
    _plant(
        "O10",
        "a bug in a writer leaves its callers waiting",
        "tests/orders/database/test_batcher.py::test_a_bug_ends_the_process",
        ("src/orders/database/batcher.py", "            self._abandon(writer.batch)\n", ""),
    ),
    _plant(
        "O11",
        "a claim locks every shard, whatever its share",
        "tests/relay/test_outbox_table.py::test_no_more_shards_are_locked_than_taken",
        ("relay/outbox_table.py", "WITH shards AS MATERIALIZED (", "WITH shards AS NOT MATERIALIZED ("),
    ),
    _plant(
        "O12",
        "a wave that an alarm held up is waited for by nobody, and its channel is used again",
        "tests/relay/test_publisher.py::test_after_an_alarm_waves_go_out_on_another_channel",
        ("relay/publisher.py", "except (asyncio.CancelledError, BrokerBlocked):", "except asyncio.CancelledError:"),
    ),
    _plant(
        "O13",
        "a failure is counted once more when the answer to its commit got lost",
        "tests/orders/database/test_postpone_orders.py::test_batch_that_is_run_again",
        ("src/orders/database/postpone_orders.py", "asked.attempts AND o.worker <> 0\n", "asked.attempts\n"),
    ),
    _plant(
        "O14",
        "all orders that are read at once stand in one statement, however large",
        "tests/orders/api/test_services.py::test_each_read_counts_by_its_size",
        ("src/orders/api/services.py", "self.read(lookup, READ_SIZE, until)", "self.read(lookup, until=until)"),
    ),
    _plant(
        "O15",
        "within a claim the next event of a key goes before the one ahead is proven to be in its queue",
        "tests/relay/test_guard.py::test_a_work_queue_is_back_in_the_middle_of_a_claim",
        (
            "relay/wave_publisher.py",
            "if await self._withdraw_unproven(outcome, doubtful, self._guard.between):",
            "if False:",
        ),
    ),
    _plant(
        "O16",
        "a connection on which nothing but deliveries comes is given up, as if the broker were silent",
        "tests/orders/broker/test_consumer.py::test_deliveries_are_a_sign_of_life",
        ("src/orders/broker/frame_filter.py", "self._add_heartbeat(others)", "pass"),
    ),
    _plant(
        "O17",
        "what the broker confirms while the next channel is opened is heard by nobody",
        "tests/test_frame_filters.py::test_a_channel_that_is_given_up",
        ("relay/frame_filter.py", "[*list(self._handlers.items())[-1:], (channel, handle)]", "[(channel, handle)]"),
    ),
    _plant(
        "O18",
        "tables in tables among a message's headers end the worker",
        "tests/test_amqp_bytes.py::test_hostile_headers",
        ("src/orders/broker/amqp_bytes.py", "IndexError, RecursionError)", "IndexError)"),
    ),
    _plant(
        "O19",
        "the keeper drops a partition that a person has detached",
        "tests/relay/test_upkeep.py::test_a_partition_that_a_person_detached_is_left_alone",
        (
            "relay/outbox_partitions.py",
            "coalesce(d.high, 0), false, d.partition IS NOT NULL",
            "coalesce(d.high, 0), false, true",
        ),
    ),
    _plant(
        "O25",
        "an expired message fails its order",
        "tests/orders/database/test_dead_letters_table.py::test_a_message_that_the_broker_gave_up_brings_its_order_back",
        (
            "src/orders/database/dead_letters_table.py",
            "    elif letter.given_up is not None and not await",
            "    elif False and letter.given_up is not None and not await",
        ),
    ),
    _plant(
        "O26",
        "a copy of an order's event among the dead letters fails the order",
        "tests/orders/database/test_dead_letters_table.py::test_a_copied_event_fails_no_order",
        (
            "src/orders/database/dead_letters_table.py",
            "    elif letter.given_up is None and not await",
            "    elif False and letter.given_up is None and not await",
        ),
    ),
    _plant(
        "O27",
        "a repeat is acknowledged though no standby has the first one",
        "tests/journey/test_commits_that_wait.py::test_a_repeat_waits_for_the_standby",
        (
            "src/orders/database/idempotency_keys_table.py",
            "pg_logical_emit_message(true, 'orders', '')",
            "NULL::pg_lsn",
        ),
    ),
    _plant(
        "O28",
        "a key's streams go on when it is revoked",
        "tests/orders/api/test_auth.py::test_a_stream_ends_with_its_key",
        ("src/orders/api/auth.py", "                    self.end_streams(key_id)\n", "                    pass\n"),
    ),
    _plant(
        "O21",
        "orders that nothing carries are left alone",
        "tests/journey/test_lost_tail.py::test_orders_whose_claim_or_end_is_lost_are_worked_again",
        ("src/orders/work/sweep.py", "            if place.has_stragglers:\n", "            if False:\n"),
    ),
    _plant(
        "O22",
        "the sweep sends again what still waits in the queue",
        "tests/orders/work/test_sweep.py::test_what_waits_in_the_queue_is_left_there",
        (
            "src/orders/work/sweep.py",
            "await self.consumer.count_ready() != 0",
            "await self.consumer.count_ready() is None",
        ),
    ),
    _plant(
        "O23",
        "an order that nothing carries is sent again at each round of the sweep",
        "tests/orders/database/test_stragglers_table.py::test_pauses_double",
        ("src/orders/database/stragglers_table.py", "WHEN is_stranded THEN least(", "WHEN false THEN least("),
    ),
    _plant(
        "L1",
        "a claim waits for an order that a stranger has locked, and its batch with it",
        "tests/orders/work/test_locked_orders.py::test_others_are_claimed_while_one_is_locked",
        (
            "src/orders/database/claim_orders.py",
            "o.worker = %b)\n        FOR NO KEY UPDATE OF o SKIP LOCKED",
            "o.worker = %b)\n        FOR NO KEY UPDATE OF o",
        ),
    ),
    _plant(
        "L2",
        "an order that is locked when it ends counts as ended by another claim",
        "tests/orders/work/test_locked_orders.py::test_others_finish_while_one_is_locked",
        ("src/orders/database/finish_orders.py", "        if f.order_id in locked\n", "        if False\n"),
    ),
    _plant(
        "L3",
        "a cancel waits for an order that a stranger has locked, and other cancels with it",
        "tests/orders/database/test_cancel_orders.py::test_cancels_of_a_locked_order_harm_no_placement",
        ("src/orders/database/cancel_orders.py", "FOR NO KEY UPDATE OF o SKIP LOCKED", "FOR NO KEY UPDATE OF o"),
    ),
    _plant(
        "L4",
        "claims start from the mark, and read all that was sent above it while a writer holds it",
        "tests/relay/test_held_mark.py::test_a_held_mark[open]",
        ("relay/stored_mark.py", "return self._floor.id, min", "return self.id, min"),
    ),
    _plant(
        "L5",
        "a claim may consist of the rows of one key",
        "tests/relay/test_forward.py::test_a_hot_key_leaves_room_for_others",
        ("relay/waves.py", "of_keys[message.key] > of_key", "of_keys[message.key] < 0"),
    ),
    _plant(
        "L8",
        "a look for waiting keys begins at the first turn of all, among those that have gone",
        "tests/relay/test_held_horizon.py::test_keys_that_have_gone_cost_nothing",
        (
            "relay/outbox_table.py",
            "AND w.turn >= r.turn\n        ORDER BY w.turn LIMIT 1",
            "AND r.turn >= 0\n        ORDER BY w.turn LIMIT 1",
        ),
    ),
    _plant(
        "L7",
        "a claim above the floor does not ask whether the transactions that the floor leans on are still open",
        "tests/relay/test_held_mark.py::test_a_held_mark[open]",
        ("relay/stored_mark.py", "if floor.fence and", "if False and"),
    ),
    _plant(
        "L6",
        "a process opens connection after connection though those that it severed stand",
        "tests/orders/database/test_severing.py::test_severed_connections_that_stand_are_bounded",
        ("src/orders/database/postgres.py", "    await purpose.admit(conn)\n", ""),
    ),
    _plant(
        "P1",
        "a pooler that lends its sessions is not recognised",
        "tests/journey/test_poolers.py::test_lent_sessions_of_a_busy_pooler",
        ("src/orders/database/postgres.py", "        if fault:\n            raise StartupError(fault)\n", ""),
    ),
    _plant(
        "P2",
        "after an unanswered confirm the same node is tried again",
        "tests/relay/test_publisher.py::test_the_next_broker_after_an_unanswered_confirm",
        (
            "relay/publisher.py",
            "and never confirms anything.\n        self._urls.append(self._urls.pop(0))\n",
            "and never confirms anything.\n",
        ),
    ),
    _plant(
        "P3",
        "after an unanswered consume the same node is tried again",
        "tests/orders/broker/test_consumer.py::test_the_next_broker_after_an_unanswered_consume",
        (
            "src/orders/broker/consumer.py",
            "                    self.urls = rabbitmq.after(self.urls, connection)\n",
            "",
        ),
    ),
    _plant(
        "O20",
        "text is sent in whatever encoding the role or the environment has",
        "tests/orders/database/test_postgres.py::test_text_and_times_have_one_form",
        ("src/orders/database/postgres.py", '        "client_encoding": "UTF8",', "        # "),
    ),
)

PLANTS: Mapping[str, Plant] = {plant.id: plant for plant in _ALL}
