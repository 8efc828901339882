"""Definitions in Caffe's text format: nets like those of its examples train as they stand."""

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentError, DataError, MissingExtraError
from needle.layerwise import TEST, TRAIN, AdamSolver, Layer, Net, SGDSolver, read_net, read_solver
from needle.layerwise.schema import SCHEMA, message

LENET = """
name: "LeNet"
layer {
  name: "mnist" type: "Data" top: "data" top: "label"
  include { phase: TRAIN }
  transform_param { scale: 0.00390625 }
  data_param { source: "examples/mnist/mnist_train_lmdb" batch_size: 64 backend: LMDB }
}
layer {
  name: "mnist" type: "Data" top: "data" top: "label"
  include { phase: TEST }
  data_param { source: "examples/mnist/mnist_test_lmdb" batch_size: 100 backend: LMDB }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param {
    num_output: 20 kernel_size: 5 stride: 1
    weight_filler { type: "xavier" } bias_filler { type: "constant" }
  }
}
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 }
}
layer {
  name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 50 kernel_size: 5 weight_filler { type: "xavier" } }
}
layer {
  name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 }
}
layer {
  name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1"
  param { lr_mult: 1 } param { lr_mult: 2 }
  inner_product_param { num_output: 500 weight_filler { type: "xavier" } }
}
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer {
  name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } }
}
layer {
  name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"
  include { phase: TEST }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""

SOLVER = """
# The train/test net protocol buffer definition
net: "examples/mnist/lenet.prototxt"
test_iter: 2
test_interval: 10
base_lr: 0.01
momentum: 0.9
weight_decay: 0.0005
lr_policy: "inv"
gamma: 0.0001
power: 0.75
display: 100
max_iter: 12
snapshot: 5000
snapshot_prefix: "lenet"
solver_mode: CPU
"""


def digits(shared_data, batch):
    images = ndl.data.MNIST(shared_data, False)
    x = images.images[:800].reshape(-1, 1, 28, 28).astype(np.float32) / 256
    data = ndl.data.TensorDataset(x, np.asarray(images.labels[:800], np.float32))
    return ndl.data.DataLoader(data, batch, shuffle=True, drop_last=True)


def test_lenet_trains_as_it_stands(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "examples" / "mnist"
    folder.mkdir(parents=True)
    (folder / "lenet.prototxt").write_text(LENET)
    (folder / "lenet_solver.prototxt").write_text(SOLVER)
    ndl.manual_seed(0)
    solver = read_solver(
        folder / "lenet_solver.prototxt",
        data={"mnist": digits(shared_data, 64)},
        test_data={"mnist": digits(shared_data, 100)},
    )
    assert isinstance(solver, SGDSolver)
    assert solver.config.power == 0.75
    assert [b.shape for b in solver.net.params["conv2"]] == [(50, 20, 5, 5), (50,)]
    assert [b.lr_mult for b in solver.net.params["ip1"]] == [1, 2]
    assert sum(b.count for b in solver.net.learnable()) == 431_080  # LeNet's
    solver.solve()
    assert len(solver.losses) == 12
    assert solver.losses[-1] < 0.8 * solver.losses[0]
    assert [it for it, _ in solver.tests] == [0, 10]
    assert (tmp_path / "lenet_iter_12.safetensors").exists()


QUICK = """
input: "data"
input_shape { dim: 2 dim: 3 dim: 32 dim: 32 }
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param {
    num_output: 32 pad: 2 kernel_size: 5 stride: 1 weight_filler { type: "gaussian" std: 0.0001 }
  }
}
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "pool1" top: "pool1" }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1"
        lrn_param { local_size: 3 alpha: 5e-05 beta: 0.75 norm_region: WITHIN_CHANNEL } }
