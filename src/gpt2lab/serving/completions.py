"""A completion: from a request to texts that are written, and from their tokens to an answer."""

import asyncio
import dataclasses
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from starlette.requests import Request

from gpt2lab.data import END_OF_TEXT, Tokenizer
from gpt2lab.errors import InputError, printable
from gpt2lab.generation.engine import Token
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.scores import Scored, scored
from gpt2lab.generation.text import Decoder, usual_prompt
from gpt2lab.options import options_of
from gpt2lab.serving.errors import RefusedError
from gpt2lab.serving.requests import (
    MOST_STOPS,
    Alternative,
    Choice,
    Completion,
    CompletionRequest,
    Detail,
    LogProbs,
    Usage,
)
from gpt2lab.serving.scheduler import Job, Piece, Scheduler, Served
from gpt2lab.serving.settings import Limits

# Tokens that an answer in one piece may tell: those of echoed prompts, too, and the likeliest ones in their places.
_MOST_TOLD = 200_000
# Seconds between two pieces of a text: more of them would be read no sooner, and each costs as much as a token.
_PAUSE = 0.05


@dataclass
class Text:
    """One text of an answer, and where it has got to.

    Attributes:
        prompt: ids.
        offset: characters before its next token.
    """

    index: int
    prompt: list[int]
    job: Job
    decoder: Decoder
    offset: int = 0
    written: int = 0


async def until_gone(request: Request, answer: Any) -> Any:
    """Wait for an answer as long as somebody waits for it."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise RefusedError(499, "the client has gone")
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Mailbox:
    """Pieces on their way from the scheduler's thread to the event loop, which is woken for many of them at once."""

    def __init__(self) -> None:
        self._loop, self._some = asyncio.get_running_loop(), asyncio.Event()
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._told = False

    def put(self, index: int, piece: Piece) -> None:
        """Add a piece of a text, in any thread."""
        self._pieces.append((index, piece))
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # the loop has ended, and with it whoever read
                self._loop.call_soon_threadsafe(self._some.set)

    async def take(self) -> dict[int, Piece]:
        """Wait for something, and take all that there is: one piece for each text."""
        await self._some.wait()
        self._some.clear()
        self._told = False  # before it is emptied: what comes meanwhile wakes again
        found: dict[int, Piece] = {}
        while self._pieces:
            index, piece = self._pieces.popleft()
            found[index] = found[index] + piece if index in found else piece
        return found


