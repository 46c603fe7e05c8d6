#!/usr/bin/env bash
# Builds the sdist and from it the wheel, and uses the wheel as a stranger does: `tests/scripts/wheel.sh [PYTHON]`.
#
# In an environment of its own and in a folder with the user's own train.py: the library and porting without extras,
# then training with the extra `train`. Prints what is installed, in packages and megabytes.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() { echo "wheel.sh: $*" >&2; exit 1; }

# A copy of what git knows or would add: building leaves its files there.
mkdir "$folder/source" "$folder/user"
git -C "$root" ls-files -z --cached --others --exclude-standard --deduplicate |
  (cd "$root" && xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh | tar -c --null -T -) |
  tar -x -C "$folder/source"
"$python" -m venv "$folder/build" && "$folder/build/bin/pip" install --quiet build
"$folder/build/bin/python" -m build --outdir "$folder/dist" "$folder/source" >"$folder/build.log" 2>&1 ||
  { cat "$folder/build.log" >&2; fail "building failed"; }
wheel=$(echo "$folder"/dist/*.whl)

"$folder/build/bin/python" - "$folder"/dist/*.tar.gz "$wheel" <<'EOF'
import sys, tarfile, zipfile

sdist = {name.partition("/")[2] for name in tarfile.open(sys.argv[1]).getnames()}
wheel = zipfile.ZipFile(sys.argv[2]).namelist()
needed = ("tests/conftest.py", "docs/training.md", ".ci/run", "LICENSE", "CHANGELOG.md", "train/main.py")
assert sdist.issuperset(needed), set(needed) - sdist
tops = {name.partition("/")[0] for name in wheel if ".dist-info/" not in name}
assert tops == {"port_weights.py", "twins_jax"}, tops
sources = {name for name in sdist if name.endswith(".py") and name.startswith(("twins_jax/", "train/"))}
expected = {name if name.startswith("twins_jax/") else f"twins_jax/{name}" for name in sources}
assert {name for name in wheel if name.startswith("twins_jax/")} == {*expected, "twins_jax/py.typed"}
EOF

"$python" -m venv "$folder/venv"
bin=$folder/venv/bin
install() {
  "$bin/pip" install --quiet "$1"
  site=$("$bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  # Without pip and setuptools, which every environment has, and without what Python compiles.
  count=$("$bin/pip" list --format=freeze | grep -v -c -E '^(pip|setuptools)==')
  size=$(du -sm --exclude=__pycache__ --exclude='pip*' --exclude='setuptools*' "$site" | cut -f1)
  echo "$2: $count packages, $size MB"
}
cd "$folder/user"
echo 'print("my own train.py")' >train.py

install "$wheel" "without extras"
"$bin/python" - <<'EOF'
import importlib.metadata
import jax
import numpy as np
import safetensors.numpy
import twins_jax
from flax import nnx, traverse_util

assert importlib.metadata.version("twins-jax") == twins_jax.__version__
model = twins_jax.create_model("twins_svt_tiny", num_classes=10, rngs=nnx.Rngs(0))
params = traverse_util.flatten_dict(jax.device_get(twins_jax.get_params(model)), sep="/")
safetensors.numpy.save_file(params, "ours.safetensors")
EOF
"$bin/twins-port" ours.safetensors timm.safetensors
"$bin/twins-port" timm.safetensors orbax
"$bin/twins-port" orbax back.safetensors
cmp timm.safetensors back.safetensors
"$bin/python" - <<'EOF'
import numpy as np
import safetensors.numpy
import jax, twins_jax
from flax import traverse_util

params = traverse_util.flatten_dict(jax.device_get(twins_jax.get_params(twins_jax.from_pretrained("orbax"))), sep="/")
before = safetensors.numpy.load_file("ours.safetensors")
assert params.keys() == before.keys()
assert all(np.array_equal(params[name], before[name]) for name in before)
EOF
[[ $("$bin/python" -m train) == "my own train.py" ]] || fail "train is not the user's own"
code=0
message=$("$bin/twins-train" --help 2>&1) || code=$?
[[ $code == 2 && $message == "error: training needs "*"its extra \`train\`" && $message != *$'\n'* ]] || fail "exit code $code: $message"

install "$wheel[train]" "with the extra train"
"$bin/twins-train" --help >/dev/null
arguments=(--steps 2 --eval_every_steps 2 --data.workers 2 --distributed.mode off)
"$bin/twins-train" "${arguments[@]}" --workdir first | tail -n 1
"$bin/python" -m twins_jax.train.main "${arguments[@]}" --workdir second | tail -n 1
[[ -s first/metrics.jsonl && -s second/metrics.jsonl ]] || fail "a run wrote no metrics"
[[ $("$bin/python" -m train) == "my own train.py" ]] || fail "train is not the user's own"
echo "wheel.sh: all as it must be"
