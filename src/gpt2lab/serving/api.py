"""The server's answers: OpenAI's completions, and what the page asks for besides."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from gpt2lab.errors import InputError, printable
from gpt2lab.interchange.html_page import about
from gpt2lab.serving import requests
from gpt2lab.serving.completions import Plan, choices, planned, served_model, together, until_gone
from gpt2lab.serving.errors import RefusedError, error_answer
from gpt2lab.serving.guard import Guard, Tickets
from gpt2lab.serving.playground import add_page
from gpt2lab.serving.requests import ERRORS, AttentionRequest, CompletionRequest
from gpt2lab.serving.scheduler import BusyError, ClosedError, Scheduler, Served
from gpt2lab.serving.settings import Limits

T = TypeVar("T")

AGAIN = 1  # seconds after which a request that found no place may come again

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class Events(StreamingResponse):
    """A stream that is ended, too, if nobody reads it."""

    def __init__(self, content: AsyncGenerator[bytes], seconds: float) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._content, self._seconds = content, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass
        finally:
            await self._content.aclose()  # also where sending was what took so long


@dataclass(eq=False)
class Numbers:
    """What /metrics tells, as Prometheus reads it."""

    scheduler: Scheduler

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers: dict[int, int] = {}
        self.first = Histogram(
            "gpt2lab_first_token_seconds", "From a request to the first piece of its answer.", registry=self.registry
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def count(self, status: int) -> None:
        """An answer was given."""
        self.answers[status] = self.answers.get(status, 0) + 1

    def collect(self) -> Any:
        """The numbers of this moment."""
        models = self.scheduler.models.values()
        tokens = CounterMetricFamily("gpt2lab_tokens", "Tokens that were written.", labels=["model"])
        running = GaugeMetricFamily("gpt2lab_running_texts", "Texts that are being written.", labels=["model"])
        for served in models:
            tokens.add_metric([served.name], served.written)
            running.add_metric([served.name], len(served.running))
        waiting = GaugeMetricFamily("gpt2lab_waiting_texts", "Texts that wait for a place.", self.scheduler.waiting)
        answers = CounterMetricFamily("gpt2lab_answers", "Answers by their status.", labels=["status"])
        for status, number in sorted(self.answers.items()):
            answers.add_metric([str(status)], number)
        threads = GaugeMetricFamily("gpt2lab_threads", "Threads of Python.", threading.active_count())
        return [tokens, running, waiting, answers, threads]


def application(
    scheduler: Scheduler, limits: Limits, *, host: str, name: str | None, key: str | None, runs: Path
) -> FastAPI:
    """The application.

    Args:
        scheduler: which writes.
        limits: what a request may take.
        host: where the server listens, which decides by which names it may be asked.
        name: another one, under which a server in front of it is known.
        key: what every request has to know; None: nothing.
        runs: folder whose runs the page shows.
    """
    tickets = Tickets()
    app = FastAPI(title="gpt2lab", docs_url=None, redoc_url=None, description=__doc__)
    numbers, started = Numbers(scheduler), int(time.time())
    every = [*scheduler.models.values()]
    open_paths = {"/health", *add_page(app, scheduler, limits, runs, tickets)}
    app.add_middleware(
        Guard,
        host=host,
        name=name,
        key=key,
        tickets=tickets,
        open_paths=open_paths,
        max_body=limits.max_body,
        count=numbers.count,
    )
    _tell_errors(app)

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> requests.Models:
        """The models that are served."""
        return requests.Models(data=[requests.Model(id=one.name, created=started, about=_about(one)) for one in every])

    @app.post("/v1/completions", response_model=requests.Completion, responses=STREAMED | ERRORS)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Write on from a prompt; with `stream` as server-sent events, the last of which is `[DONE]`."""
        began = time.perf_counter()
        plan = planned(asked, served_model(scheduler, asked.model), limits)
        pieces = choices(plan, scheduler, limits.max_seconds)
        first = await until_gone(request, anext(pieces))
        numbers.first.observe(time.perf_counter() - began)
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return Events(_events(plan, first, pieces, usage), limits.max_seconds + 10)
        found = [first, *await until_gone(request, _all(pieces))]
        whole = await asyncio.to_thread(lambda: plan.answer(together(plan, found), plan.usage).model_dump_json())
        return Response(whole, media_type="application/json")

    @app.get("/health", responses={503: {"model": requests.Health, "description": "It writes no more."}})
    async def health() -> requests.Health:
        """Whether the server writes."""
        running = sum(len(one.running) for one in scheduler.models.values())
        told = requests.Health(
            status="ok" if scheduler.alive else "stopped", waiting=scheduler.waiting, running=running
        )
        return told if scheduler.alive else _json(told, 503)  # type: ignore[return-value]

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **ERRORS})
    async def metrics() -> Response:
        """Numbers of the server, as Prometheus reads them."""
        return Response(generate_latest(numbers.registry), media_type=CONTENT_TYPE_LATEST)

    kinds = app.openapi()["components"]["schemas"]
    for kind in (CompletionRequest, AttentionRequest):
        kinds[kind.__name__]["properties"]["model"]["enum"] = [*scheduler.models]
    return app


