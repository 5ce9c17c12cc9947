"""The table of methods: a new way of restoring is one file and one line here.

Modules are named, not imported: flags and help read the table without them, and a run loads only its own.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One method: `module:Class` (see models.contract), what it is, for --help, and its name in a report.

    settings: what the class is called with. takes_sites: whether it is also told by `sites` where -apply_to wants its
    constants; sites: where, if -apply_to says nothing. norms: whether the scales of all norms are trained too. takes:
    flags that it is called with. selection: -head_selection, if nothing is said. about: a paragraph for the model's
    card.
    """

    made_by: str
    what: str
    title: str
    settings: dict = field(default_factory=dict)
    takes_sites: bool = False
    sites: str | None = None
    norms: bool = False
    takes: tuple[str, ...] = ()
    selection: str = "contrastive"
    about: str = ""


PAPER = (
    'RestoreLCC (Feng et al., "Restoring Pruned Large Language Models via Lost Component Compensation", NeurIPS '
    "2025) learns one constant vector per chosen attention head. Here they are folded into `o_proj.bias`: every "
    "weight is the pruned checkpoint's own, and each of its zeros is still a zero."
)


_HEADS = "utils.compensation:HeadCompensations"
_LORA, _LORA_FLAGS = "baselines.lora:LoRA", ("lora_rank", "lora_alpha", "lora_targets", "lora_layers")
_DORA = "baselines.dora:DoRA"
_BIAS, _BIAS_FLAGS = "baselines.output_bias:OutputBias", ("bias_start", "stream")

METHODS = {
    "restorelcc": Line(_HEADS, "β and b of Eq. 8 on chosen heads", "RestoreLCC", about=PAPER),
    "bias_only": Line(
        _HEADS, "b of chosen heads alone", "RestoreLCC (b alone)", {"trained": ("component",)}, about=PAPER
    ),
    "magnitudes_only": Line(
        _HEADS, "β of chosen heads alone", "RestoreLCC (β alone)", {"trained": ("magnitudes",)}, about=PAPER
    ),
    "output_bias": Line(
        _BIAS,
        "a free bias of whole projections",
        "a bias of whole projections",
        takes_sites=True,
        takes=_BIAS_FLAGS,
    ),
    "lofit": Line(
        _HEADS, "LoFiT: b of heads that it selects itself", "LoFiT", {"trained": ("component",)}, selection="lofit"
    ),
    "norms_biases": Line(
        _BIAS,
        "a free bias of all linear layers, and the scales of all norms",
        "biases of all linear layers",
        takes_sites=True,
        sites="all",
        norms=True,
        takes=_BIAS_FLAGS,
    ),
    "flap_bias": Line(
        "baselines.flap_bias:FlapBias",
        "FLAP's bias in closed form, from -calib_data",
        "FLAP's bias",
        takes_sites=True,
        takes=("stream",),
    ),
    "masked_lora": Line(_LORA, "LoRA inside the mask, zeros kept", "masked LoRA", {"masked": True}, takes=_LORA_FLAGS),
    "masked_dora": Line(_DORA, "DoRA inside the mask, zeros kept", "masked DoRA", {"masked": True}, takes=_LORA_FLAGS),
    "masked_full": Line("baselines.masked_full:MaskedFull", "all weights that are not zero", "masked full fine-tuning"),
    "lora": Line(_LORA, "LoRA on all linear layers; merged, it fills the zeros", "LoRA", takes=_LORA_FLAGS),
    "dora": Line(_DORA, "DoRA on all linear layers; merged, it fills the zeros", "DoRA", takes=_LORA_FLAGS),
    "eora": Line(
        "baselines.eora:EoRA",
        "EoRA's update of all linear layers in closed form, from -calib_data; merged, it fills the zeros",
        "EoRA",
        takes=("lora_rank",),
    ),
    "admm_update": Line(
        "baselines.admm_update:AdmmUpdate",
        "least squares inside the mask by ADMM, on -calib_data; zeros kept",
        "ADMM's weight update",
        takes=("stream",),
    ),
    "reconstruct": Line(
        "baselines.reconstruct:Reconstruction",
        "weights inside the mask trained to give each half layer's dense output on -calib_data; zeros kept",
        "block reconstruction",
        takes=("stream", "reconstruct_lr", "reconstruct_epochs"),
    ),
    "none": Line("baselines.nothing:Nothing", "restores nothing", "nothing"),
}
"""What -method takes."""

CONSTANTS = Line(_BIAS, "biases where the method itself has none", "biases", takes_sites=True, takes=_BIAS_FLAGS)
NORMS = Line("baselines.norms:NormScales", "scales of all norms", "norm scales")
