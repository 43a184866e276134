"""How a request ends without images. The engine raises these, and AsyncEngine raises them again in a worker."""


class EngineError(Exception):
    """A request that ends without images.

    Args:
        retry_after: seconds after which the same request may succeed.
        field: the field of the request that is at fault.
    """

    reason = "internal"  # names the kind on the wire

    def __init__(self, message: str = "", retry_after: float = 0.0, field: str = ""):
        super().__init__(message)
        self.retry_after, self.field = retry_after, field


class InvalidField(EngineError):
    """The model cannot do what a field asks for."""

    reason = "invalid"


FULL_QUEUE = "the queue is full"


class QueueFull(EngineError):
    """The queue is at its bound; retry_after is the time to work off what is queued."""

    reason = "queue_full"


class Overloaded(EngineError):
    """Refused at once, because it would be late or make others late; retry_after as of QueueFull."""

    reason = "overload"


class DeadlineUnreachable(EngineError):
    """Refused at once, because the answer would come too late; retry_after as of QueueFull."""

    reason = "deadline"


class DeadlinePassed(EngineError):
    """Accepted, but the deadline passed before the images were done; work on it has stopped."""

    reason = "expired"


class RequestFailed(EngineError):
    """The model failed on this request."""

    reason = "failed"


class EngineStopped(EngineError):
    """The engine is shutting down, or has died; no request will be answered any more."""

    reason = "stopped"


KINDS: dict[str, type[EngineError]] = {kind.reason: kind for kind in EngineError.__subclasses__()}
