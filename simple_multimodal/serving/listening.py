"""Where a server listens, and the token of its clients. Imports nothing heavy: mistakes are found at once."""

import ipaddress
import os
import socket
from pathlib import Path

from simple_multimodal.errors import InputError

TOKEN_VARIABLE = "SIMPLE_MULTIMODAL_TOKEN"
MAX_PORT = 2**16 - 1


def open_socket(host: str, port: int, *, has_token: bool) -> socket.socket:
    """
    Return a socket that is bound, but does not listen yet.

    Args:
        host (`str`): Name or address of this machine.
        port (`int`): Port; 0: any free one.
        has_token (`bool`): Whether clients need a token; without one, only this machine can be a client.

    Raises:
        ValueError: If the address is not available, **or** is open to other machines without a token.
    """
    if not 0 <= port <= MAX_PORT:
        raise InputError(f"`port` must be from 0 to {MAX_PORT}, got {port}.")
    try:
        family, kind, transport, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"`host={host}` is neither a name nor an address of this machine.") from error
    if not has_token and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InputError(
            f"`host={host}` can be reached from other machines, so that clients need a token: set `token_file`, or "
            f"the environment variable {TOKEN_VARIABLE}."
        )
    # asyncio only sends small answers at once, without Nagle's algorithm, if the socket says that it is TCP.
    opened = socket.socket(family, kind, transport)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise InputError(f"`port={port}` of {host} is not available: {error.strerror}. Choose another one.") from error
    return opened


def read_token(token_file: str | os.PathLike[str] | None) -> str | None:
    """
    Return the token of a file or of the environment, which is removed from there; `None` if there is none.

    Raises:
        ValueError: If it is blank or has spaces.
    """
    given = os.environ.pop(TOKEN_VARIABLE, None)
    source = TOKEN_VARIABLE
    if token_file is not None:
        given, source = Path(token_file).read_text(encoding="utf-8"), os.fspath(token_file)
    if given is None:
        return None
    token = given.strip()
    if not token or token.split() != [token]:
        raise InputError(f"The token in {source} must be one word; `openssl rand -hex 32` makes a good one.")
    return token
