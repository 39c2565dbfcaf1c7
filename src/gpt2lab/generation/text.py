"""From ids that come one by one to text."""

from gpt2lab.data import Tokenizer


class Decoder:
    """Text of one id after the other; a character that several ids spell appears with the last of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that this id completes."""
        self.pending.append(token)
        text = self.tokenizer.decode(self.pending)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self.pending) < 4:
            return ""
        self.pending.clear()
        return text
