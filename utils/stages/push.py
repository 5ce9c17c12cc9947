"""`-push_to_hub`: what the hub must grant is asked before anything is computed; the model goes there once it stands."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from huggingface_hub import constants

from utils.common.errors import Stopped, UserError, causes, first_line, shortened
from utils.common.flags import Arguments
from utils.common.hub import offline
from utils.common.processes import is_main_process

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FLAG = "-push_to_hub"

MODEL = "model"
"""What is uploaded, in the output folder."""

PATIENCE = 30
"""Seconds in which the hub must answer a question; its own client would wait without end."""


def check_push(args: Arguments) -> None:
    """Raise UserError unless the hub is reached, knows the token, and lets it write under that name.

    One process of several asks, since the hub answers few such questions a minute.
    """
    if args.push_to_hub is None or not is_main_process():
        return
    without = f"or run without {FLAG} and upload the result when it is"
    if constants.HF_HUB_OFFLINE:
        variable = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "")
        raise UserError(f"{FLAG}: the environment says offline ({variable}); unset that where the hub is in reach")
    if offline():
        raise UserError(f"{FLAG}: {constants.ENDPOINT} does not resolve; check your connection, {without} in reach")
    token = _token()
    account = _account(token, without)
    with _one_line(f"{FLAG}: {constants.ENDPOINT} does not say what the token may do", without, token):
        _check_rights(args.push_to_hub, account)
    if args.hub_private_repo:
        from huggingface_hub import HfApi

        name = args.push_to_hub if "/" in args.push_to_hub else f"{account['name']}/{args.push_to_hub}"
        with _one_line(f"{FLAG}: {constants.ENDPOINT} does not say whether {name} is public", without, token):
            _refuse_public(HfApi(token=token), name)


def push(args: Arguments) -> None:
    """Upload the merged checkpoint of the result in -output_dir: what the run wrote there, and no other file.

    Raises UserError if that fails, Stopped if it is stopped; the result stays as it is.
    """
    if args.push_to_hub is None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.utils import enable_progress_bars

    folder, name = args.output_dir / MODEL, args.push_to_hub
    words = ["hf", "upload", name, str(folder), *(["--private"] if args.hub_private_repo else [])]
    again = f"the result in {args.output_dir} is whole: {shlex.join(words)} uploads it"
    if not args.quiet:
        print(f"\nuploading {announced(args)}")
        if sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            enable_progress_bars()  # which `quiet_libraries` took away
    try:
        with _one_line(f"{FLAG}: the model was not uploaded", again, _token(again)):
            api = HfApi(token=True)  # asked for anew, since a login's token may have been replaced meanwhile
            name = api.create_repo(name, private=args.hub_private_repo or None, exist_ok=True).repo_id
            if args.hub_private_repo:
                _refuse_public(api, name, f"; {again}")
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message="Upload a model restored by RestoreLCC",
            )
    except (KeyboardInterrupt, Stopped) as end:
        raise Stopped(end.number if isinstance(end, Stopped) else signal.SIGINT, again) from end
    print(f"hub:    {constants.ENDPOINT}/{name}")


def announced(args: Arguments) -> str:
    """What `push` will do, in words."""
    private = ", private if it is new" if args.hub_private_repo else ""
    return f"{args.output_dir / MODEL} to {args.push_to_hub} at {constants.ENDPOINT}{private}"


def _token(then: str = f"set HF_TOKEN, or log in by hf auth login; or leave {FLAG} out") -> str:
    """The token that the hub's client finds; UserError that ends with `then` if it finds none, or one that is none."""
    from huggingface_hub import get_token

    with _one_line(f"{FLAG}: no token can be read", then, ""):
        token = get_token()
    if not token:
        raise UserError(f"{FLAG}: there is no token for {constants.ENDPOINT}; {then}")
    # Libraries' errors would quote such a one, in ways that can't be told.
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"{FLAG}: the token holds characters that none of the hub's has; copy it once more")
    return token


def _account(token: str, without: str) -> dict:
    """Whose token it is, as the hub answers; UserError if it doesn't."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers(token=token)
    with _one_line(f"{FLAG}: {constants.ENDPOINT} does not answer who you are", f"check it, {without} in reach", token):
        # HfApi.whoami takes no limit of time.
        answer = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=headers, timeout=PATIENCE)
        if answer.status_code == 401:
            given = "of HF_TOKEN" if os.environ.get("HF_TOKEN") else "that was saved"
            raise UserError(
                f"{FLAG}: {constants.ENDPOINT} does not know the token {given}; make one at {_tokens()}, and set "
                "HF_TOKEN or log in by hf auth login"
            )
        hf_raise_for_status(answer)
        account = answer.json()
        if not isinstance(account, dict) or not isinstance(account.get("name"), str):
            raise ValueError("it names nobody")
    return account


def _tokens() -> str:
    return f"{constants.ENDPOINT}/settings/tokens"


def _check_rights(name: str, account: dict) -> None:
    """Raise UserError where the account's own record says that the token can't write there.

    What a fine-grained token may do is not told in few words: the hub judges it when the model is uploaded.
    """
    role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UserError(f"{FLAG}: the token may only read; make one that may write at {_tokens()}")
    owner, slash, _ = name.partition("/")
    if role == "write" and slash and "orgs" in account:
        names = [account["name"], *(each.get("name", "") for each in account["orgs"] or ())]
        if owner.lower() not in [each.lower() for each in names]:
            raise UserError(
                f"{FLAG}: {account['name']}, whose token it is, is not {owner}, nor a member of it; "
                f"give one of {', '.join(names)} as the owner"
            )


def _refuse_public(api: "HfApi", name: str, then: str = "") -> None:
    """Raise UserError if what was asked to be private is public already: the hub would leave it so."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        public = not api.model_info(name, timeout=PATIENCE).private
    except RepositoryNotFoundError:
        return
    if public:
        raise UserError(
            f"-hub_private_repo: {name} exists, and is public; make it private at "
            f"{constants.ENDPOINT}/{name}/settings, or give another name{then}"
        )


@contextmanager
def _one_line(what: str, then: str, token: str) -> Iterator[None]:
    """Whatever the hub's client raises becomes a UserError: `what`, why, and what to do `then`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of huggingface_hub, of its HTTP client, of hf_xet: no common kind
        # From none of them: a disk or memory that one of them met would be told in place of this.
        raise UserError(f"{what} ({_why(error, token)}); {then}") from None


def _why(error: Exception, token: str) -> str:
    """What an error says in one line, never the token."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = list(causes(error))
    answered = next((each for each in chain if isinstance(each, HfHubHTTPError)), None)
    if answered is None:
        said = ": ".join(dict.fromkeys(first_line(each) for each in (chain[0], chain[-1])))
    else:
        said = f"{answered.response.status_code} {answered.response.reason_phrase}"
        said += f": {answered.server_message}" if answered.server_message else ""
    hidden = said.replace(token, "…") if token else said
    return shortened(" ".join(hidden.split()), 300)
