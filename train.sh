#!/usr/bin/env bash
# Restore a pruned Llama: bash train.sh [-flag value ...]
#
# As it stands this prunes SmolLM2-135M-Instruct (from a PyPI package) to 50 % by Wanda, restores it, merges, proves, evaluates
# and reports: about 6 minutes on two CPU cores after installation. It shows that all works; it is not the paper's
# setting. For that, on a GPU node, put the value after "paper:" on each line. Arguments are passed on and win over
# what stands here, as in:  bash train.sh -lr 5e-4 -use_topk_heads 128
# So does what -recipe or -spec_task brings; with -config FILE nothing of what stands here counts.
# Every other flag: python RestoreLCC_train.py --help

BASE_MODEL_NAME=embedded    # paper: llama_7B (also llama_13B, llama_30B, llama2_7B, llama3_8B, vicuna_7B, a folder, a hub id)
PRUNED_MODEL_PATH=          # the pruned checkpoint, if there is one; empty: the next five lines make it
PRUNE_METHOD=wanda          # paper: wanda, sparsegpt, slimgpt
SPARSITY=0.5                # paper: 0.5, 2:4, and 0.2 for slimgpt
CALIB_DATA=bundled          # paper: c4
CALIB_SAMPLES=64            # paper: 128
CALIB_LENGTH=512            # paper: 2048

DATA_PATH=bundled           # paper: tatsu-lab/alpaca
NUM_TRAIN_SAMPLES=512       # paper: 2000
NUM_VALID_SAMPLES=64        # paper: 250
MAX_LENGTH=500              # paper: 500 tokens
SPEC_TASK=                  # paper: empty, or boolq, rte, arc_easy, arc_challenge, with NUM_TRAIN_SAMPLES= (its 100 samples)

RECIPE=                     # paper: empty; inside_mask: the best that keeps every zero; biases: every weight keeps its bits
NUM_COMPONENTS=10           # paper: 1; original release: 10
HEAD_SELECTION=             # paper: empty, which is contrastive, or with -method lofit its own; controls: gap, random
NUM_PROBE_SAMPLES=256       # paper: 1000
USE_TOPK_HEADS=0.25         # paper: 256 of LLaMA-7B's 1024 heads, which is this share
LR=1e-2                     # paper: 1e-3
NUM_EPOCH=2                 # paper: 3
BATCH_SIZE=8                # paper: 8
SEED=42                     # paper: 42

EVAL_TASKS=bundled          # paper: paper (seven tasks and WikiText-2)
EVAL_LIMIT=100              # paper: empty (all rows)
EVAL_DATA_DIR=              # offline task data, on a node without internet
PPL_WINDOW=1024             # paper: 2048 tokens

OUTPUT_DIR=output
DTYPE=bfloat16              # paper: bfloat16
DEVICE=auto                 # a GPU if there is one

set -u
cd "$(dirname "$0")"
. utils/common/environment.sh
arguments=" $* "
typed() { [[ $arguments =~ \ --?$1[\ =] ]]; }
typed config && exec python RestoreLCC_train.py "$@"
typed recipe && RECIPE=
typed recipe || [ -n "$RECIPE" ] && LR=  # a recipe has a rate of its own
typed spec_task && SPEC_TASK= DATA_PATH= NUM_TRAIN_SAMPLES=  # which has its own samples, and a number of them
[ -z "$SPEC_TASK" ] || DATA_PATH=
exec python RestoreLCC_train.py \
  -base_model_name "$BASE_MODEL_NAME" ${PRUNED_MODEL_PATH:+-pruned_model_path "$PRUNED_MODEL_PATH"} \
  -prune_method "$PRUNE_METHOD" -sparsity "$SPARSITY" \
  -calib_data "$CALIB_DATA" -calib_samples "$CALIB_SAMPLES" -calib_length "$CALIB_LENGTH" \
  ${DATA_PATH:+-data_path "$DATA_PATH"} ${SPEC_TASK:+-spec_task "$SPEC_TASK"} \
  ${NUM_TRAIN_SAMPLES:+-num_train_samples "$NUM_TRAIN_SAMPLES"} -num_valid_samples "$NUM_VALID_SAMPLES" \
  -max_length "$MAX_LENGTH" ${RECIPE:+-recipe "$RECIPE"} -num_components "$NUM_COMPONENTS" \
  ${HEAD_SELECTION:+-head_selection "$HEAD_SELECTION"} -num_probe_samples "$NUM_PROBE_SAMPLES" \
  -use_topk_heads "$USE_TOPK_HEADS" ${LR:+-lr "$LR"} -num_epoch "$NUM_EPOCH" -batch_size "$BATCH_SIZE" -seed "$SEED" \
  -eval_tasks "$EVAL_TASKS" ${EVAL_LIMIT:+-eval_limit "$EVAL_LIMIT"} \
  ${EVAL_DATA_DIR:+-eval_data_dir "$EVAL_DATA_DIR"} -ppl_window "$PPL_WINDOW" \
  -output_dir "$OUTPUT_DIR" -dtype "$DTYPE" -device "$DEVICE" "$@"
