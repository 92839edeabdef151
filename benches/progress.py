"""Progress of long benches, for a log."""

from __future__ import annotations


def log(done: int, total: int, text: str, _last: dict[str, int] = {}) -> None:  # noqa: B006
    """A line for each percent."""
    percent = 100 * done // max(total, 1)
    if _last.get(text.split(":")[0]) != percent:
        _last[text.split(":")[0]] = percent
        print(f"{percent:3d} % {text}", flush=True)
