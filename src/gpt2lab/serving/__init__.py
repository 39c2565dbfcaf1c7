"""A server for one's own models: an API that other programs know, and a page that shows what attention does."""
