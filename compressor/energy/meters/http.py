"""One way to ask a device on the network: JSON, exact numbers, a deadline, named errors."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

from compressor.energy.domain import Probe
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

TIMEOUT_S = 2.0


def get_json(url: str, *, timeout_s: float = TIMEOUT_S, login: tuple[str, str] | None = None) -> tuple[int, Any]:
    """Ask for a JSON document.

    Args:
        url: of the device.
        timeout_s: for the answer as a whole.
        login: user and password, for devices that ask for them.

    Returns:
        The middle of the request in monotonic nanoseconds, and the document with decimals kept exact.

    Raises:
        EnergyError: no answer in time, a refusal, or something that is not JSON.
    """
    # Here, since the module costs more to import than the rest of the package together.
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url)
    if login is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(":".join(login).encode()).decode())
    start_ns = now_ns()
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        raise EnergyError(f"answered {error.code} {error.reason}", where=url) from error
    except OSError as error:  # URLError and time-outs are of this kind
        raise EnergyError(f"does not answer: {getattr(error, 'reason', None) or error}", where=url) from error
    end_ns = now_ns()
    if end_ns - start_ns > timeout_s * 1e9:
        raise EnergyError(f"took {(end_ns - start_ns) / 1e9:.1f} s to answer; the reading is stale", where=url)
    try:
        return (start_ns + end_ns) // 2, json.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise EnergyError(f"did not answer with JSON: {text[:60]!r}", where=url) from error


def find(document: Any, path: tuple[str | int, ...], url: str) -> Any:
    """A value inside a document.

    Raises:
        EnergyError: naming the device and the path.
    """
    node = document
    for key in path:
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError) as error:
            place = ".".join(str(part) for part in path)
            raise EnergyError(f"the answer has no {place}", where=url) from error
    return node


def scaled(value: Any, factor: int, what: str, url: str) -> int:
    """A decimal number as a whole number of ``1 / factor``; digits beyond that are refused, not rounded away.

    Raises:
        EnergyError: not a number, or finer than expected.
    """
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise EnergyError(f"{what} is {value!r}, not a number", where=url)
    units = Decimal(value) * factor
    if not units.is_finite() or units != int(units):
        raise EnergyError(f"{what} is {value}, finer than 1/{factor}", where=url)
    return int(units)


def unconfigured(what: str, how: str) -> Probe:
    """The status of a network meter whose address nobody has given."""
    return Probe("absent", f"no {what} is configured", how)