layer { name: "pool2" type: "Pooling" bottom: "norm1" top: "pool2"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool2" top: "pool2"
        dropout_param { dropout_ratio: 0.5 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool2" top: "ip"
        inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def test_a_net_for_deployment():
    ndl.manual_seed(0)
    net = Net(read_net(QUICK), TEST)
    assert net.blobs["pool1"].shape == (2, 32, 16, 16)
    assert net.blobs["pool2"].shape == (2, 32, 8, 8)
    prob = net.forward(data=np.ones((5, 3, 32, 32), np.float32))["prob"]
    np.testing.assert_allclose(prob.sum(axis=1), np.ones(5), rtol=1e-5)


def test_python_layers_must_be_given():
    text = """
    layer { name: "in" type: "Input" top: "x" input_param { shape: { dim: 3 } } }
    layer { name: "mine" type: "Python" bottom: "x" top: "y"
            python_param { module: "somewhere" layer: "Shift" param_str: "5" } }
    """

    class Shift(Layer):
        def reshape(self, bottom, top):
            top[0].reshape(*bottom[0].shape)

        def forward(self, bottom, top):
            top[0].data[...] = bottom[0].data + float(self.param_str)

    with pytest.raises(ArgumentError, match=r"pass layers=\{'Shift': Shift\}"):
        read_net(text)
    net = Net(read_net(text, {"Shift": Shift}))
    assert net.forward()["y"].tolist() == [5, 5, 5]


def test_solvers_by_their_names(tmp_path):
    net = 'net_param { layer { name: "d" type: "DummyData" top: "x" dummy_data_param '
    net += (
        '{ shape { dim: 2 dim: 3 } data_filler { type: "gaussian" } } } layer { name: "ip" type: '
    )
    net += '"InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 } } layer '
    net += '{ name: "l" type: "EuclideanLoss" bottom: "y" bottom: "y" top: "l" } }'
    assert isinstance(read_solver(f'type: "Adam" base_lr: 0.1 {net}'), AdamSolver)
    assert isinstance(read_solver(f"solver_type: ADAM base_lr: 0.1 {net}"), AdamSolver)
    assert isinstance(read_solver(f"base_lr: 0.1 {net}"), SGDSolver)
    with pytest.raises(ArgumentError, match="no solver 'Newton'"):
        read_solver(f'type: "Newton" base_lr: 0.1 {net}')
    with pytest.raises(ArgumentError, match="names no net"):
        read_solver("base_lr: 0.1")
    file = tmp_path / "solver.prototxt"
    file.write_text('net: "nowhere.prototxt"')
    with pytest.raises(DataError, match=r"'nowhere\.prototxt' is not there"):
        read_solver(file)


def test_mistakes(tmp_path):
    with pytest.raises(ArgumentError, match=r'is no NetParameter: .*"num_outputs"'):
        read_net('layer { name: "a" inner_product_param { num_outputs: 3 } }')
    with pytest.raises(DataError, match="cannot be read"):
        read_net(tmp_path / "missing.prototxt")
    with pytest.raises(ArgumentError, match="rules by stage are not supported"):
        read_net('layer { name: "a" include { stage: "deploy" } }')
    with pytest.raises(DataError, match=r"'mnist' \(Data\) has no data"):
        Net(read_net(LENET), TRAIN)


def test_the_schema_names_options_that_layers_have():
    """Every field of the schema can be set, and every message of it is used."""
    for word in SCHEMA.split("message ")[1:]:
        message(word.split()[0])


def test_the_extra_is_named(monkeypatch):
    from needle.layerwise import schema

    schema._classes.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "google.protobuf", None)
    with pytest.raises(MissingExtraError, match=r"needle-dl\[caffe\]"):
        read_net('layer { name: "a" }')
    schema._classes.cache_clear()


CONV = """
name: "convolution"
input: "data"
input_dim: 1
input_dim: 1
input_dim: 100
input_dim: 100
layer {
  name: "conv"
  type: "Convolution"
  bottom: "data"
  top: "conv"
  convolution_param {
    num_output: 3
    kernel_size: 5
    stride: 1
    weight_filler { type: "gaussian" std: 0.01 }
    bias_filler { type: "constant" value: 0 }
  }
}
"""


def test_looking_into_a_net_as_pycaffe_does(tmp_path):
    """As in Caffe's first notebook: only the import is another one."""
    import needle.layerwise as caffe

    (tmp_path / "conv.prototxt").write_text(CONV)
    net = caffe.Net(str(tmp_path / "conv.prototxt"), caffe.TEST)
    assert [(k, v.data.shape) for k, v in net.blobs.items()] == [
        ("data", (1, 1, 100, 100)),
        ("conv", (1, 3, 96, 96)),
    ]
    assert net.params["conv"][0].data.shape == (3, 1, 5, 5)
    im_input = np.random.default_rng(0).normal(size=(1, 1, 36, 48))
    net.blobs["data"].reshape(*im_input.shape)
    net.blobs["data"].data[...] = im_input
    net.forward()
    assert net.blobs["conv"].data.shape == (1, 3, 32, 44)
    before = net.blobs["conv"].data.copy()
    net.params["conv"][1].data[0] += 1.0
    net.forward()
    np.testing.assert_allclose(net.blobs["conv"].data[0, 0], before[0, 0] + 1, rtol=1e-5)
    np.testing.assert_array_equal(net.blobs["conv"].data[0, 1:], before[0, 1:])
