"""Fused attention for GPUs: LSA and GSA without their scores, and without copies of windows, in memory.

`choose` says what computes an attention, `lsa.lsa` and `gsa.gsa` are Pallas kernels (compiled by Triton), and
`cudnn.attend` is cuDNN's kernel. All of them are imported when they are used: Pallas takes a while.
"""
