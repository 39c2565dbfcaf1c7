"""Texts, tokenizers, and batches of token ids."""

from gpt2lab.data.corpora import Corpus, cache_dir, open_corpus, split
from gpt2lab.data.datasets import CharDataset, StatelessSampler, TokenDataset, encode_corpus
from gpt2lab.data.shards import Shards, find_shards, read_shard, write_shard
from gpt2lab.data.tokenizers import END_OF_TEXT, BPETokenizer, CharTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "CharDataset",
    "CharTokenizer",
    "Corpus",
    "Shards",
    "StatelessSampler",
    "TokenDataset",
    "Tokenizer",
    "cache_dir",
    "encode_corpus",
    "find_shards",
    "load_tokenizer",
    "open_corpus",
    "read_shard",
    "split",
    "write_shard",
]
