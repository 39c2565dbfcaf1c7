"""The server: models are loaded, the address is told, and requests are answered until it is told to stop."""

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.generation import Engine
from gpt2lab.generation.engine import check_step
from gpt2lab.hardware import choose_device
from gpt2lab.options import given_options, method_taking, part
from gpt2lab.runs.folder import load
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.serving.guard import is_home
from gpt2lab.serving.scheduler import Scheduler, Served
from gpt2lab.serving.settings import Limits, ServeOptions, ServeSettings

KEY = "GPT2LAB_KEY"  # the variable that has the key


@method_taking(ServeOptions, first="runs_served")
def serve(runs_served: str | Path | Sequence[str | Path], **given: Any) -> None:
    """Serve models as ``gpt2lab serve`` does, until the process is told to stop (Ctrl-C, or SIGTERM).

    Args:
        runs_served: a run folder, or several; a model has the name of its folder.
        **given: fields of :class:`gpt2lab.serving.settings.ServeOptions`, such as ``port=8080``. ``started`` is called
            with the address as soon as the server answers.

    Raises:
        InputError: no run, two of one name, a model that cannot be read, an address that cannot be had, or the packages
            are missing.
    """
    started = given.pop("started", None)
    options = given_options((ServeSettings, Limits), given)
    asked, limits = ServeSettings(**part(options, ServeSettings)), Limits(**part(options, Limits))
    try:
        import uvicorn

        from gpt2lab.serving.api import application
    except ImportError:
        message = "serving needs packages that are not installed; run: pip install 'gpt2lab[serve]'"
        raise InputError(message) from None
    folders = [Path(run) for run in ([runs_served] if isinstance(runs_served, str | Path) else runs_served)]
    if not folders:
        raise InputError("there is nothing to serve; give at least one run folder")
    key = asked.key if asked.key is not None else os.environ.get(KEY)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise InputError("the key has to be some letters and digits, without spaces around them")
    if key is None and (asked.name is not None or not is_home(asked.host)):
        key = secrets.token_urlsafe(24)
    listening = _listening(asked.host, asked.port)
    with listening:
        models = [_served(folder, name, asked, limits) for folder, name in zip(folders, _names(folders), strict=True)]
        scheduler = Scheduler(models, limits.max_waiting)
        runs = Path(asked.runs) if asked.runs is not None else folders[0].resolve().parent
        app = application(scheduler, limits, host=asked.host, name=asked.name, key=key, runs=runs)
        shown = "127.0.0.1" if asked.host in ("0.0.0.0", "::") else asked.host
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listening.getsockname()[1]}/"
        address += "" if key is None else f"#key={key}"

        class Server(uvicorn.Server):
            """One that lets texts be finished before it stops, for a while."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if started is not None:
                    started(address)

            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                scheduler.close()
                ending = threading.Timer(limits.grace, scheduler.end)
                ending.daemon = True
                ending.start()
                self.force_exit = self.should_exit and sig == signal.SIGINT  # Ctrl-C once more
                self.should_exit = True

        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        settings = uvicorn.Config(
            app, access_log=False, log_level="warning", timeout_graceful_shutdown=int(limits.grace) + 5, ws="none"
        )
        try:
            asyncio.run(Server(settings).serve([listening]))
        finally:
            scheduler.end()


def _served(folder: Path, name: str, asked: ServeSettings, limits: Limits) -> Served:
    model, tokenizer = load(folder, attention=load_attention(asked.attention), checkpoint=asked.checkpoint)
    model.to(choose_device(asked.device))
    check_step(model, asked.step, asked.weights)
    engine = Engine(model, limits.max_rows, step=asked.step, weights=asked.weights)
    return Served(name, model, tokenizer, engine)


def _names(folders: Sequence[Path]) -> list[str]:
    """A name for each model: of its folder, or where several are alike, the path that was typed."""
    names = [folder.resolve().name for folder in folders]
    names = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice} is given twice; leave one of them out")
    return names


def _listening(host: str, port: int) -> socket.socket:
    """A socket at an address that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only a socket that says that it is TCP's sends small pieces at once; else each waits for the reader to confirm.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        hint = "choose another --port" if error.errno == errno.EADDRINUSE else "see --host and --port"
        raise InputError(f"the server cannot listen on {host}:{port}: {error.strerror or error}; {hint}") from None
    return listening
