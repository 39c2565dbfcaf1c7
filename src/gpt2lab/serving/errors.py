"""What goes wrong with a request, and the one form in which that is told."""

from gpt2lab.serving.requests import ErrorAnswer, ErrorBody

_TYPES = {404: "not_found_error", 429: "rate_limit_error"}


class RefusedError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: of HTTP.
        message: what is wrong, and what to do.
        param: the field that is.
        code: for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_answer(status: int, message: str, param: str | None = None, code: str | None = None) -> ErrorAnswer:
    """OpenAI's form of what went wrong; the arguments are those of :class:`RefusedError`."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorAnswer(error=ErrorBody(message=message, type=kind, param=param, code=code))
