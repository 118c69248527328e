"""Situated questions about 3D scenes: SQA3D on ScanNet, with a frozen language-model block after the fusion.

Importing this package imports neither mmdet3d nor plyfile nor scipy: they come with the extra ``[scenes]``.
"""
