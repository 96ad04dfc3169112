"""Times as records write them → microseconds since 1970 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_CHARS = 64
# Smaller numbers are years, counters or days; up to each limit a number counts in the unit beside it.
_MIN_EPOCH_SECONDS = 1e8
_UNITS = ((1e11, 1_000_000.0), (1e14, 1_000.0), (1e17, 1.0), (1e20, 0.001))
_MAX_MICROSECONDS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def parse_time(value: object) -> int | None:
    """Gives a time in microseconds since 1970 UTC; None where it is not a time between the years 1 and 9999.

    Args:
        value: ISO 8601, RFC 2822, or a number since 1970: of seconds (from 1973 on), milli-, micro- or nanoseconds,
            told apart by their size. Without a zone it is UTC.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text or len(text) > _MAX_CHARS:
            return None
        return _from_text(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and 10_000_101 <= value <= 99_991_231:
            return _from_text(str(value))
        return _from_number(value)
    return None


def _from_text(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None and text[0] in "0123456789" and text.replace(".", "", 1).isdecimal() and text.isascii():
        return _from_number(float(text) if "." in text else int(text))
    try:
        moment = moment or parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return (moment - _EPOCH) // _MICROSECOND if moment.astimezone(UTC) else None
    except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
        return None


def _from_number(value: float) -> int | None:
    if not _MIN_EPOCH_SECONDS <= value < _UNITS[-1][0]:
        return None
    scale = next(scale for limit, scale in _UNITS if value < limit)
    if isinstance(value, int) and scale >= 1:
        microseconds = value * int(scale)
    else:
        microseconds = value // 1000 if isinstance(value, int) else round(value * scale)
    return microseconds if microseconds <= _MAX_MICROSECONDS else None
