"""Give a trained GPT-2 the switches: convert it, train it a little further, and tell what that cost."""
