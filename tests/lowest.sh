#!/usr/bin/env bash
# All tests with the lowest versions that requirements.txt allows, in .venv-lowest: bash tests/lowest.sh [pytest's arguments]
set -eu
cd "$(dirname "$0")/.."
[ -x .venv-lowest/bin/python ] || python3 -m venv .venv-lowest
. .venv-lowest/bin/activate
# pip has no such choice. What these packages need themselves is as new as they allow.
python -m pip install -q uv
uv pip install -q --resolution lowest-direct -r requirements.txt -r tests/requirements.txt
exec bash tests/run.sh "$@"
