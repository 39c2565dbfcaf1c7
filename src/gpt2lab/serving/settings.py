"""What a server is asked for, and what it allows: the options of ``gpt2lab serve``."""

from collections.abc import Callable
from dataclasses import dataclass

from gpt2lab.generation.settings import StepSettings
from gpt2lab.options import MOST_SECONDS, option


@dataclass(frozen=True)
class ServeSettings(StepSettings):
    """Where a server listens."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is every address of this machine.")
    port: int = option(8000, "port to listen on; 0 takes a free one.", least=0, most=65535)
    key: str | None = option(
        None,
        "what every request has to know, as in `Authorization: Bearer KEY`; better in the variable GPT2LAB_KEY, which "
        "other people on the machine cannot read.",
        default="none at home, and a random one where other machines reach the server",
    )
    name: str | None = option(
        None, "name of a server in front of this one, under which others know it, such as example.org.", default="none"
    )
    runs: str | None = option(None, "folder whose runs the page shows.", default="the folder of the first run")


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take."""

    max_rows: int = option(16, "how many texts of a model are written at once.", least=1, most=1024)
    max_waiting: int = option(64, "how many texts may wait; more are told to come again (429).", least=1)
    max_tokens: int = option(2048, "how many tokens a text may get.", least=1)
    max_prompt: int = option(8192, "how many tokens a prompt may have.", least=1)
    max_n: int = option(16, "how many texts one prompt may ask for.", least=1)
    max_body: int = option(1_000_000, "how many bytes a request may have.", least=1)
    max_seconds: float = option(300.0, "how long a request may take.", above=0, most=MOST_SECONDS)
    grace: float = option(
        5.0, "how many seconds a server that is told to stop lets texts be finished.", least=0, most=MOST_SECONDS
    )


@dataclass(frozen=True)
class ServeOptions(ServeSettings, Limits):
    """Every keyword of ``gpt2lab.serving.server.serve``, under the names of the flags."""

    started: Callable[[str], None] | None = None