@dataclass(frozen=True)
class Plan:
    """A request that was looked through, and what is written for it."""

    request: CompletionRequest
    served: Served
    texts: list[Text]
    mailbox: Mailbox
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def answer(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        """An answer, or a piece of it."""
        return Completion(id=self.id, created=self.created, model=self.served.name, choices=choices, usage=usage)

    @property
    def usage(self) -> Usage:
        """Numbers of tokens so far."""
        prompts = {text.index // (self.request.n or 1): len(text.prompt) for text in self.texts}
        read, written = sum(prompts.values()), sum(text.written for text in self.texts)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def served_model(scheduler: Scheduler, name: str) -> Served:
    """The model of a name.

    Raises:
        RefusedError: there is none.
    """
    if name not in scheduler.models:
        known = ", ".join(scheduler.models)
        message = f"there is no model {printable(name)[:100]!r}; there is {known}"
        raise RefusedError(404, message, "model", "model_not_found")
    return scheduler.models[name]


def planned(request: CompletionRequest, served: Served, limits: Limits) -> Plan:
    """Look a request through: everything that can be wrong with it is found before anything is written.

    Raises:
        RefusedError: with the field that is wrong.
    """
    for name, plain in (("suffix", ""), ("frequency_penalty", 0), ("presence_penalty", 0), ("logit_bias", {})):
        if getattr(request, name) not in (None, plain):
            raise RefusedError(400, f"{name} is not known here; leave it out", name)
    n = request.n or 1
    if request.best_of not in (None, n):
        raise RefusedError(400, f"best_of is not known here; leave it out, or give it the value of n, {n}", "best_of")
    if n > limits.max_n:
        raise RefusedError(400, f"n is {n}; it has to be {limits.max_n} or less", "n")
    max_tokens = 16 if request.max_tokens is None else request.max_tokens
    if max_tokens > limits.max_tokens:
        raise RefusedError(400, f"max_tokens is {max_tokens}; it has to be {limits.max_tokens:,} or less", "max_tokens")
    if max_tokens == 0 and not request.echo:
        raise RefusedError(400, "max_tokens is 0; it has to be 1 or more, unless echo is true", "max_tokens")
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > MOST_STOPS or "" in stops:
        raise RefusedError(400, f"stop has to be up to {MOST_STOPS} texts, none of them empty", "stop")
    prompts = _prompts(request)
    if (number := len(prompts) * n) > limits.max_waiting:
        raise RefusedError(400, f"these are {number:,} texts; up to {limits.max_waiting} go into a request", "prompt")
    ids = [_ids(prompt, served, limits) for prompt in prompts]
    told = n * sum(max_tokens + (len(prompt) if request.echo else 0) for prompt in ids)
    told *= 1 + (request.logprobs or 0)
    if told > _MOST_TOLD and not request.stream:
        message = f"this asks for {told:,} tokens, likeliest ones counted; beyond {_MOST_TOLD:,} set stream"
        raise RefusedError(400, message, "max_tokens")
    given = {name: value for name in options_of(Sampling) if (value := getattr(request, name)) is not None}
    sampling = Sampling(**({"seed": secrets.randbits(32)} | given))
    end = served.tokenizer.end_of_text
    ends = [end] if end < served.model.config.vocab_size and (END_OF_TEXT in stops or not request.ignore_eos) else []
    stops = [stop for stop in stops if stop != END_OF_TEXT]
    texts: list[Text] = []
    mailbox = Mailbox()
    for index, prompt in enumerate(prompt for prompt in ids for _ in range(n)):
        own = dataclasses.replace(sampling, seed=(sampling.seed + index) % 2**62)
        decoder = Decoder(served.tokenizer, stops)
        if request.echo:
            decoder.follow(prompt)
        deliver = partial(mailbox.put, index)
        job = Job(prompt, own, max_tokens, decoder, ends, request.logprobs or 0, deliver)
        texts.append(Text(index, prompt, job, Decoder(served.tokenizer)))
    return Plan(request, served, texts, mailbox)


def _prompts(request: CompletionRequest) -> Sequence[str | list[int]]:
    prompt = request.prompt
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    if not prompt:
        raise RefusedError(400, "prompt is an empty list; give a text, ids, or several of them", "prompt")
    return [prompt] if isinstance(prompt[0], int) else prompt


def _ids(prompt: str | list[int], served: Served, limits: Limits) -> list[int]:
    """Ids of a prompt that the model knows."""
    if isinstance(prompt, str):
        if len(prompt) > (most := 8 * limits.max_prompt):  # such a text is not even encoded
            raise RefusedError(400, f"prompt has {len(prompt):,} characters, and {most:,} are allowed", "prompt")
        try:
            ids: list[int] = served.tokenizer.encode(prompt or usual_prompt(served.tokenizer)).tolist()
        except InputError as error:
            raise RefusedError(400, str(error), "prompt") from None
    else:
        ids = prompt
    if not ids:
        raise RefusedError(400, "a prompt is empty; give at least one token", "prompt")
    check_ids(ids, served, limits.max_prompt, "prompt")
    return ids


def check_ids(ids: Sequence[int], served: Served, most: int, param: str) -> None:
    """Refuse ids that the model does not know, and too many of them.

    Raises:
        RefusedError: with the name of the field, ``param``.
    """
    if len(ids) > most:
        raise RefusedError(400, f"{param} has {len(ids):,} tokens, and {most:,} are allowed", param)
    last = served.model.config.vocab_size - 1
    if strange := [id_ for id_ in ids if not 0 <= id_ <= last]:
        raise RefusedError(400, f"{param} has the id {strange[0]}, but the model knows 0 to {last}", param)


async def choices(plan: Plan, scheduler: Scheduler, seconds: float) -> AsyncGenerator[Choice]:
    """The texts, piece by piece, as they are written; whoever leaves early ends them.

    Raises:
        RefusedError: the server stops, a text cannot be written, or it took too long.
        BusyError, ClosedError: before anything is written.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    try:
        if plan.request.echo:
            async for choice in _echoed(plan, scheduler, until):
                yield choice
        left = [text for text in plan.texts if text.job.max_tokens > 0]
        if left:
            scheduler.submit(plan.served, [text.job for text in left])
        open_texts = len(left)
        while open_texts:
            pieces = await asyncio.wait_for(plan.mailbox.take(), until - loop.time())
            for index, piece in pieces.items():
                if piece.finished == "error":
                    raise RefusedError(503, piece.error, code="server_error")
                text = plan.texts[index]
                text.written += len(piece.tokens)
                open_texts -= piece.finished is not None
                yield _choice(plan, text, piece.tokens, piece.finished, piece.text)
            if open_texts:
                await asyncio.sleep(_PAUSE - loop.time() % _PAUSE)
    except TimeoutError:
        raise RefusedError(
            503, f"the request has taken {seconds:g} seconds, and longer ones are ended", code="timeout"
        ) from None
    finally:
        for text in plan.texts:
            text.job.cancelled = True


async def _echoed(plan: Plan, scheduler: Scheduler, until: float) -> AsyncGenerator[Choice]:
    """The prompts, with the logarithmic probabilities of their tokens if they are asked for."""
    loop, model, asked = asyncio.get_running_loop(), plan.served.model, plan.request
    found: list[Scored] = []
    for text in plan.texts:
        if asked.logprobs is None and not asked.details:
            found = [Scored(id_, None) for id_ in text.prompt]
        elif text.index % (asked.n or 1) == 0:  # the first of those that have this prompt
            question = partial(scored, model, torch.tensor(text.prompt), asked.logprobs or 0)
            answer = asyncio.wrap_future(scheduler.ask(question))
            found = await asyncio.wait_for(answer, until - loop.time())
        choice = _choice(plan, text, found, "length" if text.job.max_tokens == 0 else None)
        if text.job.max_tokens == 0:
            choice.text += text.decoder.end()
        yield choice


def _choice(
    plan: Plan, text: Text, tokens: Sequence[Scored | Token], finished: str | None, shown: str | None = None
) -> Choice:
    """A piece of a text.

    Args:
        plan: what was asked for.
        text: which.
        tokens: of the piece.
        finished: why it is the last one.
        shown: what it spells, if that is not what its tokens spell: a stop is left out.
    """
    tokenizer, asked = plan.served.tokenizer, plan.request
    told = LogProbs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    spelled = ""
    for token in tokens:
        new = text.decoder.add(token.id)
        spelled += new
        if asked.logprobs is not None:
            told.tokens.append(_name(tokenizer, token.id))
            told.token_logprobs.append(_own(token))
            told.text_offset.append(text.offset)
            told.top_logprobs.append(None if token.logprob is None else _top(tokenizer, token))
        text.offset += len(new)
    details = [_detail(tokenizer, token) for token in tokens] if asked.details else None
    return Choice(
        index=text.index,
        text=spelled if shown is None else shown,
        logprobs=None if asked.logprobs is None else told,
        finish_reason=finished,  # type: ignore[arg-type]
        details=details,
    )


def _own(token: Scored | Token) -> float | None:
    """A token's logarithmic probability; in the very digits that the list of the likeliest has."""
    return dict(token.top).get(token.id, token.logprob)


def _top(tokenizer: Tokenizer, token: Scored | Token) -> dict[str, float]:
    """The likeliest by what they spell, and the token itself."""
    found = {_name(tokenizer, id_): logprob for id_, logprob in reversed(token.top)}
    own = _own(token)
    return found if own is None else found | {_name(tokenizer, token.id): own}


def _name(tokenizer: Tokenizer, id_: int) -> str:
    """What a token spells; a part of a character as OpenAI writes it."""
    spelled = tokenizer.token_bytes[id_]
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _detail(tokenizer: Tokenizer, token: Scored | Token) -> Detail:
    top = [Alternative(id=id_, bytes=[*tokenizer.token_bytes[id_]], logprob=logprob) for id_, logprob in token.top]
    return Detail(id=token.id, bytes=[*tokenizer.token_bytes[token.id]], logprob=_own(token), top=top)


def together(plan: Plan, pieces: Sequence[Choice]) -> list[Choice]:
    """The pieces of every text as one."""
    whole = [Choice(index=text.index, text="") for text in plan.texts]
    for piece in pieces:
        one = whole[piece.index]
        one.text += piece.text
        one.finish_reason = piece.finish_reason or one.finish_reason
        if piece.details is not None:
            one.details = (one.details or []) + piece.details
        if piece.logprobs is not None:
            known = one.logprobs or LogProbs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
            for name in LogProbs.model_fields:
                getattr(known, name).extend(getattr(piece.logprobs, name))
            one.logprobs = known
    return whole
