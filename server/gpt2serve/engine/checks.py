"""Checks of single values. Each raises `InvalidRequest`, which names the field."""

from __future__ import annotations

import math

from gpt2serve.errors import InvalidRequest

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MOST_BIAS = 100.0


def check_boolean(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"must be true or false, not {value!r}")
    return value


def check_integer(field: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` if it is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(field, f"must be an integer, not {value!r}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequest(field, f"must be {bounds}, not {value}")
    return value


def check_above(field: str, value: object, above: float, up_to: float = math.inf) -> float:
    """Return `value` if it is a finite number in (above, up_to]."""
    number = _check_number(field, value)
    if not above < number <= up_to:
        bounds = f"above {above:g}" + (f" and at most {up_to:g}" if up_to < math.inf else "")
        raise InvalidRequest(field, f"must be {bounds}, not {value}")
    return number


def check_between(field: str, value: object, low: float, high: float) -> float:
    """Return `value` if it is a number in [low, high]."""
    number = _check_number(field, value)
    if not low <= number <= high:
        raise InvalidRequest(field, f"must be between {low:g} and {high:g}, not {value}")
    return number


def check_stop(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, tuple | list) or not all(isinstance(text, str) for text in stop):
        raise InvalidRequest("stop", "must be a list of strings")
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest("stop", f"at most {MAX_STOP_STRINGS} strings, not {len(stop)}")
    for text in stop:
        if not 0 < len(text) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                "stop", f"each string has 1 to {MAX_STOP_LENGTH} characters, not {len(text)}"
            )
    return tuple(stop)


def check_bias(bias: object, vocab_size: int) -> dict[int, float]:
    """Return what is to be added to the logits of single tokens, as it is."""
    field = "logit_bias"
    if not isinstance(bias, dict):
        raise InvalidRequest(field, f"must map token ids to numbers, not {bias!r}")
    return {
        check_integer(field, token, 0, vocab_size - 1): check_between(
            field, value, -MOST_BIAS, MOST_BIAS
        )
        for token, value in bias.items()
    }


def _check_number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(field, f"must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequest(field, f"must be a finite number, not {value}")
    return number
