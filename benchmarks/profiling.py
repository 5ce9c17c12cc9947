"""Where training time goes, by operator."""

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities
from transformers import LlamaForCausalLM

from benchmarks.timing import say
from benchmarks.training import grouped_batches, restoring_loop, visible_restoration
from utils.prompts import Encoded
from utils.report.tables import markdown_table

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mkldnn_linear", "linear")
SHOWN = 15


def profile_training(model: LlamaForCausalLM, samples: list[Encoded], count: int, seed: int) -> None:
    """Print the operators that one pass of training spends its time in, and the share of matrix products.

    The time is an operator's own, without what it calls: the GPU's where the model is on one, else the CPU's.
    """
    loop = restoring_loop(model, visible_restoration(model, seed))
    batches = grouped_batches(samples, count, seed)
    loop.run(batches[-1:])  # the longest, after which memory is as large as it will be
    on_gpu = model.device.type == "cuda"
    activities = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    with profile(activities=activities, acc_events=True) as profiler:
        loop.run(batches)
    events = [event for event in profiler.key_averages() if not on_gpu or event.device_type == DeviceType.CPU]

    def own(event) -> float:
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    total = sum(map(own, events))
    products = sum(own(event) for event in events if event.key.removeprefix("aten::") in PRODUCTS)
    events.sort(key=own, reverse=True)
    rows = [
        [event.key, str(event.count), f"{own(event) / 1e3:.1f}", f"{own(event) / total:.1%}"]
        for event in events[:SHOWN]
    ]
    say(f"one pass of training, {sum(map(len, batches))} samples:")
    say(markdown_table(["operator", "calls", "own ms", "share"], rows, right={1, 2, 3}))
    say(f"matrix products: {products / total:.1%} of {total / 1e6:.2f} s")
