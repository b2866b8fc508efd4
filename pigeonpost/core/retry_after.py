"""HTTP header Retry-After. Source: RFC 9110, section 10.2.3. Errors: none."""

from __future__ import annotations

LONGEST_PAUSE_S = 86_400.0  # longest time of Retry-After that is obeyed


def retry_after_s(text: str, now_s: float) -> float | None:
    """Return the time in the header Retry-After in seconds, or None if it contains none.

    Args:
        text: Value of the header: seconds, or a date. It is limited to LONGEST_PAUSE_S.
        now_s: Current time, in seconds since 1970 (UTC).
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        pause_s = float(text[:12])
    else:
        from email.utils import parsedate_to_datetime

        try:
            pause_s = parsedate_to_datetime(text).timestamp() - now_s
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(pause_s, 1.0), LONGEST_PAUSE_S)
