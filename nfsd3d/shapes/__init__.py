"""The procedural world of shapes: objects with exact geometry, colours, captions and renders.

The embedded prior is trained on it, and results are compared with its ground truth. Generator, distillation methods,
training loop and prior never import it: they depend on this world only through the prior's weights.
"""
