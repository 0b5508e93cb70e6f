"""Building blocks of settings (schedules, constrained types), and the settings of cameras, prompts and the export.

Other components keep their settings in a file of their own package. The export cannot: it writes through `nfsd3d.runs`,
which reads the configuration, and packages do not import in a circle.
"""
