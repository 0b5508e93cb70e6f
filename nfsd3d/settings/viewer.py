"""Where the viewer listens. Importing this file does not import viser."""

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
