"""Where the viewer listens. Importing this file does not import viser."""

import socket
from importlib.util import find_spec

from nfsd3d.errors import InputError

LOCAL = "127.0.0.1"
"""The address that only this machine can reach."""

PORT = 8080
"""The first port to try."""


def check_viser(asked: str) -> None:
    """Raises `InputError` that names what ``asked`` for the viewer, if viser is not installed."""
    if find_spec("viser") is None:
        raise InputError(f"{asked}: viser is not installed; install it with: pip install 'nfsd3d[viewer]'")


def host_and_port(viewer: bool | str) -> tuple[str, int]:
    """What the setting ``viewer`` means: true, or HOST:PORT."""
    host, _, port = str(viewer).rpartition(":")
    return (host.strip("[]"), int(port)) if isinstance(viewer, str) else (LOCAL, PORT)


def url(host: str, port: int) -> str:
    """The address for a browser on this machine."""
    shown = LOCAL if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def check_host(asked: str, host: str) -> None:
    """Raises `InputError` that names what ``asked``, for an address that is not this machine's.

    viser would try one port of it after another.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"{asked}: cannot be listened on ({error.strerror}); give an address of this machine, such as "
            "127.0.0.1, or 0.0.0.0 for all of them"
        ) from error
