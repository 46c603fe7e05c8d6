"""Bytes of HBM of programs whose totals are known by hand, and their parts by the Python calls behind them."""

import pytest

from train.benchmark.hbm import Access, read_accesses
from train.benchmark.hlo import parse, stored_bytes
from train.benchmark.layer_bytes import LayerBytes, read_layer_bytes, table, total, with_floors
from train.benchmark.layer_costs import count
from twins_jax.config import variant_config

TILE = 8 * 128 * 4  # bytes of a tile of float32

TABLES = """
FileNames
1 "/x/train/step.py"
2 "/x/twins_jax/layers.py"
3 "/y/site-packages/optax/_src/transform.py"

FunctionNames
1 "make_train_step.<locals>.train_step"
2 "Block.__call__"
3 "Mlp.__call__"
4 "Linear.__call__"
5 "scale_by_adam.<locals>.update_fn"
6 "LocallyGroupedAttention.__call__"
7 "ClassificationTask.loss"
8 "TwinsClassifier.forward_features"
9 "TwinsClassifier.forward_head"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=1 end_line=1 column=1 end_column=2}
3 {file_name_id=2 function_name_id=3 line=1 end_line=1 column=1 end_column=2}
4 {file_name_id=2 function_name_id=4 line=1 end_line=1 column=1 end_column=2}
5 {file_name_id=3 function_name_id=5 line=1 end_line=1 column=1 end_column=2}
6 {file_name_id=2 function_name_id=6 line=1 end_line=1 column=1 end_column=2}
7 {file_name_id=1 function_name_id=7 line=1 end_line=1 column=1 end_column=2}
8 {file_name_id=2 function_name_id=8 line=1 end_line=1 column=1 end_column=2}
9 {file_name_id=2 function_name_id=9 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=7 parent_frame_id=2}
3 {file_location_id=8 parent_frame_id=3}
4 {file_location_id=2 parent_frame_id=4}
5 {file_location_id=3 parent_frame_id=5}
6 {file_location_id=4 parent_frame_id=6}
7 {file_location_id=6 parent_frame_id=5}
8 {file_location_id=4 parent_frame_id=8}
9 {file_location_id=9 parent_frame_id=3}
10 {file_location_id=4 parent_frame_id=10}
11 {file_location_id=5 parent_frame_id=2}

"""


def program(*instructions: str, computations: str = "") -> str:
    body = "\n".join(f"  {line}" for line in instructions)
    return f"HloModule jit_f\n{TABLES}\n{computations}\nENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def accesses(*instructions: str, computations: str = "") -> list[Access]:
    return list(read_accesses(parse(program(*instructions, computations=computations))))


def moved(*instructions: str, computations: str = "") -> list[tuple[str, int, int]]:
    found = accesses(*instructions, computations=computations)
    return [(access.instruction.name, access.read, access.written) for access in found]


@pytest.mark.parametrize(
    ("type_", "size"),
    [
        ("f32[]", 4),
        ("f32[8,128]{1,0:T(8,128)}", TILE),
        ("f32[3,9,129]{2,1,0:T(8,128)}", 3 * 2 * 2 * TILE),
        ("f32[129,9]{0,1:T(8,128)}", 2 * 2 * TILE),  # the first axis is the minor one
        ("bf16[64,56,56,64]{3,2,1,0:T(8,128)(2,1)}", 64 * 56 * 56 * 128 * 2),
        ("bf16[9,64]{1,0:T(8,128)(2,1)S(1)}", 0),
        ("f32[5]{0:T(128)}", 128 * 4),
        ("bf16[1000]{0:T(1024)(128)(2,1)}", 1024 * 2),
        ("pred[5,5]{1,0:T(8,128)(4,1)}", 8 * 128),
        ("f32[4]{0:T(2,128)}", 2 * 128 * 4),  # a tile of more axes than the array
        ("f32[3,0]{1,0:T(8,128)}", 0),
        ("(f32[8,128]{1,0:T(8,128)}, (bf16[2]{0}, f32[8,128]{1,0:T(8,128)S(1)}), token[])", TILE + 4),
    ],
)
def test_bytes_of_stored_arrays(type_: str, size: int) -> None:
    assert stored_bytes(type_) == size


