class Mine(GroupQueryAttention, SlidingWindowAttention):
    """A person's own."""
