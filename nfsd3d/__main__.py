"""``python -m nfsd3d``: the same command as ``nfsd3d``."""

from nfsd3d.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