X = "%x = f32[16,128]{1,0:T(8,128)} parameter(0)"


def test_operands_and_results_in_hbm_count() -> None:
    found = moved(
        X,
        "%y = f32[8,100]{1,0:T(8,128)} parameter(1)",
        "%b = f32[2,8,128]{2,1,0:T(8,128)} bitcast(%x)",
        "%a = f32[16,128]{1,0:T(8,128)S(1)} add(%x, %x)",  # read once, and the result stays on the chip
        "%t = (f32[16,128]{1,0:T(8,128)S(1)}, f32[8,100]{1,0:T(8,128)}) tuple(%a, %y)",
        "%g = f32[16,128]{1,0:T(8,128)S(1)} get-tuple-element(%t), index=0",
        "ROOT %m = f32[16,128]{1,0:T(8,128)} multiply(%g, %y)",
    )
    assert found == [("a", 2 * TILE, 0), ("m", TILE, 2 * TILE)]


def test_padding_is_what_the_numbers_do_not_fill() -> None:
    (access,) = accesses("%y = f32[8,100]{1,0:T(8,128)} parameter(0)", "ROOT %n = f32[8,100]{1,0:T(8,128)} negate(%y)")
    assert access.padding == 2 * (TILE - 8 * 100 * 4)
    assert not access.moves


def test_asynchronous_copies_count_once() -> None:
    found = accesses(
        X,
        "%s = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)",
        "%d = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%s)",
        "%p = ((f32[16,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8]}",
        "%q = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%p)",
        "%c = (f32[16,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) collective-permute-start(%x)",
        "%e = f32[16,128]{1,0:T(8,128)} collective-permute-done(%c)",
        "%h = (f32[16,128]{0,1:T(8,128)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)",
        "ROOT %g = f32[16,128]{0,1:T(8,128)} copy-done(%h)",
    )
    assert [(each.instruction.name, each.read, each.written) for each in found] == [
        ("s", 2 * TILE, 0),
        ("p", TILE, 0),
        ("c", 2 * TILE, 2 * TILE),
        ("h", 2 * TILE, 16 * TILE),
    ]
    # The first two bring to the chip what another instruction reads.
    assert [each.moves for each in found] == [False, False, False, True]


SLICED = """
%fused (p: f32[16,128], q: f32[1,128], i: s32[]) -> (f32[8,128], f32[16,128]) {
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  %q = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %s = f32[8,128]{1,0:T(8,128)S(1)} slice(%p), slice={[0:8], [0:128]}
  %a = f32[8,128]{1,0:T(8,128)} add(%s, %q)
  %u = f32[16,128]{1,0:T(8,128)} dynamic-update-slice(%p, %q, %i, %i)
  ROOT %t = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}) tuple(%a, %u)
}
"""


def test_fusion_counts_the_slices_that_it_needs() -> None:
    found = moved(
        X,
        "%y = f32[8,128]{1,0:T(8,128)} parameter(1)",
        "%i = s32[]{:T(128)S(6)} constant(0)",
        "ROOT %f = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}) fusion(%x, %y, %i), kind=kLoop, calls=%fused",
        computations=SLICED,
    )
    assert found == [("f", 2 * TILE, 2 * TILE)]  # a slice of x and y; the sum and the update


def test_fusion_of_moves_alone_is_a_move() -> None:
    fused = "%{} (p: f32[16,128]) -> f32[128,16] {{\n  %p = f32[16,128]{{1,0}} parameter(0)\n  {}\n}}\n"
    moves = fused.format("moves", "ROOT %t = f32[128,16]{1,0} transpose(%p), dimensions={1,0}")
    computes = fused.format("computes", "ROOT %t = f32[16,128]{1,0} negate(%p)")
    found = accesses(
        X,
        "%f = f32[128,16]{1,0} fusion(%x), kind=kLoop, calls=%moves",
        "ROOT %g = f32[16,128]{1,0} fusion(%x), kind=kLoop, calls=%computes",
        computations=moves + computes,
    )
    assert [access.moves for access in found] == [True, False]


