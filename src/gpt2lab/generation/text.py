"""From ids that come one by one to text."""

import codecs
from collections.abc import Collection, Iterable

from gpt2lab.data import Tokenizer


def usual_prompt(tokenizer: Tokenizer) -> str:
    """What a text goes on from where nobody gives a prompt: a line break, or else the first token."""
    return "\n" if "\n" in getattr(tokenizer, "stoi", "\n") else tokenizer.decode([0])


class Decoder:
    """Text of one id after the other; a character that several ids spell appears with the last of them.

    Args:
        tokenizer: what the ids are of.
        stop: texts, each of which ends this one, and is not part of it. What may be the beginning of one is held back.

    Attributes:
        ended: whether it has occurred. Nothing is added after that.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Collection[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.ended = False
        self._stop = stop
        self._held = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def follow(self, ids: Iterable[int]) -> None:
        """Go on behind these: a character that they begin is completed, and is told with the token that does so."""
        self._utf8.decode(b"".join(self.tokenizer.token_bytes[id_] for id_ in ids))

    def add(self, token: int) -> str:
        """The text that this id completes."""
        return self._shown(self._utf8.decode(self.tokenizer.token_bytes[token]))

    def end(self) -> str:
        """What is left: U+FFFD where the last ids began a character that nothing completed."""
        left = self._shown(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return left + held

    def _shown(self, new: str) -> str:
        """What of the text so far can be shown, with what is new."""
        if self.ended or not self._stop:
            return "" if self.ended else new
        text = self._held + new
        ends = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if ends:
            self.ended, self._held = True, ""
            return text[: min(ends)]
        longest = min(len(text), max(map(len, self._stop)) - 1)
        begun = next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]
