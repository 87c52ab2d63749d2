"""The api: insert, commit, publish, answer."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

import aio_pika
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import func, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

QUEUE = "orders"

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=20, max_overflow=10
)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """An order."""

    __tablename__ = "baseline_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="placed")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Answer(BaseModel):
    """What a client is told."""

    order_id: int
    status: str


async def session() -> AsyncIterator[AsyncSession]:
    """A session for each request."""
    async with sessions() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the table and the queue; keep one connection and one channel."""
    async with engine.begin() as conn:
        await conn.execute(text("SELECT pg_advisory_xact_lock(1)"))
        await conn.run_sync(Base.metadata.create_all)
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    async with connection:
        app.state.channel = await connection.channel()
        await app.state.channel.declare_queue(QUEUE, durable=True)
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/order/place")
async def place_order(session: Session) -> Answer:
    """Place an order."""
    order = Order(status="placed")
    session.add(order)
    await session.commit()
    await app.state.channel.default_exchange.publish(
        aio_pika.Message(str(order.id).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT), routing_key=QUEUE
    )
    return Answer(order_id=order.id, status=order.status)


@app.get("/order/get/{order_id}")
async def get_order(order_id: int, session: Session) -> Answer:
    """Return an order."""
    order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "Order not found")
    return Answer(order_id=order.id, status=order.status)


@app.get("/health")
async def health(session: Session) -> dict[str, str]:
    """Say whether the database answers."""
    await session.execute(text("SELECT 1"))
    return {"status": "healthy"}
