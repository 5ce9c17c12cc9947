"""The model hub, where it may be out of reach."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

import huggingface_hub


@contextmanager
def no_waiting() -> Iterator[None]:
    """Where the hub's name does not resolve, look in the local cache only: the library would retry for long."""
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if not offline and not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        try:
            socket.getaddrinfo(urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443)
        except OSError:
            huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
