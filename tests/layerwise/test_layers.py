"""The catalogue: values against formulas and PyTorch, gradients against finite differences."""

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentError, ShapeError
from needle.layerwise import CATALOGUE, TEST, TRAIN, Blob, LayerSpec
from needle.layerwise.layer import make_layer

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X4, X2 = normal(2, 4, 6, 5), normal(3, 5)
FILL = {"weight_filler": {"type": "xavier"}, "bias_filler": {"type": "gaussian", "std": 0.1}}
LABELS = np.float32([1, 0, 4])


def run(kind, bottoms, tops=1, phase=TRAIN, **options):
    """Return a layer after its forward pass, with its blobs."""
    spec = LayerSpec(
        "it", kind, [f"b{i}" for i in range(len(bottoms))], [f"t{i}" for i in range(tops)], options
    )
    layer = make_layer(spec, phase)
    bottom = [Blob.of(b.copy()) for b in bottoms]
    top = [Blob() for _ in range(tops)]
    layer.prepare(bottom, top)
    layer.forward(bottom, top)
    return layer, bottom, top


#: Layers with bottoms and options; those whose backward pass is compared with differences.
CASES = {
    "inner product": ("InnerProduct", [X4], {"num_output": 3, **FILL}),
    "inner product transposed": (
        "InnerProduct",
        [X2],
        {"num_output": 3, "transpose": True, "bias_term": False, **FILL},
    ),
    "convolution": (
        "Convolution",
        [X4],
        {"num_output": 6, "kernel_size": 3, "pad": 1, "stride": 2, "group": 2, **FILL},
    ),
    "convolution rectangle": (
        "Convolution",
        [X4],
        {"num_output": 2, "kernel_h": 2, "kernel_w": 3, "dilation": [1], **FILL},
    ),
    "deconvolution": (
        "Deconvolution",
        [X4],
        {"num_output": 3, "kernel_size": 4, "stride": 2, "pad": 1, **FILL},
    ),
    "max pooling": ("Pooling", [X4], {"kernel_size": 3, "stride": 2}),
    "mean pooling": ("Pooling", [X4], {"pool": "AVE", "kernel_size": 3, "stride": 2, "pad": 1}),
    "global pooling": ("Pooling", [X4], {"pool": "AVE", "global_pooling": True}),
    "relu": ("ReLU", [X2], {}),
    "leaky relu": ("ReLU", [X2], {"negative_slope": 0.1}),
    "prelu": ("PReLU", [X4], {}),
    "elu": ("ELU", [X2], {}),
    "sigmoid": ("Sigmoid", [X2], {}),
    "tanh": ("TanH", [X2], {}),
    "absolute value": ("AbsVal", [X2], {}),
    "bnll": ("BNLL", [X2], {}),
    "exp": ("Exp", [X2], {"base": 2.0, "scale": 0.5}),
    "log": ("Log", [np.abs(X2) + 1], {}),
    "power": ("Power", [np.abs(X2) + 1], {"power": 1.5, "scale": 2.0, "shift": 1.0}),
    "lrn": ("LRN", [X4], {"local_size": 3, "alpha": 0.5}),
    "lrn within": ("LRN", [X4], {"local_size": 3, "norm_region": "WITHIN_CHANNEL"}),
    "batch norm": ("BatchNorm", [X4], {}),
    "mvn": ("MVN", [X4], {}),
    "scale": ("Scale", [X4], {"bias_term": True, "filler": {"type": "gaussian"}}),
    "scale by a bottom": ("Scale", [X4, normal(4, 6)], {}),
    "bias": ("Bias", [X4], {}),
    "sum": ("Eltwise", [X2, X2 + 1], {"coeff": [2.0, -1.0]}),
    "product": ("Eltwise", [X2, X2 + 1], {"operation": "PROD"}),
    "maximum": ("Eltwise", [X2, normal(3, 5)], {"operation": "MAX"}),
    "concat": ("Concat", [X2, normal(3, 2)], {}),
    "flatten": ("Flatten", [X4], {}),
    "reshape": ("Reshape", [X4], {"shape": {"dim": [0, -1, 5]}}),
    "softmax": ("Softmax", [X2], {}),
    "softmax loss": ("SoftmaxWithLoss", [X2, LABELS], {}),
    "softmax loss ignoring": ("SoftmaxWithLoss", [X2, LABELS], {"ignore_label": 0}),
    "euclidean loss": ("EuclideanLoss", [X2, normal(3, 5)], {}),
    "sigmoid loss": ("SigmoidCrossEntropyLoss", [X2, (normal(3, 5) > 0).astype(np.float32)], {}),
    "hinge loss": ("HingeLoss", [X2, LABELS], {"norm": "L2"}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    """Of bottoms and parameters, along random directions."""
    kind, bottoms, options = CASES[name]
    ndl.manual_seed(1)
    layer, bottom, top = run(kind, bottoms, **options)
    weights = RNG.normal(size=top[0].shape)
    top[0].diff[...] = weights
    for blob in layer.blobs:
        blob.diff[...] = 0
    down = [i not in layer.fixed_bottoms for i in range(len(bottom))]
    layer.backward(top, down, bottom)

    def value():
        layer.forward(bottom, top)
        return float((top[0].data.astype(np.float64) * weights).sum())

    places = [b for b, d in zip(bottom, down, strict=True) if d]
    for blob in [*places, *(b for b in layer.blobs if b.lr_mult)]:
        diff = blob.diff.copy()
        direction = RNG.normal(size=blob.shape).astype(np.float32)
        start, h = blob.data.copy(), 2e-3
        blob.data[...] = start + h * direction
        above = value()
        blob.data[...] = start - h * direction
        below = value()
        blob.data[...] = start
        expected = (above - below) / (2 * h)
        actual = float((diff * direction).sum())
        size = np.abs(diff).sum() + 1
        assert abs(actual - expected) < 2e-3 * size, (blob.shape, actual, expected)


def test_every_layer_of_the_catalogue_is_tried():
    others = {"ArgMax", "Accuracy", "Data", "Dropout", "DummyData", "Embed", "HDF5Data"}
    others |= {"ImageData", "Input", "MemoryData", "Silence", "Slice", "SoftmaxLoss", "Split"}
    assert {kind for kind, _, _ in CASES.values()} | others == set(CATALOGUE)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "expected"),
    [(32, 3, 2, 0, 16), (32, 3, 2, 1, 17), (7, 2, 2, 0, 4), (6, 2, 2, 1, 4), (5, 5, 1, 0, 1)],
)
def test_pooling_rounds_up(size, kernel, stride, pad, expected):
    x = normal(1, 2, size, size)
    for kind in ("MAX", "AVE"):
        options = {"kernel_size": kernel, "stride": stride, "pad": pad, "pool": kind}
        _, _, (top,) = run("Pooling", [x], **options)
        assert top.shape == (1, 2, expected, expected)
        for i in range(expected):
            for j in range(expected):
                ends = [min(n * stride - pad + kernel, size + pad) for n in (i, j)]
                starts = [n * stride - pad for n in (i, j)]
                area = (ends[0] - starts[0]) * (ends[1] - starts[1])
                window = x[
                    0,
                    0,
                    max(starts[0], 0) : min(ends[0], size),
                    max(starts[1], 0) : min(ends[1], size),
                ]
                value = window.max() if kind == "MAX" else window.sum() / area
                np.testing.assert_allclose(top.data[0, 0, i, j], value, rtol=1e-5, atol=1e-6)


