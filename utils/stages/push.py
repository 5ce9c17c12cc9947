"""`-push_to_hub`: the hub is asked before anything is computed; the model goes there once it stands."""

import shlex
import signal
import sys

from huggingface_hub import constants

from utils.common.errors import Stopped, UserError, explain, first_line
from utils.common.flags import Arguments
from utils.common.processes import is_main_process

FLAG = "-push_to_hub"


def check_push(args: Arguments) -> None:
    """Raise UserError unless the hub is reached and knows the token; one process of several asks."""
    if args.push_to_hub is None or not is_main_process():
        return
    from huggingface_hub import HfApi

    cure = f"check your connection, and set HF_TOKEN or log in by hf auth login, or leave {FLAG} out"
    # Errors of huggingface_hub and of its HTTP client have no common kind.
    with explain(f"{FLAG}: cannot verify the token at {constants.ENDPOINT}", cure):
        account = HfApi().whoami()
    if ((account.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise UserError(f"{FLAG}: the token may only read; make one that may write")


def push(args: Arguments) -> None:
    """Upload the merged checkpoint. Raises UserError if that fails, and Stopped on a signal; the message says how to
    upload it later, and the result stays as it is.
    """
    if args.push_to_hub is None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.utils import enable_progress_bars

    folder, api = args.output_dir / "model", HfApi()
    again = f"the result is complete; to upload it, run: {shlex.join(['hf', 'upload', args.push_to_hub, str(folder)])}"
    if sys.stderr.isatty():
        enable_progress_bars()  # `quiet_libraries` has disabled them
    try:
        name = api.create_repo(args.push_to_hub, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model restored by RestoreLCC")
    except (KeyboardInterrupt, Stopped) as end:
        raise Stopped(end.number if isinstance(end, Stopped) else signal.SIGINT, again) from end
    except Exception as error:
        raise UserError(f"{FLAG}: the model was not uploaded ({first_line(error)}); {again}") from None
    print(f"hub:    {constants.ENDPOINT}/{name}")
