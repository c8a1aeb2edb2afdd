"""What a client did wrong, as a status and one sentence."""

from __future__ import annotations


class RequestProblem(Exception):
    """An answer other than 200.

    Parameters
    ----------
    status : int
        HTTP status, 4xx.
    sentence : str
        What must be, what was given, what to do.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = " ".join(sentence.split())
