"""From a prompt to a mesh: ``python launch.py --config configs/nfsd.yaml prompt="..."`` (``--help`` tells more)."""

from nfsd3d.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
