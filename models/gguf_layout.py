"""What transformers' reader leaves out of a Llama's GGUF file, and says nothing about."""

from collections.abc import Iterable
from pathlib import Path

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFReader, Keys, RopeScalingType, get_tensor_name_map


def left_out(file: Path, names: Iterable[str], layers: int) -> list[str]:
    """What a Llama's GGUF file holds beyond the tensors `names`, as transformers has them: biases, a scaled rope."""
    reader, table = GGUFReader(file), get_tensor_name_map(MODEL_ARCH.LLAMA, layers)
    known = {table.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    scaling = reader.get_field(Keys.Rope.SCALING_TYPE.format(arch=MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA]))
    found = [tensor.name for tensor in reader.tensors if tensor.name not in known]
    return found + ([scaling.name] if scaling is not None and scaling.contents() != RopeScalingType.NONE.value else [])
