"""What zeros buy on a CPU with torch's own sparse kernels: the same weights dense and as CSR, side by side.

python -m benchmarks.sparse PRUNED
"""

import warnings

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.inference import NEW, measure
from benchmarks.timing import Disagreement, say, sharing_weights, spread
from models.checkpoint import LINEARS
from models.loading import load_model
from utils.common.commands import Parser, folder_path, run
from utils.common.flag_types import at_least

LENGTH = 128
"""Tokens of the prompt that is read."""


class SparseLinear(nn.Module):
    """A linear layer whose weight (out, in) is kept as CSR with int32 indices, which is what MKL multiplies by."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse ")  # torch calls its CSR tensors a beta
            dense = linear.weight.detach().to_sparse_csr()
            index = (dense.crow_indices().int(), dense.col_indices().int())
            self.weight = torch.sparse_csr_tensor(*index, dense.values(), dense.shape)
        self.bias = linear.bias

    @property
    def bytes(self) -> int:
        """What the weight takes in memory."""
        parts = (self.weight.crow_indices(), self.weight.col_indices(), self.weight.values())
        return sum(part.numel() * part.element_size() for part in parts)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        found = (self.weight @ inputs.flatten(0, -2).T).T
        return (found if self.bias is None else found + self.bias).view(*inputs.shape[:-1], -1)


def as_sparse(model: LlamaForCausalLM) -> tuple[LlamaForCausalLM, int, int]:
    """(the model with the linear layers of its decoder as CSR, their bytes dense, their bytes as CSR)."""
    sparse = sharing_weights(model)
    dense_bytes = sparse_bytes = 0
    for layer in sparse.model.layers:
        for name in LINEARS:
            linear = layer.get_submodule(name)
            replaced = SparseLinear(linear)
            dense_bytes += linear.weight.numel() * linear.weight.element_size()
            sparse_bytes += replaced.bytes
            layer.set_submodule(name, replaced)
    return sparse, dense_bytes, sparse_bytes


@torch.no_grad()
def main() -> None:
    """Time both on the same prompt, turn by turn, and print the ratios."""
    parser = Parser(prog="python -m benchmarks.sparse", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=folder_path, metavar="PRUNED", help="a checkpoint with zeros")
    parser.flag("repeats", type=at_least(1), default=5, metavar="N", help="of both, in turns")
    args = parser.parse_args()
    model = load_model(args.model, torch.float32, "cpu", "PRUNED")
    sparse, dense_bytes, sparse_bytes = as_sparse(model)
    prompt = torch.randint(model.config.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    expected, found = (each(prompt).logits for each in (model, sparse))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise Disagreement("the logits of the dense and the CSR model are apart, so that a ratio would mean nothing")
    say(f"{args.model.name}, fp32, {torch.get_num_threads()} threads")
    sizes = f"{dense_bytes / 1e6:.0f} MB dense, {sparse_bytes / 1e6:.0f} MB as CSR"
    say(f"linear layers: {sizes} ({sparse_bytes / dense_bytes:.2f}×)")
    rates = measure({"dense": model, "csr": sparse}, prompt, NEW, args.repeats)
    for kind in rates["dense"]:
        pairs = zip(rates["csr"][kind], rates["dense"][kind], strict=True)
        ratio, speed = spread([a / b for a, b in pairs]), spread(rates["dense"][kind])["median"]
        say(f"{kind}: dense {speed:.1f} tokens/s, CSR {ratio['median']:.2f}× ({ratio['min']:.2f}-{ratio['max']:.2f})")


if __name__ == "__main__":
    run(main)
