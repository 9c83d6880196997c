"""A TCP relay on loopback between MInt's ssh and the site's sshd: it delays, cuts, swallows and refuses.

    with Relay(target_port, delay_ms=25) as relay:
        relay.cut_after(up=100_000)       # once: after so many more bytes from MInt, every connection is cut
        relay.cut_in("PUT .*/inputs/", up=900)  # once: so many bytes into such a request, where HTTP goes in the clear
        relay.stall(); relay.flow()       # connections stay open, and nothing passes
        relay.refuse(); relay.accept()    # nobody listens any more; again

`up` is what comes from the client, `down` what goes back to it. A delay holds each chunk for its time and no chunk
waits for another, so latency costs round trips and not throughput. Also a program, for the benches:

    relay.py LISTEN_PORT TARGET_PORT --delay-ms 25
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import re
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

CHUNK = 256 << 10
# What one direction may hold back: more than any loopback bandwidth times the delays that are used.
HELD_BYTES = 256 << 20


REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST|PATCH) /[!-~]{1,2000} HTTP/1\.1\r\n")


@dataclasses.dataclass
class Call:
    """One request of HTTP in the clear, with its answer: its first line, and how many bytes went each way."""

    line: str
    up: int = 0
    down: int = 0


class Line:
    """One connection: what is asked on it now, and after how many more bytes of a direction all are cut."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.limits: dict[str, int | None] = {"up": None, "down": None}


class Relay:
    """One relay in a thread of its own; every method may be called from any thread."""

    def __init__(self, target_port: int, listen_port: int = 0, delay_ms: float = 0.0) -> None:
        self.port = listen_port
        self.up = 0
        self.down = 0
        self.connections = 0
        self.cuts = 0
        self.calls: list[Call] = []
        self._phase: tuple[re.Pattern[str], str, int] | None = None
        self.delay = delay_ms / 1000
        self._target = target_port
        self._limits: dict[str, int | None] = {"up": None, "down": None}
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.accept()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- what a test does to it ---------------------------------------------------------------------------------

    def cut_after(self, up: int | None = None, down: int | None = None) -> None:
        """Cut every connection once, when so many more bytes have passed in that direction (None: never)."""
        self._call(lambda: self._limits.update(up=up, down=down))

    def cut_in(self, pattern: str, up: int = 0, down: int = 0) -> None:
        """Cut every connection once, so many bytes into the next request whose line matches, or into its answer."""
        phase = (re.compile(pattern), "up" if up else "down", up or down)
        self._call(lambda: setattr(self, "_phase", phase))

    @property
    def armed(self) -> bool:
        """Whether a cut is still to come."""
        return self._phase is not None or any(limit is not None for limit in self._limits.values())

    def cut(self) -> None:
        """Cut every connection now."""
        self._call(self._cut)

    def stall(self) -> None:
        """A black hole: connections stay open and new ones are accepted, but nothing passes."""
        self._call(self._flowing.clear)

    def flow(self) -> None:
        """The end of `stall`."""
        self._call(self._flowing.set)

    def refuse(self) -> None:
        """Nobody listens; open connections are cut."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Listen (again), always on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def close(self) -> None:
        """End the relay and its thread."""
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # -- inside the thread --------------------------------------------------------------------------------------

    def _call(self, action: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, limit=CHUNK, reuse_address=True
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._cut()

    def _cut(self) -> None:
        self.cuts += 1
        self._limits.update(up=None, down=None)
        self._phase = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _finish(self) -> None:
        self._refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [to_client]
        self._open.add(to_client)
        try:
            await self._flowing.wait()
            target, to_target = await asyncio.open_connection("127.0.0.1", self._target, limit=CHUNK)
            ends.append(to_target)
            self._open.add(to_target)
            line = Line()
            await asyncio.gather(
                self._direction("up", line, client, to_target), self._direction("down", line, target, to_client)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in ends:
                end.transport.abort()
                self._open.discard(end)
            self._tasks.discard(task)

    async def _direction(
        self, name: str, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One direction: chunks with the time at which they are due; an empty one is the end."""
        queue: deque[tuple[float, bytes]] = deque()
        ready = asyncio.Event()
        room = asyncio.Event()
        room.set()
        writer.transport.set_write_buffer_limits(0)
        filler = asyncio.ensure_future(self._fill(reader, queue, ready, room))
        try:
            with contextlib.suppress(OSError):
                await self._empty(name, line, writer, queue, ready, room)
        finally:
            filler.cancel()
            # Half-closed as TCP is: the other direction may still have something to say.
            with contextlib.suppress(OSError):
                if writer.can_write_eof():
                    writer.write_eof()

    async def _fill(
        self, reader: asyncio.StreamReader, queue: deque[tuple[float, bytes]], ready: asyncio.Event, room: asyncio.Event
    ) -> None:
        data = b"-"
        while data:
            await room.wait()
            try:
                data = await reader.read(CHUNK)
            except OSError:
                data = b""
            queue.append((self._loop.time() + self.delay, data))
            ready.set()
            if sum(len(chunk) for _, chunk in queue) > HELD_BYTES:
                room.clear()

    async def _empty(
        self,
        name: str,
        line: Line,
        writer: asyncio.StreamWriter,
        queue: deque[tuple[float, bytes]],
        ready: asyncio.Event,
        room: asyncio.Event,
    ) -> None:
        while True:
            while not queue:
                ready.clear()
                await ready.wait()
            due, data = queue.popleft()
            room.set()
            if due > self._loop.time():
                await asyncio.sleep(due - self._loop.time())
            await self._flowing.wait()
            if not data:
                return
            self._look(name, line, data)
            data, over = self._pass(name, line, data)
            writer.write(data)
            setattr(self, name, getattr(self, name) + len(data))
            await writer.drain()
            if over:
                self._cut()
                return

    def _look(self, name: str, line: Line, data: bytes) -> None:
        """Which request these bytes belong to, and whether it is the one to be cut. A client sends one at a time."""
        found = REQUEST.match(data) if name == "up" else None
        if found is not None:
            line.call = Call(found[0].decode("ascii"))
            self.calls.append(line.call)
            if self._phase is not None and self._phase[0].search(line.call.line):
                _, direction, offset = self._phase
                line.limits[direction] = offset
                self._phase = None
        if line.call is not None:
            setattr(line.call, name, getattr(line.call, name) + len(data))

    def _pass(self, name: str, line: Line, data: bytes) -> tuple[bytes, bool]:
        """As much of it as may pass, and whether that was the last of it."""
        over = False
        for limits in (self._limits, line.limits):
            limit = limits[name]
            if limit is not None:
                data = data[:limit]
                limits[name] = limit - len(data)
                over = over or limits[name] == 0
        return data, over


def main() -> None:
    """Relay until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listen_port", type=int)
    parser.add_argument("target_port", type=int)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="added each way")
    options = parser.parse_args()
    with Relay(options.target_port, options.listen_port, options.delay_ms) as relay:
        print(f"127.0.0.1:{relay.port} -> 127.0.0.1:{options.target_port}, {options.delay_ms} ms each way", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
