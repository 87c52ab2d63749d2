"""A name server on a port of its own, whose one name stands for whatever addresses a test says."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast


class Names(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.port = 0
        self.queries = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own transport for datagrams does not inherit from the class of that name.
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.queries += 1
        question = data[12:]
        # An answer with our addresses, which may be kept for ten minutes: nginx is told not to.
        header = data[:2] + struct.pack(">HHHHH", 0x8180 if self.addresses else 0x8183, 1, len(self.addresses), 0, 0)
        records = b"".join(
            struct.pack(">HHHIH", 0xC00C, 1, 1, 600, 4) + bytes(int(part) for part in address.split("."))
            for address in self.addresses
        )
        self._transport.sendto(header + question + records, addr)


@asynccontextmanager
async def running() -> AsyncIterator[Names]:
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    try:
        yield names
    finally:
        transport.close()