def _about(served: Served) -> requests.About:
    told = about(served.model, served.tokenizer, served.name)
    return requests.About(**told | {"looks": True})  # here the model itself tells what it sees, whatever its attention


def _tell_errors(app: FastAPI) -> None:
    """Whatever goes wrong is told in OpenAI's form."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return _error(error.status, error.message, error.param, error.code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "path")]
        name = printable(place[0])[:100] if place else None
        if first["type"] == "json_invalid":
            return _error(400, f"the request is not JSON: {first['ctx']['error']}")
        if not place:
            return _error(400, "the request has to be a JSON object, sent with Content-Type: application/json")
        if name == "prompt":
            return _error(400, "prompt has to be a text, ids, or a list of texts or of lists of ids", name)
        if first["type"] == "extra_forbidden":
            return _error(400, f"{name} is not known here", name)
        return _error(400, f"{name}: {first['msg']}" if name else first["msg"], name)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        told = (
            f"{request.method} {request.url.path} is not known here; /v1/completions is, and what /openapi.json lists"
        )
        return _error(error.status_code, printable(told)[:300], headers=error.headers)

    @app.exception_handler(BusyError)
    async def busy(_: Request, __: BusyError) -> Response:
        message = "too many texts wait already; come again"
        return _error(429, message, code="busy", headers={"retry-after": str(AGAIN)})

    @app.exception_handler(ClosedError)
    async def closed(_: Request, __: ClosedError) -> Response:
        return _error(503, "the server is about to stop", code="shutdown")

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> Response:
        return _error(400, str(error))


def _error(
    status: int, message: str, param: str | None = None, code: str | None = None, headers: Any = None
) -> JSONResponse:
    return _json(error_answer(status, message, param, code), status, headers)


def _json(told: BaseModel, status: int = 200, headers: Any = None) -> JSONResponse:
    return JSONResponse(told.model_dump(), status, headers)


async def _all(pieces: AsyncGenerator[T]) -> list[T]:
    return [piece async for piece in pieces]


async def _events(
    plan: Plan, first: requests.Choice, pieces: AsyncGenerator[requests.Choice], usage: bool
) -> AsyncGenerator[bytes]:
    """Server-sent events: a piece each, then the numbers of tokens if they were asked for, and the end."""

    def event(told: BaseModel) -> bytes:
        return b"data: " + told.model_dump_json().encode() + b"\n\n"

    try:
        yield event(plan.answer([first]))
        async for piece in pieces:
            yield event(plan.answer([piece]))
        if usage:
            yield event(plan.answer([], plan.usage))
    except RefusedError as error:
        yield event(error_answer(error.status, error.message, code=error.code))
    except (BusyError, ClosedError):
        yield event(error_answer(503, "the server has no place for this text now; come again", code="busy"))
    finally:
        await pieces.aclose()
    yield b"data: [DONE]\n\n"
