"""Modules: layers and losses that hold their parameters, and how to compose them."""

from needle.nn import functional as functional, init as init
from needle.nn.activation import (
    GELU as GELU,
    LeakyReLU as LeakyReLU,
    LogSoftmax as LogSoftmax,
    ReLU as ReLU,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softmax as Softmax,
    Softplus as Softplus,
    Tanh as Tanh,
)
from needle.nn.attention import MultiheadAttention as MultiheadAttention
from needle.nn.containers import (
    Identity as Identity,
    ModuleDict as ModuleDict,
    ModuleList as ModuleList,
    Residual as Residual,
    Sequential as Sequential,
)
from needle.nn.convolution import Conv2d as Conv2d, ConvTranspose2d as ConvTranspose2d
from needle.nn.dropout import Dropout as Dropout
from needle.nn.embedding import Embedding as Embedding
from needle.nn.init import defaults as defaults
from needle.nn.linear import Linear as Linear
from needle.nn.loss import (
    BCEWithLogitsLoss as BCEWithLogitsLoss,
    CrossEntropyLoss as CrossEntropyLoss,
    HuberLoss as HuberLoss,
    L1Loss as L1Loss,
    MSELoss as MSELoss,
    NLLLoss as NLLLoss,
    SoftmaxLoss as SoftmaxLoss,
)
from needle.nn.module import Module as Module
from needle.nn.normalization import (
    BatchNorm1d as BatchNorm1d,
    BatchNorm2d as BatchNorm2d,
    GroupNorm as GroupNorm,
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
)
from needle.nn.parameter import Buffer as Buffer, Parameter as Parameter
from needle.nn.penalty import L1Penalty as L1Penalty, L2Penalty as L2Penalty
from needle.nn.pooling import (
    AdaptiveAvgPool2d as AdaptiveAvgPool2d,
    AdaptiveMaxPool2d as AdaptiveMaxPool2d,
    AvgPool2d as AvgPool2d,
    MaxPool2d as MaxPool2d,
)
from needle.nn.recurrent import GRU as GRU, LSTM as LSTM, RNN as RNN
from needle.nn.recurrent_cell import GRUCell as GRUCell, LSTMCell as LSTMCell, RNNCell as RNNCell
from needle.nn.reshape import Flatten as Flatten
from needle.nn.state import LoadReport as LoadReport
from needle.nn.summary import LayerSummary as LayerSummary, Summary as Summary, summary as summary
from needle.nn.transformer import (
    TransformerDecoder as TransformerDecoder,
    TransformerDecoderLayer as TransformerDecoderLayer,
    TransformerEncoder as TransformerEncoder,
    TransformerEncoderLayer as TransformerEncoderLayer,
)
