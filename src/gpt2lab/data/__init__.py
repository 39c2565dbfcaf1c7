"""Texts, tokenizers, and batches of token ids."""

from gpt2lab.data.corpora import Corpus, cache_dir, open_corpus, split
from gpt2lab.data.datasets import CharDataset, StatelessSampler, TokenDataset, encode_corpus
from gpt2lab.data.tokenizers import END_OF_TEXT, BPETokenizer, CharTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "CharDataset",
    "CharTokenizer",
    "Corpus",
    "StatelessSampler",
    "TokenDataset",
    "Tokenizer",
    "cache_dir",
    "encode_corpus",
    "load_tokenizer",
    "open_corpus",
    "split",
]
