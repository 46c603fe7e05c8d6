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
git -C "$root" ls-files -z --deduplicate >"$folder/tracked"
git -C "$root" ls-files -z --cached --others --exclude-standard --deduplicate |
  (cd "$root" && xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh | tar -c --null -T -) |
  tar -x -C "$folder/source"
"$python" -m venv "$folder/build" && "$folder/build/bin/pip" install --quiet build
"$folder/build/bin/python" -m build --outdir "$folder/dist" "$folder/source" >"$folder/build.log" 2>&1 ||
  { cat "$folder/build.log" >&2; fail "building failed"; }
wheel=$(echo "$folder"/dist/*.whl)

"$folder/build/bin/python" - "$folder" "$folder"/dist/*.tar.gz "$wheel" <<'EOF'
import pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
sdist = {name.partition("/")[2] for name in tarfile.open(sys.argv[2]).getnames()}
wheel = zipfile.ZipFile(sys.argv[3]).namelist()
tracked = {name for name in (folder / "tracked").read_text().split("\0") if name}
missing = {name for name in tracked - sdist if (folder / "source" / name).exists()}
assert tracked and not missing, f"the sdist lacks {sorted(missing)}"
tops = {name.partition("/")[0] for name in wheel if ".dist-info/" not in name}
assert tops == {"port_weights.py", "twins_jax"}, tops
sources = {name for name in sdist if name.endswith(".py") and name.startswith(("twins_jax/", "train/"))}
expected = {name if name.startswith("twins_jax/") else f"twins_jax/{name}" for name in sources}
data = {name for name in tracked if name.startswith("twins_jax/data/")}
assert {name for name in wheel if name.startswith("twins_jax/")} == {*expected, *data, "twins_jax/py.typed"}
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
import importlib.util
import jax
import numpy as np
import safetensors.numpy
import twins_jax
from flax import nnx, traverse_util

assert importlib.metadata.version("twins-jax") == twins_jax.__version__
extras = ("torch", "grain", "numba", "tensorflow_datasets", "sklearn", "onnx", "tyro", "matplotlib")
found = [name for name in extras if importlib.util.find_spec(name)]
assert not found, f"the install without extras brings {found}"
model = twins_jax.create_model("twins_svt_tiny", num_classes=10, rngs=nnx.Rngs(0))
params = traverse_util.flatten_dict(jax.device_get(twins_jax.get_params(model)), sep="/")
safetensors.numpy.save_file(params, "ours.safetensors")
EOF
"$bin/twins-port" ours.safetensors timm.safetensors
"$bin/twins-port" timm.safetensors orbax
"$bin/twins-port" orbax back.safetensors
cmp timm.safetensors back.safetensors
"$bin/twins-export" timm.safetensors model.jax --image_size 64 --batch_size 1
"$bin/python" - <<'EOF'
import json, pathlib, sys
import jax, numpy as np

images = json.loads(pathlib.Path("model.jax.json").read_text())["input"]
call = jax.export.deserialize(bytearray(pathlib.Path("model.jax").read_bytes())).call
assert call(np.zeros(images["shape"], images["dtype"])).shape == (1, 10)
assert "twins_jax" not in sys.modules
EOF
code=0 message=$("$bin/twins-export" timm.safetensors model.onnx 2>&1) || code=$?
[[ $code == 2 && $message == "error: exporting to ONNX needs "*"its extra \`onnx\`" ]] ||
  fail "twins-export without its extra: exit code $code: $message"
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
"$bin/python" -c 'from PIL import Image; Image.new("RGB", (90, 60), "red").save("red.png")'
"$bin/twins-predict" timm.safetensors red.png --out page --compilation_cache compiled >answers
[[ $(<answers) == "red.png: class "*%", class "*% && -s page/index.html && -n $(ls compiled) ]] ||
  fail "twins-predict: $(<answers)"
"$bin/python" -c 'import twins_jax; assert twins_jax.imagenet.class_names()[0] == "tench"'
[[ $("$bin/python" -m train) == "my own train.py" ]] || fail "train is not the user's own"
refuses() {  # an extra, then a command that must end with exit code 2 and one line that names the extra
  code=0 extra=$1
  message=$("${@:2}" --help 2>&1) || code=$?
  [[ $code == 2 && $message == "error: "*" needs "*"its extra \`$extra\`" && $message != *$'\n'* ]] ||
    fail "${*:2}: exit code $code: $message"
}
refuses train "$bin/twins-train"
refuses train "$bin/python" -m twins_jax.train.benchmark.aot
refuses train "$bin/python" -m twins_jax.train.benchmark.input_pipeline
refuses prepare "$bin/python" -m twins_jax.train.prepare
refuses plot "$bin/python" -m twins_jax.train.plot

install "$wheel[train]" "with the extra train"
for command in main prepare benchmark; do
  help=$("$bin/python" -m "twins_jax.train.$command" --help)
  [[ $help == "usage: python -m twins_jax.train.$command "* ]] || fail "$command: $help"
done
export JAX_COMPILATION_CACHE_DIR=$PWD/compiled
"$bin/twins-train" --help >/dev/null
arguments=(--steps 2 --eval_every_steps 2 --data.workers 2 --distributed.mode off)
"$bin/twins-train" "${arguments[@]}" --workdir first | tail -n 1
"$bin/python" -m twins_jax.train.main "${arguments[@]}" --workdir second | tail -n 1
[[ -s first/metrics.jsonl && -s second/metrics.jsonl ]] || fail "a run wrote no metrics"
for example in classify attention retrieval "own_training_loop --steps 2" "linear_probe --steps 2"; do
  read -r name flags <<<"$example"
  # shellcheck disable=SC2086 # several flags
  "$bin/python" "$folder/source/examples/$name.py" $flags >"$name.out" || fail "examples/$name.py"
  [[ -s $name.out ]] || fail "examples/$name.py printed nothing"
done
[[ $("$bin/python" -m train) == "my own train.py" ]] || fail "train is not the user's own"
echo "wheel.sh: all as it must be"
