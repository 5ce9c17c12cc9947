"""Access to the model hub, which may be out of reach."""

import os
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from huggingface_hub import constants

from utils.common.errors import UserError, explain

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@contextmanager
def asking(flag: str, what: str, cure: str) -> Iterator[None]:
    """Get `what` from the hub in the block; an error there becomes a UserError naming the flag.

    If the hub's name does not resolve, only the local cache is used, since the library would retry for long.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline()
    try:
        with explain(f"{flag}: cannot get {what}", cure):  # its client has its own error for a connection that drops
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


def offline() -> bool:
    """Whether the hub is out of reach, because the environment says so or its name does not resolve."""
    if constants.HF_HUB_OFFLINE:
        return True
    if {urlparse(constants.ENDPOINT).scheme, "all"} & urllib.request.getproxies().keys():
        return False
    try:
        return not socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True


def check_at_hand(hub_id: str, flag: str) -> None:
    """Raise UserError if the hub is out of reach and its cache on this machine holds nothing of the model."""
    cached = os.path.join(constants.HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}")
    if not os.path.isdir(cached) and offline():
        raise UserError(
            f"{flag}: cannot get '{hub_id}' from the model hub (it is out of reach, and its cache doesn't hold the "
            "model); check the name and your connection, or give a local folder"
        )
