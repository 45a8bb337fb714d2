"""Refuse every socket that leaves this machine, in this interpreter.

Python imports `sitecustomize` by itself when its folder is on PYTHONPATH, so child processes of the tests are covered
without knowing it; `tests/conftest.py` loads the same file into the test process. An audit hook sees every socket that
Python opens, however it is reached, and cannot be taken off again.
"""

from __future__ import annotations

import ipaddress
import sys


class NetworkBlockedError(ConnectionError):
    """A test reached for the network; as an OSError it meets the code as an unplugged cable would."""


def is_local(host: object) -> bool:
    """Whether a host is this machine. Anything but text is no internet address (Unix and netlink sockets)."""
    if isinstance(host, bytes | bytearray):
        host = host.decode()
    if not isinstance(host, str) or host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    if not is_local(host):
        raise NetworkBlockedError(f"tests reach no network: {event} to {host!r} was refused (loopback is allowed)")


sys.addaudithook(refuse_network)
