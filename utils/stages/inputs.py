"""Before the first stage: checks of a run's inputs that take only a moment."""

from data.sources import check_calib_data, check_data_path
from models.model_names import check_found
from utils.common.errors import UserError
from utils.common.files import check_writable
from utils.common.flags import Arguments
from utils.stages.push import check_push


def check_inputs(args: Arguments) -> None:
    """Check names, paths and the hub without torch, whose import takes seconds; UserError for what is wrong."""
    check_found(args.base_model_name, "-base_model_name")
    if args.pruned_model_path:
        check_found(args.pruned_model_path, "-pruned_model_path")
    check_data(args)
    check_writable(args.cache_dir, "-cache_dir")
    check_push(args)


def check_data(args: Arguments) -> None:
    """Raise UserError if -calib_data, -data_path or -eval_data_dir can be known to be wrong without reading it."""
    check_calib_data(args.calib_data)
    if not args.spec_task:
        check_data_path(args.data_path)
    if args.eval_data_dir and not args.eval_data_dir.is_dir():
        raise UserError(f"-eval_data_dir: {args.eval_data_dir} is not a folder; give the folder of task data")
