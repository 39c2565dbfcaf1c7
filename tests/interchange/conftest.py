from tests.cli.conftest import command, modern

__all__ = ["command", "modern"]
