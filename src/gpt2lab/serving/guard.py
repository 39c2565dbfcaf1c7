"""Who may ask: the host, the origin, the key and the size of a request, before anything looks at it.

A page of another site that a person visits can send requests to 127.0.0.1, too. Its browser says so (Origin), and where
the site has pointed its own name at 127.0.0.1, it says that name (Host).
"""

import asyncio
import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2lab.serving.errors import error_answer

_SECONDS = 20.0  # in which a request's body has to arrive
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
NOTHING_LOADED = "default-src 'none'; frame-ancestors 'none'"


def is_home(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Tickets:
    """What opens one path to somebody who has not the key, such as a link, which sends no headers; until the server
    stops.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes()

    def of(self, path: str) -> str:
        """The ticket of a path."""
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()


class Guard:
    """What stands in front of the application.

    Args:
        app: the application.
        host: where the server listens.
        name: another one, under which a server in front of it is known; None: there is none.
        tickets: of paths that are opened by a link.
        key: what every request has to know; None: nothing.
        open_paths: what needs no key: the page itself, which asks for one.
        max_body: bytes of a request.
        count: hears the status of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        name: str | None,
        key: str | None,
        tickets: Tickets,
        open_paths: Collection[str],
        max_body: int,
        count: Callable[[int], None],
    ) -> None:
        self.app, self.key, self.tickets, self.open_paths = app, key, tickets, open_paths
        self.max_body, self.count = max_body, count
        self.at_home = is_home(host)
        self.name = None if name is None else name.lower()
        self.names = {host.lower(), self.name}
        if not self.at_home:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        begun = False

        async def guarded_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.count(message["status"])
                given = {name for name, _ in message["headers"]}
                ours = HEADERS | {"content-security-policy": NOTHING_LOADED}
                message["headers"] = [*message["headers"], *_encoded(ours.items(), given)]
            await send(message)

        wrong = self._wrong(scope, headers)
        body = b""
        if wrong is None and scope["method"] == "POST":
            try:
                async with asyncio.timeout(_SECONDS):
                    body = await self._body(headers, receive)
            except TimeoutError:
                wrong = 408, "the request did not arrive within 20 seconds", "timeout"
            except _TooLargeError:
                wrong = 413, f"the request is larger than {self.max_body:,} bytes", "too_large"
            except _GoneError:
                return
        if wrong is not None:
            await _answer(guarded_send, *wrong)
            return
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        try:
            await self.app(scope, receive_again if scope["method"] == "POST" else receive, guarded_send)
        except Exception:
            logging.getLogger("gpt2lab").exception("%s %s failed", scope["method"], scope["path"])
            if not begun:
                await _answer(guarded_send, 500, "the server has made a mistake; its log tells more", "mistake")

    def _wrong(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 403, f"this server is not called {host!r}; open the address that it printed", "host"
        origin = headers.get("origin")
        named = self.name is not None and origin is not None and _name(origin) == self.name
        if origin is not None and origin not in (f"http://{host}", f"https://{host}") and not named:
            return 403, f"pages of {origin} may not use this server", "origin"
        if self.key is not None and scope["path"] not in self.open_paths:
            given = headers.get("authorization", "").removeprefix("Bearer ").encode()
            shown = scope["query_string"].removeprefix(b"ticket=")
            known = hmac.compare_digest(given, self.key.encode())
            if not known and not hmac.compare_digest(shown, self.tickets.of(scope["path"]).encode()):
                message = "this server asks for its key: send the header `Authorization: Bearer KEY`"
                return 401, message, "invalid_api_key"
        return None

    def _is_ours(self, header: str) -> bool:
        """Whether a Host header names this server: a name of its own, or an address, which no other site can claim."""
        name = _name(header)
        if is_home(name) or name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return not self.at_home

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_body:
            raise _TooLargeError
        parts, size, more = [], 0, True
        while more:
            message: dict[str, Any] = dict(await receive())
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise _TooLargeError
            more = message.get("more_body", False)
        return b"".join(parts)


def _name(header: str) -> str:
    """The name in a Host or an Origin, without a port."""
    name = header.rpartition("://")[2]
    name = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
    return name.strip("[]").lower()


class _TooLargeError(Exception):
    pass


class _GoneError(Exception):
    pass


def _encoded(headers: Iterable[tuple[str, str]], given: Collection[bytes] = ()) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers if name.encode() not in given]


async def _answer(send: Send, status: int, message: str, code: str) -> None:
    body = error_answer(status, message, code=code).model_dump_json().encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers.items())})
    await send({"type": "http.response.body", "body": body})
