"""Which triangle each pixel shows, and views that are differentiable with respect to vertices and texture."""
