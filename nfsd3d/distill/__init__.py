"""Score distillation: noise predictions of a prior become one gradient on the latents.

Knows neither the generator, nor the renderer, nor any model.
"""
