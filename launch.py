"""The command ``nfsd3d`` of a checkout: ``python launch.py --config configs/nfsd.yaml prompt="..."`` (see --help)."""

from nfsd3d.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
