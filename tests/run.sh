#!/usr/bin/env bash
# All tests, offline, on the CPU, in two processes of one thread each: bash tests/run.sh [pytest's arguments]
set -u
cd "$(dirname "$0")/.."
more_requirements=tests/requirements.txt
. utils/common/environment.sh
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 CUDA_VISIBLE_DEVICES="" TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
ruff check . && ruff format --check -q . || exit 1
exec python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadscope --max-worker-restart 0 "$@"
