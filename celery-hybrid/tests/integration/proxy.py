"""A TCP proxy on the way to RabbitMQ that can be cut, and made slow."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxy:
    """Passes bytes on, in a thread of its own.

    Args:
        host: of the server.
        port: of the server.
    """

    def __init__(self, host, port):
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._writers = set()
        self._started = threading.Event()
        #: Bytes a second towards the server; None for no limit.
        self.rate = None
        self._cut = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def cut(self):
        """Drop all connections, and refuse new ones."""
        self._cut = True
        self._loop.call_soon_threadsafe(self._abort)

    def heal(self):
        """Accept connections again."""
        self._cut = False

    def stop(self):
        """End."""
        self._loop.call_soon_threadsafe(self._abort)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self):
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()

    def _abort(self):
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader, writer):
        if self._cut:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._pass_on(reader, there[1], slow=True), self._pass_on(there[0], writer))
        self._writers -= {writer, there[1]}

    async def _pass_on(self, reader, writer, slow=False):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                if slow and self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                writer.write(data)
                await writer.drain()
        writer.close()
