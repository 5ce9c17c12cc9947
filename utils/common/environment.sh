# Sourced by train.sh and tests/run.sh from the project's folder: a virtual environment with what they need.
# The active one is used if there is one, else .venv is made. Nothing is installed twice.
# $more_requirements: one more requirements file.

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: python3 is $(python3 -V 2>&1 | cut -d' ' -f2), RestoreLCC needs 3.11 or newer; install one, or activate an environment that has it" >&2
  exit 2
}
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
  [ -x .venv/bin/python ] || { echo "making the virtual environment .venv"; python3 -m venv .venv || exit 2; }
  . .venv/bin/activate
fi
needed="requirements.txt requirements-embedded.txt ${more_requirements:-}"
installed="${VIRTUAL_ENV:-$CONDA_PREFIX}/.restorelcc-$(cat $needed | cksum | cut -d' ' -f1)"
if [ ! -f "$installed" ]; then
  echo "installing what is needed into ${VIRTUAL_ENV:-$CONDA_PREFIX} (minutes, once)"
  python -m pip install -q -r requirements.txt ${more_requirements:+-r $more_requirements} || exit 2
  # Their own dependencies compile for minutes and are not used.
  python -m pip install -q --no-deps -r requirements-embedded.txt || exit 2
  touch "$installed"
fi
