"""The procedural world of shapes: objects with exact geometry, colours, captions and renders.

It exists so that the embedded prior has something to learn and so that results can be measured against the truth.
The generator, the distillation methods, the training loop and the prior's code never import it: the teacher knows
this world only through its weights.
"""
