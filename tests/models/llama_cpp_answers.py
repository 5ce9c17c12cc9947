"""What llama.cpp makes of texts; run by a Python that has llama-cpp-python and numpy, and needs nothing else of here.

python tests/models/llama_cpp_answers.py FILE.gguf '["a text", …]' NEW_TOKENS OUT.npz

OUT.npz holds, of text n: idsN, its tokens, madeN, NEW_TOKENS greedy ones after them, and logitsN (tokens, vocabulary).
"""

import json
import sys

import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama


def main(file: str, texts: list[str], new: int, out: str) -> None:
    # Keys and values in fp32: by default they are rounded to fp16.
    options = {"n_ctx": 256, "n_threads": 1, "type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
    model, found = Llama(file, logits_all=True, verbose=False, **options), {}
    for number, text in enumerate(texts):
        model.reset()
        ids = model.tokenize(text.encode(), add_bos=True, special=True)
        model.eval(ids)
        logits, made = np.array(model.scores[: len(ids)]), []
        while len(made) < new:
            made.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(made[-1:])
        found |= {f"ids{number}": np.array(ids), f"made{number}": np.array(made), f"logits{number}": logits}
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
