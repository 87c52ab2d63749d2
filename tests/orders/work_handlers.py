"""Handlers that do what the reference of their order says."""

import asyncio
import os
import time
from datetime import timedelta

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from orders.handlers import Refuse, Retry
from orders.model.order import Order


async def obey(order: Order) -> None:
    """Do as the order's reference says."""
    match order.reference:
        case "refuse":
            raise Refuse("no stock")
        case "retry":
            raise Retry("busy", after=7)
        case "retry tomorrow":
            raise Retry("busy", after=timedelta(days=1))  # type: ignore[arg-type]
        case "be cancelled":
            waiting = asyncio.create_task(asyncio.sleep(3600))
            waiting.cancel()
            await waiting
        case "cancel itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(3600)
        case "stand still" | "stand still and hang":
            asyncio.get_running_loop().call_soon(time.sleep, 1.0)  # what a process does between SIGSTOP and SIGCONT
            await asyncio.sleep(0.1 if order.reference == "stand still" else 3600)
        case "raise":
            raise KeyError("a bug\nand its second line")
        case "hang":
            await asyncio.sleep(3600)
        case "block":
            time.sleep(3600)  # noqa: ASYNC251  # what a handler must not do
        case "exit":
            os._exit(7)
        case "print":
            print("to nobody")


async def obey_in_transaction(order: Order, conn: AsyncConnection) -> None:
    """Write a row, then do as the order's reference says."""
    await conn.execute("INSERT INTO effects (order_id) VALUES (%s)", [order.order_id])
    match order.reference:
        case "hang in a query":
            await conn.execute("SELECT pg_sleep(3600)")
        case "lose the database":
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        case "wrap the loss":
            try:
                await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            except psycopg.Error as error:
                raise RuntimeError("a handler's own words") from error
        case "wrong sql":
            await conn.execute("SELECT * FROM nowhere")
        case "swallow":
            try:
                await conn.execute("SELECT 1 / 0")
            except psycopg.Error:
                return
        case "be overtaken":
            dsn = make_conninfo(conn.info.dsn, password=conn.info.password)
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                await other.execute("UPDATE orders SET attempts = attempts + 1")
        case _:
            await obey(order)
