"""The paper's tables and figures, measured anew: ``hash3d reproduce``.

One module per experiment, each as :mod:`hash3d_cuda.reproduce.base` says.
"""
