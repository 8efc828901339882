"""layerwise: nets of layers with a forward and a backward function, as in Caffe.

    from needle.layerwise import LayerSpec, Net, SGDSolver

Layers pass blobs to each other: values, and the gradient of the loss by them. A layer of one's own
says both in NumPy, and the layers of the catalogue are functions over tensors, differentiated by
needle. `as_function` and `as_layer` lead from one world to the other.
"""

from needle.layerwise.blob import Blob as Blob
from needle.layerwise.bridges import as_function as as_function, as_layer as as_layer
from needle.layerwise.layer import (
    CATALOGUE as CATALOGUE,
    TEST as TEST,
    TRAIN as TRAIN,
    Layer as Layer,
    LayerSpec as LayerSpec,
)
from needle.layerwise.net import Net as Net
from needle.layerwise.prototxt import read_net as read_net, read_solver as read_solver
from needle.layerwise.solver import (
    AdaGradSolver as AdaGradSolver,
    AdamSolver as AdamSolver,
    NesterovSolver as NesterovSolver,
    RMSPropSolver as RMSPropSolver,
    SGDSolver as SGDSolver,
    Solver as Solver,
    SolverConfig as SolverConfig,
)
