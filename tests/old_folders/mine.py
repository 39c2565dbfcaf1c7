from gpt2lab import GroupQueryAttention, SlidingWindowAttention


class Mine(GroupQueryAttention, SlidingWindowAttention):
    """A person's own."""