def test_loop_counts_as_often_as_it_runs_without_its_condition() -> None:
    state = "(s32[], f32[16,128]{1,0:T(8,128)})"
    computations = f"""
%body (s: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {{
  %s = {state} parameter(0)
  %i = s32[]{{:S(6)}} get-tuple-element(%s), index=0
  %x = f32[16,128]{{1,0:T(8,128)}} get-tuple-element(%s), index=1
  %n = f32[16,128]{{1,0:T(8,128)}} negate(%x)
  ROOT %t = {state} tuple(%i, %n)
}}

%body.1 (s: (s32[], f32[16,128])) -> pred[] {{
  %s = {state} parameter(0)
  ROOT %less = pred[] compare(%s, %s), direction=LT
}}
"""
    found = moved(
        X,
        "%i = s32[] constant(0)",
        f"%t = {state} tuple(%i, %x)",
        f"ROOT %w = {state} while(%t), condition=%body.1, body=%body, "
        'backend_config={"known_trip_count":{"n":"5"}}',
        computations=computations,
    )
    assert found == [("n", 5 * 2 * TILE, 5 * 2 * TILE)]


def test_parts_of_a_step() -> None:
    """The forward and the backward pass apart; a copy takes the part of what it copies."""

    def metadata(frame: int, name: str = "jit(f)/jvp()/x") -> str:
        return f', metadata={{op_name="{name}" stack_frame_id={frame}}}'

    t = "f32[16,128]{1,0:T(8,128)}"
    parts = read_layer_bytes(
        program(
            X,
            f"%mlp = {t} negate(%x)" + metadata(6),
            f"%copy = {t} copy(%mlp)",
            f"%back = {t} negate(%copy)" + metadata(5, "jit(f)/transpose(jvp())/x"),
            f"%proj = {t} negate(%back)" + metadata(8),
            f"%branch = {t} negate(%proj)" + metadata(4),
            f"%logits = {t} negate(%branch)" + metadata(10),
            f"%adam = {t} negate(%logits)" + metadata(11),
            f"ROOT %rest = {t} negate(%adam)" + metadata(1),
        )
    )
    both = 2 * TILE
    assert parts == {
        "projections": LayerBytes(both, both),
        "MLP": LayerBytes(2 * both, 2 * both, both, both, moves=2 * both),
        "residual": LayerBytes(both, both),
        "head": LayerBytes(both, both),
        "AdamW": LayerBytes(both, both),
        "other": LayerBytes(both, both),
    }
    assert total(parts.values()).total == 16 * both


def test_a_transfer_onto_the_chip_counts_where_it_is_used() -> None:
    """And one from the chip where its array was computed."""
    on_chip, stored = "f32[16,128]{1,0:T(8,128)S(1)}", "f32[16,128]{1,0:T(8,128)}"
    forward, backward = (
        f', metadata={{op_name="jit(f)/{name}/x" stack_frame_id={frame}}}'
        for name, frame in (("jvp()", 6), ("transpose(jvp())", 8))
    )
    parts = read_layer_bytes(
        program(
            f"%x = {on_chip} parameter(0)",
            f"%mlp = {on_chip} negate(%x)" + forward,
            f"%out = ({stored}, {on_chip}, u32[]{{:S(2)}}) copy-start(%mlp)",
            f"%saved = {stored} copy-done(%out)",
            f"%in = ({on_chip}, {stored}, u32[]{{:S(2)}}) copy-start(%saved)",
            f"%again = {on_chip} copy-done(%in)",
            f"ROOT %proj = {on_chip} negate(%again)" + backward,
        )
    )
    assert parts == {
        "MLP": LayerBytes(forward_written=2 * TILE),
        "projections": LayerBytes(backward_read=2 * TILE),
    }


def test_floors_are_those_of_the_roofline() -> None:
    config = variant_config("twins_svt_tiny")
    parts = with_floors({"other": LayerBytes(forward_read=7)}, config, 10, 4, 64, 64)
    operations = count(config, 10, 4, 64, 64)
    floor = sum(operation.count * (operation.forward.bytes + operation.backward.bytes) for operation in operations)
    assert total(parts.values()) == LayerBytes(forward_read=7, floor=floor)
    assert parts["other"].floor == 0
    lines = table(parts)
    assert len(lines) == 1 + len(parts) + 1
    assert len({len(line) for line in lines if line.startswith(("MLP", "total"))}) == 1
