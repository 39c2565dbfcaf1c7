"""In from other programs, and out to them: GPT-2's own weights, Transformers, and the engines that read its files."""
