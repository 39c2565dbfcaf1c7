"""From ids that come one by one to text."""

import codecs

from gpt2lab.data import Tokenizer


class Decoder:
    """Text of one id after the other; a character that several ids spell appears with the last of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that this id completes."""
        return self._utf8.decode(self.tokenizer.token_bytes[token])

    def end(self) -> str:
        """What is left: U+FFFD where the last ids began a character that nothing completed."""
        return self._utf8.decode(b"", final=True)
