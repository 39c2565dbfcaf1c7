"""What the page of the server asks for: itself, what a token sees, and what trainings tell."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from gpt2lab.errors import InputError
from gpt2lab.interchange.html_page import PAGE, server_page
from gpt2lab.model import attention_weights
from gpt2lab.serving import requests
from gpt2lab.serving.completions import check_ids, served_model, until_gone
from gpt2lab.serving.errors import RefusedError
from gpt2lab.serving.guard import Tickets
from gpt2lab.serving.requests import ERRORS, AttentionRequest
from gpt2lab.serving.runs import RunFolder
from gpt2lab.serving.scheduler import Scheduler
from gpt2lab.serving.settings import Limits

T = TypeVar("T")

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report brings its own style and pictures, and must not be able to do anything else.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
KINDS = {".js": "text/javascript", ".css": "text/css"}


def add_page(app: FastAPI, scheduler: Scheduler, limits: Limits, runs: Path, tickets: Tickets) -> set[str]:
    """Let the application answer to the page.

    Returns:
        the paths of the page itself, which holds nothing secret.
    """
    folder = RunFolder(runs)
    files = {f"/page/{path.name}": path for path in sorted(PAGE.iterdir()) if path.suffix in KINDS}

    @app.post("/attention", responses=ERRORS)
    async def attention(asked: AttentionRequest, request: Request) -> requests.Attention:
        """What the last token of a text sees, in every layer."""
        one = served_model(scheduler, asked.model)
        most = one.model.config.max_seq_len if not one.model.endless else limits.max_prompt
        check_ids(asked.ids, one, most, "ids")
        question = scheduler.ask(lambda: attention_weights(one.model, torch.tensor(asked.ids)))
        answer = asyncio.wait_for(asyncio.wrap_future(question), limits.max_seconds)
        layers = await until_gone(request, answer)
        return requests.Attention(layers=[requests.LayerAttention(weights=layer.tolist()) for layer in layers])

    @app.get("/runs", responses=ERRORS)
    def listed() -> requests.Runs:
        """The runs of the folder, and the reports of comparisons."""
        found = folder.listed()
        for one in found["reports"]:
            path = f"/reports/{one['id']}"
            one["address"] = f"{path}?ticket={tickets.of(path)}"
        return requests.Runs(**found)

    @app.get("/runs/{number}", responses=ERRORS)
    def run(number: int) -> requests.RunPage:
        """A run's numbers, and a text of each of its checkpoints."""
        return requests.RunPage(**_found(folder.run, number))

    @app.get("/reports/{number}", response_class=HTMLResponse, responses=ERRORS)
    def report(number: int) -> Response:
        """The report of a comparison."""
        return HTMLResponse(_found(folder.report, number), headers={"content-security-policy": REPORT_POLICY})

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(server_page(), headers={"content-security-policy": PAGE_POLICY})

    def offer(path: str, file: Path) -> None:
        @app.get(path, include_in_schema=False)
        async def content() -> Response:
            return Response(file.read_bytes(), media_type=KINDS[file.suffix])

    for path, file in files.items():
        offer(path, file)
    return {"/", *files}


def _found(of: Callable[[int], T], number: int) -> T:
    try:
        return of(number)
    except KeyError:
        raise RefusedError(404, f"there is no number {number}", "number") from None
    except InputError as error:
        raise RefusedError(404, str(error), "number") from None
