"""A decode step of two kernels a layer, each a set of clusters: CUDA C++, compiled when a model is loaded.

    attention   a cluster of 8 blocks a head             LayerNorm, c_attn, attention, c_proj       source/attention.cu
    mlp         a cluster of 8 blocks for 256 units      LayerNorm, c_fc, GELU, c_proj              source/mlp.cu
    head        once a step                              LayerNorm, logits, their argmax            source/head.cu

A phase of a step costs more than what it computes: a kernel must end, and the next one must learn of it. Inside a
cluster the blocks hand over through each other's shared memory, so a layer has two phases instead of five. Between
kernels the residual stream stands in slots, one a cluster: the next kernel adds them in order, so all bits are those
of every other run. With several ranks a cluster writes its slot into every GPU's memory, with a flag beside each
value: the sum over the ranks is part of the sum over the slots, and no collective is called.
`plain.py` has the twin of each kernel. Hopper only; `nvrtc.why_not` and `shape.misfit` say what is missing.
"""
