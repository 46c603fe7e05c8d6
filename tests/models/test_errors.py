"""Bad input gives an error that names the argument, its value and what it must be."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import twins_jax
from twins_jax import InputError, TwinsBackbone, TwinsClassifier, TwinsSegmenter
from twins_jax.config import TwinsConfig, TwinsOptions, variant_config
from twins_jax.sharding import make_mesh

CONFIG = variant_config("twins_svt_tiny")

BAD_ARGUMENTS = [
    ({"in_channels": 0}, r"in_channels=0: must be an integer from 1 to 1048576"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0: must be a rate in \[0, 1\)"),
    ({"drop_path_rate": -0.1}, r"drop_path_rate=-0.1: must be a rate in \[0, 1\)"),
    ({"drop_path_rate": float("nan")}, r"drop_path_rate=nan: must be a rate in \[0, 1\)"),
    ({"dropout_rate": 1.5}, r"dropout_rate=1.5: must be a rate in \[0, 1\)"),
    ({"window_padding": "wrap"}, r"window_padding='wrap': must be one of zero, mask"),
    (
        {"attention_implementation": "flash"},
        r"attention_implementation='flash': must be one of auto, xla, pallas, cudnn",
    ),
    ({"dtype": jnp.int32}, r"dtype=.*int32.*: must be a floating-point dtype"),
    ({"dtype": "float33"}, r"dtype='float33': must be a floating-point dtype"),
    ({"dtype": None}, r"dtype=None: must be a floating-point dtype"),
    ({"param_dtype": "uint8"}, r"param_dtype='uint8': must be a floating-point dtype"),
    ({"dtype": "float128"}, r"dtype='float128': must be a floating-point dtype"),
    ({"dtype": {}}, r"dtype=\{\}: must be a floating-point dtype"),
    ({"in_channels": True}, r"in_channels=True: must be an integer from 1 to 1048576"),
    ({"in_channels": 3.0}, r"in_channels=3.0: must be an integer from 1 to 1048576"),
    ({"in_channels": "3"}, r"in_channels='3': must be an integer from 1 to 1048576"),
    ({"in_channels": None}, r"in_channels=None: must be an integer from 1 to 1048576"),
    ({"in_channels": 10**12}, r"in_channels=10{12}: must be an integer from 1 to 1048576"),
    ({"in_channels": 10**30}, r"in_channels=10{30}: must be an integer from 1 to 1048576"),
    ({"drop_path_rate": "0.1"}, r"drop_path_rate='0.1': must be a rate in \[0, 1\)"),
    ({"drop_path_rate": True}, r"drop_path_rate=True: must be a rate in \[0, 1\)"),
    ({"dropout_rate": None}, r"dropout_rate=None: must be a rate in \[0, 1\)"),
    ({"dropout_rate": [0.1]}, r"dropout_rate=\[0.1\]: must be a rate in \[0, 1\)"),
    ({"window_padding": np.zeros(2)}, r"window_padding=array\(\[0., 0.\]\): must be one of zero, mask"),
    ({"attention_implementation": None}, r"attention_implementation=None: must be one of auto, xla, pallas, cudnn"),
    ({"remat": "yes"}, r"remat='yes': must be True or False"),
    ({"stage_norms": 1}, r"stage_norms=1: must be True or False"),
    (
        {"drop_path": 0.1},
        r"drop_path=0.1: must be left out, it is no option; the options are .*; did you mean drop_path_rate\?",
    ),
    ({"rng": 0}, r"rng=0: must be left out, it is no option; the options are .*; did you mean rngs\?"),
    ({"nonsense": 1}, r"nonsense=1: must be left out, it is no option; the options are attention_implementation, .*"),
    ({"depths": (1, 1, 1, 1)}, r"depths=\(1, 1, 1, 1\): must be left out, it is no option; the options are .*"),
]


@pytest.mark.parametrize("create", [twins_jax.create_model, twins_jax.create_backbone])
@pytest.mark.parametrize(
    ("arguments", "message"), BAD_ARGUMENTS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_bad_argument(create: Callable[..., nnx.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        create("twins_svt_tiny", rngs=nnx.Rngs(0), **arguments)


@pytest.mark.parametrize("create", [twins_jax.create_model, twins_jax.create_backbone])
def test_unknown_variant(create: Callable[..., nnx.Module]) -> None:
    with pytest.raises(InputError, match=r"^name='twins_svt_huge': must be one of ") as caught:
        create("twins_svt_huge", rngs=nnx.Rngs(0))
    assert ", ".join(twins_jax.list_models()) in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, ["twins_svt_small"], b"twins_svt_small", ""])
def test_a_variant_that_is_no_name(name: Any) -> None:
    with pytest.raises(InputError, match=rf"^name={re.escape(repr(name))}: must be one of "):
        twins_jax.create_model(name, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "nearest"), [("twins_svt_smal", "twins_svt_small"), ("pcpvt_base", "twins_pcpvt_base")]
)
def test_the_nearest_variant_is_named(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"^name='{name}': must be one of twins_.*; did you mean {nearest}\?$"):
        twins_jax.create_backbone(name, rngs=nnx.Rngs(0))


def test_the_nearest_argument_is_named() -> None:
    with pytest.raises(InputError, match=r"^num_clases=10: must be left out, .*; did you mean num_classes\?$"):
        twins_jax.create_model("twins_svt_small", rngs=nnx.Rngs(0), num_clases=10)  # type: ignore[call-arg]


@pytest.mark.parametrize("num_classes", [-1, 10.0, "10", None, True, jnp.ones(()), 2**31, 10**12, 10**30], ids=repr)
def test_number_of_classes(num_classes: Any) -> None:
    with pytest.raises(
        InputError, match=rf"^num_classes={re.escape(repr(num_classes))}: must be an integer from 0 to 2147483647$"
    ):
        twins_jax.create_model("twins_svt_tiny", num_classes=num_classes, rngs=nnx.Rngs(0))


def test_an_integer_of_more_digits_than_python_shows() -> None:
    with pytest.raises(InputError, match=r"^num_classes=<int>: must be an integer from 0 to 2147483647$"):
        TwinsClassifier(CONFIG, 10**9999, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("rngs", [0, None, "0", nnx.Rngs(dropout=0), nnx.Rngs], ids=lambda rngs: str(rngs)[:12])
@pytest.mark.parametrize("create", [twins_jax.create_model, twins_jax.create_backbone])
def test_streams_of_a_new_model(create: Callable[..., nnx.Module], rngs: Any) -> None:
    with pytest.raises(
        InputError, match=r"^rngs=.*: must be nnx.Rngs with the stream 'params', such as nnx.Rngs\("
    ) as caught:
        create("twins_svt_tiny", rngs=rngs)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_is_no_stream() -> None:
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(InputError, match=r"^rngs=Array.*: must be nnx.Rngs with the stream 'params'.*$"):
            twins_jax.create_model("twins_svt_tiny", rngs=key)  # type: ignore[arg-type]
        # Every Dropout of the model would draw the same numbers from it.
        model = nnx.eval_shape(lambda: TwinsBackbone(CONFIG, rngs=nnx.Rngs(0)))
        with pytest.raises(InputError, match=r"^rngs=Array.*: must be nnx.Rngs with the stream 'dropout'.*$"):
            model(jnp.zeros((1, 32, 32, 3)), rngs=key)


def test_numbers_of_numpy_are_numbers() -> None:
    config = dataclasses.replace(
        CONFIG,
        embed_dims=[np.int64(dim) for dim in CONFIG.embed_dims],
        window_size=np.int32(7),
        in_channels=np.uint8(3),
        drop_path_rate=np.float32(0.25),
        dropout_rate=0,
        remat=np.bool_(False),
    )
    assert config == dataclasses.replace(CONFIG, drop_path_rate=0.25)
    assert hash(config) == hash(dataclasses.replace(CONFIG, drop_path_rate=0.25))
    assert {type(value) for value in (*config.embed_dims, config.window_size, config.in_channels)} == {int}
    assert {type(config.drop_path_rate), type(config.dropout_rate)} == {float}
    model = nnx.eval_shape(lambda: TwinsClassifier(config, np.int64(5), rngs=nnx.Rngs(0)))
    assert type(model.num_classes) is int


MODEL = nnx.eval_shape(lambda: TwinsClassifier(CONFIG, 5, rngs=nnx.Rngs(0)))
APPLY, PARAMS = twins_jax.split_model(MODEL)
IMAGES = jnp.zeros((1, 32, 32, 3))
KEYS_REFUSED = [
    *(0, nnx.Rngs(0), "key", jnp.zeros(2), [0, 0], np.zeros(2), np.zeros(2, np.int64), np.zeros(2, object)),
    *(make((n,), dtype=np.uint32) for n in (0, 1, 3, 4) for make in (np.zeros, jnp.zeros)),
    *(np.uint32(0), np.zeros((2, 2), np.uint32), jax.random.split(jax.random.key(0))),
]
WRONG_CALLS: dict[str, tuple[Callable[..., Any], Sequence[Any], str]] = {
    # function, wrong values of its first argument that has one, the argument's name
    "list_models": (twins_jax.list_models, [None, 3, ["twins*"]], "pattern"),
    "TwinsConfig": (
        lambda value: dataclasses.replace(CONFIG, depths=value),
        [2, None, "2222", [2, 2, 2, 2.5]],
        "depths",
    ),
    "window": (lambda value: dataclasses.replace(CONFIG, window_size=value), [True, 7.0, "7"], "window_size"),
    "TwinsBackbone": (lambda value: TwinsBackbone(value, rngs=nnx.Rngs(0)), ["twins_svt_small", None, {}], "config"),
    "TwinsClassifier": (lambda value: TwinsClassifier(value, 5, rngs=nnx.Rngs(0)), ["twins_svt_small", None], "config"),
    "TwinsSegmenter": (
        lambda value: TwinsSegmenter(value, "upernet", 5, rngs=nnx.Rngs(0)),
        ["twins_svt_small", None],
        "config",
    ),
    "TwinsRetinaNet": (lambda value: twins_jax.TwinsRetinaNet(value, 5, rngs=nnx.Rngs(0)), ["twins_svt", {}], "config"),
    "TwinsMaskRCNN": (
        lambda value: twins_jax.TwinsMaskRCNN(CONFIG, value, rngs=nnx.Rngs(0)),
        [0, -1, 2.0, "2", None, True],
        "num_classes",
    ),
    "create_detector": (
        lambda value: twins_jax.create_detector("twins_svt_tiny", head=value, rngs=nnx.Rngs(0)),
        ["ssd", None, 3, ["retinanet"]],
        "head",
    ),
    "create_segmenter": (
        lambda value: twins_jax.create_segmenter("twins_svt_tiny", head=value, rngs=nnx.Rngs(0)),
        ["fcn", None, 3, ["upernet"]],
        "head",
    ),
    "SegmentationPreprocessing": (
        lambda value: twins_jax.SegmentationPreprocessing(shorter=value),
        [31, 512.0, "512", True, None],
        "shorter",
    ),
    "DetectionPreprocessing": (
        lambda value: twins_jax.DetectionPreprocessing(divisor=value),
        [0, 32.0, "32", True, None],
        "divisor",
    ),
    "longer": (
        lambda value: twins_jax.SegmentationPreprocessing(longer=value),
        [511, 2048.0, "2048", None],
        "longer",
    ),
    "from_pretrained": (twins_jax.from_pretrained, [None, 3, "", b"weights.pth"], "source"),
    "segmenter_from_pretrained": (twins_jax.segmenter_from_pretrained, [None, 3, ""], "source"),
    "detector_from_pretrained": (twins_jax.detector_from_pretrained, [None, 3, ""], "source"),
    "backbone_from_pretrained": (twins_jax.backbone_from_pretrained, [None, 3, ""], "source"),
    "name": (lambda value: twins_jax.from_pretrained("w.pth", name=value), ["twins_svt", 3, ""], "name"),
    "ema": (lambda value: twins_jax.from_pretrained("w.pth", ema=value), ["yes", None], "ema"),
    "head": (
        lambda value: twins_jax.from_pretrained("w.pth", num_classes=value),
        [-1, 2.0, "2", True, 10**30],
        "num_classes",
    ),
    "rngs": (lambda value: twins_jax.from_pretrained("w.pth", rngs=value), [0, "0"], "rngs"),
    "option": (lambda value: twins_jax.from_pretrained("w.pth", num_clases=value), [10], "num_clases"),
    "get_params": (twins_jax.get_params, [None, {}, TwinsClassifier], "model"),
    "layer_groups": (twins_jax.layer_groups, [None, {}, nnx.Dict()], "model"),
    "stages_below": (lambda value: twins_jax.stages_below(MODEL, value), [None, -1, 5, 1.0, True], "stage"),
    "param_mask": (lambda value: twins_jax.param_mask(value, nnx.Param), [None, [1]], "params"),
    "selected": (lambda value: twins_jax.param_mask(PARAMS, value), [3, 1.5], "selected"),
    "method": (lambda value: twins_jax.split_model(MODEL, value), ["call", MODEL.forward_features], "method"),
    "get_batch_stats": (twins_jax.get_batch_stats, [None, {}], "model"),
    "set_params": (lambda value: twins_jax.set_params(value, PARAMS), [None, {}], "model"),
    "strict": (lambda value: twins_jax.set_params(MODEL, PARAMS, strict=value), [None, "no"], "strict"),
    "split_model": (twins_jax.split_model, [None, {}, "twins_svt_small"], "model"),
    "merge_model": (lambda value: twins_jax.merge_model(value, PARAMS), [None, MODEL, {}], "graphdef"),
    "batch_stats": (lambda value: twins_jax.merge_model(nnx.graphdef(MODEL), PARAMS, value), [0, []], "batch_stats"),
    "key": (lambda value: APPLY(PARAMS, IMAGES, value), KEYS_REFUSED, "key"),
    "call": (lambda value: MODEL(IMAGES, rngs=value), [0, "key", nnx.Rngs(params=0)], "rngs"),
    "save_pretrained": (lambda value: twins_jax.save_pretrained(value, "new"), [None, {}, TwinsClassifier], "model"),
    "overwrite": (
        lambda value: twins_jax.save_pretrained(MODEL, "new", overwrite=value),
        [None, "yes", 1],
        "overwrite",
    ),
    "folder": (lambda value: twins_jax.save_pretrained(MODEL, value), [None, "", "a.pth", "hf-hub:a/b"], "folder"),
    "push_to_hub": (lambda value: twins_jax.push_to_hub(MODEL, value), [None, 3], "repo_id"),
    "fsdp": (make_mesh, [True, 1.0, "1", None], "fsdp"),
    "devices": (lambda value: make_mesh(1, value), [[], 1, "cpu", [0]], "devices"),
}


@pytest.mark.parametrize(("call", "values", "argument"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_every_public_function_names_the_argument(
    call: Callable[..., Any], values: Sequence[Any], argument: str
) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"^{argument}=.+: must be .+$") as caught:
            call(value)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 700


def test_the_table_has_every_public_function() -> None:
    functions = {name for name in twins_jax.__all__ if callable(getattr(twins_jax, name))}
    with_own_tests = {
        "create_model",
        "create_backbone",
        "InputError",
        "BatchStats",
        "Detection",
        "Detections",
        "detect",
        "TwinsDetector",  # what its two kinds share
        "Params",
        "TwinsOptions",
        "FeatureInfo",
        "normalize",
        "preprocess",
        "Preprocessing",
        "classify",
        "segment",
        "Answer",
        "export_model",
        "ExportError",
    }
    assert functions - with_own_tests <= WRONG_CALLS.keys()


def test_classifier_with_stage_norms() -> None:
    with pytest.raises(InputError, match=r"^stage_norms=True: must be False"):
        twins_jax.create_model("twins_svt_tiny", stage_norms=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dims": (32, 64, 128)}, r"embed_dims=\(32, 64, 128\): must be four positive integers"),
        ({"depths": (2, 0, 2, 2)}, r"depths=\(2, 0, 2, 2\): must be four positive integers"),
        ({"mlp_ratios": (4, 4, 4, -4)}, r"mlp_ratios=\(4, 4, 4, -4\): must be four positive integers"),
        ({"num_heads": (1, 1, 1, 1, 1)}, r"num_heads=\(1, 1, 1, 1, 1\): must be four positive integers"),
        ({"sub_sampling_ratios": ()}, r"sub_sampling_ratios=\(\): must be four positive integers"),
        (
            {"num_heads": (1, 2, 5, 8)},
            r"num_heads=\(1, 2, 5, 8\): must be divisors of embed_dims, \(32, 64, 128, 256\)",
        ),
        ({"window_size": 1}, r"window_size=1: must be None or an integer from 2 to 1024$"),
        ({"window_size": 10**12}, r"window_size=10{12}: must be None or an integer from 2 to 1024$"),
        *(
            (
                {field: (1, 1, 1, 10**12)},
                rf"{field}=\(1, 1, 1, 10{{12}}\): must be four positive integers up to {most}, ",
            )
            for field, most in {
                **dict.fromkeys(("embed_dims", "num_heads", "mlp_ratios"), 2**20),
                **dict.fromkeys(("depths", "sub_sampling_ratios"), 2**10),
            }.items()
        ),
    ],
    ids=str,
)
def test_bad_architecture(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 64, 64, 4), "float32", r"images.shape=\(2, 64, 64, 4\): must be \[B, H, W, 3\]"),
        (
            (2, 3, 64, 64),
            "float32",
            r"images.shape=\(2, 3, 64, 64\): must be \[B, H, W, 3\], channels last: images.transpose\(0, 2, 3, 1\)",
        ),
        (
            (64, 64, 3),
            "float32",
            r"images.shape=\(64, 64, 3\): must be \[B, H, W, 3\], with a batch axis: images\[None\]",
        ),
        ((3, 64, 64), "float32", r"images.shape=\(3, 64, 64\): must be \[B, H, W, 3\]"),
        ((2, 3), "float32", r"images.shape=\(2, 3\): must be \[B, H, W, 3\]"),
        ((0, 3, 64, 64), "float32", r"images.shape=\(0, 3, 64, 64\): must be \[B, H, W, 3\], channels last: .*"),
        ((2, 31, 64, 3), "float32", r"images.shape=\(2, 31, 64, 3\): must be of H and W from 32"),
        ((2, 64, 31, 3), "float32", r"images.shape=\(2, 64, 31, 3\): must be of H and W from 32"),
        (
            (2, 64, 64, 3),
            "uint8",
            r"images.dtype='uint8': must be a floating-point dtype, of normalized values, as twins_jax.normalize .*",
        ),
        ((2, 64, 64, 3), "bool", r"images.dtype='bool': must be a floating-point dtype, of normalized values, .*"),
        ((2, 64, 64, 3), "complex64", r"images.dtype='complex64': must be a floating-point dtype, .*"),
    ],
)
def test_bad_images(shape: tuple[int, ...], dtype: str, message: str) -> None:
    images = np.zeros(shape, dtype)
    for make in (lambda: TwinsBackbone(CONFIG, rngs=nnx.Rngs(0)), lambda: TwinsClassifier(CONFIG, 5, rngs=nnx.Rngs(0))):
        with pytest.raises(InputError, match=f"^{message}$"):
            nnx.eval_shape(make)(images)


def test_list_models_has_the_names_of_timm() -> None:
    names = [f"twins_{family}_{size}" for family in ("pcpvt", "svt") for size in ("base", "large", "small")]
    assert twins_jax.list_models() == [*names, "twins_svt_tiny"]


def test_list_models_takes_a_wildcard() -> None:
    assert twins_jax.list_models("*_pcpvt_*") == [f"twins_pcpvt_{size}" for size in ("base", "large", "small")]
    assert twins_jax.list_models("swin*") == []


def test_options_are_the_fields_of_the_configuration_that_have_a_default() -> None:
    fields = {field.name for field in dataclasses.fields(TwinsConfig) if field.default is not dataclasses.MISSING}
    assert fields == TwinsOptions.__annotations__.keys()


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
