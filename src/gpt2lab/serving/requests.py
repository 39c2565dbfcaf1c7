"""What requests and answers look like: OpenAI's completions, and what the page asks for besides."""

import itertools
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from gpt2lab.generation.sampling import Sampling
from gpt2lab.options import alternatives, declared, options_of
from gpt2lab.reading import MOST_WHOLE

MOST_STOPS = 16
MOST_TOP = 20


def _field(hint: Any, of: Any) -> Any:
    about = declared(of)
    most = MOST_WHOLE if int in alternatives(hint) and about.below is None else None
    limits: dict[str, Any] = {"ge": about.least, "gt": about.above, "le": about.most or most, "lt": about.below}
    return hint | None, Field(None, description=about.meaning, allow_inf_nan=False, **limits)


# The fields of Sampling, as they are declared there; null, or nothing, is the default.
Sampled: Any = create_model("Sampled", **{name: _field(hint, of) for name, (hint, of) in options_of(Sampling).items()})


class StreamOptions(BaseModel):
    """What a stream tells besides."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = Field(None, description="tell the numbers of tokens at the end.")


def _alike(value: Any) -> Any:
    """Refuse a list of several kinds at its first wrong entry: to tell a million of them would take seconds."""
    if isinstance(value, list) and value:
        kind = type(value[0])
        whole = itertools.chain.from_iterable(value) if kind is list else ()
        if any(type(entry) is not kind for entry in value) or any(type(entry) is not int for entry in whole):
            raise ValueError("its entries are not of one kind")
        if kind not in (str, int, list):
            raise ValueError("its entries are neither texts nor ids")
    return value


Ids = list[int]
Alike = BeforeValidator(_alike)
NOTHING = "taken only as null, 0 or empty: this server does nothing with it."


class CompletionRequest(Sampled):  # type: ignore[misc]
    """OpenAI's fields, and top_k, min_p, repetition_penalty, ignore_eos and details besides."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(description="id of one of the models that /v1/models lists.")
    prompt: Annotated[str | list[str] | Ids | list[Ids] | None, Alike] = Field(
        None, description="a text or ids, or several; null or empty: what the model begins texts with."
    )
    max_tokens: int | None = Field(16, ge=0, description="how many tokens are written at most; 0 only with echo.")
    n: int | None = Field(1, ge=1, description="how many texts for each prompt; text i of all has the seed + i.")
    stop: Annotated[str | list[str] | None, Alike] = Field(
        None, description="texts that end a text and are not part of it."
    )
    logprobs: int | None = Field(
        None, ge=0, le=MOST_TOP, description="tell the logarithmic probability of each token, and of so many others."
    )
    echo: bool | None = Field(
        False, description="begin with the prompt; its tokens have logarithmic probabilities, too."
    )
    stream: bool | None = Field(False, description="send the text while it is written, as server-sent events.")
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(False, description="go on behind <|endoftext|>.")
    details: bool | None = Field(False, description="tell the ids and bytes of all tokens.")
    user: str | None = Field(None, description="taken, and not used.")
    best_of: int | None = Field(None, description="taken only if it is n.")
    suffix: str | None = Field(None, description=NOTHING)
    frequency_penalty: float | None = Field(None, description=NOTHING)
    presence_penalty: float | None = Field(None, description=NOTHING)
    logit_bias: dict[str, float] | None = Field(None, description=NOTHING)


class AttentionRequest(BaseModel):
    """Whose attention is asked for: that of the last token of a text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    ids: Annotated[Ids, Alike] = Field(min_length=1)


class Alternative(BaseModel):
    """A token that could stand in a place."""

    id: int
    bytes: list[int] = Field(description="what it spells, which may be a part of a character.")
    logprob: float


class Detail(BaseModel):
    """A token of a text."""

    id: int
    bytes: list[int]
    logprob: float | None = Field(description="None for the first token of a prompt.")
    top: list[Alternative] = Field(description="the likeliest tokens in its place.")


class LogProbs(BaseModel):
    """OpenAI's form: lists with one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: LogProbs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    details: list[Detail] | None = None


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """The answer to a request, or a piece of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="seconds since 1970.")
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class About(BaseModel):
    """What a model is, for the page."""

    name: str
    summary: str
    facts: list[tuple[str, str]]
    vocabulary: int
    context: int
    endless: bool
    heads: int
    kv_heads: int
    windows: list[int | None]
    positions: list[str]
    sinks: bool
    prompt: str
    cache_bytes: int
    looks: bool


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gpt2lab"
    about: About


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class LayerAttention(BaseModel):
    """Attention of a layer."""

    weights: list[list[float]] = Field(
        description="of each query head, on the latest tokens; the last token's is last."
    )


class Attention(BaseModel):
    """Attention of the last token, in every layer."""

    layers: list[LayerAttention]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorBody


class Health(BaseModel):
    """Whether the server writes."""

    status: Literal["ok", "stopped"]
    waiting: int
    running: int


class RunLine(BaseModel):
    """A run in a list."""

    id: int
    name: str
    switches: dict[str, Any]
    context_size: int
    text: str
    step: int
    best_step: int
    validation_loss: float | None
    training: bool = Field(description="whether a process trains it now.")


class ReportLine(BaseModel):
    """A comparison that has a report."""

    id: int
    name: str
    address: str = Field(description="of the report; it opens without the key.")


class Runs(BaseModel):
    """What there is in the folder of runs."""

    runs: list[RunLine]
    reports: list[ReportLine]


class Sample(BaseModel):
    """What a checkpoint writes."""

    step: int
    text: str


class RunPage(BaseModel):
    """A run's numbers, and a text of each of its checkpoints."""

    records: list[dict[str, Any]]
    samples: list[Sample]


_MEANINGS = {
    400: "The request is wrong.",
    401: "The key is missing or wrong.",
    403: "A page of another site, or another name of the server.",
    404: "There is no such thing.",
    413: "The request is too large.",
    429: "Too many texts wait; come again.",
    503: "The server is about to stop, or the request took too long.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning} for status, meaning in _MEANINGS.items()
}
