#!/usr/bin/env bash
# Runs the tests on the oldest or the newest versions that pyproject.toml allows:
#
#     tests/scripts/versions.sh all|quick oldest|newest PYTHON
#
# "oldest" takes the lower bound of each direct dependency (uv's lowest-direct), and belongs with the oldest Python;
# "newest" takes what pip takes, and belongs with the newest one. Without PyTorch, whose version is pinned: what
# compares with it is left out. "quick" is minutes of the models, the data and the command line; `wheel.sh` ports.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
usage="usage: versions.sh all|quick oldest|newest PYTHON"
tests=${1:?$usage} end=${2:?$usage} python=${3:?$usage}
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONPATH=$root

case $tests in
  all) paths=(tests) ;;
  quick) paths=(tests/test_packaging.py tests/models tests/train/data tests/train/test_{config,main}.py) ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
case $end in oldest | newest) ;; *) echo "$usage" >&2; exit 2 ;; esac

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
if [[ $end == oldest ]]; then
  "$python" -m venv "$folder/uv" && "$folder/uv/bin/pip" install --quiet uv
  "$folder/uv/bin/uv" pip install --quiet --python "$folder/venv/bin/python" --resolution lowest-direct \
    --requirements "$root/pyproject.toml" --extra test-core
else
  # The requirements alone: the tests run on the clone, and installing would leave files in it.
  "$python" - "$root/pyproject.toml" >"$folder/requirements.txt" <<'EOF'
import sys, tomllib

project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = project["optional-dependencies"]
found = [*project["dependencies"], *extras["test-core"], *extras["plot"], *extras["train"]]
print(*(requirement for requirement in found if not requirement.startswith("twins-jax")), sep="\n")
EOF
  "$folder/venv/bin/pip" install --quiet --requirement "$folder/requirements.txt"
fi
"$folder/venv/bin/pip" list --format=freeze 2>/dev/null | grep -E "^(jax|jaxlib|flax|orbax-checkpoint|grain|numpy)=="
cd "$root"
"$folder/venv/bin/python" -m pytest -p no:cacheprovider "${paths[@]}" -n 2 --dist loadfile