def test_batch_norm_keeps_sums_of_statistics():
    layer, bottom, top = run("BatchNorm", [X4], moving_average_fraction=0.9)
    np.testing.assert_allclose(top[0].data.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    layer.forward(bottom, top)
    mean, variance, factor = (b.data for b in layer.blobs)
    np.testing.assert_allclose(factor, [1.9])
    np.testing.assert_allclose(mean / factor, X4.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(variance / factor, X4.var(axis=(0, 2, 3), ddof=1), rtol=1e-4)
    layer.phase = TEST
    layer.forward(bottom, top)
    expected = (X4 - X4.mean((0, 2, 3), keepdims=True)) / np.sqrt(
        X4.var((0, 2, 3), ddof=1, keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(top[0].data, expected, rtol=1e-3, atol=1e-5)


def test_losses_are_normalised_as_they_are_told():
    scores, labels = normal(2, 3, 4, 5), RNG.integers(0, 3, (2, 1, 4, 5)).astype(np.float32)
    values = {
        kind: float(run("SoftmaxWithLoss", [scores, labels], normalization=kind)[2][0].data)
        for kind in ("VALID", "FULL", "BATCH_SIZE", "NONE")
    }
    np.testing.assert_allclose(values["NONE"], 40 * values["VALID"], rtol=1e-5)
    np.testing.assert_allclose(values["NONE"], 2 * values["BATCH_SIZE"], rtol=1e-5)
    assert values["FULL"] == values["VALID"]
    labels[0] = 7
    layer = run("SoftmaxWithLoss", [scores, labels], ignore_label=7)
    part = run("SoftmaxWithLoss", [scores[1:], labels[1:]])
    np.testing.assert_allclose(layer[2][0].data, part[2][0].data, rtol=1e-5)
    with pytest.raises(ArgumentError, match="no normalization 'HALF'"):
        run("SoftmaxWithLoss", [scores, labels], normalization="HALF")


def test_accuracy():
    scores = np.float32([[1, 5, 3], [2, 1, 3], [9, 8, 7], [0, 1, 2]])
    labels = np.float32([1, 0, 2, 2])
    assert run("Accuracy", [scores, labels])[2][0].data == 0.5
    assert run("Accuracy", [scores, labels], top_k=2)[2][0].data == 0.75
    assert run("Accuracy", [scores, labels], ignore_label=2)[2][0].data == 0.5


def test_dropout_slice_split_and_the_others():
    ndl.manual_seed(0)
    ones = np.ones((100, 100), np.float32)
    layer, bottom, top = run("Dropout", [ones], dropout_ratio=0.25)
    assert set(np.unique(top[0].data)) <= {0, np.float32(4 / 3)}
    assert 0.7 < (top[0].data != 0).mean() < 0.8
    top[0].diff[...] = 1
    layer.backward(top, [True], bottom)
    np.testing.assert_array_equal(bottom[0].diff, top[0].data)
    np.testing.assert_array_equal(run("Dropout", [ones], phase=TEST)[2][0].data, ones)
    parts = run("Slice", [X2], tops=2, slice_point=[2])[2]
    assert [p.shape for p in parts] == [(3, 2), (3, 3)]
    np.testing.assert_array_equal(parts[1].data, X2[:, 2:])
    layer, bottom, tops = run("Split", [X2], tops=3)
    for i, blob in enumerate(tops):
        blob.diff[...] = i
    layer.backward(tops, [True], bottom)
    np.testing.assert_array_equal(bottom[0].diff, np.full((3, 5), 3))
    words = np.float32([[0, 2], [1, 1]])
    layer, _, top = run("Embed", [words], input_dim=3, num_output=4, **FILL)
    expected = layer.blobs[0].data[words.astype(int)] + layer.blobs[1].data
    np.testing.assert_allclose(top[0].data, expected, rtol=1e-6)
    assert run("ArgMax", [X2])[2][0].data.ravel().tolist() == X2.argmax(1).tolist()


def test_bilinear_weights_interpolate():
    filler = {"weight_filler": {"type": "bilinear"}, "bias_term": False}
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    geometry = {"kernel_size": 4, "stride": 2, "pad": 1, "num_output": 1}
    _, _, (top,) = run("Deconvolution", [image], **geometry, **filler)
    inner = top.data[0, 0, 1:-1, 1:-1]
    np.testing.assert_allclose(np.diff(inner, axis=1), 0.5, rtol=1e-5)
    np.testing.assert_allclose(np.diff(inner, axis=0), 2.0, rtol=1e-5)


def test_mistakes():
    with pytest.raises(ArgumentError, match=r"'it' \(InnerProduct\) needs the option num_output"):
        run("InnerProduct", [X2])
    with pytest.raises(ArgumentError, match="no type 'Konvolution'"):
        run("Konvolution", [X4])
    with pytest.raises(ShapeError, match="takes"):
        run("Convolution", [X2], num_output=2, kernel_size=1)
    with pytest.raises(ArgumentError, match="no filler 'magic'"):
        run("InnerProduct", [X2], num_output=2, weight_filler={"type": "magic"})
    with pytest.raises(ArgumentError, match="equal parts"):
        run("Slice", [X2], tops=2)
    with pytest.raises(ArgumentError, match="local_size must be odd"):
        run("LRN", [X4], local_size=4)
