"""What may stand in a `.prototxt`: the messages of nets and solvers, as a schema in protobuf's own
language, and the classes that the protobuf library makes of it.

The text format knows fields by name, so their numbers are given in order. It covers the layers of
the catalogue, and what Caffe's own examples say besides: transformations and sources of data, which
needle's data sets stand for, and how a run is displayed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from needle.errors import MissingExtraError

SCHEMA = """
enum Phase { TRAIN TEST }
message BlobShape { repeated int64 dim }
message FillerParameter {
  enum VarianceNorm { FAN_IN FAN_OUT AVERAGE }
  optional string type; optional float value; optional float min; optional float max;
  optional float mean; optional float std; optional int32 sparse;
  optional VarianceNorm variance_norm;
}
message ParamSpec {
  enum DimCheckMode { STRICT PERMISSIVE }
  optional string name; optional DimCheckMode share_mode;
  optional float lr_mult; optional float decay_mult;
}
message NetStateRule {
  optional Phase phase; optional int32 min_level; optional int32 max_level;
  repeated string stage; repeated string not_stage;
}
message NetState { optional Phase phase; optional int32 level; repeated string stage }
message TransformationParameter {
  optional float scale; optional bool mirror; optional uint32 crop_size; optional string mean_file;
  repeated float mean_value; optional bool force_color; optional bool force_gray;
}
message LossParameter {
  enum NormalizationMode { FULL VALID BATCH_SIZE NONE }
  optional int32 ignore_label; optional NormalizationMode normalization; optional bool normalize;
}
enum Engine { DEFAULT CAFFE CUDNN }
message AccuracyParameter {
  optional uint32 top_k; optional int32 axis; optional int32 ignore_label;
}
message ArgMaxParameter { optional bool out_max_val; optional uint32 top_k; optional int32 axis }
message BatchNormParameter {
  optional bool use_global_stats; optional float moving_average_fraction; optional float eps;
}
message BiasParameter {
  optional int32 axis; optional int32 num_axes; optional FillerParameter filler;
}
message ConcatParameter { optional int32 axis; optional uint32 concat_dim }
message ConvolutionParameter {
  optional uint32 num_output; optional bool bias_term; repeated uint32 pad;
  repeated uint32 kernel_size; repeated uint32 stride; repeated uint32 dilation;
  optional uint32 pad_h; optional uint32 pad_w; optional uint32 kernel_h; optional uint32 kernel_w;
  optional uint32 stride_h; optional uint32 stride_w; optional uint32 group;
  optional FillerParameter weight_filler; optional FillerParameter bias_filler;
  optional Engine engine; optional int32 axis;
}
message DataParameter {
  enum DB { LEVELDB LMDB }
  optional string source; optional uint32 batch_size; optional uint32 rand_skip;
  optional DB backend;
  optional float scale; optional string mean_file; optional uint32 crop_size; optional bool mirror;
  optional uint32 prefetch;
}
message ImageDataParameter {
  optional string source; optional uint32 batch_size; optional bool shuffle;
  optional uint32 new_height;
  optional uint32 new_width; optional bool is_color; optional string root_folder;
}
message HDF5DataParameter {
  optional string source; optional uint32 batch_size; optional bool shuffle;
}
message MemoryDataParameter {
  optional uint32 batch_size; optional uint32 channels; optional uint32 height;
  optional uint32 width;
}
message DropoutParameter { optional float dropout_ratio }
message DummyDataParameter { repeated FillerParameter data_filler; repeated BlobShape shape }
message EltwiseParameter {
  enum EltwiseOp { PROD SUM MAX }
  optional EltwiseOp operation; repeated float coeff; optional bool stable_prod_grad;
}
message ELUParameter { optional float alpha }
message EmbedParameter {
  optional uint32 num_output; optional uint32 input_dim; optional bool bias_term;
  optional FillerParameter weight_filler; optional FillerParameter bias_filler;
}
message ExpParameter { optional float base; optional float scale; optional float shift }
message FlattenParameter { optional int32 axis; optional int32 end_axis }
message HingeLossParameter { enum Norm { L1 L2 } optional Norm norm }
message InnerProductParameter {
  optional uint32 num_output; optional bool bias_term; optional FillerParameter weight_filler;
  optional FillerParameter bias_filler; optional int32 axis; optional bool transpose;
}
message InputParameter { repeated BlobShape shape }
message LRNParameter {
  enum NormRegion { ACROSS_CHANNELS WITHIN_CHANNEL }
  optional uint32 local_size; optional float alpha; optional float beta;
  optional NormRegion norm_region; optional float k; optional Engine engine;
}
message MVNParameter {
  optional bool normalize_variance; optional bool across_channels; optional float eps;
}
message PoolingParameter {
  enum PoolMethod { MAX AVE STOCHASTIC }
  optional PoolMethod pool; optional uint32 pad; optional uint32 pad_h; optional uint32 pad_w;
  optional uint32 kernel_size; optional uint32 kernel_h; optional uint32 kernel_w;
  optional uint32 stride; optional uint32 stride_h; optional uint32 stride_w;
  optional Engine engine;
  optional bool global_pooling;
}
message PowerParameter { optional float power; optional float scale; optional float shift }
message PReLUParameter { optional FillerParameter filler; optional bool channel_shared }
message PythonParameter { optional string module; optional string layer; optional string param_str }
message ReLUParameter { optional float negative_slope; optional Engine engine }
message ReshapeParameter {
  optional BlobShape shape; optional int32 axis; optional int32 num_axes;
}
message ScaleParameter {
  optional int32 axis; optional int32 num_axes; optional FillerParameter filler;
  optional bool bias_term; optional FillerParameter bias_filler;
}
message SigmoidParameter { optional Engine engine }
message SliceParameter {
  optional int32 axis; repeated uint32 slice_point; optional uint32 slice_dim;
}
message SoftmaxParameter { optional Engine engine; optional int32 axis }
message TanHParameter { optional Engine engine }
message LayerParameter {
  optional string name; optional string type; repeated string bottom; repeated string top;
  optional Phase phase; repeated float loss_weight; repeated ParamSpec param;
  repeated bool propagate_down; repeated NetStateRule include; repeated NetStateRule exclude;
  optional TransformationParameter transform_param; optional LossParameter loss_param;
  optional AccuracyParameter accuracy_param; optional ArgMaxParameter argmax_param;
  optional BatchNormParameter batch_norm_param; optional BiasParameter bias_param;
  optional ConcatParameter concat_param; optional ConvolutionParameter convolution_param;
  optional DataParameter data_param; optional ImageDataParameter image_data_param;
  optional HDF5DataParameter hdf5_data_param; optional MemoryDataParameter memory_data_param;
  optional DropoutParameter dropout_param; optional DummyDataParameter dummy_data_param;
  optional EltwiseParameter eltwise_param; optional ELUParameter elu_param;
  optional EmbedParameter embed_param; optional ExpParameter exp_param;
  optional FlattenParameter flatten_param; optional HingeLossParameter hinge_loss_param;
  optional InnerProductParameter inner_product_param; optional InputParameter input_param;
  optional LRNParameter lrn_param; optional MVNParameter mvn_param;
  optional PoolingParameter pooling_param; optional PowerParameter power_param;
  optional PReLUParameter prelu_param; optional PythonParameter python_param;
  optional ReLUParameter relu_param; optional ReshapeParameter reshape_param;
  optional ScaleParameter scale_param; optional SigmoidParameter sigmoid_param;
  optional SliceParameter slice_param; optional SoftmaxParameter softmax_param;
  optional TanHParameter tanh_param;
}
message NetParameter {
  optional string name; repeated string input; repeated BlobShape input_shape;
  repeated int32 input_dim; optional bool force_backward; optional NetState state;
  optional bool debug_info; repeated LayerParameter layer;
}
message SolverParameter {
  enum SolverMode { CPU GPU }
  enum SnapshotFormat { HDF5 BINARYPROTO }
  enum SolverType { SGD NESTEROV ADAGRAD RMSPROP ADADELTA ADAM }
  optional string net; optional NetParameter net_param; optional string train_net;
  repeated string test_net; optional NetParameter train_net_param;
  repeated NetParameter test_net_param;
  optional NetState train_state; repeated NetState test_state; repeated int32 test_iter;
  optional int32 test_interval; optional bool test_compute_loss; optional bool test_initialization;
  optional float base_lr; optional int32 display; optional int32 average_loss;
  optional int32 max_iter; optional int32 iter_size; optional string lr_policy;
  optional float gamma;
  optional float power; optional float momentum; optional float weight_decay;
  optional string regularization_type; optional int32 stepsize; repeated int32 stepvalue;
  optional float clip_gradients; optional int32 snapshot; optional string snapshot_prefix;
  optional bool snapshot_diff; optional SnapshotFormat snapshot_format;
  optional SolverMode solver_mode; optional int32 device_id; optional int64 random_seed;
  optional string type; optional float delta; optional float momentum2; optional float rms_decay;
  optional bool debug_info; optional bool snapshot_after_train; optional SolverType solver_type;
}
"""

_TOKEN = re.compile(r"\w+|[{}]")
_PACKAGE = "needle.layerwise"


def message(name: str) -> Any:
    """Return a new message of the schema.

    Raises:
        MissingExtraError: protobuf is not installed (extra ``caffe``).
    """
    return _classes()[f"{_PACKAGE}.{name}"]()


@functools.cache
def _classes() -> dict[str, Any]:
    """Return the classes of all messages."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise MissingExtraError("protobuf", "caffe", "to read .prototxt files") from None
    file = descriptor_pb2.FileDescriptorProto(name="needle/layerwise.proto", package=_PACKAGE)
    file.syntax = "proto2"
    tokens = _TOKEN.finditer(SCHEMA)
    words = (match[0] for match in tokens)
    enums: set[str] = set()
    for kind in words:
        name = next(words)
        if kind == "enum":
            _read_enum(words, file.enum_type.add(name=name))
            enums.add(name)
        else:
            _read_message(words, file.message_type.add(name=name), set(enums))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return dict(message_factory.GetMessageClassesForFiles([file.name], pool))


def _read_enum(words: Iterator[str], enum: Any) -> None:
    """Read the values of an enumeration, up to its closing brace."""
    assert next(words) == "{"
    for number, value in enumerate(iter(words.__next__, "}")):
        enum.value.add(name=value, number=number)


def _read_message(words: Iterator[str], descriptor: Any, enums: set[str]) -> None:
    """Read the fields of a message, up to its closing brace."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    assert next(words) == "{"
    for number, label in enumerate(iter(words.__next__, "}"), 1):
        kind, name = next(words), ""
        if label == "enum":
            enums.add(kind)
            _read_enum(words, descriptor.enum_type.add(name=kind))
            continue
        name = next(words)
        field = descriptor.field.add(name=name, number=number)
        field.label = getattr(Field, f"LABEL_{label.upper()}")
        if kind in enums:
            own = {enum.name for enum in descriptor.enum_type}
            field.type = Field.TYPE_ENUM
            inner = f"{descriptor.name}.{kind}" if kind in own else kind
            field.type_name = f".{_PACKAGE}.{inner}"
        elif kind[0].isupper():
            field.type, field.type_name = Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
        else:
            field.type = getattr(Field, f"TYPE_{kind.upper()}")
