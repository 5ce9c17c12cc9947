"""The model hub, where it may be out of reach."""

import os
import re
import socket
from urllib.parse import urlparse

from huggingface_hub import constants

from utils.common.errors import UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def offline() -> bool:
    """Whether the hub is out of reach, because the environment says so or its name does not resolve."""
    if constants.HF_HUB_OFFLINE:
        return True
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
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
